#!/usr/bin/env bash
# A run with example-level privacy over the network: each member charges its own signed ledger before it sends, the
# coordinator keeps a copy and accepts only updates that are in it, and killed members and coordinators spend exactly
# what the ledgers say. A member refuses, before any training, a run whose promise it cannot keep or does not accept.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

members=(ann bob) member_list=ann,bob rounds=4
fedlora=$programs/fedlora

python3 "$root/tests/e2e/tiny.py" model "$work/base"
for i in 0 1; do
  python3 "$root/tests/e2e/tiny.py" rows "$work/${members[i]}.jsonl" --seed $((i + 1)) --rows $((60 + 40 * i))
  (umask 077 && openssl genpkey -algorithm ed25519 -out "$work/${members[i]}.sign" 2>/dev/null)
  openssl pkey -in "$work/${members[i]}.sign" -pubout -out "$work/${members[i]}.pub"
done
make_certs "${members[@]}"
digest=$("$fedlora" inspect "$work/base" --json | report field digest)

create() { # RUN METHOD OPTION...: with example-level privacy
  local run=$1 method=$2
  shift 2
  admin create "$run" --method "$method" --rounds $rounds --members $member_list --base-digest "$digest" \
    --rank 4 --targets q,v --steps 25 --batch 4 --seq 32 --lr 1e-3 --precision f32 --weights uniform \
    --evaluate-every 0 --privacy example --epsilon 4 --delta 1e-3 --clip-norm 0.5 --sampling 0.1 "$@" \
    >"$work/admin.log" 2>&1
}
# join_one RUN DIR I OPTION...
join_one() {
  local run=$1 dir=$2 i=$3
  shift 3
  join_member "$run" "${members[$i]}" "$dir" --base "$work/base" --data "$work/${members[$i]}.jsonl" \
    --ledger "$dir/${members[$i]}.ledger" --ledger-key "$work/${members[$i]}.sign" "$@"
  pids[$i]=$last_child
}
wait_all() {
  local i
  for i in 0 1; do wait_within 120 "${pids[$i]}" "${members[$i]}" "$work/${members[$i]}.log"; done
}
pids=()

# spent LEDGER MEMBER: replayed by its public key; prints "releases epsilon plans purpose,purpose..."
spent() {
  "$fedlora" budget verify "$1" --key "$work/$2.pub" --json >"$work/said" || fail_with "$work/said" "verify $1"
  python3 - "$work/said" <<'PY'
import json, sys
s = json.load(open(sys.argv[1]))
assert s["unit"] == "example" and s["key_known"], s
print(s["releases"], s["spent"]["epsilon"], len(s["plans"]), ",".join(p["purpose"] for p in s["plans"]))
PY
}

# ---- one run to its end: killed members and a killed coordinator charge nothing twice
start_coordinator "$work/one"
create r fed-sb || fail_with "$work/admin.log" "create"
for i in 0 1; do join_one r "$work/one" $i; done
for round in 1 2 3; do
  wait_for_round r $round
  kill -KILL "${pids[$((round % 2))]}" 2>/dev/null || true
  wait "${pids[$((round % 2))]}" 2>/dev/null || true
  if [ $round = 2 ]; then
    kill -KILL "$coordinator"
    wait "$coordinator" 2>/dev/null || true
    start_coordinator "$work/one"
  fi
  join_one r "$work/one" $((round % 2))
done
wait_all
for i in 0 1; do
  read -r releases epsilon plans purposes < <(spent "$work/one/${members[i]}.ledger" "${members[i]}")
  [ "$releases" = $rounds ] || fail "${members[i]}: $releases releases, expected $rounds"
  awk -v e="$epsilon" 'BEGIN { exit !(e > 3.99 && e <= 4) }' || fail "${members[i]}: epsilon $epsilon"
  head=$(tail -1 "$work/one/${members[i]}.ledger" | grep -o '"hash":"[0-9a-f]*"' | cut -d'"' -f4)
  grep -qF "privacy spent: epsilon 4 of 4 at delta 0.001; the last line of $work/one/${members[i]}.ledger has hash $head" \
    "$work/${members[i]}.log" || fail_with "$work/${members[i]}.log" "what was spent was not told"
done
# The coordinator has the same ledgers, and every update it counted is in them.
admin audit r -o "$work/audit" --json >"$work/audit.json" || fail_with "$work/audit.json" "audit"
for i in 0 1; do
  cmp "$work/audit/${members[i]}.jsonl" "$work/one/${members[i]}.ledger" || fail "the copy differs"
done
[ ! -e "$work/audit/coordinator.jsonl" ] && [ ! -e "$work/audit/cohorts.json" ] || fail "nothing is the coordinator's"
python3 - "$work/audit.json" <<'PY'
import json, sys
rows = json.load(open(sys.argv[1]))
assert [r["file"] for r in rows] == ["ann.jsonl", "bob.jsonl"], rows
assert all(r["unit"] == "example" and r["releases"] == 4 and r["epsilon"] <= r["budget"] == 4 for r in rows), rows
PY
if grep -qE 'loss [0-9]' "$work/ann.log"; then fail_with "$work/ann.log" "a loss was told"; fi
admin status r --json >"$work/status"
python3 - "$work/status" <<'PY'
import json, sys
s = json.load(open(sys.argv[1]))
assert s["phase"] == "finished" and all(m["train_loss"] == 0 for m in s["members"]), s
assert "epsilon 4 at delta 0.001 for each record of a member; spent at most 4, by the ledger of " in s["privacy"], s
PY

