#!/usr/bin/env python3
"""Measures `fedlora simulate` and, where they are installed, other simulators at the same work, one after the other
in one run.

  bench/run.sh simulate [--repeats N] [--scale F] [--only "NAME;..."] [--json FILE] [--program PATH]

The small base has the shape of stories260K and random weights (bench/make_base.py). FEDLORA_SMOLLM2 names
SmolLM2-135M-Instruct.Q4_1.gguf; without it that row is left out. FEDLORA_PEERS names a folder with pfl_sim.py
(MODEL CLIENTS ROUNDS) and flower_sim.py (MODEL CLIENTS ROUNDS CPUS; flower_smol.py for the large model), which read
BS, SEQ, STEPS, RANK and DT from the environment and print one JSON line. They run with the Python named by
FEDLORA_ORACLE_PYTHON (or python3) if it has pfl, or flwr and ray. --scale 0.1 takes a tenth of the clients. Some file
systems create files slowly for minutes after many were deleted; TMPDIR names the folder for all files.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL, LARGE = "260k", "SmolLM2-135M"
VOCAB = {SMALL: 500, LARGE: 40000}
# name: base, clients, steps, batch, tokens of a row, rank, method, workers
CASES = {
    "16 tokens": dict(base=SMALL, clients=1000, steps=1, batch=1, seq=16, rank=8, method="fedit", workers=1),
    "64 tokens": dict(base=SMALL, clients=1000, steps=1, batch=1, seq=64, rank=8, method="fedit", workers=1),
    "64 tokens, 2 workers": dict(
        base=SMALL, clients=1000, steps=1, batch=1, seq=64, rank=8, method="fedit", workers=2
    ),
    "2,048 tokens": dict(base=SMALL, clients=100, steps=4, batch=4, seq=128, rank=8, method="fedit", workers=1),
    "2,048 tokens, 2 workers": dict(
        base=SMALL, clients=100, steps=4, batch=4, seq=128, rank=8, method="fedit", workers=2
    ),
    "10,000 in one round": dict(
        base=SMALL, clients=10000, steps=1, batch=1, seq=64, rank=8, method="fed-sb", workers=1
    ),
    "1,000 of 100,000": dict(
        base=SMALL, clients=1000, of=100000, steps=1, batch=1, seq=64, rank=8, method="fed-sb", workers=1
    ),
    "SmolLM2-135M": dict(base=LARGE, clients=32, steps=4, batch=4, seq=128, rank=16, method="fedit", workers=2),
}  # fmt: skip
PEER_CASES = ("64 tokens", "2,048 tokens", "SmolLM2-135M")


def measured(command, **more):
    """Runs a command. Returns its standard output, wall and processor seconds, and peak resident bytes."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        began = time.monotonic()
        child = subprocess.Popen(command, stdout=out, stderr=error, **more)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - began
        out.seek(0)
        error.seek(0)
        if os.waitstatus_to_exitcode(status) != 0:
            raise RuntimeError(error.read().decode(errors="replace")[-2000:] or "no message")
        cpu = usage.ru_utime + usage.ru_stime
        return out.read().decode(), wall, cpu, usage.ru_maxrss * 1024


def write_rows(path, case):
    """One row for each row that a client trains in its round."""
    rng = random.Random(1)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(case.get("of", case["clients"]) * case["steps"] * case["batch"]):
            ids = [rng.randrange(3, VOCAB[case["base"]]) for _ in range(case["seq"])]
            file.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")


def run_fedlora(program, bases, case, folder):
    rows, out = os.path.join(folder, "rows.jsonl"), tempfile.mkdtemp(dir=folder)
    command = [program, "simulate", "--base", bases[case["base"]], "--data", rows, "--rounds", "1", "-o", out, "-q"]
    for key in ("steps", "batch", "rank", "method", "workers"):
        command += [f"--{key}", str(case[key])]
    command += ["--clients", str(case.get("of", case["clients"]))]
    if "of" in case:
        command += ["--cohort", str(case["clients"])]
    command += ["--threads", "1", "--device", "cpu", "--precision"]
    _, wall, cpu, peak = measured(command + ["f32" if case["base"] == SMALL else "bf16"])
    subprocess.run(["rm", "-rf", out], check=True)
    return {"wall_s": wall, "cpu_s": cpu, "peak_bytes": peak}


def has_modules(python, modules):
    return subprocess.run([python, "-c", "import " + modules], capture_output=True).returncode == 0


def run_peer(python, name, bases, case):
    """A peer's line has the seconds of one round without its start; Flower's have it."""
    kind = "smol" if name == "flower" and case["base"] == LARGE else "sim"
    program = os.path.join(os.environ["FEDLORA_PEERS"], f"{name}_{kind}.py")
    environment = dict(os.environ, BS=str(case["batch"]), SEQ=str(case["seq"]), STEPS=str(case["steps"]))
    environment.update(RANK=str(case["rank"]), DT="float32" if case["base"] == SMALL else "bfloat16")
    command = [python, program, bases[case["base"] + " directory"], str(case["clients"]), "1"]
    out, wall, cpu, peak = measured(command + (["1"] if name == "flower" else []), env=environment)
    line = json.loads(out.strip().splitlines()[-1])
    if "cpu_ms_per_client" in line:
        cpu_client = line["cpu_ms_per_client"]
    else:
        cpu_client = 1e3 * line["cpu_s"] / case["clients"]
    peak = max(peak, line.get("peak_pss_mib", 0) << 20)
    return {"wall_s": wall, "cpu_s": max(cpu, line.get("cpu_s", 0)), "cpu_ms": cpu_client, "peak_bytes": peak}


