#!/usr/bin/env python3
"""Flips one bit in a file of a stopped coordinator's store, in the middle of a run, and starts it again: in blobs of
states, updates and frozen factors, uploads, the database and its log, and the ledger's copy.

flips.py [--seconds N] [--seed N] [--kind KIND] [--file PART]

Held: the run ends with the bytes of the undisturbed one; or fedlorad does not start, or the run fails, with a reason, and
the run ends with those bytes once the bit is back and the run is resumed; or members
end because a download has another digest, and go on when the file is restored. Not held: other bytes, or no end.
Without --seconds one bit is flipped, a short form for CI. --file takes only files whose path contains PART.
"""
import argparse
import collections
import os
import random
import shutil
import subprocess
import sys
import time

from federation import NAMES, Federation, Place, Wrong, report, undisturbed

ROUNDS = 5


def files(federation, part):
    """All files of the store by kind."""
    kinds = collections.defaultdict(list)
    for folder, _, names in os.walk(federation.store):
        for name in names:
            path = os.path.join(folder, name)
            kind = os.path.relpath(folder, federation.store) if folder != federation.store else name
            if os.path.getsize(path) and part in path and not name.endswith((".lock", "-shm")):
                kinds[kind].append(path)
    return kinds


def flip(path, at, bit):
    """Returns the byte before and after."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))
    return byte, byte ^ 1 << bit


def byte_at(path, at):
    if not os.path.exists(path) or os.path.getsize(path) <= at:
        return None
    with open(path, "rb") as file:
        file.seek(at)
        return file.read(1)[0]


def until(federation, wanted, seconds=120):
    """Waits until wanted() or the members have ended."""
    end = time.time() + seconds
    while not wanted():
        if time.time() > end:
            raise Wrong(f"nothing happens for {seconds} s: {federation.tail()}")
        if federation.joined():
            return
        time.sleep(0.01)


def logged(federation, text):
    with open(federation.log, "rb") as log:
        return text in log.read()


def repair(federation, copy, path, wrong):
    """The operator restores the file, or after a refused start the whole store, from a backup, and resumes the run."""
    federation.stop()
    if path:
        shutil.copy(os.path.join(copy, os.path.relpath(path, federation.store)), path)
    else:
        shutil.rmtree(federation.store)
        shutil.copytree(copy, federation.store)
    if not federation.start():
        raise Wrong(f"{wrong}; with the backup fedlorad does not start: {federation.tail()}")
    done = federation.admin("resume", "r")
    if done.returncode and b"is finished" not in done.stderr:
        raise Wrong(f"{wrong}; resume: {done.stderr.decode()}")


def attack(place, kind, number, rnd, part):
    """The kind of file, what happened, and the last state."""
    federation = Federation(place, f"{kind}-{number}", kind, ROUNDS)
    try:
        federation.begin()
        after = rnd.randrange(1, ROUNDS)
        until(federation, lambda: logged(federation, b"event=round.closed run=r round=%d " % after))
        time.sleep(rnd.random() * 0.2)
        federation.stop()
        found = files(federation, part)
        if not found:
            return "none", "no file", None
        sort = rnd.choice(sorted(found))
        newest = sorted(found[sort], key=os.path.getmtime)
        path = rnd.choice(newest[-4:] if rnd.random() < 0.7 else newest)
        where = (path, rnd.randrange(os.path.getsize(path)), rnd.randrange(8))
        copy = federation.dir + "/copy"
        shutil.copytree(federation.store, copy)
        _, flipped = flip(*where)
        outcome = "went on"
        try:
            if not federation.start():
                outcome = "refused to start"
                repair(federation, copy, None, federation.tail())
            else:
                try:
                    until(federation, lambda: logged(federation, b"event=run.failed") or logged(federation, b"event=run.unreadable"))
                except Wrong as wrong:  # members check each download, and end
                    if "has a different digest" not in str(wrong):
                        raise
                    outcome = "refused by members by name"
                    repair(federation, copy, path, "refused")
                    for name in NAMES:
                        if federation.joins[name].poll() is not None:
                            federation.join(name)
                if logged(federation, b"event=run.failed"):
                    outcome = "failed by name"
                    repair(federation, copy, path, "failed")
                elif logged(federation, b"event=run.unreadable"):
                    outcome = "set aside by name"
                    repair(federation, copy, None, "set aside")
            federation.wait(600)
            federation.stop()
            if "/blobs/" in path and byte_at(*where[:2]) == flipped:
                flip(*where)  # a file that nothing needed any more
            state = federation.check()
        except Wrong as wrong:
            raise Wrong(f"{os.path.relpath(path, federation.store)} byte {where[1]} bit {where[2]}: {wrong}")
        return sort, outcome, state
    finally:
        federation.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", default="fed-sb")
    parser.add_argument("--file", default="")
    args = parser.parse_args()
    rnd, place = random.Random(args.seed), Place()
    part = args.file or ("" if args.seconds else "blobs")
    tried = held = 0
    begun, table = time.time(), collections.Counter()
    try:
        wanted = undisturbed(place, args.kind, ROUNDS)
        while time.time() - begun < args.seconds or tried < 1:
            tried += 1
            try:
                name, outcome, state = attack(place, args.kind, tried, rnd, part)
                good = state == wanted or outcome == "no file"
                held += good
                table[name, outcome if good else "OTHER BYTES"] += 1
            except (Wrong, subprocess.TimeoutExpired) as wrong:
                table["?", "NOT HELD"] += 1
                print(f"federation {tried}: {wrong}", flush=True)
    finally:
        place.close()
    for (name, outcome), count in sorted(table.items()):
        print(f"  {count:5d}  {name}: {outcome}")
    report("flips", tried, held, "flipped bits")


if __name__ == "__main__":
    sys.exit(main())
