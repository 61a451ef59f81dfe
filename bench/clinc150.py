#!/usr/bin/env python3
"""Writes CLINC150 as a federation in which each member has the questions of one domain.

  clinc150.py SOURCE OUT [--intents N] [--per-intent N]

SOURCE contains data_full.json and domains.json of github.com/clinc/oos-eval. Files: OUT/members/DOMAIN.jsonl for each
of the ten domains, OUT/val.jsonl and OUT/test.jsonl, of rows {"prompt", "completion"}. The rows of val and test have
all intents in turn, so that the first rows of a file are a fair sample.
"""

import argparse
import json
import os
import random


def row_of(text, intent):
    return {"prompt": f"{text}\nIntent:", "completion": " " + intent.replace("_", " ")}


def write_rows(path, rows):
    with open(path + ".new", "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    os.replace(path + ".new", path)


def in_turn(rows, intents, count):
    """`count` rows of every intent: the first row of each intent, then the second of each, and so on."""
    of = {intent: [text for text, x in rows if x == intent] for intent in intents}
    return [row_of(of[intent][n], intent) for n in range(count) for intent in intents]


def read(source, name):
    with open(os.path.join(source, name), encoding="utf-8") as file:
        return json.load(file)


def main():
    parser = argparse.ArgumentParser(description="Writes CLINC150 with one domain for each member.")
    parser.add_argument("source", help="folder of data_full.json and domains.json")
    parser.add_argument("out")
    parser.add_argument("--intents", type=int, default=15, help="intents of each domain (default %(default)s, all)")
    parser.add_argument("--per-intent", type=int, default=3, help="rows of each intent in val and test (default %(default)s)")
    options = parser.parse_args()
    data = read(options.source, "data_full.json")
    domains = {name: intents[: options.intents] for name, intents in read(options.source, "domains.json").items()}
    members = os.path.join(options.out, "members")
    os.makedirs(members, exist_ok=True)
    for name in sorted(domains):
        rows = [row_of(text, x) for text, x in data["train"] if x in set(domains[name])]
        random.Random(name).shuffle(rows)
        write_rows(os.path.join(members, name + ".jsonl"), rows)
    intents = [intent for name in sorted(domains) for intent in domains[name]]
    random.Random(0).shuffle(intents)
    for split in ("test", "val"):
        rows = in_turn(data[split], intents, options.per_intent)
        write_rows(os.path.join(options.out, split + ".jsonl"), rows)
        print(f"{split}: {len(rows)} rows of {len(intents)} intents")


if __name__ == "__main__":
    main()
