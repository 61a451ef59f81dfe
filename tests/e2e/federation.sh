#!/usr/bin/env bash
# A whole federation of three members over TLS, with a tiny model. It finishes, and the result is
# better on the members' rows than the base. It gives the same bytes again when fedlorad is killed (-9) in the middle,
# and when members are killed and started again.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

members=(ann bob cat) member_list=ann,bob,cat ranks=(2 4 8) rounds=3 steps=600
methods=(flora fed-sb fedit) with_kills=(flora fedit)
# Each step takes many times as long with the sanitizers, under which e2e/methods.c runs every method.
case $programs in *sanitize*) steps=250 methods=(fedit) with_kills=(fedit) ;; esac

# join_one RUN DIR I: starts member I, also after it was killed; its process is pids[I].
join_one() {
  join_member "$1" "${members[$3]}" "$2" --base "$work/base" --data "$work/${members[$3]}.jsonl" \
    --rank "${ranks[$3]}" --eval-data "$work/all.rows"
  pids[$3]=$last_child
}
join_all() {
  local i
  pids=()
  for i in "${!members[@]}"; do join_one "$1" "$2" "$i"; done
}
wait_all() {
  local i
  for i in "${!members[@]}"; do
    wait_within 60 "${pids[$i]}" "${members[$i]} in run $1" "$work/${members[$i]}.log"
  done
}

# create RUN METHOD: creates a run that is small enough for a test.
create() {
  local run=$1 options=(--alpha 16)
  case $2 in
    fedit) options=(--rank 2 --alpha 4 --keep-optimizer) ;; # members continue from files of their own
    fed-sb) options=(--rank 8) ;;
  esac
  admin create "$run" --method "$2" --rounds $rounds --members $member_list --base-digest "$digest" \
    --targets q,v,down --steps $steps --batch 4 --seq 32 --lr 1e-3 --schedule constant --seed 1 \
    --precision f32 "${options[@]}" >>"$work/admin.log" 2>&1 || fail_with "$work/admin.log" "create $run"
}

# federate METHOD DIR [DISTURB]: a run with the name of its method, under a new coordinator; the final state is
# DIR/METHOD.safetensors. DISTURB is called during the run.
federate() {
  local method=$1 dir=$2 disturb=${3:-true}
  start_coordinator "$dir"
  create "$method" "$method"
  join_all "$method" "$dir"
  $disturb "$method" "$dir"
  wait_all "$method"
  admin status "$method" --json >"$dir/status.json"
  admin export "$method" -o "$dir/$method.safetensors" >>"$work/admin.log" 2>&1 ||
    fail_with "$work/admin.log" "export $method"
  stop_coordinator
}

# Once in each of the three rounds; the run must be unfinished the first two times.
kill_the_coordinator() {
  local round
  for round in 1 2 3; do
    wait_for_round "$1" $round
    kill -KILL "$coordinator"
    wait "$coordinator" 2>/dev/null || true
    start_coordinator "$2"
    [ $round -eq 3 ] || [ "$(admin status "$1" --json | report field phase)" != finished ] ||
      fail "$1: the run was over before fedlorad was killed in round $round"
  done
}
kill_the_members() {
  local i
  for i in 0 2; do
    wait_for_round "$1" $((i / 2 + 1))
    kill -KILL "${pids[$i]}" 2>/dev/null || true # it may just have ended
    wait "${pids[$i]}" 2>/dev/null || true
    join_one "$1" "$2" "$i"
  done
}

# loss [STATE]: the loss over the rows of all members, of the base alone without STATE.
loss() {
  "$programs/fedlora" eval --base "$work/base" --data "$work/all.rows" --precision f32 --json "$@" \
    2>>"$work/eval.log" | report field loss
}

python3 "$root/tests/e2e/tiny.py" model "$work/base"
for i in 0 1 2; do
  python3 "$root/tests/e2e/tiny.py" rows "$work/${members[i]}.jsonl" --seed $((i + 1)) \
    --rows $((8 + 4 * i))
done
cat "$work"/*.jsonl >"$work/all.rows"
rows=$((3 * $(wc -l <"$work/all.rows")))
make_certs "${members[@]}"
digest=$("$programs/fedlora" inspect "$work/base" --json | report field digest)

# said STATUS EXPRESSION: prints a Python expression on `s`, the status of a run as JSON in the file STATUS.
said() { python3 -c "import json,sys; s = json.load(open(sys.argv[1])); print($2)" "$1"; }

before=$(loss)
for method in "${methods[@]}"; do
  federate $method "$work/plain-$method"
  after=$(loss --state "$work/plain-$method/$method.safetensors")
  awk -v a="$after" -v b="$before" 'BEGIN { exit !(a < 0.8 * b) }' ||
    fail "$method: loss $after after the run, $before before: too little was learned"
  status=$work/plain-$method/status.json
  [ "$(said "$status" '[r["eval_rows"] for r in s["history"]]')" = "[$rows, $rows, $rows]" ] ||
    fail "$method: not every round was evaluated by everyone"
  said "$status" 's["history"][-1]["eval_loss"]' |
    awk -v a="$after" '{ exit !($1 > a - 1e-3 && $1 < a + 1e-3) }' ||
    fail "$method: the last evaluation is not the loss $after of the last state"
  federate $method "$work/killed-$method" kill_the_coordinator
  cmp "$work/plain-$method/$method.safetensors" "$work/killed-$method/$method.safetensors" ||
    fail "$method: killing fedlorad changed the result"
done
for method in "${with_kills[@]}"; do
  federate $method "$work/members-$method" kill_the_members
  cmp "$work/plain-$method/$method.safetensors" "$work/members-$method/$method.safetensors" ||
    fail "$method: killing members changed the result"
done
echo "${methods[*]}: they learn, and killed fedlorads and members change no byte"
