#!/usr/bin/env python3
"""Measures the convergence of every method on CLINC150: makes the data, the runs, a table and a picture.

  methods.py data SOURCE OUT      SOURCE contains CLINC150's data_full.json and domains.json
  methods.py run DIR [options]    data, fed-sb's frozen factors, and one run for each method and seed;
                                  appends to DIR/results.jsonl; finished runs are not repeated
  methods.py best RESULTS         the best learning rate of each method
  methods.py report RESULTS       a Markdown table; --svg FILE: accuracy against bytes

The settings of each method are in the table METHODS below. The task is kept small, to fit two cores:
three intents of each of the ten domains, and adapters in the upper ten layers.
"""

import argparse
import concurrent.futures
import json
import math
import os
import random
import statistics
import subprocess

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
BASE = "~/.cache/fedlora/SmolLM2-135M-Instruct.Q4_1.gguf"  # deploy/demo.sh fetches it

RANKS = [64, 32, 16, 16, 8, 8, 4, 4, 4, 4]  # ranks of the ten members in order of name
MIXED = ["--rank", "64", "--ranks", ",".join(map(str, RANKS))]
SAME = ["--rank", "4"]  # the largest rank that every member supports
TWICE = ["--scale", "2"]  # alpha is twice the rank, so the scale of every member is 2
PROJECTIONS = ["self_attn." + x for x in ("q_proj", "k_proj", "v_proj", "o_proj")]
PROJECTIONS += ["mlp." + x for x in ("gate_proj", "up_proj", "down_proj")]
TARGETS = ",".join(f"model.layers.{n}.{x}" for n in range(20, 30) for x in PROJECTIONS)

# Options of a method, and its learning rate, which was chosen by a few trials on val.jsonl with seed 0, which is
# not reported. docs/methods.md says which were tried.
METHODS = {
    "flora": (MIXED + ["--alpha", "16"], 8e-3),
    "florist": (MIXED + ["--alpha", "16"], 8e-3),
    "fed-sb": (["--rank", "64"], 48e-3),
    "fed-sb+weights": (["--rank", "64", "--option", "basis=weights"], 48e-3),
    "fedit": (SAME + TWICE, 8e-3),
    "fedex": (SAME + TWICE, 8e-3),
    "lora-fair": (SAME + TWICE, 8e-3),
    "flexlora": (MIXED + TWICE, 4e-3),
    "hetlora": (MIXED + TWICE, 4e-3),
    "ffa": (SAME + TWICE, 16e-3),
    "rolora": (SAME + TWICE, 8e-3),
    "fedsvd": (SAME + TWICE, 16e-3),
}


def setting(method):
    """Options and learning rate; a method without a row runs with those of fedit."""
    return METHODS.get(method, METHODS["fedit"])


# ---- data


def row_of(text, intent):
    return {"prompt": f"{text}\nIntent:", "completion": " " + intent.replace("_", " ")}


