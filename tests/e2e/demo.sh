#!/usr/bin/env bash
# deploy/demo.sh from end to end with a tiny model and small data: it prints the table and writes results.json,
# killing fedlorad changes no byte, a second run in the same folder works, and no process is left when it ends.
# Release only: federation.sh runs the same code under the sanitizers.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

python3 "$root/tests/e2e/tiny.py" model "$work/base"
mkdir "$work/rows"
for i in 1 2 3; do
  python3 "$root/tests/e2e/tiny.py" rows "$work/rows/ward$i.jsonl" --seed "$i" --rows $((10 + 5 * i))
done
demo=("$root/deploy/demo.sh" --programs "$programs" --base "$work/base" --data "$work/rows"
  --out "$work/demo" --seq 32 --rank-sb 8)

steps=1200 # long enough for a kill within a round
timeout 500 "${demo[@]}" --rounds 2 --steps $steps --kill-coordinator 2 >"$work/table" 2>"$work/said" ||
  fail_with "$work/said" "the demo ended with status $?"
grep -q 'killed fedlorad 2 times; the final state is the same' "$work/said" ||
  fail_with "$work/said" "the demo did not compare the killed run"
for label in 'base model' 'ward1 alone' 'ward3 alone' 'FedIT (baseline)' 'FLoRA' 'Fed-SB'; do
  grep -qF "$label" "$work/table" || fail_with "$work/table" "the table has no $label"
done
python3 - "$work/demo/results.json" <<'PYTHON' || fail_with "$work/table" "results.json"
import json, sys
found = {row["name"]: row for row in json.load(open(sys.argv[1]))["results"]}
assert len(found) == 7, list(found)
assert found["flora"]["loss"] < found["base"]["loss"], "FLoRA learned nothing"
assert all(up > 0 for up in found["flora"]["bytes_up"].values()), "no bytes went up"
PYTHON
[ -e "$work/demo/runs/flora-peft/adapter_config.json" ] || fail "no PEFT directory was exported"

left() { pgrep -f "$programs/fedlora.*$work/demo" || true; }
[ -z "$(left)" ] || fail "the demo left processes behind"

# A second run in the same folder, interrupted in the middle.
for signal in TERM KILL; do
  : >"$work/said" # so that the wait below does not see the output of the first run
  "${demo[@]}" --rounds 50 --steps 5000 >"$work/table" 2>"$work/said" &
  running=$!
  children+=("$running")
  tries=300
  until grep -q 'flora: round' "$work/said"; do
    alive $running || fail_with "$work/said" "the demo did not start again"
    [ $((tries -= 1)) -gt 0 ] || fail_with "$work/said" "the demo hangs"
    sleep 0.2
  done
  [ -n "$(left)" ] || fail "there is nothing to clean up: the test is wrong"
  kill -$signal $running
  wait $running 2>/dev/null || true
  tries=100
  until [ -z "$(left)" ]; do
    [ $((tries -= 1)) -gt 0 ] || fail "after $signal these go on: $(left)"
    sleep 0.1
  done
done
echo "the demo ends with its table and leaves nothing behind"
