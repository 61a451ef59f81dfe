#!/usr/bin/env python3
"""Many honest members at once: each connects, calls once a second, and connects again when it is asked to leave.

  crowd.py --server HOST:PORT --certs DIR --members N [--seconds S]

DIR holds ca.pem and m0.pem, m0.key, m1.pem, ... Prints how many members were served, how long the slowest waited for its
first answer, and how often one had to connect again. Exit status 1: a member was never served.
"""
import argparse
import os
import sys
import threading
import time

from http2 import Client


class Member(threading.Thread):
    def __init__(self, options, number, until):
        super().__init__(daemon=True)
        self.options, self.until, self.number = options, until, number
        self.first, self.answers, self.connections, self.failures = None, 0, 0, 0

    def session(self):
        certs = self.options.certs
        client = Client(self.options.server, os.path.join(certs, "ca.pem"), os.path.join(certs, f"m{self.number}"), 20)
        self.connections += 1
        try:
            while time.monotonic() < self.until and not client.leaves:
                client.check()
                self.answers += 1
                if self.first is None:
                    self.first = time.monotonic()
                time.sleep(1)
        finally:
            client.close()

    def run(self):
        while time.monotonic() < self.until:
            try:
                self.session()
            except OSError:
                self.failures += 1
                time.sleep(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("--certs", required=True)
    parser.add_argument("--members", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    begin = time.monotonic()
    members = [Member(options, i, begin + options.seconds) for i in range(options.members)]
    for member in members:
        member.start()
    for member in members:
        member.join()
    served = [member for member in members if member.first is not None]
    waits = sorted(member.first - begin for member in served) or [0.0]
    print(f"{len(served)} of {len(members)} members served; first answer after {waits[len(waits) // 2]:.1f} s (median), "
          f"{waits[-1]:.1f} s (slowest); {sum(m.answers for m in members)} answers on "
          f"{sum(m.connections for m in members)} connections, {sum(m.failures for m in members)} tries failed")
    sys.exit(0 if len(served) == len(members) else 1)


if __name__ == "__main__":
    main()
