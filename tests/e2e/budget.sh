#!/usr/bin/env bash
# fedlora budget epsilon, noise and steps on the command line: published numbers as a table and as JSON, a plot in
# SVG, and refusals that name the wrong option.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

fedlora=$programs/fedlora
budget() { # STATUS WORDS...: fails unless the command ends with this status
  local wanted=$1 status=0
  shift
  timeout 120 "$fedlora" budget "$@" >"$work/out" 2>"$work/err" </dev/null || status=$?
  [ "$status" -eq "$wanted" ] || fail_with "$work/err" "budget $*: status $status, expected $wanted"
}
refused() { # TEXT WORDS...
  local text=$1
  shift
  budget 2 "$@"
  [ ! -s "$work/out" ] || fail_with "$work/out" "budget $*: wrote to standard output"
  grep -qF -- "fedlora: $text" "$work/err" || fail_with "$work/err" "budget $*: expected \"$text\""
}
holds() { # EXPRESSION: in Python, where `d` is the JSON document on standard output
  python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); assert eval(sys.argv[2]), d' \
    "$work/out" "$1" || fail "not so: $1"
}

# ---- the epsilon of a plan, by each accountant
plan=(--sampling 0.02 --steps 500 --delta 1e-5)
budget 0 epsilon --noise 1.1 "${plan[@]}"
grep -qE '^pld +2\.29324 +1e-05 +1\.1 +0\.02 +500 +grid 0\.0001$' "$work/out" || fail_with "$work/out" "the table"
grep -qE '^rdp +2\.57566 .*order 7\.1$' "$work/out" || fail_with "$work/out" "the second bound"
budget 0 epsilon --noise 1.1 "${plan[@]}" --json
holds 'abs(d["epsilon"] - 2.293244499) < 1e-8 and abs(d["rdp"]["epsilon"] - 2.575660465) < 1e-8'
holds 'd["noise"] == 1.1 and d["sampling"] == 0.02 and d["steps"] == 500 and d["delta"] == 1e-5'
budget 0 epsilon --noise 1.1 "${plan[@]}" --json --accountant rdp
holds 'abs(d["epsilon"] - 2.575660465) < 1e-8 and d["order"] == 7.1'
budget 0 epsilon --noise=1.5 --sampling=0.05 --steps=1000 --delta=1e-6 --json --accountant=prv
holds 'abs(d["epsilon"] - 6.20996924657726713) < 5e-5 and 6.18 < d["lower"] < 6.2'
budget 0 epsilon --noise 1.5 --sampling 0.04 --steps 2250 --delta 1e-5 --json --accountant rdp --signed
holds 'abs(d["epsilon"] - 7.32911117143) < 1e-9'
budget 0 epsilon --noise 1 --sampling 0.1 --steps 50 --delta 1e-5 --json --adjacency replace-one
holds 'abs(d["epsilon"] - 7.185538950) < 1e-8 and "rdp" not in d'
budget 0 epsilon --noise 2 --sampling 0.01 --steps 100 --delta 1e-5 --json --scheme fixed \
  --adjacency replace-one --accountant rdp
holds 'abs(d["epsilon"] - 1.482525669) < 1e-8'
budget 0 epsilon --noise 8.83 --sampling 1 --steps 1600 --delta 1e-6 --json --tree
holds 'abs(d["rdp"]["epsilon"] - 1.773192450) < 1e-8 and d["epsilon"] < d["rdp"]["epsilon"]'
budget 0 epsilon --noise 10 --sampling 1 --steps 24 --delta 1e-6 --json --tree --times 8 --apart 2
holds 'abs(d["epsilon"] - 4.54441765) < 1e-8' # one Gaussian, mu = sqrt(88)/10
budget 0 epsilon --noise 1.1 --sampling 0.02 --steps 200 --before 1.1,0.02,300 --delta 1e-5 --json
holds 'abs(d["epsilon"] - 2.293244499) < 1e-8'

