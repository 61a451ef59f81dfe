#!/usr/bin/env bash
# Published effects as sweeps of bench/sweeps/: the sign of a difference of means, not its size.
# Release only: minutes for the same numbers.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"
cd "$work"

python3 "$root/deploy/simulate_data.py" simulation >log 2>&1 || fail_with log "simulate_data.py"
# sweep NAME: runs bench/sweeps/NAME.ini; its results are in NAME/results.csv.
sweep() { "$programs/fedlora" simulate "$root/bench/sweeps/$1.ini" -o "$1" --quiet >log 2>&1 || fail_with log "$1"; }
# above NAME COLUMN KEY=A KEY=B: fails unless the mean of the column is larger in the cells with A than in those with B.
above() {
  python3 - "$@" <<'END' || fail_with log "$*"
import csv, statistics, sys
name, column, *settings = sys.argv[1:]
rows = list(csv.DictReader(open(f"{name}/results.csv")))
means = []
for setting in settings:
    key, value = setting.split("=")
    means.append(statistics.mean(float(row[column]) for row in rows if row[key] == value))
print(column, settings, means, file=open("log", "w"))
sys.exit(means[0] <= means[1])
END
}

sweep heterogeneity
above heterogeneity error_percent data.alpha=0.1 data.alpha=1000
above heterogeneity error_percent train.steps=16 train.steps=1
sweep ranks
above ranks loss run.method=hetlora run.method=flora
above ranks loss run.method=fedit run.method=hetlora
above ranks error_percent run.method=hetlora run.method=flora

# The sweeps that need large models or hours: their settings are accepted, with a small base and one step.
program=$programs/fedlora
brief=(--quiet --base simulation/base --data members --test simulation/test.jsonl --seeds 1 --set run.rounds=1
  --set train.steps=1 --set train.batch=4 --set evaluate.every=0)
# accepted CELLS NAME OPTIONS...: fails unless all cells of bench/sweeps/NAME.ini end.
accepted() {
  local cells=$1 name=$2
  shift 2
  "$program" simulate "$root/bench/sweeps/$name.ini" -o brief "${brief[@]}" "$@" >log 2>&1 || fail_with log "$name"
  grep -q "^$cells cells: $cells done" log || fail_with log "$name: not $cells cells"
  rm -r brief
}
mkdir demo
"$program" simulate split --base simulation/base --data simulation/rows.jsonl --clients 3 --write members >log 2>&1 ||
  fail_with log "split"
"$program" basis --quiet --base simulation/base --rank 8 -o demo/basis.safetensors >log 2>&1 || fail_with log "basis"
accepted 2 demo_search --set run.alpha=8 --set train.lr=1e-3
accepted 2 demo_search --set run.method=fed-sb --set run.alpha=0 --set train.lr=3e-3,6e-3 --rank 8
accepted 6 privacy_clinc150 --set privacy.epsilon=0,3
echo "trends: passed"
