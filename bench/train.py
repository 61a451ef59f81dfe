#!/usr/bin/env python3
"""Compares the speed and memory of `fedlora train` and Hugging Face PEFT in one run. The two take turns, each
measurement in a separate process; the table has the median and the best of the repeats. The speed of the
machine's matrix products is measured as well, so that figures of different machines can be compared.

  bench/run.sh train [--base PATH] [--repeats N] [--steps N] [--programs DIR] [--only bf16,...]

PEFT runs with the Python named by FEDLORA_ORACLE_PYTHON (or python3) if it has torch, transformers, peft and
gguf.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# name: (options of fedlora train, options of peft_train.py for each rival)
CASES = {
    "bf16": (["--precision", "bf16"], {"eager": [], "compiled": ["--compile", "--discard", "2"]}),
    "bf16, recomputed": (["--precision", "bf16", "--checkpoint"], {"eager": ["--recompute"]}),
    "f32": (
        ["--precision", "f32"],
        {
            "eager": ["--precision", "f32"],
            "compiled": ["--precision", "f32", "--compile", "--discard", "2"],
        },
    ),
}
SMOLLM2 = {
    "hidden": 576,
    "ffn": 1536,
    "layers": 30,
    "kv": 192,
    "vocab": 49152,
    "seq": 512,
    "rank": 16,
}


def flops_per_token(m=None):
    """Floating point operations. A frozen matrix: 2 forward and 2 for the gradient of its input, per weight
    (there is no gradient of the weight). Attention: 4 forward and 8 backward per pair and dimension, for half
    of the pairs (causal). LoRA: 2 forward and 4 backward per weight."""
    m = m or SMOLLM2
    h, f = m["hidden"], m["ffn"]
    dense = m["layers"] * (2 * h * h + 2 * h * m["kv"] + 3 * h * f) + h * m["vocab"]
    attention = m["layers"] * 12 * h * m["seq"] / 2
    lora = m["layers"] * m["rank"] * (2 * (h + h) + 2 * (h + m["kv"]) + 3 * (h + f))
    return 4 * dense + attention + 6 * lora


def write_rows(path, count, seq, vocab):
    rng = random.Random(1)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(count):
            ids = [rng.randrange(3, vocab) for _ in range(seq)]
            file.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")


def run_measured(command):
    """Runs a command. Returns its standard output and its peak resident bytes (ru_maxrss is VmHWM)."""
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE)
        error = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            sys.exit(
                f"bench: {' '.join(command)}: status {child.returncode}\n{error.decode()[-2000:]}"
            )
        out.seek(0)
        return out.read().decode(), usage.ru_maxrss * 1024


def measure_fedlora(options, work, extra, discard=1):
    out, log = os.path.join(work, "adapter"), os.path.join(work, "steps.jsonl")
    shutil.rmtree(out, ignore_errors=True)
    if os.path.exists(log):
        os.remove(log)
    _, peak = run_measured(
        [
            os.path.join(options.programs, "fedlora"),
            "train",
            "--base",
            options.base,
            "--data",
            os.path.join(work, "rows.jsonl"),
            "-o",
            out,
            "--rank",
            "16",
            "--alpha",
            "32",
            "--targets",
            "q,k,v,o,gate,up,down",
            "--steps",
            str(options.steps + discard),
            "--batch",
            "4",
            "--seq",
            "512",
            "--lr",
            "1e-4",
            "--schedule",
            "constant",
            "--no-shuffle",
            "--no-eos",
            "--threads",
            str(options.threads),
            "--log",
            log,
            "--quiet",
        ]
        + extra
    )
    with open(log, encoding="utf-8") as file:
        steps = [json.loads(line) for line in file]
    return {
        "rate": statistics.median(4 * 512 / s["seconds"] for s in steps[discard:]),
        "peak": peak,
        "loss": steps[0]["loss"],
    }


def measure_peft(options, work, extra):
    text, _ = run_measured(
        [
            options.python,
            os.path.join(ROOT, "bench", "peft_train.py"),
            "--base",
            options.base,
            "--data",
            os.path.join(work, "rows.jsonl"),
            "--steps",
            str(options.steps),
            "--threads",
            str(options.threads),
        ]
        + extra
    )
    found = json.loads(text.strip().splitlines()[-1])
    return {
        "rate": found["tokens_per_second"],
        "peak": found["peak_bytes"],
        "loss": found["losses"][0],
        "torch": found["torch"],
    }


def measure_peak(options):
    """GFLOP/s of matrix products on this machine, at the shapes of the model; {} without the program."""
    program = os.path.join(options.programs, "bench_engine")
    if not os.path.exists(program):
        return {}
    text, _ = run_measured([program, "--json", "--threads", str(options.threads)])
    return json.loads(text)


def say(text):
    print(text, file=sys.stderr, flush=True)


def measure_all(options, work):
    runs, peaks = {}, []
    for repeat in range(options.repeats):
        peaks.append(measure_peak(options))
        for name in options.only:
            extra, rivals = CASES[name]
            takers = [("fedlora", lambda e=extra: measure_fedlora(options, work, e))]
            if options.peft:
                takers += [
                    (rival, lambda e=e: measure_peft(options, work, e))
                    for rival, e in rivals.items()
                ]
            for who, measure in takers:
                found = measure()
                runs.setdefault((name, who), []).append(found)
                say(
                    f"{repeat + 1}/{options.repeats} {name}, {who}: {found['rate']:.0f} tokens/s, "
                    f"{found['peak'] / 2**30:.2f} GiB, first loss {found['loss']:.4f}"
                )
    return runs, peaks


def summarise(runs):
    return {
        key: {
            "median": statistics.median(r["rate"] for r in found),
            "best": max(r["rate"] for r in found),
            "peak": max(r["peak"] for r in found),
            "loss": found[0]["loss"],
        }
        for key, found in runs.items()
    }


def print_table(options, found, peaks):
    print("\nSmolLM2-135M, LoRA rank 16 on all seven projections, 4 x 512 tokens a step,")
    print(
        f"{options.threads} threads; median (best) of {options.repeats} x {options.steps} steps\n"
    )
    print(f"{'':18}{'':10}{'tokens/s':>14}{'peak GiB':>10}{'fedlora is':>12}{'of matrix peak':>16}")
    for name in options.only:
        ours = found[(name, "fedlora")]
        for who in ["fedlora", "eager", "compiled"]:
            if (name, who) not in found:
                continue
            row = found[(name, who)]
            times = "" if who == "fedlora" else f"{ours['median'] / row['median']:.2f} x"
            peak = (
                statistics.median(p[name.split(",")[0]] for p in peaks) if peaks and peaks[0] else 0
            )
            share = f"{100 * row['median'] * flops_per_token() / 1e9 / peak:.0f} %" if peak else "-"
            rate = f"{row['median']:.0f} ({row['best']:.0f})"
            label = "Fedlora" if who == "fedlora" else "PEFT " + who
            first = name if who == "fedlora" else ""
            print(
                f"{first:18}{label:14}{rate:>10}{row['peak'] / 2**30:>10.2f}{times:>12}{share:>16}"
            )
    if peaks and peaks[0]:
        spelled = ", ".join(f"{k} {statistics.median(p[k] for p in peaks):.0f}" for k in peaks[0])
        print(f"\nMatrix products of this machine at these shapes, GFLOP/s, median: {spelled}.")
        print(
            f"A token costs {flops_per_token() / 1e9:.2f} GFLOP (a recomputed forward not counted)."
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    parser.add_argument(
        "--base", default=os.path.join(cache, "fedlora", "SmolLM2-135M-Instruct.Q4_1.gguf")
    )
    parser.add_argument("--programs", default=os.path.join(ROOT, "build", "release"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--only", default=";".join(CASES), help="cases, separated by ';': " + "; ".join(CASES)
    )
    options = parser.parse_args()
    options.only = [name.strip() for name in options.only.split(";")]
    options.python = os.environ.get("FEDLORA_ORACLE_PYTHON", "python3")
    options.peft = (
        subprocess.run(
            [options.python, "-c", "import torch, transformers, peft, gguf"],
            check=False,
            stderr=subprocess.DEVNULL,
        ).returncode
        == 0
    )
    if not options.peft:
        say(
            f"bench: {options.python} lacks torch, transformers, peft or gguf: Fedlora alone"
        )
    if not os.path.exists(options.base):
        sys.exit(f"bench: {options.base}: no such file; deploy/demo.sh fetches it, or name --base")
    with tempfile.TemporaryDirectory(prefix="fedlora-bench-") as work:
        write_rows(os.path.join(work, "rows.jsonl"), 16, 512, SMOLLM2["vocab"])
        runs, peaks = measure_all(options, work)
    print_table(options, summarise(runs), peaks)


if __name__ == "__main__":
    main()