# ---- the noise and the rounds for a budget, and a plot
budget 0 noise --epsilon 8 --sampling 0.04 --steps 2250 --delta 1e-5 --json
holds 'abs(d["noise"] - 1.345899) < 3e-6 and 7.9999 < d["epsilon"] <= d["budget"] == 8'
budget 0 noise --epsilon 1 --sampling 1 --steps 1 --units 10000 --json
holds 'd["delta"] == 1e-5 and abs(d["noise"] - 3.730631634816) < 4e-6'
budget 0 noise --epsilon 2 --sampling 1 --steps 1600 --delta 1e-6 --tree --json
holds 'd["epsilon"] <= 2 and d["noise"] > 7'
budget 0 steps --epsilon 3 --noise 1.1 --sampling 0.02 --delta 1e-5 --json --plot "$work/steps.svg"
holds '2.99 < d["epsilon"] <= 3'
total=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["steps"])' "$work/out")
python3 - "$work/steps.svg" <<'PYTHON'
import sys, xml.etree.ElementTree as tree
root = tree.parse(sys.argv[1]).getroot()
text = " ".join(t.text for t in root.iter("{http://www.w3.org/2000/svg}text"))
assert root.tag.endswith("svg") and "rounds" in text and "epsilon spent" in text and "budget 3" in text, text
line = next(root.iter("{http://www.w3.org/2000/svg}polyline")).get("points").split()
points = [tuple(map(float, p.split(","))) for p in line]
assert len(points) > 15, points
assert all(a[0] < b[0] and a[1] >= b[1] for a, b in zip(points, points[1:])), points  # epsilon never falls
PYTHON
budget 0 steps --epsilon 3 --noise 1.1 --sampling 0.02 --delta 1e-5 --before 1.1,0.02,120 --json
holds "d['steps'] == $total - 120 and d['before'] == [{'noise': 1.1, 'sampling': 0.02, 'steps': 120}]"
refused "$work/steps.svg: exists already" epsilon --noise 1.1 "${plan[@]}" --plot "$work/steps.svg"
budget 0 epsilon --noise 1.1 "${plan[@]}" --plot "$work/steps.svg" --force

# ---- refusals
refused '--noise is missing' epsilon "${plan[@]}"
refused '--delta is missing' epsilon --noise 1 --sampling 1 --steps 1
refused '--sampling is missing' epsilon --noise 1 --steps 1 --delta 1e-5
refused '--steps is missing' epsilon --noise 1 --sampling 1 --delta 1e-5
refused '--epsilon is missing' noise "${plan[@]}"
refused '--epsilon -2: expected a budget above 0' steps --epsilon=-2 --noise 1 --sampling 1 --delta 1e-5
refused '--sampling 1.5: expected above 0 and at most 1' epsilon --noise 1 --sampling 1.5 --steps 1 --delta 1e-5
refused '--sampling -0.1: expected a probability above 0' epsilon --noise 1 --sampling=-0.1 --steps 1 --delta 1e-5
refused 'noise multiplier 0.001: expected 0.01 to 1e6' epsilon --noise 0.001 "${plan[@]}"
refused '--steps -3: expected at least 1' epsilon --noise 1 --sampling 1 --steps=-3 --delta 1e-5
refused '--steps 2000000000: expected 1 to 1000000000' epsilon --noise 1 --sampling 1 --steps 2000000000 --delta 1e-5
refused '--delta 1: expected a value below 1' epsilon --noise 1 --sampling 1 --steps 1 --delta 1
refused '--delta 0.001: not below 1/units = 0.001' epsilon --noise 1 --sampling 1 --steps 1 --delta 1e-3 --units 1000
refused '--units -4: expected at least 1' epsilon --noise 1 "${plan[@]}" --units=-4
refused '--before 1.1,0.02: expected noise,sampling,steps' epsilon --noise 1 "${plan[@]}" --before 1.1,0.02
refused '--interval 5: expected 1e-9 to 1' epsilon --noise 1 "${plan[@]}" --interval 5
refused 'epsilon 1 is spent already: 4.37718' steps --epsilon 1 --noise 1 --sampling 1 --delta 1e-5 --before 1,1,1
refused '--tree: expected --sampling 1' epsilon --noise 1 "${plan[@]}" --tree
refused 'sampling of a fixed size is accounted for only by rdp' epsilon --noise 1 "${plan[@]}" --scheme fixed
refused "$work/none/x.svg: the folder" epsilon --noise 1 "${plan[@]}" --plot "$work/none/x.svg"
refused 'budget: a command is missing' # fedlora budget
echo "budget: all as it should be"