def write_rows(path, rows):
    with open(path + ".new", "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    os.replace(path + ".new", path)


def by_turns(rows, intents, count):
    """`count` rows of every intent: the first row of each intent, then the second of each, and so on."""
    of = {intent: [text for text, x in rows if x == intent] for intent in intents}
    return [row_of(of[intent][n], intent) for n in range(count) for intent in intents]


def write_data(options):
    """Writes one file per domain, for one member each, and test rows of every intent."""
    with open(os.path.join(options.source, "data_full.json"), encoding="utf-8") as file:
        data = json.load(file)
    with open(os.path.join(options.source, "domains.json"), encoding="utf-8") as file:
        domains = json.load(file)
    domains = {name: intents[: options.intents] for name, intents in domains.items()}
    os.makedirs(options.out, exist_ok=True)
    for name in sorted(domains):
        rows = [row_of(text, x) for text, x in data["train"] if x in set(domains[name])]
        random.Random(name).shuffle(rows)
        write_rows(os.path.join(options.out, name + ".jsonl"), rows)
    intents = [intent for name in sorted(domains) for intent in domains[name]]
    random.Random(0).shuffle(intents)
    for split in ("test", "val"):
        rows = by_turns(data[split], intents, options.per_intent)
        write_rows(os.path.join(options.out, split + ".jsonl"), rows)
        print(f"{split}: {len(rows)} rows of {len(intents)} intents")


# ---- runs


def read_results(path):
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def prepare(options):
    """Makes the rows and the file of frozen factors if they are not in the directory yet."""
    data = os.path.join(options.dir, "data")
    frozen = os.path.join(options.dir, "basis.safetensors")
    if not os.path.exists(data):
        write_data(argparse.Namespace(**vars(options), out=data))
    if not os.path.exists(frozen):
        fedlora = os.path.join(options.programs, "fedlora")
        command = [fedlora, "basis", "--base", options.base, "--rank", "64", "-o", frozen]
        subprocess.run(command + ["--targets", TARGETS, "--quiet"], check=True)


def run_all(options):
    os.makedirs(options.dir, exist_ok=True)
    prepare(options)
    tasks, options.results = [], os.path.join(options.dir, options.results)
    done = {(r["label"], r["seed"], r["lr"]) for r in read_results(options.results)}
    for method in options.methods.split(","):
        rates = [float(x) for x in options.lrs.split(",")] if options.lrs else [setting(method)[1]]
        tasks += [(method, int(seed), rate) for seed in options.seeds.split(",") for rate in rates]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for ended in [pool.submit(run_one, options, t) for t in tasks if t not in done]:
            ended.result()


def run_one(options, task):
    method, seed, rate = task
    command = [os.path.join(options.programs, "bench_methods"), "--base", options.base]
    command += ["--data", os.path.join(options.dir, "data")]
    command += ["--method", method.split("+")[0], "--label", method, "--seed", str(seed)]
    command += ["--lr", str(rate), "--rounds", str(options.rounds), "--steps", str(options.steps)]
    command += ["--check-rows", str(options.check_rows), "--out", options.results]
    command += ["--batch", str(options.batch), "--threads", "1", "--targets", TARGETS]
    command += setting(method)[0]
    if "basis=weights" in setting(method)[0]:
        command += ["--frozen", os.path.join(options.dir, "basis.safetensors")]
    if options.on:
        command += ["--test", os.path.join(options.dir, "data", options.on + ".jsonl")]
    subprocess.run(command, check=True)


def print_best(options):
    of = {}
    for run in read_results(options.results):
        of.setdefault(run["label"], []).append(run)
    for method, runs in of.items():
        runs.sort(key=lambda r: r["lr"])
        grid = ", ".join(f"{r['lr']:g}: {100 * r['accuracy']:.1f} % {r['loss']:.3f}" for r in runs)
        best = max(runs, key=lambda r: (r["accuracy"], -r["loss"]))
        print(f"{method:12} {best['lr']:g}  ({grid})")


# ---- report


def grouped(results):
    """Runs at the rates of METHODS; runs at other rates are trials."""
    of = {}
    for run in results:
        if run["lr"] == setting(run["label"])[1]:
            of.setdefault(run["label"], []).append(run)
    return sorted(of.items(), key=lambda x: -statistics.mean(r["accuracy"] for r in x[1]))


def megabytes(values):
    low, high = min(values) / 1e6, max(values) / 1e6
    return f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} - {high:.1f}"


def spread(values, digits):
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def percent(share):
    return "< 0.01 %" if share < 1e-4 else f"{100 * share:.2g} %"


def table_row(method, runs):
    last = [r["history"][-1] for r in runs]
    return [
        f"`{method}`",
        spread([100 * r["accuracy"] for r in runs], 1),
        spread([r["loss"] for r in runs], 3),
        megabytes([x for r in runs for x in r["bytes_up"]]),
        megabytes([r["bytes_down"] for r in runs]),
        f"{statistics.mean(r['server_seconds'] for r in runs):.1f}",
        percent(statistics.mean(x["error"] for x in last)),
        f"{runs[0]['lr']:g}",
        str(len(runs)),
    ]


def report(options):
    groups = grouped(read_results(options.results))
    head = ["method", "accuracy %", "loss", "MB up", "MB down", "server s", "error", "lr", "seeds"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    lines += [table_row(method, runs) for method, runs in groups]
    for cells in lines:
        print("| " + " | ".join(cells) + " |")
    if options.svg:
        with open(options.svg, "w", encoding="utf-8") as file:
            file.write(picture(groups))


# ---- picture

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 860, 520, 60, 50, 20, 150
COLOURS = ["#1b6ca8", "#d1495b", "#2e933c", "#8e5ea2", "#e08e0b", "#3a3a3a", "#00a6a6", "#7a5230"]


def curve(runs):
    """(megabytes up and down of an average member, accuracy %) after the rounds that were measured on
    all rows, as the mean over the seeds."""
    points, rounds = [], len(runs[0]["history"])
    for n in range(rounds):
        if runs[0]["history"][n]["rows"] < runs[0]["history"][-1]["rows"]:
            continue
        up = statistics.mean(x for r in runs for x in r["bytes_up"]) * (n + 1) / rounds
        down = statistics.mean(r["history"][n]["bytes_down"] for r in runs)
        accuracy = statistics.mean(r["history"][n]["accuracy"] for r in runs)
        points.append(((up + down) / 1e6, 100 * accuracy))
    return points


def text(x, y, words, more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{words}</text>'


def line(x1, y1, x2, y2, colour, width=1.0):
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}" stroke-width="{width}"/>'
    )


