#!/usr/bin/env python3
"""Makes a small base model and rows for a first simulation: deploy/simulate_data.py DIR

DIR/base        a random base (bench/make_base.py tiny), which needs no download
DIR/rows.jsonl  2,000 training rows of ten topics; a row repeats its topic's sequence from a random place
DIR/test.jsonl  200 rows of the same topics

A topic's sequence is random, so a model learns it only from members that have rows of the topic.
"""

import json
import os
import random
import subprocess
import sys

TOPICS, PERIOD, LENGTH, VOCAB = 10, 8, 32, 200
MAKE_BASE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bench", "make_base.py")


def write_rows(path, sequences, count, rng):
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(count):
            topic, start = rng.randrange(TOPICS), rng.randrange(PERIOD)
            ids = [sequences[topic][(start + i) % PERIOD] for i in range(LENGTH)]
            file.write(json.dumps({"input_ids": ids, "topic": f"topic-{topic}"}) + "\n")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = sys.argv[1]
    rng = random.Random(1)
    sequences = [[rng.randrange(3, VOCAB) for _ in range(PERIOD)] for _ in range(TOPICS)]
    os.makedirs(folder, exist_ok=True)
    subprocess.run([sys.executable, MAKE_BASE, "tiny", os.path.join(folder, "base")], check=True)
    write_rows(os.path.join(folder, "rows.jsonl"), sequences, 2000, rng)
    write_rows(os.path.join(folder, "test.jsonl"), sequences, 200, rng)


if __name__ == "__main__":
    main()
