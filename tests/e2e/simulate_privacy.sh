#!/usr/bin/env bash
# fedlora simulate with privacy: the simulated ledgers replay to the epsilon that was planned, say that they are
# simulated, and are kept apart from real ones; crashes, interruptions, and the end of a budget.
# Release only: simulate.sh runs the same code under the sanitizers.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"
cd "$work"

fedlora=$programs/fedlora
# json FILE EXPRESSION: prints the value of a Python expression about the lines x of a file of JSON Lines.
json() { python3 -c "import json,sys; x=[json.loads(l) for l in open(sys.argv[1])]; print($2)" "$1"; }
holds() { [ "$(json "$1" "$2")" = True ] || fail_with "$1" "$1: not $2"; }
refused() { expect_refusal "1 2 3" "$1" "$fedlora" "${@:2}"; } # TEXT OPTIONS...

python3 "$root/tests/e2e/tiny.py" model base
python3 "$root/tests/e2e/tiny.py" rows many.jsonl --seed 1 --rows 100
python3 "$root/tests/e2e/tiny.py" rows few.jsonl --seed 1 --rows 90
common=(--base base --targets q,v --rank 4 --precision f32 --weights uniform --workers 2 --quiet)
client=("${common[@]}" --data many.jsonl --clients 100 --method fed-sb --rounds 3 --steps 1 --batch 2 --deadline 15m
  --privacy client --epsilon 8 --delta 1e-4 --sampling 0.2 --clip-norm 0.5)
example=("${common[@]}" --data few.jsonl --clients 3 --method flora --rounds 2 --steps 2 --batch 4
  --privacy example --epsilon 4 --delta 1e-3 --sampling 0.1 --noise 1 --clip-norm 0.5)

# same_epsilon LEDGER KEY PLAN: the replay of the ledger gives the planned epsilon and noise.
same_epsilon() {
  "$fedlora" budget verify "$1" --key "$2" --json >verified || fail "$1 is not verified"
  python3 - verified "$3" <<'PY' || fail_with verified "$1: another epsilon than planned"
import json, sys
ledger, plan = (json.load(open(p)) for p in sys.argv[1:])
p = plan["methods"][0]["privacy"]
assert ledger["simulated"] is True and ledger["key_known"]
assert abs(ledger["spent"]["epsilon"] - p["epsilon"]) <= 1e-6 * p["epsilon"], (ledger["spent"], p)
assert p["noise_least"] * (1 - 1e-6) <= ledger["noise"] <= p["noise_most"] * (1 + 1e-6), (ledger["noise"], p)
PY
}

# Unit client: drawn rounds end at their virtual deadline.
"$fedlora" simulate plan "${client[@]}" --json >plan
"$fedlora" simulate "${client[@]}" -o drawn >out
grep -q "simulated ledger: drawn/store/ledgers" out || fail_with out "does not name the ledger"
same_epsilon drawn/store/ledgers/simulated.jsonl drawn/ledger.pub plan
holds drawn/rounds.jsonl '[round(r["virtual_s"]) for r in x] == [900, 1800, 2700]'
holds drawn/rounds.jsonl '0 < x[0]["epsilon"] < x[1]["epsilon"] < x[2]["epsilon"] <= 8 and x[2]["train_loss"] is None'
holds drawn/rounds.jsonl '5 < sum(r["updates"] for r in x) / 3 < 40'
head -n 1 drawn/store/ledgers/simulated.jsonl | grep -q '"simulated":true' || fail "the first line has no mark"
"$fedlora" budget verify drawn/store/ledgers/simulated.jsonl >out
grep -q "^SIMULATED privacy statement" out || fail_with out "the statement does not say that it is simulated"
python3 -c 'import csv, sys; rows = list(csv.DictReader(open(sys.argv[1]))); sys.exit(not rows or any(r["loss"] for r in rows))' \
  drawn/updates.csv || fail_with drawn/updates.csv "a loss is told"
[ "$(stat -c %a drawn/ledger.key)" = 600 ] || fail "others can read the key"

# Coordinator crashes, and a process that is killed: one draw of noise and one charge for each round.
given=("${client[@]}" --noise 0.8 --rounds 2 --run cut)
"$fedlora" simulate plan "${given[@]}" --json >plan
spawn cut.log "$fedlora" simulate "${given[@]}" --crash 0.05 -o cut
for _ in $(seq 400); do
  [ -s cut/rounds.jsonl ] && break
  sleep 0.02
