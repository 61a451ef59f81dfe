#!/usr/bin/env bash
# Published effects as sweeps of bench/sweeps/: the sign of a difference of means, not its size. Not under the sanitizers,
# which would need minutes for the same numbers.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"
cd "$work"

case $programs in */sanitize) skip "the numbers are those of the release build" ;; esac
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
echo "trends: passed"
