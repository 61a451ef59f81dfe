#!/usr/bin/env bash
# One member that names no run takes part in all open runs in turn: each has the bytes that it has alone, also when
# the member and fedlorad are killed (-9) in the middle. A run that ends meanwhile is told, one with another base model or
# precision is left out, and join ends with the last.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

member_list=ann rounds=6 steps=20
python3 "$root/tests/e2e/tiny.py" model "$work/base"
python3 "$root/tests/e2e/tiny.py" rows "$work/ann.jsonl" --seed 1 --rows 8
make_certs ann
digest=$("$programs/fedlora" inspect "$work/base" --json | report field digest)

# create RUN OPTION...
create() {
  local run=$1
  shift
  admin create "$run" --members ann --base-digest "$digest" --targets q,v --steps $steps \
    --batch 4 --seq 32 --lr 1e-3 --seed 1 --precision "${precision:-f32}" --rank 2 --alpha 4 "$@" >>"$work/admin.log" 2>&1 ||
    fail_with "$work/admin.log" "create $run"
}
# join [--run RUN]: starts the member; its process is `member`.
join() {
  spawn "$work/ann.log" "$programs/fedlora" join "$@" --server "127.0.0.1:$port" --ca "$work/certs/ca.pem" \
    --cert "$work/certs/ann.pem" --key "$work/certs/ann.key" --work "$work/ann" --threads 1 \
    --base "$work/base" --data "$work/ann.jsonl" --precision f32
  member=$last_child
}
export_to() {
  admin export "$1" -o "$2" >>"$work/admin.log" 2>&1 || fail_with "$work/admin.log" "export $1"
}
both() {
  create a --rounds $rounds --method flora
  create b --rounds $rounds --method fedit --keep-optimizer
}

start_coordinator "$work/alone"
both
for run in a b; do
  join --run $run
  wait_within 60 $member "join --run $run" "$work/ann.log"
  export_to $run "$work/alone/$run"
done
stop_coordinator

# Both runs train at once, and a third one is stopped while the member is dead.
start_coordinator "$work/turns"
right=$digest digest=$(printf '%064d' 0)
create other --rounds 1 --method flora # of another base model
digest=$right
both
create c --rounds 1000 --method flora
join
wait_for_round a 2
kill -KILL $member
wait $member 2>/dev/null || true
admin stop c >>"$work/admin.log" 2>&1
precision=bf16 create odd --rounds 1 --method flora # not the precision of this member
join
wait_for_round a 4
kill -KILL "$coordinator"
wait "$coordinator" 2>/dev/null || true
start_coordinator "$work/turns"
tries=600 status=0
while alive "$member"; do
  [ $((tries -= 1)) -gt 0 ] || fail_with "$work/ann.log" "join without --run has not ended after 60 s"
  sleep 0.1
done
wait "$member" || status=$?
[ $status -eq 2 ] && grep -q "^run odd is left: --precision: the run asks for bf16" "$work/ann.log" ||
  fail_with "$work/ann.log" "join ended with status $status, expected 2 because of run odd"
for run in a b; do
  export_to $run "$work/turns/$run"
  cmp "$work/alone/$run" "$work/turns/$run" || fail "run $run has other bytes than alone"
  [ "$(grep -c "^run $run finished" "$work/ann.log")" -eq 2 ] || fail_with "$work/ann.log" "the end of run $run"
done
grep -q "^run c stopped" "$work/ann.log" || fail_with "$work/ann.log" "the end of run c was not told"
# The coordinator offers it again after a minute or its restart, so the second process may end before it is told.
told=$(grep -c "^another run cannot be joined: wrong base model" "$work/ann.log" || true)
[ "$told" = 1 ] || [ "$told" = 2 ] ||
  fail_with "$work/ann.log" "join said $told times which run it cannot join, expected once in each process"
grep -q "^working for run b" "$work/ann.log" || fail_with "$work/ann.log" "join does not say for which run it works"
stop_coordinator
echo "runs in turn have the bytes that they have alone"
