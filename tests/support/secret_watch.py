#!/usr/bin/env python3
"""Reads a coordinator's pages again and again while a run "r" with a secret draw goes on, for tests/e2e/private.c:
secret_watch.py PORT.

Ends with status 1 and a line when a page shows anything of who was drawn. Ended by SIGTERM: status 0, if it has seen
the run in training, and with another status else.
"""
import re
import signal
import sys
import time
import urllib.request

NEVER = {
    "/metrics": (r'fedlora_updates_total\{run="r",outcome="(counted|late)"\} [1-9]', r"fedlora_run_awaited\{",
                 r"fedlora_(received|sent)_bytes_total\{[^}]*\} [1-9]", r"fedlora_run_train_loss\{",
                 r'fedlora_calls_total\{method="(Submit|SubmitOffset|NextTask|Fetch|Hello)",code="OK"\}',
                 r'fedlora_store_bytes\{kind="updates"\} [1-9]'),
    "/status.json": (r"update\.received", r'"updates"', r"train_loss", r'"received_bytes":[1-9]', r'"run":"r","seen'),
    "/": (r"update\.received", r"training loss", r"m[0-9] \(", r"in r<"),
}
seen = 0


def end(*_):
    sys.exit(0 if seen > 2 else 3)


def main():
    global seen
    signal.signal(signal.SIGTERM, end)
    while True:
        for path, patterns in NEVER.items():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}{path}", timeout=5) as reply:
                    text = reply.read().decode()
            except OSError:
                continue  # the test kills the coordinator and starts it again
            seen += path == "/metrics" and 'fedlora_run_phase{run="r",phase="training"} 1' in text
            for pattern in patterns:
                found = re.search(pattern, text)
                if found:
                    sys.exit(f"secret_watch: {path}: {found.group(0)}")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
