#!/usr/bin/env bash
# fedlora simulate: the members of a round. Cohorts, late updates and their weights, devices that are not always on.
# Release only: simulate.sh runs the same code under the sanitizers.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"
cd "$work"

simulate() { "$programs/fedlora" simulate "$@" --precision f32 --quiet; }
refused() { expect_refusal 2 "$1" simulate "${@:2}"; } # TEXT OPTIONS...
# holds DIR EXPRESSION: fails unless the Python expression about the rounds and updates of a simulation is true.
cat >holds.py <<'END'
import csv, json, sys
rounds = [json.loads(line) for line in open(sys.argv[1] + "/rounds.jsonl")]
updates = list(csv.DictReader(open(sys.argv[1] + "/updates.csv")))
sys.exit(not eval(sys.argv[2]))
END
holds() { python3 holds.py "$@" || fail_with "$1/updates.csv" "$1: not $2"; }
state_of() { python3 -c "import json,sys; print(json.load(open(sys.argv[1] + '/result.json'))['last']['state'])" "$1"; }

python3 "$root/tests/e2e/tiny.py" model base
python3 "$root/tests/e2e/tiny.py" rows rows.jsonl --seed 1 --rows 120
common=(--base base --data rows.jsonl --clients 12 --seed 5 --run lab --targets q,v --steps 2 --batch 2 --lr 1e-2)
mixed=(--class 'quick:share=50%:speed=2000' --class 'slow:share=25%:speed=100' --class 'slower:share=25%:speed=40')

# Six of twelve are drawn and the first four updates close a round, whatever the workers and after crashes.
cohort=("${common[@]}" --method flora --rank 2 --rounds 4 --cohort 4 --over-select 2 --jitter 0.5)
simulate "${cohort[@]}" --workers 1 -o one >out
holds one 'all(r["updates"] == 4 and r["lost"] <= 2 for r in rounds)'
holds one 'all(len({u["member"] for u in updates if u["round"] == str(r)}) >= 5 for r in (1, 2, 3))'
holds one 'len({frozenset(u["member"] for u in updates if u["round"] == str(r)) for r in (1, 2, 3)}) == 3'
holds one 'all(u["loss"] == "" for u in updates if u["fate"] == "lost")'
simulate "${cohort[@]}" --workers 2 --crash 0.4 -o two >out
grep -q "the coordinator crashed" out || fail_with out "no crash"
[ "$(state_of one)" = "$(state_of two)" ] || fail "a cohort depends on the workers or on crashes"
refused "cohort 10 and over_select 3 are more than the 12 members" "${cohort[@]}" --cohort 10 --over-select 3 -o not1
refused "over_select: 2 has no effect without cohort" "${cohort[@]}" --cohort 0 -o not2

