#!/usr/bin/env python3
"""Finds the settings of the demo, which are alpha and learning rate of each method, by one search.

  bench/run.sh search DIR [--methods flora,fedit,fed-sb] [--alphas 16,32] [--rates 2e-3,4e-3]
                          [--seeds 1,2,3] [--keep N] [--base PATH]

Every pair of alpha and learning rate is trained in the demo's federation (its data, ranks, rounds and
steps) with the first seed. The --keep pairs with the highest validation accuracy (if equal, with the smallest
loss) are trained with the other seeds too, and the pair with the best mean is chosen. Fed-SB has no alpha,
so more rates are tried instead. Validation rows share no pair of symptom and detail with the test rows
(deploy/demo_data.py). DIR/search.jsonl has one line per training; a second call trains only what is
missing.
"""

import argparse
import json
import os
import subprocess

BENCH = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(BENCH, "..", "build", "release")
TARGETS = "q,k,v,o,gate,up,down"
RATES = [1e-3, 2e-3, 4e-3]
# name: alphas, rates, further options of bench_methods. Ranks are in the order east, north, south, west.
METHODS = {
    "flora": ([16, 32, 64, 128], RATES, ["--ranks", "8,4,16,32"]),
    "fedit": ([8, 16, 32, 64], RATES, ["--rank", "4"]),
    "fed-sb": ([0], [1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2], ["--rank", "64", "--option", "basis=weights"]),
}


def read_results(path):
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def label_of(method, alpha, rate):
    return f"{method} alpha {alpha:g} lr {rate:g}"


def train(options, method, alpha, rate, seed):
    path = os.path.join(options.dir, "search.jsonl")
    label = label_of(method, alpha, rate)
    for row in read_results(path):
        if row["label"] == label and row["seed"] == seed:
            return row
    command = [options.program, "--base", options.base, "--data", os.path.join(options.dir, "data")]
    command += ["--test", os.path.join(options.dir, "data", "val.jsonl"), "--method", method]
    command += ["--targets", TARGETS, "--steps", "12", "--batch", "8", "--seq", "64", "--rounds", "3"]
    command += ["--schedule", "constant", "--check-rows", "1", "--threads", str(options.threads)]
    command += ["--lr", f"{rate:g}", "--seed", str(seed), "--label", label, "--out", path]
    command += METHODS[method][2] + (["--alpha", f"{alpha:g}"] if alpha else [])
    if "basis=weights" in METHODS[method][2]:
        command += ["--frozen", basis(options)]
    subprocess.run(command, check=True)
    return read_results(path)[-1]


def basis(options):
    path = os.path.join(options.dir, "basis.safetensors")
    if not os.path.exists(path):
        program = os.path.join(BUILD, "fedlora")
        command = [program, "basis", "--base", options.base, "--rank", "64", "--targets", TARGETS]
        subprocess.run(command + ["-o", path], check=True)
    return path


def search(options, method):
    """Rows (-seeds, -mean accuracy, mean loss, alpha, rate), best first."""
    alphas, rates, _ = METHODS[method]
    if options.alphas and alphas != [0]:
        alphas = [float(alpha) for alpha in options.alphas.split(",")]
    if options.rates:
        rates = [float(rate) for rate in options.rates.split(",")]
    first = {(a, r): train(options, method, a, r, options.seeds[0]) for a in alphas for r in rates}
    kept = sorted(first, key=lambda pair: (-first[pair]["accuracy"], first[pair]["loss"]))[: options.keep]
    table = []
    for pair, row in first.items():
        rows = [row]
        if pair in kept:
            rows += [train(options, method, *pair, seed) for seed in options.seeds[1:]]
        loss = sum(r["loss"] for r in rows) / len(rows)
        accuracy = sum(r["accuracy"] for r in rows) / len(rows)
        table.append((-len(rows), -accuracy, loss, *pair))
    return sorted(table)


def main():
    parser = argparse.ArgumentParser(description="Searches alpha and learning rate of the demo's methods.")
    parser.add_argument("dir")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--alphas", default="", help="instead of the method's own list")
    parser.add_argument("--rates", default="", help="instead of the method's own list")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--keep", type=int, default=3, help="pairs trained with every seed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--base", default=os.path.expanduser("~/.cache/fedlora/SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--program", default=os.path.join(BUILD, "bench_methods"))
    options = parser.parse_args()
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    os.makedirs(options.dir, exist_ok=True)
    data = os.path.join(BENCH, "..", "deploy", "demo_data.py")
    rows = ["--val-rows", "128"]
    subprocess.run(["python3", data, os.path.join(options.dir, "data"), *rows], check=True, stdout=subprocess.DEVNULL)
    print("| method | alpha | learning rate | validation loss | accuracy | seeds |\n|---|--:|--:|--:|--:|--:|")
    for method in options.methods.split(","):
        for seeds, accuracy, loss, alpha, rate in search(options, method):
            print(f"| {method} | {f'{alpha:g}' if alpha else '-'} | {rate:g} | {loss:.3f} | {-100 * accuracy:.1f} % | {-seeds} |")


if __name__ == "__main__":
    main()
