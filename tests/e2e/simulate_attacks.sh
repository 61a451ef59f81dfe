#!/usr/bin/env bash
# fedlora simulate with faulty members: changed updates, wrong answers, updates that are refused, and members that never
# come back.
# Release only: simulate.sh runs the same code under the sanitizers.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"
cd "$work"

simulate() { "$programs/fedlora" simulate "$@" --precision f32 --quiet >out; }
cat >holds.py <<'END'
import csv, json, struct, sys
def state(folder, end="last"):
    """The values of all factors in the newest state, or in the one before it."""
    import os, sqlite3
    store = folder + "/store"
    db = sqlite3.connect(store + "/fedlora.db")
    last = db.execute("SELECT max(round) FROM rounds").fetchone()[0]
    digest = db.execute("SELECT state FROM rounds WHERE round=?", (last - (end != "last"),)).fetchone()[0].hex()
    path = [os.path.join(d, f) for d, _, files in os.walk(store + "/blobs") for f in files
            if digest in os.path.join(d, f).replace("/", "")][0]
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    values = struct.unpack("<%df" % ((len(data) - 8 - size) // 4), data[8 + size:])
    return values
folder = sys.argv[1]
rounds = [json.loads(line) for line in open(folder + "/rounds.jsonl")]
updates = list(csv.DictReader(open(folder + "/updates.csv")))
def lines(member): return [u for u in updates if u["member"] == member]
def loss(folder): return [json.loads(line) for line in open(folder + "/rounds.jsonl")][-1]["loss"]
def worst(a, b): return max(abs(x - y) for x, y in zip(a, b, strict=True))
sys.exit(not eval(sys.argv[2]))
END
holds() { python3 holds.py "$@" || fail_with "$1/updates.csv" "$1: not $2"; }

python3 "$root/tests/e2e/tiny.py" model base
python3 "$root/tests/e2e/tiny.py" rows rows.jsonl --seed 1 --rows 120
python3 "$root/tests/e2e/tiny.py" rows test.jsonl --seed 1 --rows 32
common=(--base base --data rows.jsonl --test test.jsonl --clients 10 --seed 5 --run lab --targets q,k,v,o --steps 4
  --batch 4 --lr 2e-2 --rank 4 --check-every 6)

# The mean of FedIT is linear, so if all members change their updates the state of one round is changed in the same way.
one=("${common[@]}" --method fedit --rounds 1)
simulate "${one[@]}" -o clean1
simulate "${one[@]}" -o flip1 --attack 'sign-flip 100%'
holds flip1 'worst(state("flip1"), [2 * s - x for s, x in zip(state("clean1", "start"), state("clean1"))]) < 1e-6'
holds flip1 'worst(state("flip1"), state("clean1")) > 1e-3 and all(u["attack"] == "sign-flip" for u in updates)'
simulate "${one[@]}" -o scale1 --attack 'scale:3 100%'
holds scale1 'worst(state("scale1"), [3 * x - 2 * s for s, x in zip(state("clean1", "start"), state("clean1"))]) < 1e-6'
# Without a bound the whole effect of an attack is seen; a bound leaves its updates out.
simulate "${one[@]}" -o huge --attack 'scale:1e6 20%'
holds huge 'worst(state("huge"), state("clean1")) > 100 and rounds[0]["updates"] == 10'
simulate "${one[@]}" -o bounded --attack 'scale:1e6 20%' --norm-bound 1000
holds bounded 'worst(state("bounded"), state("clean1")) < 1 and rounds[0]["updates"] == 8'
# Ten members' independent noise of 0.5: the mean's has a standard deviation of 0.5 / sqrt(10).
simulate "${one[@]}" -o noise1 --attack 'noise:0.5 100%'
holds noise1 '0.95 < (sum((x - y) ** 2 for x, y in zip(state("noise1"), state("clean1"))) / len(state("clean1")) / 0.025) ** 0.5 < 1.05'
simulate "${one[@]}" -o labels1 --attack 'label-shuffle 100%'
holds labels1 'worst(state("labels1"), state("clean1")) > 1e-4'

# Two of ten turn their changes around: the mean suffers, Krum leaves them out. Neither crashes nor workers matter.
six=("${common[@]}" --method fedit --rounds 6)
simulate "${six[@]}" -o clean
simulate "${six[@]}" -o mean --attack 'sign-flip 20%'
simulate "${six[@]}" -o krum --attack 'sign-flip 20%' --option robust=krum --workers 1
simulate "${six[@]}" -o again --attack 'sign-flip 20%' --option robust=krum --workers 2 --crash 0.3
grep -q "the coordinator crashed" out || fail_with out "no crash"
cmp <(python3 -c 'import json; print(json.load(open("krum/result.json"))["last"]["state"])') \
  <(python3 -c 'import json; print(json.load(open("again/result.json"))["last"]["state"])') || fail "other bytes"
holds krum 'len({u["member"] for u in updates if u["attack"]}) == 2 and len(updates) == 60'
holds krum 'loss("mean") > loss("clean") + 0.08 and loss("krum") < loss("clean") + 0.04' # 1.06, 1.20 and 1.06

# Updates that are not numbers are refused, and the others are enough for a quorum.
simulate "${six[@]}" -o nan --attack 'nan 20%' --quorum 8 --deadline 1m
holds nan 'all(r["updates"] == 8 for r in rounds) and sum(u["fate"] == "refused" for u in updates) == 12'
holds nan 'all((u["fate"] == "refused") == (u["attack"] == "nan") for u in updates) and loss("nan") < 1.5'
status=0
"$programs/fedlora" simulate "${six[@]}" -o stuck --attack 'nan 20%' --quiet >out 2>said || status=$?
[ $status -ne 0 ] && grep -q "round 1 cannot close: 8 of 10 updates are in" said || fail_with said "status $status"

# Three of ten vanish, each in one round, and are not handed a task afterwards.
printf '[faults]\nvanish = 0.3\nattack = sign-flip 10%%   ; of the members\n' >faults.ini
simulate faults.ini "${six[@]}" -o vanish --quorum 5 --deadline 1m
holds vanish 'len({u["member"] for u in updates if u["attack"] == "sign-flip"}) == 1'
holds vanish 'sum(u["fate"] == "dropped" for u in updates) == 3'
holds vanish 'all(lines(u["member"])[-1] is u for u in updates if u["fate"] == "dropped")'
holds vanish 'len({m for m in {u["member"] for u in updates} if len(lines(m)) == 6 and lines(m)[-1]["fate"] == "counted"}) == 7'

status=0
"$programs/fedlora" simulate "${six[@]}" -o not --attack 'flip 5%' --quiet >out 2>said || status=$?
[ $status -eq 2 ] && grep -qF -- '--attack: "flip": expected sign-flip' said || fail_with said "status $status"
echo "simulate_attacks: passed"
