#!/usr/bin/env python3
"""Reads and writes JSON for deploy/demo.sh, with python3's standard library alone.

demo_report.py progress WIDTH    one line of at most WIDTH columns from `fedlora run status --json`
                                 on standard input
demo_report.py fraction          how far that run is, of 1000
demo_report.py settings          that run's learning rate and alpha, as options of fedlora train
demo_report.py port              a free TCP port of this machine
demo_report.py field NAME        one field of the JSON document on standard input
demo_report.py split FROM TO     a person's own JSON Lines files, with a test set kept apart
demo_report.py table DIR ...     the table, and DIR/results.json, from what the demo left in DIR
"""

import argparse
import json
import os
import socket
import sys
import textwrap


def progress(options):
    """Each member's step where that fits, else how many members do what."""
    status = json.load(sys.stdin)
    members = status.get("members", [])
    rounds = status.get("rounds") or status.get("config", {}).get("rounds", "?")
    head = f"round {status.get('round', 0)}/{rounds}"
    parts, counts = [], {}
    for member in members:
        doing = member.get("doing") or "absent"
        counts[doing] = counts.get(doing, 0) + 1
        if doing == "training":  # no number of steps before the first one is reported
            doing = f"{member['step']}/{member['steps']}" if member.get("steps") else "-"
        parts.append(f"{member['id']} {doing}")
    if "training" not in counts:  # else the members show the phase
        head += f" {status.get('phase', '')}"
    line = f"{head}: {', '.join(parts)}"
    if len(line) > options.width:
        line = f"{head}: {', '.join(f'{n} {doing}' for doing, n in counts.items())}"
    print(line[: options.width])


def fraction(_):
    status = json.load(sys.stdin)
    done = [
        1.0 if m["doing"] == "submitted" else m["step"] / max(1, m["steps"])
        for m in status["members"]
        if m["last_round"] <= status["round"]
    ]
    rounds = status["round"] - 1 + sum(done) / max(1, len(status["members"]))
    print(int(1000 * min(1, max(0, rounds) / status["config"]["rounds"])))


def settings(_):
    config = json.load(sys.stdin)["config"]
    print(f"--lr {config['training']['lr']:g} --alpha {config['alpha']:g}")


def port(_):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        print(free.getsockname()[1])


def field(options):
    print(json.load(sys.stdin)[options.name])


# ---- a person's own data


def read_lines(path):
    with open(path, encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file if line.strip()]


def write_lines(path, lines):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)


def split(options):
    names = sorted(name for name in os.listdir(options.source) if name.endswith(".jsonl"))
    institutions = [name for name in names if name != "test.jsonl"]
    if not 2 <= len(institutions) <= 16:
        found = f"{len(institutions)} .jsonl files besides test.jsonl"
        sys.exit(f"demo: {options.source}: {found}, expected 2 to 16")
    os.makedirs(options.to, exist_ok=True)
    test = read_lines(os.path.join(options.source, "test.jsonl")) if "test.jsonl" in names else []
    keep_apart = not test
    for name in institutions:
        rows = read_lines(os.path.join(options.source, name))
        held = rows[4::5] if keep_apart else []
        train = [row for i, row in enumerate(rows) if i % 5 != 4] if keep_apart else rows
        if not train:
            sys.exit(f"demo: {options.source}/{name}: no rows")
        write_lines(os.path.join(options.to, name), train)
        test += held
        kept = f", {len(held)} kept for the test" if keep_apart else ""
        print(f"{name[:-6]}: {len(train)} rows{kept}")
    if not test:
        sys.exit(f"demo: {options.source}: too few rows to keep any for a test; add test.jsonl")
    write_lines(os.path.join(options.to, "test.jsonl"), test)
    print(f"test: {len(test)} rows")


# ---- the table

TABLE_NOTE = (
    "MB up and down: per institution over the whole run, least - most. Alone: the same number of"
    " steps, the same rank, alpha and learning rate as in the FLoRA run."
)
SYNTHETIC_NOTE = (
    " Each method's alpha and learning rate are the best that one search found on validation rows, of"
    " twelve pairs for FLoRA and FedIT and five rates for Fed-SB, with three seeds (docs/methods.md)."
    " The data is synthetic, and made so that each institution sees three of eight departments:"
    " alone it cannot do better than about 3 in 8. The table shows that adapters carry across what"
    " data may not. It does not show which method is best: that takes real data and more seeds."
)
FEDERATED = [("fedit", "FedIT (baseline)"), ("flora", "FLoRA"), ("fed-sb", "Fed-SB")]