def axes(place, low, high, most):
    out = []
    decade = math.floor(math.log10(low))
    while 10**decade <= high * 10:
        for factor in (1, 2, 5):
            value = factor * 10**decade
            if low <= value <= high:
                x = place(value, 0)[0]
                out.append(line(x, TOP, x, HEIGHT - BOTTOM, "#dddddd"))
                out.append(text(x, HEIGHT - BOTTOM + 16, f"{value:g}", 'text-anchor="middle"'))
        decade += 1
    for value in range(0, int(most) + 1, 10):
        y = place(low, value)[1]
        out.append(line(LEFT, y, WIDTH - RIGHT, y, "#dddddd"))
        out.append(text(LEFT - 6, y + 4, str(value), 'text-anchor="end"'))
    words = "MB up and down of a member in the whole run (mean over members)"
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, words, 'text-anchor="middle"'))
    out.append(text(LEFT, TOP - 6, "accuracy %"))
    return out


def labels(ends):
    """Draws the names next to the last points, moved apart. ends: (y, method, colour), sorted by y."""
    out, last = [], -1e9
    for y, method, colour in sorted(ends):
        y = max(y + 4, last + 15)
        out.append(text(WIDTH - RIGHT + 8, y, method, f'fill="{colour}"'))
        last = y
    return out


def picture(groups):
    curves = {method: curve(runs) for method, runs in groups}
    every = [p for points in curves.values() for p in points]
    low, high = min(x for x, _ in every) * 0.9, max(x for x, _ in every) * 1.1
    most = 10 * math.ceil(max(y for _, y in every) / 10)

    def place(x, y):
        across = (math.log(x) - math.log(low)) / (math.log(high) - math.log(low))
        return (
            LEFT + across * (WIDTH - RIGHT - LEFT),
            HEIGHT - BOTTOM - y / most * (HEIGHT - BOTTOM - TOP),
        )

    body, ends = axes(place, low, high, most), []
    for n, (method, runs) in enumerate(groups):
        colour = COLOURS[n % len(COLOURS)]
        dash = ' stroke-dasharray="5 3"' if n >= len(COLOURS) else ""
        points = [place(*p) for p in curves[method]]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        body.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>'
        )
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        values = [100 * r["accuracy"] for r in runs]
        x, y = points[-1]
        body.append(line(x, place(low, min(values))[1], x, place(low, max(values))[1], colour, 1.8))
        body.append(line(x, y, WIDTH - RIGHT + 4, y, colour, 0.4))
        ends.append((y, method, colour))
    body += labels(ends)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="#222222">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    data = verbs.add_parser("data")
    data.add_argument("source")
    data.add_argument("out")
    data.add_argument("--intents", type=int, default=15, help="of each domain (all)")
    data.add_argument("--per-intent", type=int, default=3, help="rows to measure on (3)")
    data.set_defaults(verb=write_data)
    run = verbs.add_parser("run")
    run.add_argument("dir")
    run.add_argument("--base", default=os.path.expanduser(BASE), help=f"({BASE})")
    run.add_argument("--source", default=os.path.join(ROOT, "../shared/data/clinc150"))
    run.add_argument("--programs", default=os.path.join(ROOT, "build/release"))
    run.add_argument("--results", default="results.jsonl", help="file in DIR (results.jsonl)")
    run.add_argument("--on", choices=["test", "val"], help="rows to measure on (test)")
    run.add_argument("--intents", type=int, default=3, help="of each domain (3)")
    run.add_argument("--per-intent", type=int, default=8, help="rows to measure on (8)")
    run.add_argument("--methods", default=",".join(METHODS))
    run.add_argument("--seeds", default="1,2,3")
    run.add_argument("--lrs", help="learning rates to try instead of the method's own")
    run.add_argument("--rounds", type=int, default=4)
    run.add_argument("--steps", type=int, default=5, help="of a member in a round (5)")
    run.add_argument("--batch", type=int, default=4, help="rows of a step (4)")
    run.add_argument("--check-rows", type=int, default=30, help="after earlier rounds (30)")
    run.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    run.set_defaults(verb=run_all)
    best = verbs.add_parser("best")
    best.add_argument("results")
    best.set_defaults(verb=print_best)
    table = verbs.add_parser("report")
    table.add_argument("results")
    table.add_argument("--svg", help="write the picture here")
    table.set_defaults(verb=report)
    options = parser.parse_args()
    options.verb(options)


if __name__ == "__main__":
    main()
