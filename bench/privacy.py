#!/usr/bin/env python3
"""The cost of example-level privacy: test loss of fed-sb, ffa and fedit at equal budgets.

  privacy.py run DIR --source S [options]   data, base model, and one run for each method, budget and seed;
                                            appends to DIR/results.jsonl; finished runs are not
                                            repeated. S contains clinc150/ and stories260k/
  privacy.py best RESULTS                   the best learning rates among the trials
  privacy.py report RESULTS                 a Markdown table; --svg FILE: loss over epsilon

Each of ten members has one domain of CLINC150, 1,500 rows. The base is stories260K, small enough that all runs
take an hour on two cores. A run is 4 rounds of 5 steps; each row is in a step with probability 0.1.
"""

import argparse
import concurrent.futures
import os
import statistics
import subprocess
import sys

import methods

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
EPSILONS = [0, 8, 3, 1]  # 0: without privacy
DELTA, SAMPLING = 1e-5, 0.1

# Options, and learning rates without and with privacy. Trials on val.jsonl with seed 0 and epsilon 3,
# which are not reported, chose the rates. docs/privacy.md says which were tried.
METHODS = {
    "fed-sb": (["--rank", "16"], 0.02, 0.02),
    "ffa": (["--rank", "4", "--scale", "2"], 0.02, 0.02),
    "fedit": (["--rank", "4", "--scale", "2"], 0.01, 0.02),
}


def rate_of(method, epsilon):
    return METHODS[method][2 if epsilon else 1]


def prepare(options):
    base, data = os.path.join(options.dir, "base"), os.path.join(options.dir, "data")
    source = os.path.join(options.source, "stories260k")
    if not os.path.exists(base):
        convert = os.path.join(ROOT, "tests", "stories260k", "convert.py")
        files = [os.path.join(source, x) for x in ("stories260K.bin", "tok512.bin")]
        subprocess.run([sys.executable, convert, *files, base], check=True)
    if not os.path.exists(data):
        methods.write_data(
            argparse.Namespace(
                source=os.path.join(options.source, "clinc150"), out=data, intents=15, per_intent=6
            )
        )


def run_one(options, task):
    method, epsilon, seed, rate = task
    where = options.dir
    command = [os.path.join(options.programs, "bench_methods"), "--base", os.path.join(where, "base")]
    command += ["--data", os.path.join(where, "data"), "--method", method, "--seed", str(seed)]
    command += ["--label", f"{method} {epsilon:g}", "--lr", str(rate), "--out", options.results]
    command += ["--rounds", "4", "--steps", "5", "--batch", "150", "--sampling", str(SAMPLING)]
    command += ["--threads", "1", "--targets", "q,k,v,o,gate,up,down", "--check-rows", "1"]
    command += METHODS[method][0]
    if epsilon:
        command += ["--epsilon", str(epsilon), "--delta", str(DELTA), "--clip-norm", "1"]
    if options.on:
        command += ["--test", os.path.join(where, "data", options.on + ".jsonl")]
    subprocess.run(command, check=True)


def run_all(options):
    os.makedirs(options.dir, exist_ok=True)
    prepare(options)
    options.results = os.path.join(options.dir, options.results)
    done = {(r["label"], r["seed"], r["lr"]) for r in methods.read_results(options.results)}
    tasks = []
    for seed in map(int, options.seeds.split(",")):
        for epsilon in map(float, options.epsilons.split(",")):
            for method in options.methods.split(","):
                rates = [rate_of(method, epsilon)]
                if options.factors:
                    rates = [rates[0] * float(x) for x in options.factors.split(",")]
                tasks += [(method, epsilon, seed, rate) for rate in rates]
    tasks = [t for t in tasks if (f"{t[0]} {t[1]:g}", t[2], t[3]) not in done]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for ended in [pool.submit(run_one, options, t) for t in tasks]:
            ended.result()


def print_best(options):
    of = {}
    for run in methods.read_results(options.results):
        of.setdefault(run["label"], []).append(run)
    for label, runs in of.items():
        runs.sort(key=lambda r: r["lr"])
        grid = ", ".join(f"{r['lr']:g}: {r['loss']:.3f}" for r in runs)
        print(f"{label:12} {min(runs, key=lambda r: r['loss'])['lr']:g}  ({grid})")


# ---- report


def grouped(results):
    """Runs at the rates of METHODS; runs at other rates are trials."""
    of = {}
    for run in results:
        epsilon = run.get("epsilon", 0)
        if run["lr"] == rate_of(run["method"], epsilon):
            of.setdefault((run["method"], epsilon), []).append(run)
    return of