# ---- a second run on the same records, with another method and a basis from the members' gradients; the budget of
# the ledger has no room for a third run
create two fed-sb --rounds 6 --option basis=gradient --basis-clip 2 --epsilon 2 || fail_with "$work/admin.log" "create two"
for i in 0 1; do
  mv "$work/one/${members[i]}.ledger" "$work/one/${members[i]}.first"
  join_one two "$work/one" $i --epsilon 3 --delta 1e-3
done
wait_all
for i in 0 1; do
  read -r releases epsilon plans purposes < <(spent "$work/one/${members[i]}.ledger" "${members[i]}")
  [ "$releases" = 6 ] || fail "${members[i]}: $releases releases of run two, expected 6"
  awk -v e="$epsilon" 'BEGIN { exit !(e > 1.99 && e <= 2) }' || fail "${members[i]}: epsilon $epsilon in run two"
  case "$purposes" in *basis*training) ;; *) fail "plans: $purposes" ;; esac
done
refuse_join() { # STATUS TEXT RUN OPTION...
  local wanted=$1 text=$2 run=$3 status=0
  shift 3
  : >"$work/ann.log"
  join_one "$run" "$work/one" 0 "$@"
  for _ in $(seq 1 600); do alive "${pids[0]}" || break; sleep 0.1; done
  wait "${pids[0]}" || status=$?
  [ $status = "$wanted" ] || fail_with "$work/ann.log" "$text: status $status, expected $wanted"
  grep -qF -- "$text" "$work/ann.log" || fail_with "$work/ann.log" "said nothing like \"$text\""
}
# A ledger that was restored from an old copy lacks charges; the coordinator has seen the newer one.
create back fed-sb --rounds 1 --epsilon 0.5 || fail_with "$work/admin.log" "create back"
head -n -1 "$work/one/ann.ledger" >"$work/older"
join_one back "$work/one" 1
refuse_join 3 "differs from the one sent for run two. The ledger may be an old backup" back --ledger "$work/older"
admin stop back >/dev/null
wait_within 60 "${pids[1]}" bob "$work/bob.log"
create three fed-sb || fail_with "$work/admin.log" "create three"
refuse_join 2 "the privacy budget is not enough: epsilon 2 of 3 at delta 0.001 is spent, and e2e/three would make it" \
  three
refuse_join 2 "run three spends epsilon 4, but --epsilon allows at most 1" three --epsilon 1
refuse_join 2 "run three has delta 0.001, but --delta allows at most 1e-05" three --delta 1e-5
refuse_join 2 "expected an Ed25519 private key in PEM" three --ledger "$work/none" --ledger-key "$work/base/config.json"
join_member three ann "$work/one" --base "$work/base" --data "$work/ann.jsonl"
status=0
wait "$last_child" || status=$?
[ $status = 2 ] && grep -qF "needs --ledger FILE and --ledger-key FILE" "$work/ann.log" ||
  fail_with "$work/ann.log" "a join without a ledger: status $status"
admin stop three >/dev/null
if create plain fed-sb --privacy none --sampling 0 --delta 0; then fail "a budget without privacy was taken"; fi
grep -qF -- "--epsilon has no effect without --privacy client or example" "$work/admin.log" ||
  fail_with "$work/admin.log" "a budget without privacy"
create plain fed-sb --privacy none --sampling 0 --epsilon 0 --delta 0 || fail_with "$work/admin.log" "create plain"
refuse_join 2 "(its unit is none), but --ledger requires it" plain
admin stop plain >/dev/null
head -20 "$work/ann.jsonl" >"$work/few.jsonl"
create four fed-sb --delta 0.05 || fail_with "$work/admin.log" "create four"
refuse_join 2 "delta 0.05 is not below one over the 60 records" four --ledger "$work/none"
admin stop four >/dev/null

# ---- a promise that no member could keep is refused by run create
refuse_create() { # TEXT OPTION...
  local text=$1
  shift
  if create five fed-sb "$@"; then fail "created: $*"; fi
  grep -qF -- "$text" "$work/admin.log" || fail_with "$work/admin.log" "$*: said nothing like \"$text\""
}
refuse_create "privacy: the budget is missing" --epsilon 0
refuse_create "spends epsilon 4 after 1 of 4 rounds" --noise 0.9
refuse_create "privacy: dropout 0.1: expected 0 with unit example" --dropout 0.1
refuse_create "privacy: members' evaluations reveal" --evaluate-every 1
refuse_create "adaptive clipping needs unit client" --adaptive-clip
refuse_create "bases from gradients without noise" --option basis=gradient
refuse_create "has no effect without basis=gradient" --basis-clip 1
stop_coordinator
echo "example-level privacy over the wire: charged once, whoever is killed; promises judged beforehand"