def row(name, who, case, found):
    clients = case["clients"]
    tokens = clients * case["steps"] * case["batch"] * case["seq"]
    cpu = statistics.median(x.get("cpu_ms", 1e3 * x["cpu_s"] / clients) for x in found)
    best = min(x["wall_s"] for x in found)
    return {
        "case": name,
        "who": who,
        "clients": clients,
        "workers": case["workers"],
        "cpu_ms_per_client": round(cpu, 2),
        "cpu_ms_best": round(min(x.get("cpu_ms", 1e3 * x["cpu_s"] / clients) for x in found), 2),
        "wall_s": round(statistics.median(x["wall_s"] for x in found), 2),
        "wall_s_best": round(best, 2),
        "tokens_per_s": round(tokens / best),
        "peak_mib": round(max(x["peak_bytes"] for x in found) / 2**20),
    }


def print_table(rows):
    print(f"{'work':26} {'by':8} {'clients':>7} {'CPU ms/client':>18} {'seconds':>18} {'tokens/s':>9} {'MiB':>6}")
    for r in rows:
        cpu = f"{r['cpu_ms_per_client']:.2f} ({r['cpu_ms_best']:.2f})"
        wall = f"{r['wall_s']:.2f} ({r['wall_s_best']:.2f})"
        print(
            f"{r['case']:26} {r['who']:8} {r['clients']:7} {cpu:>18} {wall:>18} {r['tokens_per_s']:9} {r['peak_mib']:6}"
        )
    for name in ("64 tokens", "2,048 tokens"):
        both = [[r for r in rows if r["case"] == n and r["who"] == "Fedlora"] for n in (name, name + ", 2 workers")]
        if all(both):
            print(f"{name}: a second worker makes it {both[0][0]['wall_s_best'] / both[1][0]['wall_s_best']:.2f} x")


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((x.split(":")[1].strip() for x in file if x.startswith("model name")), "unknown")


def make_bases(names, folder, peers):
    bases = {}
    if SMALL in names:
        bases[SMALL] = bases[SMALL + " directory"] = os.path.join(folder, "base")
        subprocess.run([sys.executable, os.path.join(ROOT, "bench/make_base.py"), SMALL, bases[SMALL]], check=True)
    if LARGE in names and os.path.exists(os.environ.get("FEDLORA_SMOLLM2", "")):
        bases[LARGE] = os.environ["FEDLORA_SMOLLM2"]
        bases[LARGE + " directory"] = os.path.join(folder, "large")
        if peers:  # speed depends only on the shape, so the peers get random weights
            command = [sys.executable, os.path.join(ROOT, "bench/make_base.py"), "135m"]
            subprocess.run(command + [bases[LARGE + " directory"]], check=True)
    return bases


def find_peers(python):
    peers = {}
    for name, title, modules in (("pfl", "pfl", "pfl, torch, peft"), ("flower", "Flower", "flwr, ray, torch, peft")):
        if not os.environ.get("FEDLORA_PEERS"):
            print(f"{title}: not measured, because FEDLORA_PEERS names no folder with its load program")
        elif not has_modules(python, modules):
            print(f"{title}: not measured, because {python} lacks one of {modules}")
        else:
            peers[name] = title
    return peers


def measure(options, folder):
    cases = {k: dict(v) for k, v in CASES.items() if not options.only or k in options.only.split(";")}
    python = os.environ.get("FEDLORA_ORACLE_PYTHON", "python3")
    peers = find_peers(python)
    bases = make_bases({c["base"] for c in cases.values()}, folder, peers)
    rows = []
    for name, case in cases.items():
        if case["base"] not in bases:
            print(f"{name}: not measured, because FEDLORA_SMOLLM2 names no file")
            continue
        for key in ("clients", "of"):
            if key in case:
                case[key] = max(2, round(case[key] * options.scale))
        write_rows(os.path.join(folder, "rows.jsonl"), case)
        found = {"Fedlora": []}
        for _ in range(options.repeats):
            found["Fedlora"].append(run_fedlora(options.program, bases, case, folder))
            for peer, title in peers.items() if name in PEER_CASES else ():
                try:
                    found.setdefault(title, []).append(run_peer(python, peer, bases, case))
                except (RuntimeError, OSError, ValueError) as error:
                    print(f"{title}, {name}: no result: {str(error).strip().splitlines()[-1]}")
        rows += [row(name, who, case, list_) for who, list_ in found.items() if list_]
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the numbers of clients")
    parser.add_argument("--only", help="names of cases separated by semicolons")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--program", default=os.path.join(ROOT, "build/release/fedlora"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedlora-bench-") as folder:
        rows = measure(options, folder)
    load = os.getloadavg()[0]
    print(f"{processor()}, {os.cpu_count()} processors, load {load:.1f}; median (best) of {options.repeats}")
    print_table(rows)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"processor": processor(), "load": os.getloadavg(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