def report(options):
    of = grouped(methods.read_results(options.results))
    names = ["none" if not e else f"epsilon {e:g}" for e in EPSILONS]
    print("| method | " + " | ".join(names) + " | seeds |")
    print("| --- |" + " ---: |" * (len(names) + 1))
    for method in METHODS:
        runs = [of.get((method, e), []) for e in EPSILONS]
        cells = [methods.spread([r["loss"] for r in x], 3) if x else "-" for x in runs]
        seeds = sorted({len(x) for x in runs})
        print(f"| `{method}` | " + " | ".join(cells) + f" | {', '.join(map(str, seeds))} |")
    noise = {e: x[0]["noise"] for (_, e), x in of.items() if e}
    said = [f"{noise[e]:.3f} at epsilon {e:g}" for e in EPSILONS if e in noise]
    print("\nNoise multipliers: " + ", ".join(said))
    if options.svg:
        with open(options.svg, "w", encoding="utf-8") as file:
            file.write(picture(of))


WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 380, 60, 50, 20, 110


def picture(of):
    """Test loss over epsilon: the mean over seeds, and a bar from the smallest to the largest value."""
    losses = [r["loss"] for runs in of.values() for r in runs]
    low, high = min(losses) - 0.05, max(losses) + 0.05
    step = (WIDTH - LEFT - RIGHT) / (len(EPSILONS) - 1)

    def y_of(loss):
        return TOP + (high - loss) / (high - low) * (HEIGHT - TOP - BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    tick = 0.1 if high - low < 1 else 0.25
    value = (low // tick + 1) * tick
    while value < high:
        y = y_of(value)
        out.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(methods.text(LEFT - 14, y + 4, f"{value:.2f}", 'text-anchor="end"'))
        value += tick
    for i, epsilon in enumerate(EPSILONS):
        words = "none" if not epsilon else f"{epsilon:g}"
        out.append(methods.text(LEFT + i * step, HEIGHT - BOTTOM + 20, words, 'text-anchor="middle"'))
    out.append(
        methods.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "epsilon", 'text-anchor="middle"')
    )
    out.append(methods.text(LEFT, TOP - 5, "test loss"))
    ends = []  # ends of the lines, for their names
    for shift, (method, colour) in zip((-6, 0, 6), zip(METHODS, methods.COLOURS)):
        points = []
        for i, epsilon in enumerate(EPSILONS):
            runs = [r["loss"] for r in of.get((method, epsilon), [])]
            if not runs:
                continue
            x, y = LEFT + i * step + shift, y_of(statistics.mean(runs))
            points.append(f"{x:.1f},{y:.1f}")
            bar = f'y1="{y_of(min(runs)):.1f}" x2="{x:.1f}" y2="{y_of(max(runs)):.1f}"'
            out.append(f'<line x1="{x:.1f}" {bar} stroke="{colour}" stroke-width="3"/>')
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        out.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}"/>')
        if points:
            ends.append((float(points[-1].split(",")[1]), method, colour))
    below = 0
    for y, method, colour in sorted(ends):
        below = max(y + 4, below + 16)
        out.append(methods.text(WIDTH - RIGHT + 16, below, method, f'fill="{colour}"'))
    return "\n".join(out + ["</svg>\n"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("dir")
    run.add_argument("--source", default=os.path.join(ROOT, "..", "shared", "data"), help="has clinc150/ and stories260k/")
    run.add_argument("--programs", default=os.path.join(ROOT, "build", "release"), help="has bench_methods")
    run.add_argument("--results", default="results.jsonl", help="file in dir (default %(default)s)")
    run.add_argument("--methods", default=",".join(METHODS), help="(default %(default)s)")
    run.add_argument("--epsilons", default=",".join(map(str, EPSILONS)), help="0: none (default %(default)s)")
    run.add_argument("--seeds", default="1,2,3", help="(default %(default)s)")
    run.add_argument("--factors", help="trials: several learning rates, as factors of METHODS's")
    run.add_argument("--on", help="rows to measure on: test or val (default test)")
    run.add_argument("--jobs", type=int, default=2, help="runs at a time (default %(default)s)")
    for name in ("best", "report"):
        other = commands.add_parser(name)
        other.add_argument("results")
        other.add_argument("--svg")
    options = parser.parse_args()
    {"run": run_all, "best": print_best, "report": report}[options.command](options)


if __name__ == "__main__":
    main()
