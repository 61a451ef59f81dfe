#!/usr/bin/env bash
# fedlora simulate from the command line: files and tables, an interruption that changes no byte, late and lost
# updates in virtual time, a split that is written for real members, and refusals. tests/e2e/methods.c compares the
# states of all methods with those of a federation over the wire.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"
cd "$work"

simulate() { "$programs/fedlora" simulate "$@"; }
refused() { expect_refusal 2 "$1" simulate "${@:2}"; } # TEXT OPTIONS...
# json FILE EXPRESSION: prints the value of a Python expression about the lines x of a file of JSON Lines.
json() { python3 -c "import json,sys; x=[json.loads(l) for l in open(sys.argv[1])]; print($2)" "$1"; }
holds() { [ "$(json "$1" "$2")" = True ] || fail_with "$1" "$1: not $2"; }

python3 "$root/tests/e2e/tiny.py" model base
python3 "$root/tests/e2e/tiny.py" rows plain.jsonl --seed 1 --rows 120
python3 "$root/tests/e2e/tiny.py" rows test.jsonl --seed 1 --rows 16
python3 - <<'END'
import json
rows = [json.loads(line) for line in open("plain.jsonl")]
with open("rows.jsonl", "w") as file:
    for i, row in enumerate(rows):
        file.write(json.dumps(row | {"topic": f"t{i % 6}"}) + "\n")
END
cat >lab.ini <<'END'
[data]
train = rows.jsonl
test = test.jsonl
split = dirichlet
by = topic
alpha = 0.3
[fleet]
members = 12
ranks = 2,4
[evaluate]
every = 2
[run]
base = base
method = flora
rounds = 3
targets = q,v
[train]
steps = 3
batch = 4
lr = 1e-2
END
common=(lab.ini --precision f32 --seed 5)

# The table, the files, and the same command again, which has nothing left to do.
simulate "${common[@]}" --workers 2 >out 2>err
grep -q "^12 clients, flora, 3 rounds, 2 workers" err || fail_with err "no head line"
grep -q "^m01  " err || fail_with err "no histogram of the split"
[ "$(grep -cE '^ +[1-3] ' out)" -eq 3 ] || fail_with out "no table of three rounds"
holds lab/rounds.jsonl '[r["round"] for r in x] == [1, 2, 3] and all(r["updates"] == 12 for r in x)'
holds lab/rounds.jsonl '[r["loss"] is not None for r in x] == [False, True, True]'
holds lab/rounds.jsonl 'x[2]["loss"] < x[1]["loss"] < 4.2 and x[2]["virtual_s"] > x[1]["virtual_s"] > 0'
[ "$(wc -l <lab/updates.csv)" -eq 37 ] || fail_with lab/updates.csv "not one line for each of 36 updates"
python3 - lab <<'END' || fail_with lab/rounds.jsonl "a round has other figures than the coordinator's store and report"
import json, sqlite3, sys, zlib
rounds = [json.loads(line) for line in open(sys.argv[1] + "/rounds.jsonl")]
reports = sqlite3.connect(sys.argv[1] + "/store/fedlora.db").execute(
    "SELECT report_z, aggregate_ms FROM rounds WHERE round > 0 ORDER BY round")
for row, (report, ms) in zip(rounds, reports, strict=True):
    said = json.loads(zlib.decompress(report[4:]))
    assert abs(row["error"] - said["error"] / said["update_norm"]) <= 1e-9 + 1e-6 * row["error"], (row, said["error"])
    assert row["combine_s"] == ms / 1000, (row, ms)
END
state=$(json lab/result.json 'x[0]["last"]["state"]')
cp lab/rounds.jsonl before
simulate "${common[@]}" --quiet >out
grep -q "state ${state:0:16}" out || fail_with out "a finished simulation does not name its state"
cmp before lab/rounds.jsonl || fail "a finished simulation was changed"
refused "other data or options; choose another folder with -o, or begin anew with --force" "${common[@]}" --lr 2e-2
mkdir -p foreign/store
refused "foreign: holds a store of another program" "${common[@]}" -o foreign
"$programs/fedlora" eval --base base --data test.jsonl --state "$(json lab/result.json 'x[0]["state_file"]')" \
  --precision f32 --quiet --json >evaluated || fail "the state cannot be evaluated"
[ "$(python3 -c "
import json
print(abs(json.load(open('evaluated'))['loss'] - json.load(open('lab/result.json'))['last']['loss']) < 1e-6)")" = True ] ||
  fail_with lab/result.json "fedlora eval measures another loss"