# FedBuff: four updates close a round, and slow members' updates count up to three rounds later. The last state is the
# mean with the discounted weights, computed here from the files of the updates.
simulate "${common[@]}" "${mixed[@]}" --method fedit --rank 2 --rounds 8 --quorum 4 --late-rounds 3 -o buffer >out
holds buffer 'all(r["updates"] >= 4 for r in rounds) and sum(r["late"] for r in rounds) >= 4'
cat >mean.py <<'END'
import glob, json, os, sqlite3, struct, sys
def tensors(path):
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8 : 8 + size])
    head.pop("__metadata__")
    out = {}
    for name, t in head.items():
        first, last = t["data_offsets"]
        out[name] = struct.unpack("<%df" % ((last - first) // 4), data[8 + size + first : 8 + size + last])
    return out
def blob(digest):
    found = [p for p in glob.glob(sys.argv[1] + "/blobs/**", recursive=True) if digest.hex() in p.replace("/", "")]
    return tensors([p for p in found if os.path.isfile(p)][0])
db = sqlite3.connect(sys.argv[1] + "/fedlora.db")
rounds = db.execute("SELECT max(round) FROM rounds").fetchone()[0]
rows = db.execute("SELECT digest, examples, counted_in - made_for FROM updates WHERE counted_in=?", (rounds,)).fetchall()
state = blob(db.execute("SELECT state FROM rounds WHERE round=?", (rounds,)).fetchone()[0])
weight = [examples / (1 + stale) ** 0.5 for _, examples, stale in rows]
update = [blob(digest) for digest, _, _ in rows]
worst = plain = 0
for name, values in state.items():
    for i, value in enumerate(values):
        mean = sum(w * u[name][i] for w, u in zip(weight, update)) / sum(weight)
        even = sum(u[name][i] for u in update) / len(update)
        worst, plain = max(worst, abs(mean - value)), max(plain, abs(even - value))
print(max(stale for _, _, stale in rows), worst, plain)
sys.exit(not (worst < 1e-7 < 1e-5 < plain))
END
python3 mean.py buffer/store >said || fail_with said "the state is not the discounted mean"
[ "$(cut -d' ' -f1 said)" -ge 1 ] || fail_with said "no late update in the last round"
refused "late_rounds: method rolora trains with factors that have changed" "${common[@]}" --method rolora --rank 2 \
  --rounds 2 --late-rounds 1 -o not3

# If no share may be above 1 / members, all weights are equal.
uneven=(--base base --data rows.jsonl --clients 5 --size-sigma 1 --seed 5 --run cap --targets q,v --method fedit --rank 2
  --rounds 2 --steps 1)
simulate "${uneven[@]}" --weight-cap 0.2 -o capped >out
simulate "${uneven[@]}" --weights uniform -o uniform >out
simulate "${uneven[@]}" -o uncapped >out
[ "$(state_of capped)" = "$(state_of uniform)" ] || fail "a cap of a fifth does not make five weights equal"
[ "$(state_of capped)" != "$(state_of uncapped)" ] || fail "the cap has no effect"
refused "privacy: the weights are part of the plan" "${uneven[@]}" --weights uniform --weight-cap 0.5 --privacy client \
  --epsilon 8 --delta 1e-3 --deadline 1m --method ffa -o not4

# With delays of a log-normal factor, FedBuff and over-selection reach a loss in a fraction of the virtual time of rounds
# that wait for everyone: 1.0 s and 1.3 s instead of 12 s.
python3 "$root/tests/e2e/tiny.py" rows more.jsonl --seed 1 --rows 240
python3 "$root/tests/e2e/tiny.py" rows test.jsonl --seed 1 --rows 32
race=(--base base --data more.jsonl --test test.jsonl --clients 12 --seed 5 --run lab --targets q,k,v,o --steps 4
  --batch 4 --lr 2e-2 --method fedit --rank 4 --jitter 1)
simulate "${race[@]}" --rounds 7 -o all >out
simulate "${race[@]}" --rounds 12 --quorum 4 --late-rounds 8 -o fedbuff >out
simulate "${race[@]}" --rounds 7 --cohort 4 --over-select 4 -o selected >out
python3 - <<'END' || fail_with fedbuff/rounds.jsonl "FedBuff or over-selection is not faster"
import json
def reached(folder):
    rounds = [json.loads(line) for line in open(folder + "/rounds.jsonl")]
    return next(r["virtual_s"] for r in rounds if r["loss"] < 1.15)
assert reached("fedbuff") < reached("all") / 3 and reached("selected") < reached("all") / 3
END

# Devices that are on for a quarter of the time take about four times as long for the same energy, at 20 tokens a second
# and 30 W.
part=("${common[@]}" --method flora --rank 2 --rounds 3 --steps 8)
duty=("${part[@]}" --class 'phone:speed=20:online=25%/8s:watts=30')
simulate "${duty[@]}" -o phones >out
holds phones 'all(r["updates"] == 12 and r["lost"] == 0 for r in rounds)'
cat >energy.py <<'END'
import csv, json
updates = list(csv.DictReader(open("phones/updates.csv")))
total = json.load(open("phones/result.json"))["last"]["joules"]
for u in updates:
    seconds = float(u["end_s"]) - float(u["start_s"])  # two of each eight seconds count, in any phase
    assert 30 * (seconds / 8 - 1) * 2 <= float(u["joules"]) <= 30 * (seconds / 8 + 1) * 2, u
joules = [float(u["joules"]) for u in updates]
assert abs(sum(joules) - total) < 1e-3 * total
assert max(joules) < 1.5 * min(joules)
END
python3 energy.py || fail_with phones/updates.csv "energy"
# With a deadline, a device that is off while a round is open gets no task of it.
asleep=("${part[@]}" --class 'phone:speed=200:online=25%/40s:watts=30' --quorum 1 --deadline 5s)
simulate "${asleep[@]}" --workers 1 -o asleep >out
simulate "${asleep[@]}" --workers 2 -o asleep2 >out
cmp <(cut -d, -f1-7,10 asleep/updates.csv) <(cut -d, -f1-7,10 asleep2/updates.csv) || fail "the workers matter"
holds asleep 'all(sum(u["round"] == str(r) for u in updates) < 12 for r in (1, 2, 3))'
holds asleep 'all(float(u["joules"] or 0) > 0 for u in updates)'
printf 'member,tokens_per_s,up,down,on_from,on_to\nm01,1,,,,\nm02,1e6,,,0,1h\n' >trace.csv
simulate "${part[@]}" -o trace --trace trace.csv >out
holds trace 'max((float(u["end_s"]) - float(u["start_s"]), u["member"]) for u in updates)[1] == "m01"'
holds trace 'min((float(u["end_s"]) - float(u["start_s"]), u["member"]) for u in updates)[1] == "m02"'
sed 's/m01/-/' trace.csv >wrong.csv
refused "--trace: wrong.csv: line 2" "${part[@]}" -o not4 --trace wrong.csv

# Interrupted in the middle of a round, with late updates on their way, dropped tasks and devices that are off: the same
# command goes on to the same rounds and updates.
resumed=("${part[@]}" --steps 24 --batch 8 --jitter 1 --quorum 4 --late-rounds 2 --deadline 9s --workers 1
  --class 'p:speed=2000:drop=10%:online=50%/9s:watts=3')
outcome() {
  python3 -c 'import json, sys
for line in open(sys.argv[1] + "/rounds.jsonl"): print({k: v for k, v in json.loads(line).items() if k not in ("seconds", "combine_s")})' "$1"
  cut -d, -f1-7,10 "$1/updates.csv"
}
simulate "${resumed[@]}" -o whole >out
for lines in 8 18 24; do
  rm -rf parts
  spawn parts.log "$programs/fedlora" simulate "${resumed[@]}" --precision f32 --quiet -o parts
  for _ in $(seq 1000); do
    [ "$( (cat parts/updates.csv 2>/dev/null || true) | wc -l)" -ge $lines ] && break
    sleep 0.01
  done
  kill -INT "$last_child" 2>/dev/null || true
  wait "$last_child" 2>/dev/null || true
  simulate "${resumed[@]}" -o parts >out
  cmp <(outcome whole) <(outcome parts) || fail_with parts.log "after an interruption at line $lines other results"
done
echo "simulate_members: passed"
