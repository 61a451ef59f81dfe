#!/usr/bin/env bash
# A run with client-level privacy, for its operator and its auditor: created on the command line, with members drawn
# for each round and a basis from noisy gradients. Its ledger and the seeds of its cohorts are fetched and verified;
# a shortened ledger, another key and another seed are detected.
# Release only: e2e/private.c and private_join.sh run the same code under the sanitizers.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

members=(ann bob cat) member_list=ann,bob,cat
fedlora=$programs/fedlora

python3 "$root/tests/e2e/tiny.py" model "$work/base"
for i in 0 1 2; do
  python3 "$root/tests/e2e/tiny.py" rows "$work/${members[i]}.jsonl" --seed $((i + 1)) --rows 10
done
(umask 077 && openssl genpkey -algorithm ed25519 -out "$work/ledger.key" 2>/dev/null)
openssl pkey -in "$work/ledger.key" -pubout -out "$work/ledger.pub"
make_certs "${members[@]}"
digest=$("$fedlora" inspect "$work/base" --json | report field digest)
start_coordinator "$work/one" # writes its configuration
stop_coordinator
printf '\n[privacy]\nledger_key = %s\n' "$work/ledger.key" >>"$work/one/fedlorad.ini"
start_coordinator "$work/one"

# A round with drawn members lasts until its deadline, so that its length reveals nothing; it must be long enough to
# train.
deadline=8s
create() { # RUN METHOD OPTION...
  local run=$1 method=$2
  shift 2
  admin create "$run" --method "$method" --rounds 5 --members $member_list --base-digest "$digest" --rank 4 \
    --targets q,v --steps 5 --batch 4 --seq 32 --lr 1e-3 --weights uniform --evaluate-every 0 --deadline $deadline \
    --privacy client --epsilon 20 --delta 1e-3 --clip-norm 0.25 --sampling 0.5 "$@" >"$work/admin.log" 2>&1
}
refuse_create() { # TEXT METHOD OPTION...
  local text=$1 method=$2
  shift 2
  if create none "$method" "$@"; then fail "created: $method $*"; fi
  grep -qF -- "$text" "$work/admin.log" || fail_with "$work/admin.log" "$method $*: said nothing like \"$text\""
}
refuse_create "bases from gradients without noise reveal the data" fed-sb --option basis=gradient
refuse_create "robust=krum picks by looking at all members" fed-sb --option robust=krum
refuse_create "flora sends every member's factors to all members" flora
refuse_create "has no effect without basis=gradient" fed-sb --basis-clip 1
refuse_create "expected --deadline" fed-sb --deadline 0s
refuse_create "delta 0.5 is not below one over the 3 members" fed-sb --delta 0.5
refuse_create "the budget is missing" fed-sb --epsilon 0
refuse_create "weights by example counts depend on the data" fed-sb --weights examples

create r fed-sb --option basis=gradient --basis-clip 1 --force-noise || fail_with "$work/admin.log" "create"
for i in 0 1 2; do
  join_member r "${members[$i]}" "$work/one" --base "$work/base" --data "$work/${members[$i]}.jsonl" --json \
    --output "$work/${members[$i]}.state"
  pids[$i]=$last_child
done
wait_for_round r 3
kill -KILL "$coordinator"
wait "$coordinator" 2>/dev/null || true
start_coordinator "$work/one"
for i in 0 1 2; do wait_within 200 "${pids[$i]}" "${members[$i]}" "$work/${members[$i]}.log"; done
if grep -E "waiting: .*(ann|bob|cat|updates|of [0-9])" "$work"/{ann,bob,cat}.log; then
  fail "a member was told who else was drawn, or how many"
