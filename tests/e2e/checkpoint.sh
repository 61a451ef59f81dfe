#!/usr/bin/env bash
# A member that is stopped or killed within a round continues the round, and the run ends with the bytes of an
# uninterrupted one. With example-level privacy it continues too, and the ledger is charged once a round.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

member_list=ann steps=800
case $programs in *sanitize*) steps=100 ;; esac # each of them is some ten times slower
python3 "$root/tests/e2e/tiny.py" model "$work/base"
python3 "$root/tests/e2e/tiny.py" rows "$work/ann.jsonl" --seed 1 --rows 64
make_certs ann
digest=$("$programs/fedlora" inspect "$work/base" --json | report field digest)
start_coordinator "$work/site"
# create RUN OPTION...: the draws of a run depend on its name, so both runs continue from the same name
create() {
  local run=$1
  shift
  admin create "$run" --members ann --base-digest "$digest" --targets q,v --seq 32 --lr 1e-3 --seed 1 --rounds 2 \
    --precision f32 --rank 2 --alpha 4 "$@" >>"$work/admin.log" 2>&1 || fail_with "$work/admin.log" "create $run"
}
# join WORK OPTION...: its process is `member`, its log WORK.log.
join() {
  local dir=$1
  shift
  spawn "$dir.log" "$programs/fedlora" join "$@" --server "127.0.0.1:$port" --ca "$work/certs/ca.pem" \
    --cert "$work/certs/ann.pem" --key "$work/certs/ann.key" --work "$dir" --threads 1 --checkpoint-every 100ms \
    --base "$work/base" --data "$work/ann.jsonl" --precision f32
  member=$last_child
}
# wait_for_file FILE
wait_for_file() {
  local tries=300
  until [ -s "$1" ]; do
    alive "$member" || fail "join ended before $1 was there"
    [ $((tries -= 1)) -gt 0 ] || fail "$1 never came"
    sleep 0.05
  done
}
normal=(--method fedit --keep-optimizer --batch 8 --steps $steps --dropout 0.1)

# Two stores, so that both runs have the same name.
create r "${normal[@]}"
join "$work/alone" --run r
wait_within 60 "$member" "join without an interruption" "$work/alone.log"
admin export r -o "$work/whole" >>"$work/admin.log" 2>&1 || fail_with "$work/admin.log" "export"
stop_coordinator

start_coordinator "$work/second"
create r "${normal[@]}"
join "$work/ann" --stay # SIGTERM, then kill -9, in the first and perhaps the second round
wait_for_file "$work/ann/r.checkpoint.safetensors"
kill -TERM "$member"
wait_within 20 "$member" "join --stay after SIGTERM" "$work/ann.log"
grep -q "round 1: stopped after step" "$work/ann.log" || fail_with "$work/ann.log" "no checkpoint at the end"
was=$(stat -c %i "$work/ann/r.checkpoint.safetensors")
join "$work/ann" --run r
tries=300
until is=$(stat -c %i "$work/ann/r.checkpoint.safetensors" 2>/dev/null) && [ "$is" != "$was" ]; do
  alive "$member" && [ $((tries -= 1)) -gt 0 ] || fail_with "$work/ann.log" "no second checkpoint"
  sleep 0.02
done
kill -KILL "$member"
wait "$member" 2>/dev/null || true
join "$work/ann" --run r
wait_within 60 "$member" "join after two interruptions" "$work/ann.log"
[ "$(grep -c "continues after step" "$work/ann.log")" = 2 ] || fail_with "$work/ann.log" "the round was not continued twice"
admin export r -o "$work/continued" >>"$work/admin.log" 2>&1 || fail_with "$work/admin.log" "export"
cmp "$work/whole" "$work/continued" || fail "the run has other bytes than without interruptions"
[ ! -e "$work/ann/r.checkpoint.safetensors" ] || fail "the checkpoint is still there after the run"

# Another data file: the checkpoint is of no use, and the round begins again.
create other --method fedit --batch 8 --steps $steps
join "$work/ann" --run other
wait_for_file "$work/ann/other.checkpoint.safetensors"
kill -TERM "$member"
wait "$member" || true
sed -i '1d' "$work/ann.jsonl"
join "$work/ann" --run other
wait_within 60 "$member" "join with other data" "$work/ann.log"
[ "$(grep -c "continues after step" "$work/ann.log")" = 2 ] || fail_with "$work/ann.log" "another training was continued"

# Example-level privacy.
openssl genpkey -algorithm ed25519 -out "$work/ledger.pem" 2>/dev/null
chmod 600 "$work/ledger.pem"
create private --method fedit --batch 8 --steps $steps --privacy example --epsilon 8 --delta 1e-3 --clip-norm 1 --evaluate-every 0
private=(--run private --ledger "$work/ledger.jsonl" --ledger-key "$work/ledger.pem")
join "$work/ann" "${private[@]}"
wait_for_file "$work/ann/private.checkpoint.safetensors"
kill -TERM "$member"
wait "$member" || true
join "$work/ann" "${private[@]}"
wait_within 60 "$member" "join of a private run" "$work/ann.log"
grep -q "continues after step .*; the noise of the other steps is drawn anew" "$work/ann.log" ||
  fail_with "$work/ann.log" "the private round was not continued"
[ "$(grep -c '"kind":"release"' "$work/ledger.jsonl")" = 2 ] || fail_with "$work/ledger.jsonl" "charges of two rounds"
"$programs/fedlora" budget verify "$work/ledger.jsonl" >"$work/verify.log" 2>&1 || fail_with "$work/verify.log" "the ledger"
stop_coordinator
echo "an interrupted round is continued with the same bytes"
