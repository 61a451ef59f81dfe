#!/usr/bin/env bash
# The audit log of a real run: every action of operators and members is in it, over a kill -9 and a restart, the export
# is proven by the public key alone, and a change is named. A full disk refuses actions instead of losing their lines.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

member_list=ann,ben
python3 "$root/tests/e2e/tiny.py" model "$work/base"
for id in ann ben; do
  python3 "$root/tests/e2e/tiny.py" rows "$work/$id.jsonl" --seed 1 --rows 8
done
make_certs ann ben eve
digest=$("$programs/fedlora" inspect "$work/base" --json | report field digest)
audit() {
  local verb=$1
  shift
  "$programs/fedlora" audit "$verb" "$@"
}
export_log() {
  audit export "$@" --server "127.0.0.1:$port" --ca "$work/certs/ca.pem" --cert "$work/certs/ops.pem" \
    --key "$work/certs/ops.key" >"$work/export.log" 2>&1 || fail_with "$work/export.log" "audit export"
}
# count ACTION [TEXT]: the lines of the log with this action and text.
count() { cat "$store"/audit/*.jsonl | grep "^{\"action\":\"$1\"" | grep -c -- "${2:-}" || true; }
expect_lines() { # N ACTION [TEXT]
  [ "$(count "${@:2}")" -eq "$1" ] || fail "$(count "${@:2}") lines ${*:2}, expected $1"
}

store=$work/site/store
start_coordinator "$work/site"
admin create r --rounds 1000 --method fedit --members $member_list --base-digest "$digest" --targets q,v --steps 10 --batch 4 \
  --seq 32 --lr 1e-3 --seed 1 --precision f32 --rank 2 --alpha 4 >"$work/admin.log"
admin set r deadline=1h >>"$work/admin.log"
admin pause r >>"$work/admin.log"
admin resume r >>"$work/admin.log"
expect_refusal 3 "cannot be changed" admin set r colour=red
for id in ann ben; do join_member r $id "$work" --base "$work/base" --data "$work/$id.jsonl" --precision f32; done
wait_for_round r 2
admin export r -o "$work/last0.state" >>"$work/admin.log"
admin pause r >>"$work/admin.log" # so that the kill itself comes after the lines of the newest round
sleep 1
kill -KILL "$coordinator"
wait "$coordinator" 2>/dev/null || true
# As if it had been killed between the commit of the newest round and its lines: they are made up for at the start.
log=$(ls "$store"/audit/*.jsonl | tail -1)
newest=$(grep -n '^{"action":"update.counted"' "$log" | tail -1 | cut -d: -f1)
head -n $((newest - 1)) "$log" >"$work/cut" && cat "$work/cut" >"$log"
start_coordinator "$work/site"
rounds=$(($(admin status r --json | report field round) + 4)) # it ends soon, but not before it was loaded
admin set r rounds=$rounds >>"$work/admin.log"
admin resume r >>"$work/admin.log"
wait_within 60 "${children[1]}" "join of ann" "$work/ann.log"
wait_within 60 "${children[2]}" "join of ben" "$work/ben.log"
admin export r -o "$work/last.state" >>"$work/admin.log"
expect_refusal 3 "not listed" "$programs/fedlora" join --server "127.0.0.1:$port" --ca "$work/certs/ca.pem" \
  --cert "$work/certs/eve.pem" --key "$work/certs/eve.key" --base "$work/base" --data "$work/ann.jsonl"
admin audit r -o "$work/audited" >"$work/audited.log" || fail_with "$work/audited.log" "run audit"
grep -q "has no privacy" "$work/audited.log" || fail_with "$work/audited.log" "run audit of a run without privacy"
sleep 1.2 # a denial has a line of its own if the second before it had none
openssl s_client -connect "127.0.0.1:$port" -CAfile "$work/certs/ca.pem" </dev/null >/dev/null 2>&1 || true # no certificate
sleep 1.2 # a denied call is written within a second
export_log -o "$work/all.jsonl"
kill -HUP "$coordinator"
stop_coordinator

# --- what is in it
expect_lines 2 service.started
expect_lines 1 service.stopped
expect_lines 1 run.created '"id":"ops","role":"admin"'
expect_lines 1 run.changed '"detail":"deadline=1h"'
expect_lines 1 run.changed '"outcome":"refused"'
[ "$(count run.paused)" -ge 1 ] || fail "no run.paused" # the cut may have taken the second
expect_lines 2 run.resumed
expect_lines 1 config.reloaded
expect_lines 1 audit.exported
[ "$(count run.exported)" -ge 2 ] || fail "$(count run.exported) exports, expected 2, or 3 if the cut has left the first"
[ "$(count call.denied '"id":"eve"')" -ge 1 ] || fail "no line about eve"
[ "$(count call.denied '"object":"handshake.failed"')" -ge 1 ] || fail "no line about a handshake"
grep -q '"serial":"[0-9a-f]\{2,\}"' "$work/all.jsonl" || fail "no serial number of a certificate"
for id in ann ben; do
  [ "$(count state.fetched "\"id\":\"$id\"")" -ge 3 ] || fail "$(count state.fetched "\"id\":\"$id\"") states fetched by $id"
done
[ "$(count update.counted)" -ge $((2 * rounds)) ] || fail "$(count update.counted) updates counted in $rounds rounds"
expect_lines "$rounds" round.published
expect_lines 1 round.published '"recovered":1'
expect_lines 1 run.loaded '"published":[1-9]'
final=$("$programs/fedlora" inspect "$work/last.state" --json | report field digest)
[ "$(count round.published "\"state\":\"$final\"")" -eq 1 ] || fail "the log has another last state than $final"

# --- the proof
key=$store/audit/audit.pub
audit verify "$store/audit" --key "$key" >"$work/verified" || fail_with "$work/verified" "audit verify of the folder"
grep -q "^proven: lines 1 to $(cat "$store"/audit/*.jsonl | wc -l)," "$work/verified" || fail_with "$work/verified" "the end is not signed"
audit verify "$work/all.jsonl" --key "$key" >"$work/verified" || fail_with "$work/verified" "audit verify of the export"
grep -v '"action":"run.paused"' "$work/all.jsonl" >"$work/dropped.jsonl"
number=$(grep '"action":"run.paused"' "$work/all.jsonl" | head -1 | grep -o '"seq":[0-9]*' | cut -d: -f2)
expect_refusal 2 "line $number (" audit verify "$work/dropped.jsonl" --key "$key"
sed 's/deadline=1h/deadline=2h/' "$work/all.jsonl" >"$work/changed.jsonl"
expect_refusal 2 "this line was changed" audit verify "$work/changed.jsonl" --key "$key"
openssl genpkey -algorithm ed25519 -out "$work/other.key" 2>/dev/null
openssl pkey -in "$work/other.key" -pubout -out "$work/other.pub"
expect_refusal 2 "signed by another key" audit verify "$store/audit" --key "$work/other.pub"
expect_refusal 2 "expected a date" audit export -o "$work/x" --since soon --server h:1 --ca a --cert b --key c

# --- the manifest of the last state
manifest=$work/last.state.manifest.json
verify() { "$programs/fedlora" verify "$@"; }
verify "$work/last.state" "$manifest" --key "$key" >"$work/verified" || fail_with "$work/verified" "verify of the state"
grep -q "made from  $((2 * rounds)) updates, in a run of 2 members" "$work/verified" || fail_with "$work/verified" "the number of updates"
expect_lines 2 run.exported "\"$final\""
verify "$work/last.state" "$work/audited/manifest.json" --key "$key" >"$work/verified" || fail_with "$work/verified" "verify"
python3 - "$manifest" "$store" "$rounds" <<'PYTHON' || fail "the manifest is not what the log says"
import glob, json, sys
last = int(sys.argv[3])
manifest = json.load(open(sys.argv[1]))["manifest"]
about, rounds, software = manifest["about"], manifest["rounds"], manifest["software"]
lines = [json.loads(line) for name in sorted(glob.glob(sys.argv[2] + "/audit/*.jsonl")) for line in open(name)]
counted = {(l["detail"]["round"], l["detail"]["member"], l["detail"]["digest"], l["detail"]["weight"])
           for l in lines if l["action"] == "update.counted"}
listed = {(r["round"], u["member"], u["digest"], u["weight"]) for r in rounds for u in r["updates"]}
assert len(listed) == 2 * last and counted == listed, (counted, listed)
assert [r["round"] for r in rounds] == list(range(last + 1)) and rounds[-1]["state"] == about["state"]
assert about["method"] == "fedit" and about["published"] == last and about["epsilon"] == 0
assert all(software[r["software"]].startswith("fedlorad ") and r["config"] for r in rounds[1:])
assert all(software[u["software"]].startswith("fedlora ") for r in rounds for u in r["updates"])
head = [l for l in lines if l["seq"] == about["audit"]["seq"]]
assert head[0]["hash"] == about["audit"]["hash"]
PYTHON
sed 's/"weight":8/"weight":9/' "$manifest" >"$work/changed.json"
cmp -s "$manifest" "$work/changed.json" && fail "nothing was changed in the manifest"
expect_refusal 2 "was changed" verify "$work/last.state" "$work/changed.json" --key "$key"
expect_refusal 2 "signed by another key" verify "$work/last.state" "$manifest" --key "$work/other.pub"
expect_refusal 2 "differences from" verify "$work/last0.state" "$manifest" --key "$key"

# --- a part, from a time on
start_coordinator "$work/site"
export_log -o "$work/part.jsonl" --since "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
audit verify "$work/part.jsonl" --key "$key" >"$work/verified" || fail_with "$work/verified" "audit verify of a part"
grep -q "are not in this copy" "$work/verified" || fail_with "$work/verified" "a part is not called one"
stop_coordinator
printf "%s lines of the audit log are proven, and each tampering is named" "$(wc -l <"$work/all.jsonl")"