done
kill -KILL "$last_child" 2>/dev/null || true
wait "$last_child" 2>/dev/null || true
"$fedlora" simulate "${given[@]}" --crash 0.05 -o cut >out
same_epsilon cut/store/ledgers/cut.jsonl cut/ledger.pub plan
holds cut/rounds.jsonl '[r["round"] for r in x] == [1, 2]'

# A budget that ends: the run stops, as the plan says, and its folder stays as it is.
short=("${client[@]}" --rounds 4 --noise 0.6 --epsilon 6 --run short)
"$fedlora" simulate plan "${short[@]}" --json >plan
rounds=$(json plan 'x[0]["methods"][0]["rounds"]')
[ "$rounds" -lt 4 ] || fail_with plan "the budget was to end"
"$fedlora" simulate "${short[@]}" -o short >out
grep -q "^stopped before the last round: .*budget" out || fail_with out "does not say why it stopped"
holds short/rounds.jsonl "len(x) == $rounds"
holds short/result.json '"budget" in x[0]["stopped"]'
cp short/rounds.jsonl before
"$fedlora" simulate "${short[@]}" -o short >out
cmp before short/rounds.jsonl || fail "a stopped run was continued"

# Unit example: each member has a ledger, of which the coordinator has a copy.
"$fedlora" simulate plan "${example[@]}" --json >plan
"$fedlora" simulate "${example[@]}" --crash 0.4 -o records >out
grep -q "simulated ledgers of the members: records/ledgers" out || fail_with out "does not name the ledgers"
for m in m1 m2 m3; do
  same_epsilon records/ledgers/$m.jsonl records/ledger.pub plan
  holds records/ledgers/$m.jsonl 'sum(l["kind"] == "release" for l in x) == 2'
done
holds records/rounds.jsonl "abs(x[1]['epsilon'] - $(json plan 'x[0]["methods"][0]["privacy"]["epsilon"]')) < 1e-6"
[ -z "$(find records/ledgers -name '*.jsonl.*')" ] || fail "a charged update was left behind"
spawn killed.log "$fedlora" simulate "${example[@]}" -o killed
for _ in $(seq 400); do
  [ -s killed/rounds.jsonl ] && break
  sleep 0.02
done
kill -KILL "$last_child" 2>/dev/null || true
wait "$last_child" 2>/dev/null || true
"$fedlora" simulate "${example[@]}" -o killed >out
for m in m1 m2 m3; do holds killed/ledgers/$m.jsonl 'sum(l["kind"] == "release" for l in x) == 2'; done

# Real ledgers and keys are never touched, and simulated ones are never used for real records.
(umask 077 && openssl genpkey -algorithm ed25519 -out real.key 2>/dev/null)
train=(train --base base --data few.jsonl --rank 2 --steps 1 --batch 4 --precision f32 --quiet --privacy example
  --epsilon 4 --delta 1e-3 --sampling 0.1 --noise 1 --clip-norm 0.5)
"$fedlora" "${train[@]}" -o adapter --ledger m1.jsonl --ledger-key real.key >out 2>&1 || fail_with out "train"
mkdir -p mine/ledgers theirs
cp m1.jsonl mine/ledgers/m1.jsonl
cp real.key theirs/ledger.key
digest=$(cat m1.jsonl mine/ledgers/m1.jsonl real.key theirs/ledger.key | sha256sum)
refused "m1.jsonl: was created with another key" simulate "${example[@]}" -o mine
refused "ledger.key: exists already" simulate "${example[@]}" -o theirs
"$fedlora" simulate "${example[@]}" --rounds 1 -o here >out
[ "$digest" = "$(cat m1.jsonl mine/ledgers/m1.jsonl real.key theirs/ledger.key | sha256sum)" ] ||
  fail "a simulation changed a real ledger or key"
"$fedlora" budget verify m1.jsonl >out
grep -q "^Privacy statement" out || fail_with out "a real ledger is said to be simulated"
cp records/ledgers/m1.jsonl copy.jsonl
refused "is the ledger of a simulation" "${train[@]}" -o other --ledger copy.jsonl --ledger-key records/ledger.key

# The coordinator's own refusals.
refused "expected --deadline" simulate "${client[@]}" --deadline 0s -o not
refused "weights by example counts depend on the data" simulate "${client[@]}" --weights examples -o not
refused "flora sends every member's factors" simulate "${client[@]}" --method flora -o not
[ ! -e not ] || fail "a refused simulation left a folder"
refused "hopeless" simulate "${client[@]}" --clients 20 --noise 9 -o not
echo "simulate_privacy: passed"
