#!/usr/bin/env bash
# The administrator of a member decides: a run outside [policy] is declined with the rule named, at the member and at the
# operator; with approve = ask a run waits until `fedlora approve`, while join runs; a declined run is not trained.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

member_list=ann
python3 "$root/tests/e2e/tiny.py" model "$work/base"
python3 "$root/tests/e2e/tiny.py" rows "$work/ann.jsonl" --seed 1 --rows 8
make_certs ann
digest=$("$programs/fedlora" inspect "$work/base" --json | report field digest)
start_coordinator "$work/site"
cat >"$work/client.ini" <<INI
[server]
address = 127.0.0.1:$port
ca = $work/certs/ca.pem
cert = $work/certs/ann.pem
key = $work/certs/ann.key

[join]
base = $work/base
data = $work/ann.jsonl
stay = yes

[policy]
methods = flora, fedit
targets = q, v
max_steps = 10
approve = ask
INI
# create RUN OPTION...
create() {
  local run=$1
  shift
  admin create "$run" --members ann --base-digest "$digest" --batch 4 --seq 32 --lr 1e-3 --seed 1 --rounds 2 \
    --precision f32 --rank 2 --alpha 4 "$@" >>"$work/admin.log" 2>&1 || fail_with "$work/admin.log" "create $run"
}
# wait_for TEXT COMMAND...: until the output of the command has the text.
wait_for() {
  local tries=200 text=$1
  shift
  until "$@" >"$work/said" 2>&1 && grep -qF -- "$text" "$work/said"; do
    [ $((tries -= 1)) -gt 0 ] || fail_with "$work/said" "$*: never said \"$text\""
    sleep 0.1
  done
}
member() { "$programs/fedlora" "$1" "${@:2}" --config "$work/client.ini"; }

expect_refusal 2 "there is no such directory" "$programs/fedlora" runs --config "$work/client.ini"
create yes --method flora --targets q,v --steps 5
create no --method fedit --targets q --steps 5
create many --method flora --targets q --steps 11
create wide --method flora --targets q,up --steps 5
create other --method ffa --targets q --steps 5
spawn "$work/ann.log" "$programs/fedlora" join --config "$work/client.ini" --threads 1
joining=$last_child

for rule in "many policy.max_steps: the run trains 11 steps a round, expected at most 10" \
  "wide policy.targets: the run adapts up" "other policy.methods: the run's method is ffa, expected flora, fedit"; do
  run=${rule%% *} text=${rule#* }
  wait_for "$text" admin status "$run"
  grep -q "declined by its policy" "$work/said" || fail_with "$work/said" "run $run: the operator does not see a decision"
  grep -qF "run $run is not joined: $text" "$work/ann.log" || fail_with "$work/ann.log" "run $run: no note at the member"
done
wait_for "waits for its administrator" admin status yes
wait_for "waits for its administrator" admin status no
member runs --json >"$work/runs.json"
python3 - "$work/runs.json" <<'PY' || fail_with "$work/runs.json" "fedlora runs"
import json, sys
states = {r["run"]: r["state"] for r in json.load(open(sys.argv[1]))["runs"]}
assert states == {"yes": "waits", "no": "waits", "many": "outside", "wide": "outside", "other": "outside"}, states
PY
! grep -q "member.hello" "$work/fedlorad.log" || fail_with "$work/fedlorad.log" "the member has joined a run"

expect_refusal 2 "run nothing is not known here" "$programs/fedlora" approve nothing --config "$work/client.ini"
member decline no
member approve yes
wait_for '"finished"' admin status yes --json
wait_for "declined by its administrator" admin status no
wait_for "finished" member runs
! grep -q "joined run no" "$work/ann.log" || fail_with "$work/ann.log" "a declined run was joined"

# An answer is kept through a restart, and can be changed. With other terms under the same name it would not count.
kill -TERM "$joining"
wait_within 20 "$joining" "join --stay after SIGTERM" "$work/ann.log"
member approve no
spawn "$work/ann.log" "$programs/fedlora" join --config "$work/client.ini" --threads 1
joining=$last_child
wait_for '"finished"' admin status no --json
kill -TERM "$joining"
wait_within 20 "$joining" "join --stay after SIGTERM" "$work/ann.log"

# Outside its hours it does not train, and the operator sees why.
sed -i "/^approve/d; s/^max_steps.*/hours = $(date -d '2 hours' +%H:%M)-$(date -d '3 hours' +%H:%M)/" "$work/client.ini"
create later --method flora --targets q --steps 5
spawn "$work/ann.log" "$programs/fedlora" join --config "$work/client.ini" --threads 1
joining=$last_child
wait_for "pauses by its policy" admin status later
wait_for "policy.hours: it trains between" admin status later
kill -TERM "$joining"
wait_within 20 "$joining" "join --stay after SIGTERM" "$work/ann.log"
[ "$(grep -c "not now: policy.hours" "$work/ann.log")" = 1 ] || fail_with "$work/ann.log" "the pause is not printed once"
sed -i 's/^hours.*/max_steps = 10/' "$work/client.ini"

# A member that does not stay ends with the rule.
sed -i '/^stay/d' "$work/client.ini"
expect_refusal 2 "policy.max_steps" "$programs/fedlora" join --config "$work/client.ini" --run many
sed -i 's/^max_steps.*/hours = 25:00-3:00/' "$work/client.ini"
expect_refusal 2 "policy.hours" "$programs/fedlora" join --config "$work/client.ini"
stop_coordinator
echo "the administrator of a member decides which runs it serves"