fi
admin status r --json >"$work/status"
python3 - "$work/status" <<'PY'
import json, sys
s = json.load(open(sys.argv[1]))
assert s["phase"] == "finished" and len(s["history"]) == 5, s["phase"]
assert "; planned: unit client, 3 members, epsilon " in s["privacy"] and "forced: the noise" in s["privacy"], s["privacy"]
assert all(r["train_loss"] == 0 for r in s["history"]) and all(m["train_loss"] == 0 for m in s["members"]), s
assert [r["updates"] for r in s["history"][:2]] == [3, 3], "everyone is in the passes for a basis"
PY
cp "$work/one/store/ledgers/r.jsonl" "$work/ledger"
admin audit r -o "$work/audit" >"$work/said" || fail_with "$work/said" "audit"
grep -qE '^coordinator.jsonl +client +5 +' "$work/said" || fail_with "$work/said" "the audit's table"
cmp "$work/audit/coordinator.jsonl" "$work/ledger" || fail "the ledger fetched is not the one beside the database"
if admin audit r -o "$work/audit" >"$work/said" 2>&1; then fail "an audit was overwritten"; fi
admin audit r -o "$work/audit" --force >/dev/null
python3 - "$work/audit/manifest.json" <<'PYTHON' || fail "the manifest tells which members were drawn"
import json, sys
manifest = json.load(open(sys.argv[1]))["manifest"]
assert manifest["about"]["withheld"] and manifest["about"]["epsilon"] > 0
assert len(manifest["rounds"]) > 2 and not any(r["updates"] for r in manifest["rounds"])
PYTHON
head=$(grep -ao '"ledger_head":"[0-9a-f]*"\|"ledger_head": "[0-9a-f]*"' "$work/ann.log" | grep -o '[0-9a-f]\{64\}')
verify() { # STATUS TEXT FILE OPTION...
  local wanted=$1 text=$2 status=0
  shift 2
  "$fedlora" budget verify "$@" >"$work/said" 2>&1 || status=$?
  [ $status = "$wanted" ] || fail_with "$work/said" "verify $*: status $status, expected $wanted"
  grep -qF -- "$text" "$work/said" || fail_with "$work/said" "verify $*: said nothing like \"$text\""
}
all=(--key "$work/ledger.pub" --head "$head" --cohorts "$work/audit/cohorts.json")
verify 0 "two passes that find a basis" "$work/ledger" "${all[@]}"
grep -qE 'key +[0-9a-f]{64} \(the one given\)' "$work/said" || fail_with "$work/said" "the key"
grep -qE 'head [0-9a-f]{64} \(the one given\)' "$work/said" || fail_with "$work/said" "the head that members noted"
verify 0 '"cohorts"' "$work/ledger" "${all[@]}" --json
python3 - "$work/said" "$work/status" <<'PY'
import json, sys
s, status = (json.load(open(p)) for p in sys.argv[1:])
assert s["head_known"] and s["key_known"] and s["releases"] == 5, s
assert s["spent"]["epsilon"] <= s["budget"]["epsilon"] == 20, s["spent"]
assert [p["purpose"] for p in s["plans"]] == ["basis", "training"] and s["plans"][1]["bases"] == "private", s["plans"]
assert [p["sampling"] for p in s["plans"]] == [1, 0.5], s["plans"]
drawn = [len(c["drawn"]) for c in s["cohorts"]]
assert drawn == [r["updates"] for r in status["history"]], (drawn, status["history"])
PY
head -n -1 "$work/ledger" >"$work/cut"
verify 0 "releases         4" "$work/cut" # a shortened ledger alone is still valid
verify 2 "the hash of the last line is not --head: lines were removed" "$work/cut" --head "$head"
openssl genpkey -algorithm ed25519 2>/dev/null | openssl pkey -pubout -out "$work/other.pub"
verify 2 "signed by a different key" "$work/ledger" --key "$work/other.pub"
sed 's/"seed":"./"seed":"0/3' "$work/audit/cohorts.json" >"$work/seeds"
if ! cmp -s "$work/seeds" "$work/audit/cohorts.json"; then
  verify 2 "the seed of round 3, with these members, does not lead to the anchor" "$work/ledger" \
    --cohorts "$work/seeds"
fi
sed 's/"round":4/"round":9/' "$work/audit/cohorts.json" >"$work/seeds"
verify 2 "no seed of round 4" "$work/ledger" --cohorts "$work/seeds"
if admin audit none -o "$work/none" >"$work/said" 2>&1; then fail "a run that is not there was audited"; fi
grep -qF 'there is no run "none"' "$work/said" || fail_with "$work/said" "audit of no run"
stop_coordinator
echo "client-level privacy from the command line: cohorts, basis and ledger, verified by an auditor"
