#!/usr/bin/env python3
"""Lets single system calls of fedlorad fail or end it, at every place of a whole run in turn (or at places drawn from a
seed), and starts it again where it ended.

syscalls.py [--seconds N] [--seed N] [--kind KIND]

A federation has held when it ends with the bytes of the undisturbed one, its blobs have their digests, its database is
whole, and SIGTERM ends fedlorad with status 0. Without --seconds two places are tried, a short form for CI.
"""
import argparse
import errno
import os
import random
import signal
import subprocess
import sys
import time

from federation import BUILD, NAMES, Federation, Place, Wrong, report

ROUNDS = 2
ERRORS = {"fsync": ["EIO", "ENOSPC"], "fdatasync": ["EIO", "ENOSPC"], "rename": ["EIO", "ENOSPC"], "unlink": ["EIO", "EACCES"],
          "write": ["ENOSPC", "EIO"], "pwrite64": ["ENOSPC", "EIO"], "ftruncate": ["EIO"], "open": ["EMFILE", "EIO"],
          "mkdir": ["ENOSPC"], "mmap": ["ENOMEM"]}
LIBRARY = os.path.join(BUILD, "libfedlora_fault.so")


def create(federation):
    """As an operator would: again after an error, and after a restart."""
    for _ in range(8):
        failed = federation.create()
        if not failed:
            return
        restart(federation)
    raise Wrong("run create: " + failed)


def restart(federation):
    """Returns 1 if the coordinator had ended."""
    if federation.lives():
        return 0
    federation.process = None
    federation.restart()
    return 1


def attack(place, kind, number, env):
    """The last state, and how often the coordinator had ended."""
    federation = Federation(place, f"{kind}-{number}", kind, ROUNDS)
    ended = 0
    try:
        if not federation.start(env):
            ended += restart(federation)
        create(federation)
        for name in NAMES:
            federation.join(name)

        def tick():
            nonlocal ended
            ended += restart(federation)
            time.sleep(0.02)
        federation.wait(600, tick)
        ended += restart(federation)
        status = federation.stop(signal.SIGTERM)
        if status not in (0, -signal.SIGKILL):  # the fault may be a kill in the last step
            raise Wrong(f"SIGTERM: status {status}")
        return federation.check(), ended
    finally:
        federation.close()


def plan(counts, rnd):
    places = []
    for call, count in counts.items():
        for n in range(1, count + 1):
            places += [(call, n, how) for how in ("kill", "killafter")]
            places += [(call, n, str(getattr(errno, name))) for name in ERRORS[call]]
    rnd.shuffle(places)
    return places


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", default="fedit-adam")
    args = parser.parse_args()
    if not os.path.exists(LIBRARY):
        print(f"{LIBRARY} is missing: build the target fedlora_fault")
        sys.exit(77)
    place, preload = Place(), {"LD_PRELOAD": LIBRARY}
    tried = held = kills = errors = 0
    begun = time.time()
    try:
        counted = place.dir + "/counts"
        wanted, _ = attack(place, args.kind, 0, {**preload, "FEDLORA_FAULT_COUNT": counted})
        counts = {line.split()[0]: int(line.split()[1]) for line in open(counted)}
        places = plan(counts, random.Random(args.seed))
        print(f"calls of one run: {counts}; {len(places)} places", flush=True)
        for call, n, how in places if args.seconds else places[:2]:
            if args.seconds and time.time() - begun > args.seconds:
                break
            tried, is_kill = tried + 1, how.startswith("kill")
            kills, errors = kills + is_kill, errors + (not is_kill)
            try:
                state, _ = attack(place, args.kind, tried, {**preload, "FEDLORA_FAULT": f"{call}:{n}:{how}"})
                held += state == wanted
                if state != wanted:
                    print(f"{call}:{n}:{how}: OTHER BYTES", flush=True)
            except (Wrong, subprocess.TimeoutExpired) as wrong:
                print(f"{call}:{n}:{how}: {wrong}", flush=True)
    finally:
        place.close()
    report("syscalls", tried, held, f"faults, {kills} kills and {errors} errors of {len(places)} places")


if __name__ == "__main__":
    sys.exit(main())
