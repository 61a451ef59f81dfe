#!/usr/bin/env python3
"""Kills fedlorad and members at random moments of real federations, for every method and both units of privacy.

kills.py [--seconds N] [--seed N] [KIND...]

A federation has held when it ends with the bytes of the undisturbed one (private ones: with one charge a round, noise
differs), its blobs have their digests, and its database is whole. Without --seconds each KIND runs once; the default
is two kinds, a short form for CI.
"""
import argparse
import random
import sys
import time

from federation import NAMES, PLAIN, Federation, Place, Wrong, report, undisturbed

SECRET = ("client-dp", "example-dp")


class Killer:
    def __init__(self, federation, rnd, most):
        self.federation, self.rnd, self.left = federation, rnd, most
        self.coordinator = self.members = 0

    def kill_member(self, name):
        process = self.federation.joins[name]
        if process.poll() is None:
            process.kill()
            process.wait()
            self.members += 1
            self.federation.join(name)

    def kill_coordinator(self):
        self.federation.stop()
        self.coordinator += 1
        if self.rnd.random() < 0.2:
            time.sleep(self.rnd.random())
        self.federation.restart()

    def tick(self):
        if self.left <= 0:
            time.sleep(0.05)
            return
        self.left -= 1
        time.sleep(self.rnd.choice([0.02, 0.05, 0.1, 0.2, 0.4, 0.8]) * self.rnd.random() * 2)
        x = self.rnd.random()
        if x < 0.65:
            self.kill_coordinator()
        elif x < 0.9:
            self.kill_member(self.rnd.choice(NAMES))
        else:  # a power cut at everyone
            self.federation.stop()
            self.coordinator += 1
            for name in NAMES:
                self.kill_member(name)
            self.federation.restart()

def attack(place, kind, rounds, number, rnd, kills):
    federation = Federation(place, f"{kind}-{number}", kind, rounds)
    killer = Killer(federation, rnd, kills)
    try:
        federation.begin()
        federation.wait(600, killer.tick)
        federation.stop()
        return federation.check(), killer
    finally:
        federation.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("kind", nargs="*")
    args = parser.parse_args()
    rnd, place = random.Random(args.seed), Place()
    kinds = args.kind or (PLAIN + ["fedit-adam"] + list(SECRET) if args.seconds else ["fedit-adam"])
    rounds, kills = (12, 25) if args.seconds else (3, 5)
    tried = held = coordinator = members = 0
    begun, wanted = time.time(), {}
    try:
        while True:
            for kind in kinds:
                if kind not in wanted:
                    wanted[kind] = undisturbed(place, kind, min(rounds, 8) if kind in SECRET else rounds)
                tried += 1
                try:
                    state, killer = attack(place, kind, min(rounds, 8) if kind in SECRET else rounds, tried, rnd, kills)
                    coordinator, members = coordinator + killer.coordinator, members + killer.members
                    good = kind in SECRET or state == wanted[kind]
                    held += good
                    print(f"{time.time() - begun:5.0f} s  {kind}: {killer.coordinator} kills of fedlorad, {killer.members} of members: "
                          + ("held" if good else f"OTHER BYTES (seed {args.seed}, federation {tried})"), flush=True)
                except Wrong as wrong:
                    print(f"{time.time() - begun:5.0f} s  {kind}: {wrong}", flush=True)
                if args.seconds and time.time() - begun > args.seconds:
                    break
            if time.time() - begun > args.seconds:
                break
    finally:
        place.close()
    report("kills", tried, held, f"federations, {coordinator} kills of fedlorad, {members} of members")


if __name__ == "__main__":
    sys.exit(main())
