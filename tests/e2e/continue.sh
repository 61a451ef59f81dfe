#!/usr/bin/env bash
# A run that continues from the state of another one (run create --from) has the bytes of a run that was not ended: on the
# same coordinator, with the configuration of the other run, and on another one, from exported files. Also a run that was
# stopped goes on.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

member_list=ann steps=10
python3 "$root/tests/e2e/tiny.py" model "$work/base"
python3 "$root/tests/e2e/tiny.py" rows "$work/ann.jsonl" --seed 1 --rows 8
make_certs ann
digest=$("$programs/fedlora" inspect "$work/base" --json | report field digest)
training=(--steps $steps --batch 4 --seq 32 --lr 1e-3 --seed 1 --precision f32)

operate() {
  admin "$@" >>"$work/admin.log" 2>&1 || fail_with "$work/admin.log" "run $1"
}
# create RUN ROUNDS OPTION...; nothing of a carry is dropped, so that a state does not depend on the number of rounds.
create() {
  operate create "$1" --rounds "$2" --members ann --base-digest "$digest" --targets q,v --rank 2 --alpha 4 --carry-error 0 \
    "${training[@]}" "${@:3}"
}
# join RUN WORK: until the run ends.
join() {
  spawn "$work/ann.log" "$programs/fedlora" join --run "$1" --server "127.0.0.1:$port" --ca "$work/certs/ca.pem" \
    --cert "$work/certs/ann.pem" --key "$work/certs/ann.key" --work "$work/$2" --threads 1 \
    --base "$work/base" --data "$work/ann.jsonl" --precision f32
  member=$last_child
}
finish() {
  join "$@"
  wait_within 60 "$member" "join --run $1" "$work/ann.log"
}
same() { cmp "$1" "$2" || fail "$2 has other bytes than a run that was not ended"; }

# Fresh factors (a) are drawn from the name of the run; frozen factors (c) are a file beside the state.
start_coordinator "$work/whole"
create a 4 --method flora
create c 4 --method fed-sb
for run in a c; do
  finish $run whole.work
  operate export $run -o "$work/$run.whole"
done
stop_coordinator

start_coordinator "$work/parts"
create a 2 --method flora
create c 2 --method fed-sb
for run in a c; do
  finish $run parts.work
  operate export $run --parts -o "$work/$run.half"
done
[ -s "$work/c.half.frozen" ] || fail "run export --parts leaves no file of frozen factors"
for run in a c; do
  operate create $run.more --from $run --rounds 4
  finish $run.more parts.work
  operate export $run.more -o "$work/$run.parts"
  same "$work/$run.whole" "$work/$run.parts"
done
expect_refusal 3 "rounds: 4, but the state is that of round 4" admin create d --from a.more
expect_refusal 2 "--lr: without --method" admin create d --from a --lr 1e-4
expect_refusal 3 "base model" admin create d --from a --method flora --rounds 4 --members ann --base-digest "$(printf '%064d' 1)"

# A stopped run is no dead end.
create s 1000 --method flora
join s parts.work
wait_for_round s 2
operate stop s
wait_within 60 "$member" "join --run s" "$work/ann.log" || true
round=$(admin status s --json 2>/dev/null | report field round)
operate create s.more --from s --rounds $((round + 1))
finish s.more parts.work
operate export s.more -o "$work/s.more"
stop_coordinator

start_coordinator "$work/elsewhere"
for run in a c; do
  operate create $run --from "$work/$run.half" --rounds 4 --members ann "${training[@]}" --carry-error 0
  finish $run elsewhere.work
  operate export $run -o "$work/$run.elsewhere"
  same "$work/$run.whole" "$work/$run.elsewhere"
done
stop_coordinator
echo "continued runs have the bytes of runs that were not ended"
