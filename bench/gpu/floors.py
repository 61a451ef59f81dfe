#!/usr/bin/env python3
"""Counts what one step of LoRA training (rank 16, all seven projections) costs on an H200, before and without
measuring it: floating point operations, bytes between memory and processor, launched kernels.

  bench/gpu/floors.py                    a table of the targets
  bench/gpu/floors.py --operations 8b 8x2048    one step by operation
  bench/gpu/floors.py --results FILE     the targets beside the lines of JSON that bench_gpu and peft_train.py print

needed    the products that the mathematics needs, at the rate of the products: no implementation is faster
limit     each operation as it is built here takes the longer of its products and its bytes
expected  the limit at 85 %, and at least 2.5 us for a kernel in a recorded step
demanded  what a measurement has to reach
"""

import argparse
import json

BYTES_A_SECOND = 4.3e12  # H200, a copy
FLOPS = 790e12  # H200, bfloat16 products in cuBLAS
# Rates of attention kernels on mma.sync with 128 values a head and long rows. Heads of 64 reach 0.8 of them, rows of
# 2048 tokens 0.85, and rows of 512, which have few tiles, half.
ATTENTION, ATTENTION_BACK = 350e12, 300e12
RANK = 16
SECONDS_A_KERNEL = 2.5e-6
ACHIEVED = 0.85

MODELS = {  # d: width, f: of the gated unit
    "135m": dict(name="SmolLM2-135M", layers=30, d=576, f=1536, heads=9, kv=3, head=64, vocab=49152, tied=1),
    "1b": dict(name="TinyLlama-1.1B", layers=22, d=2048, f=5632, heads=32, kv=4, head=64, vocab=32000, tied=0),
    "8b": dict(name="Llama-3.1-8B", layers=32, d=4096, f=14336, heads=32, kv=8, head=128, vocab=128256, tied=0),
}  # fmt: skip
DEMANDED_MS = {
    ("135m", "4x512"): 8.2,
    ("135m", "8x2048"): 68,
    ("1b", "4x512"): 25,
    ("1b", "8x2048"): 240,
    ("8b", "4x512"): 128,
    ("8b", "8x2048"): 1090,
}
# Times of PEFT on the same card, in the same call.
DEMANDED_PEFT = {("135m", "4x512"): 4.0, ("1b", "4x512"): 2.5, ("8b", "8x2048"): 1.5}
DEMANDED_COMPILED = 1.2
DEMANDED_MEMORY = 0.6  # of PEFT's, eager


def linear_sites(m):
    """(rows, columns, modules, bytes of an output value) of the four weights of a layer. The outputs of o and down
    are added to the float32 residual."""
    q, kv = m["heads"] * m["head"], m["kv"] * m["head"]
    return [
        (q + 2 * kv, m["d"], 3, 2),
        (m["d"], q, 1, 8),
        (2 * m["f"], m["d"], 2, 2),
        (m["d"], m["f"], 1, 8),
    ]


def trained_values(m):
    return m["layers"] * sum(RANK * (n + k * modules) for n, k, modules, _ in linear_sites(m))


