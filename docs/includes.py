#!/usr/bin/env python3
"""Draws docs/architecture.svg from the #include lines of the source: one box for each folder and for each program's
main.c, and an arrow from a box to each box that it includes from. An arrow is left out when other arrows imply it.

    docs/includes.py            writes docs/architecture.svg
    docs/includes.py --check    fails when the picture is not the current one
"""
import collections
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PICTURE = os.path.join(ROOT, "docs", "architecture.svg")
INCLUDE = re.compile(r'^#include "([^"]+)/[^"/]+"', re.M)
COLOR = {"base": "#eeeeee", "kernels": "#fdebd0", "agg": "#e8f6e8", "privacy": "#f9e4ec", "proto": "#f3eefb",
         "engine": "#e3effb", "coordinator": "#fff7d6", "client": "#e5f5f5", "sim": "#f5e8e0"}
WIDTH, ROW, BOX_W, BOX_H, MARGIN, GAP = 1000, 78, 132, 34, 20, 8


PROGRAMS = {"coordinator/main.c": "fedlorad", "client/main.c": "fedlora"}


def read_includes():
    """{box: boxes it includes from}; tests and benchmarks may include anything and are left out."""
    names = subprocess.run(["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard", "*.c", "*.h", "*.cu", "*.cuh"],
                           capture_output=True, text=True, check=True).stdout.split()
    uses = collections.defaultdict(set)
    for name in names:
        folder = os.path.dirname(name)
        path = os.path.join(ROOT, name)
        if folder.split("/")[0] not in COLOR or not os.path.exists(path):
            continue
        folder = PROGRAMS.get(name, folder)
        uses[folder] |= set()
        with open(path, encoding="utf-8") as file:
            uses[folder] |= {target for target in INCLUDE.findall(file.read()) if target.split("/")[0] in COLOR}
    return {folder: targets - {folder} for folder, targets in uses.items()}


def reachable(uses, start):
    """All folders that `start` depends on, directly or through others."""
    seen, todo = set(), list(uses.get(start, ()))
    while todo:
        folder = todo.pop()
        if folder not in seen:
            seen.add(folder)
            todo += uses.get(folder, ())
    return seen


def reduce_arrows(uses):
    """Without the arrows that a longer path implies. Folders of a circle, if there is one, keep theirs."""
    far = {folder: reachable(uses, folder) for folder in uses}
    kept = {}
    for folder, targets in uses.items():
        kept[folder] = {t for t in targets
                        if not any(t in far.get(other, ()) and folder not in far.get(other, ())
                                   for other in targets if other != t)}
    return kept


def levels(uses):
    """The row of each folder, counted from below: one more than that of the highest folder it uses."""
    row = dict.fromkeys(uses, 0)
    for _ in uses:
        for folder, targets in uses.items():
            row[folder] = min(max([row.get(t, 0) + 1 for t in targets], default=0), len(uses))
    return row


def places(uses):
    """The centre of each box. A box is placed near the boxes that it uses, to keep arrows short."""
    row = levels(uses)
    x, y = {}, {}
    top = max(row.values())
    for level in range(top + 1):
        members = sorted(f for f in uses if row[f] == level)
        wanted = {f: sum(x.get(t, WIDTH / 2) for t in uses[f]) / max(len(uses[f]), 1) for f in members}
        members.sort(key=lambda f: (wanted[f], f))
        step = (WIDTH - 2 * MARGIN) / max(len(members), 1)
        for i, folder in enumerate(members):
            x[folder] = MARGIN + step * (i + 0.5)
            y[folder] = MARGIN + (top - level) * ROW + BOX_H / 2
    return x, y, (top + 1) * ROW + MARGIN


def route(x, y, folder, target):
    """The points of an arrow. Where the straight line would cross a box, it passes beside the box."""
    top, bottom = y[folder] + BOX_H / 2, y[target] - BOX_H / 2
    points = [(x[folder], top)]
    for level in sorted({v for v in y.values() if y[folder] < v < y[target]}):
        straight = x[folder] + (x[target] - x[folder]) * (level - top) / (bottom - top)
        for other in sorted(f for f in y if y[f] == level):
            side = 1 if straight >= x[other] else -1
            if abs(straight - x[other]) < BOX_W / 2 + GAP:
                straight = x[other] + side * (BOX_W / 2 + GAP)
        points += [(straight, level - BOX_H / 2), (straight, level + BOX_H / 2)]
    return points + [(x[target], bottom)]


def draw(uses):
    kept = reduce_arrows(uses)
    x, y, height = places(kept)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif"'
           ' font-size="13" role="img" aria-label="Folders and the folders that they include from.">',
           '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"'
           ' orient="auto"><path d="M0 0 10 5 0 10z" fill="#777"/></marker></defs>',
           f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>', '<g stroke="#777" fill="none">']
    for folder in sorted(kept):
        for target in sorted(kept[folder]):
            line = "L".join(f"{a:.0f} {b:.0f}" for a, b in route(x, y, folder, target))
            out.append(f'<path d="M{line}" marker-end="url(#head)"/>')
    out.append('</g><g text-anchor="middle">')
    for folder in sorted(kept):
        out.append(f'<rect x="{x[folder] - BOX_W / 2:.0f}" y="{y[folder] - BOX_H / 2:.0f}" width="{BOX_W}"'
                   f' height="{BOX_H}" rx="5" fill="{COLOR.get(folder.split("/")[0], "#ffffff")}" stroke="#888"/>')
        out.append(f'<text x="{x[folder]:.0f}" y="{y[folder] + 5:.0f}">{folder}</text>')
    return "\n".join(out + ["</g></svg>"]) + "\n"


def main():
    picture = draw(read_includes())
    if "--check" in sys.argv[1:]:
        with open(PICTURE, encoding="utf-8") as file:
            if file.read() != picture:
                sys.exit("docs/architecture.svg:1: not the current includes; run docs/includes.py")
        return
    with open(PICTURE, "w", encoding="utf-8") as file:
        file.write(picture)


if __name__ == "__main__":
    main()