def read_json(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return json.load(file)


def read_seconds(directory, name):
    with open(os.path.join(directory, "results", name + ".ms"), encoding="utf-8") as file:
        return int(file.read()) / 1000


def make_row(directory, name, label, rank, federated):
    scores = read_json(directory, "results", name + ".eval.json")
    row = {
        "name": name,
        "label": label,
        "rank": rank,
        "accuracy": scores.get("accuracy"),
        "loss": scores["loss"],
        "test_rows": scores.get("rows"),
        "federated": federated,
    }
    if name != "base":
        row["seconds"] = read_seconds(directory, name)
    if federated:
        status = read_json(directory, "results", name + ".status.json")
        row["bytes_up"] = {m["id"]: int(m["bytes_up"]) for m in status["members"]}
        row["bytes_down"] = {m["id"]: int(m["bytes_down"]) for m in status["members"]}
        row["state_digest"] = status.get("state_digest")
        row["rounds"] = status.get("history", [])
    return row


def collect(directory, members, ranks, rank_sb):
    rows = [make_row(directory, "base", "base model", None, False)]
    for member, rank in zip(members, ranks):
        rows.append(make_row(directory, "alone." + member, f"{member} alone", str(rank), False))
    sb = f"R {rank_sb}x{rank_sb}"
    spelled = {"fedit": str(min(ranks)), "flora": spell_ranks(ranks), "fed-sb": sb}
    for name, label in FEDERATED:
        rows.append(make_row(directory, name, label, spelled[name], True))
    return rows


def spell_ranks(ranks):
    different = list(dict.fromkeys(str(r) for r in ranks))
    return ", ".join(different)


def megabytes(by_member):
    if not by_member:
        return "-"
    low, high = min(by_member.values()) / 1e6, max(by_member.values()) / 1e6
    return f"{high:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} - {high:.1f}"


def percent(share):
    return "-" if share is None else f"{100 * share:.1f} %"


def cells(r):
    seconds = f"{r['seconds']:.0f}" if "seconds" in r else "-"
    up, down = megabytes(r.get("bytes_up")), megabytes(r.get("bytes_down"))
    loss = f"{r['loss']:.3f}"
    return (r["label"], r["rank"] or "-", percent(r["accuracy"]), loss, up, down, seconds)


def print_table(rows):
    head = ("", "rank", "accuracy", "loss", "MB up", "MB down", "seconds")
    lines = [cells(row) for row in rows]
    widths = [max(len(line[i]) for line in [head] + lines) for i in range(len(head))]

    def show(line):
        left = [cell.ljust(w) for cell, w in zip(line[:2], widths)]
        right = [cell.rjust(w) for cell, w in zip(line[2:], widths[2:])]
        print("  ".join(left + right).rstrip())

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    show(head)
    print(rule)
    for i, (row, line) in enumerate(zip(rows, lines)):
        if i > 0 and group(row) != group(rows[i - 1]):
            print(rule)
        show(line)


def group(row):
    return "federated" if row["federated"] else row["name"].split(".")[0]


def score(row):
    """The compared figure: accuracy if rows have answers, else the loss."""
    return row["accuracy"] if row["accuracy"] is not None else -row["loss"]


def say_score(row):
    return percent(row["accuracy"]) if row["accuracy"] is not None else f"loss {row['loss']:.3f}"


def print_conclusion(rows, synthetic):
    alone = [r for r in rows if r["name"].startswith("alone.")]
    best = max(alone, key=score)
    federated = [r for r in rows if r["federated"]]
    beaten = [r for r in federated if score(r) > score(best)]
    figures = ", ".join(f"{r['label'].split(' (')[0]} {say_score(r)}" for r in federated)
    verdict = "Every federated run beats every institution alone"
    if len(beaten) < len(federated):
        names = " and ".join(r["label"] for r in federated if r not in beaten)
        verdict = f"NOT every federated run beats every institution alone ({names} did not)"
    text = f"{verdict}: {figures}; the best alone, {best['label'][:-6]}, {say_score(best)}."
    if synthetic:
        text += SYNTHETIC_NOTE
    print("\n" + textwrap.fill(text, 96))


def table(options):
    members, ranks = options.members.split(","), [int(r) for r in options.ranks.split(",")]
    rows = collect(options.directory, members, ranks, options.rank_sb)
    alone = [score(r) for r in rows if r["name"].startswith("alone.")]
    beats = {r["name"]: score(r) > max(alone) for r in rows if r["federated"]}
    with open(os.path.join(options.directory, "results.json"), "w", encoding="utf-8") as file:
        json.dump(
            {
                "base": options.base,
                "synthetic": options.synthetic == "yes",
                "federated_beats_each_alone": beats,
                "results": rows,
            },
            file,
            indent=1,
        )
        file.write("\n")
    print()
    print_table(rows)
    print("\n" + textwrap.fill(TABLE_NOTE, 96))
    print_conclusion(rows, options.synthetic == "yes")


def main():
    parser = argparse.ArgumentParser(description="JSON in and out for deploy/demo.sh")
    commands = parser.add_subparsers(required=True)
    zero = commands.add_parser("progress")
    zero.add_argument("width", type=int)
    zero.set_defaults(run=progress)
    commands.add_parser("fraction").set_defaults(run=fraction)
    commands.add_parser("settings").set_defaults(run=settings)
    commands.add_parser("port").set_defaults(run=port)
    one = commands.add_parser("field")
    one.add_argument("name")
    one.set_defaults(run=field)
    two = commands.add_parser("split")
    two.add_argument("source")
    two.add_argument("to")
    two.set_defaults(run=split)
    three = commands.add_parser("table")
    three.add_argument("directory")
    for name in ("--base", "--members", "--ranks", "--rank-sb", "--synthetic"):
        three.add_argument(name, required=True)
    three.set_defaults(run=table)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
