#!/usr/bin/env python3
"""Runs Prometheus and Alertmanager on a coordinator for tests/e2e/alerts.c: prometheus_watch.py PORT RULES DIR.

Writes DIR/firing again and again until it is ended: "NAME OBJECT" of each alert that Alertmanager has delivered as
firing, sorted, one a line; the object is the member or the id of the certificate. Before the first scrape there is no
such file. The rules are a copy in which nothing waits, and in which a member is away after 4 seconds.
"""
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

children = []
firing = {}


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes what Alertmanager delivers."""

    def do_POST(self):
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for alert in told["alerts"]:
            labels = alert["labels"]
            name = " ".join(filter(None, [labels["alertname"], labels.get("member", labels.get("id"))]))
            firing[name] = alert["status"] == "firing"
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def spawn(folder, *command):
    with open(os.path.join(folder, "monitoring.log"), "a", encoding="utf-8") as log:
        children.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=folder))


def write(folder, name, text):
    path = os.path.join(folder, name)
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(path + ".new", path)
    return path


def shorten(rules):
    with open(rules, encoding="utf-8") as file:
        text = re.sub(r"\n +for: \S+", "", file.read())
    shorter = text.replace("fedlora_member_seen_seconds > 3600", "fedlora_member_seen_seconds > 4")
    assert shorter != text, "the alert of a member that is away has changed"
    return shorter


def is_scraped(prometheus):
    url = f"http://127.0.0.1:{prometheus}/api/v1/query?query=up%7Bjob%3D%22fedlora%22%7D"
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            result = json.load(reply)["data"]["result"]
    except OSError:
        return False
    return bool(result) and result[0]["value"][1] == "1"


def start(port, rules, folder):
    """The port of Prometheus."""
    prometheus, alertmanager, receiver = free_port(), free_port(), free_port()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", receiver), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    write(folder, "rules.yml", shorten(rules))
    write(folder, "alertmanager.yml", f"""
route: {{receiver: test, group_wait: 0s, group_interval: 1s, repeat_interval: 1h}}
receivers: [{{name: test, webhook_configs: [{{url: "http://127.0.0.1:{receiver}/", send_resolved: true}}]}}]
""")
    write(folder, "prometheus.yml", f"""
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [rules.yml]
alerting: {{alertmanagers: [{{static_configs: [{{targets: ["127.0.0.1:{alertmanager}"]}}]}}]}}
scrape_configs: [{{job_name: fedlora, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}]
""")
    spawn(folder, "prometheus-alertmanager", "--config.file=alertmanager.yml", "--storage.path=alertmanager",
          f"--web.listen-address=127.0.0.1:{alertmanager}", "--cluster.listen-address=")
    spawn(folder, "prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=prometheus",
          f"--web.listen-address=127.0.0.1:{prometheus}", "--rules.alert.resend-delay=1s")
    return prometheus


def end(*_):
    for child in children:
        child.kill()
    sys.exit(0)


def main():
    port, rules, folder = sys.argv[1:4]
    signal.signal(signal.SIGTERM, end)
    prometheus = start(port, rules, folder)
    while not is_scraped(prometheus):
        time.sleep(0.2)
    while True:
        write(folder, "firing", "".join(name + "\n" for name in sorted(firing) if firing[name]))
        time.sleep(0.2)


if __name__ == "__main__":
    main()