def operations(m, rows, length, recompute=False):
    """(name, FLOP, bytes, FLOP a second, kernels) of one step. Operands have two bytes a value, the residual and
    its gradient four. With `recompute` the forward pass runs twice, but for the product of down."""
    t, layers, d, f, vocab = rows * length, m["layers"], m["d"], m["f"], m["vocab"]
    q, kv = m["heads"] * m["head"], m["kv"] * m["head"]
    wide, passes = q + 2 * kv, 2 if recompute else 1
    slow = (0.8 if m["head"] == 64 else 1.0) * (0.5 if length < 1024 else 0.85)
    found = []

    def add(name, flop, size, kernels=1, times=layers, rate=FLOPS):
        found.append((name, flop * times, size * times, rate, kernels * times))

    for index, (n, k, modules, out) in enumerate(linear_sites(m)):
        width, again = RANK * modules, passes if index < 3 else 1
        # H B^T and G A run inside the products with W; H, G and both gradients are products of their own.
        add("linear", 2 * t * n * (k + width), t * (2 * k + out * n) + 2 * n * k, times=layers * again)
        add("linear_back", 2 * t * k * (n + width), t * (2 * n + 2 * k) + 2 * n * k)
        add("low rank", 2 * t * k * width, t * 2 * (k + width), times=layers * passes)
        add("low rank", 2 * t * n * width, t * 2 * (n + width))
        add("low rank", 2 * t * n * width, t * 2 * (n + width), kernels=2)
        add("low rank", 2 * t * k * width, t * 2 * (k + width), kernels=2)
    add("norm", 0, 2 * t * 8 * d, kernels=2, times=layers * passes)
    add("norm", 0, 2 * t * 4 * d, kernels=2)  # the input of a product, again in the backward pass
    add("norm_back", 0, 2 * t * 14 * d, kernels=2)
    add("rope", 0, t * 4 * (q + kv), times=layers * (passes + 1))
    add("gate", 0, t * 6 * f)
    add("gate_back", 0, t * 12 * f)
    add("attention", 2 * t * length * q, t * 2 * (wide + q), times=layers * passes, rate=ATTENTION * slow)
    # 7 products in place of 5, so that no sum needs atomics.
    add("attention_back", 7 * t * length * q, t * 2 * (3 * wide + 4 * q), kernels=3, rate=ATTENTION_BACK * slow)
    blocks = -(-t // 4096)
    add("embed", 0, t * 6 * d, times=1)
    add("head", 4 * t * vocab * d, t * (8 * d + 6 * vocab) + 4 * vocab * d, kernels=2 * blocks, times=1)
    add("head", 0, t * vocab * 6, kernels=blocks, times=1)
    add("adamw", 0, trained_values(m) * 38, kernels=4, times=1)
    return found


def needed_flop(m, rows, length):
    """Two products with each frozen weight, three with each factor, causal attention in 2 + 5 products of half
    of all pairs."""
    t, q = rows * length, m["heads"] * m["head"]
    frozen = m["layers"] * sum(n * k for n, k, _, _ in linear_sites(m)) + m["vocab"] * m["d"]
    return 4 * t * frozen + 6 * t * trained_values(m) + 7 * m["layers"] * t * length * q


def limit(found):
    return sum(max(flop / rate, size / BYTES_A_SECOND) for _, flop, size, rate, _ in found)


def expected(found):
    return sum(
        max(max(flop / rate, size / BYTES_A_SECOND) / ACHIEVED, kernels * SECONDS_A_KERNEL)
        for _, flop, size, rate, kernels in found
    )


def memory_gb(m, rows, length, recompute=False, bits=16):
    """Weights, what the backward pass needs, working memory, the adapter with its optimizer."""
    t, d, f, layers = rows * length, m["d"], m["f"], m["layers"]
    q, kv = m["heads"] * m["head"], m["kv"] * m["head"]
    wide = q + 2 * kv
    matrices = layers * (wide * d + d * q + 3 * d * f)
    weights = matrices * bits / 8 + m["vocab"] * d * 2 * (1 if m["tied"] else 2)
    layer = 2 * (2 * d + wide + q + 2 * f + 7 * RANK) + 4 * m["heads"] + 8
    kept = t * (2 * d * layers + layer if recompute else layer * layers)
    working = t * 2 * (9 * d + 2 * f + wide + q) + 4096 * m["vocab"] * 6
    scratch = 4 * f * d if bits < 16 else 0
    return (weights + kept + working + 22 * trained_values(m) + scratch) / 1e9


def sizes_of(shape):
    return tuple(int(n) for n in shape.split("x"))


def print_operations(m, rows, length):
    sums = {}
    for name, flop, size, rate, kernels in operations(m, rows, length):
        entry = sums.setdefault(name, [0, 0, 0, 0])
        for i, x in enumerate((flop, size, max(flop / rate, size / BYTES_A_SECOND), kernels)):
            entry[i] += x
    print(f"{'':16}{'TFLOP':>9}{'GB':>9}{'ms':>9}{'kernels':>9}")
    for name, (flop, size, took, kernels) in sums.items():
        print(f"{name:16}{flop / 1e12:9.3f}{size / 1e9:9.2f}{took * 1e3:9.3f}{kernels:9d}")
    flop, size, took, kernels = (sum(x) for x in zip(*sums.values()))
    print(f"{'all':16}{flop / 1e12:9.3f}{size / 1e9:9.2f}{took * 1e3:9.3f}{kernels:9d}")


def print_targets():
    print("| | TFLOP | needed | limit | expected | demanded | of needed | GB | GB, `--checkpoint` |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for (key, shape), ms in DEMANDED_MS.items():
        m, (rows, length) = MODELS[key], sizes_of(shape)
        found, flop = operations(m, rows, length), needed_flop(m, rows, length)
        print(
            f"| {m['name']}, {rows} x {length:,} | {flop / 1e12:.2f} | {flop / FLOPS * 1e3:.1f} ms "
            f"| {limit(found) * 1e3:.1f} ms | {expected(found) * 1e3:,.1f} ms "
            f"| **{ms:,} ms, {rows * length / ms:.0f} k tokens/s** | {flop / FLOPS * 1e3 / ms:.2f} "
            f"| {memory_gb(m, rows, length):.1f} | {memory_gb(m, rows, length, True):.1f} |"
        )


def read_results(path):
    found = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith("{"):
                row = json.loads(line)
                key = (row["model"], row["shape"], row["program"], row.get("variant", "plain"))
                found[key] = row
    return found


def verdict(good):
    return "reached" if good else "MISSED"


def compare_peft(results, key, row):
    """Lines that compare a measurement with PEFT on the same rows."""
    said = []
    for kind in ("eager", "compiled"):
        other = results.get((*key, f"peft {kind}", "plain"))
        if not other:
            continue
        ratio = row["tokens_per_second"] / other["tokens_per_second"]
        least = DEMANDED_PEFT.get(key, 1.0) if kind == "eager" else DEMANDED_COMPILED
        text = f"{ratio:.2f} x PEFT {kind} ({least} demanded: {verdict(ratio >= least)})"
        memory = row["gb_peak"] / (other["peak_bytes"] / 1e9)
        if kind == "eager":
            text += f", {memory:.2f} of its memory ({verdict(memory <= DEMANDED_MEMORY)})"
        if other["batch"] != sizes_of(key[1])[0]:
            text += f", PEFT with {other['batch']} rows because of its memory"
        said.append(text)
    return said


def print_results(path):
    results = read_results(path)
    print(f"{'':14}{'':10}{'':18}{'tokens/s':>10}{'ms':>10}{'GB':>8}  demanded")
    for (model, shape, program, variant), row in results.items():
        name = program if program != "fedlora" else f"fedlora {variant}"
        ms = 1e3 * sizes_of(shape)[0] * sizes_of(shape)[1] / row["tokens_per_second"]
        memory = row.get("gb_peak", row.get("peak_bytes", 0) / 1e9)
        line = f"{model:14}{shape:10}{name:18}{row['tokens_per_second']:10.0f}{ms:10.2f}{memory:8.2f}"
        least = DEMANDED_MS.get((model, shape)) if name == "fedlora plain" else None
        print(line + (f"  {least} ms: {verdict(ms <= least)}" if least else ""))
        for text in compare_peft(results, (model, shape), row) if name == "fedlora plain" else []:
            print(f"{'':24}{text}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operations", nargs=2, metavar=("MODEL", "BxL"))
    parser.add_argument("--results", metavar="FILE")
    options = parser.parse_args()
    if options.operations:
        print_operations(MODELS[options.operations[0]], *sizes_of(options.operations[1]))
    elif options.results:
        print_results(options.results)
    else:
        print_targets()


if __name__ == "__main__":
    main()