# Interrupted and killed while it runs, then continued: the same bytes.
for signal in INT KILL; do
  rm -rf cut
  spawn cut.log "$programs/fedlora" simulate "${common[@]}" --run lab -o cut --workers 1 --rounds 3
  for _ in $(seq 400); do
    [ -s cut/rounds.jsonl ] && break
    sleep 0.02
  done
  kill -$signal "$last_child" 2>/dev/null || true
  wait "$last_child" 2>/dev/null || true
  # It may have ended before the signal.
  [ $signal = KILL ] || grep -qE "^state |interrupted in round [0-9]; the same command" cut.log ||
    fail_with cut.log "does not say how to continue"
  simulate "${common[@]}" --run lab -o cut --quiet --json >out
  [ "$(json cut/result.json 'x[0]["last"]["state"]')" = "$state" ] || fail_with cut.log "after SIG$signal another state"
  holds cut/rounds.jsonl '[r["round"] for r in x] == [1, 2, 3] and all(r["updates"] == 12 for r in x)'
  cut -d, -f1-7 lab/updates.csv >a
  cut -d, -f1-7 cut/updates.csv | cmp - a || fail "after SIG$signal other updates"
done

# Slow devices miss the deadline: their updates are lost, or count one round later.
slow=(--class 'quick:share=50%:speed=2000' --class 'slow:share=50%:speed=50' --quorum 5 --deadline 1s)
simulate "${common[@]}" "${slow[@]}" -o refuse --quiet >out
holds refuse/rounds.jsonl 'all(r["updates"] == 6 and r["late"] == 0 for r in x) and x[1]["lost"] == 6'
holds refuse/rounds.jsonl '[r["virtual_s"] for r in x] == [1.001, 2.001, 3.001]'
simulate "${common[@]}" "${slow[@]}" --late next --deadline 3s --rounds 4 -o next --quiet >out
holds next/rounds.jsonl 'sum(r["late"] for r in x) >= 6'
grep -q ",late," next/updates.csv || fail_with next/updates.csv "no late update"
status=0
simulate "${common[@]}" --class 'all:drop=50%' -o never --quiet >out 2>said || status=$?
[ $status -ne 0 ] && grep -q "round 1 cannot close: .* of 12 updates are in" said || fail_with said "status $status"

# A split that is written for real members trains to the same state as the one that was simulated.
"$programs/fedlora" simulate split lab.ini --seed 5 --write parts >out
grep -q "12 members with" out || fail_with out "no summary of the split"
[ "$(cat parts/*.jsonl | sort | cmp - <(sort rows.jsonl) && ls parts | wc -l)" -eq 12 ] || fail "not the same rows"
simulate "${common[@]}" --data parts --split iid --run lab -o written --quiet >out
[ "$(json written/result.json 'x[0]["last"]["state"]')" = "$state" ] || fail "the written parts train to another state"

# Frozen factors from a file: those that a run has drawn itself give the same states.
sb=("${common[@]}" --method fed-sb --rank 40 --rounds 2 --quiet)
simulate "${sb[@]}" -o drawn >out
frozen=$(grep -l '"fedlora.kind":"frozen"' drawn/store/blobs/* | head -n 1)
cp "$frozen" frozen.safetensors
simulate "${sb[@]}" --frozen frozen.safetensors -o given >out
[ "$(json given/result.json 'x[0]["last"]["state"]')" = "$(json drawn/result.json 'x[0]["last"]["state"]')" ] ||
  fail "given frozen factors lead to another state"
cmp drawn/updates.csv given/updates.csv || fail "given frozen factors take another time"
simulate plan "${sb[@]}" --frozen frozen.safetensors --json >out
[ "$(json out 'x[0]["methods"][0]["frozen"]["bytes"]')" = "$(stat -c %s frozen.safetensors)" ] ||
  fail_with out "the plan counts another file"

# One file describes the deployed run too: run create reads it, and only then misses the coordinator.
printf '[server]\naddress = localhost:1\nca = none\ncert = none\nkey = none\n' >>lab.ini
status=0
"$programs/fedlora" run create lab --config lab.ini --members a,b >out 2>said || status=$?
grep -q "none" said && ! grep -q "unknown key" said || fail_with said "run create does not read the file"
simulate lab.ini --precision f32 --seed 5 --quiet >out || fail "simulate does not read the file of run create"

refused "--split shards needs --by FIELD" "${common[@]}" --split shards --by "" -o not
refused 'no field "intent"' "${common[@]}" --by intent -o not
refused "--method is missing" --base base --data rows.jsonl --rank 2 --rounds 1
refused "--rank or --ranks is missing" --base base --data rows.jsonl --method flora --rounds 1
refused "--base is missing" --data rows.jsonl --method flora --rank 2 --rounds 1
refused "120 rows cannot be split into 200 parts" "${common[@]}" --split iid --clients 200 -o not
refused "--class: class a: speed=0" "${common[@]}" --class a:speed=0 -o not
refused "--ranks" "${common[@]}" --ranks 2,x -o not
refused "method flora has no frozen factors" "${common[@]}" --frozen rows.jsonl -o not
refused '"my run" is not a run name' --run "my run" "${common[@]}"
[ ! -e not ] || fail "a refused simulation left a folder"

# Another process simulates in the folder.
status=0
flock lab/store/lock "$programs/fedlora" simulate "${common[@]}" >said 2>&1 || status=$?
[ $status -eq 1 ] || fail_with said "a folder in use: status $status, expected 1"
grep -q "another process uses this folder" said || fail_with said "a folder in use is not named"
echo "simulate: passed"
