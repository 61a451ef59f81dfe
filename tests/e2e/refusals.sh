#!/usr/bin/env bash
# Refusals with a reason that leave the run intact: a stranger, old TLS, no certificate, a member that calls an admin
# method, another base, an unreadable row, a second coordinator on one folder.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

# refused STATUS TEXT COMMAND...: fails unless the command ends with STATUS and a message that matches TEXT.
refused() {
  local wanted=$1 text=$2 status=0
  shift 2
  timeout 30 "$@" >"$work/said" 2>&1 || status=$?
  [[ "$status" =~ ^$wanted$ ]] || fail_with "$work/said" "$*: status $status, expected $wanted"
  grep -qiE "$text" "$work/said" || fail_with "$work/said" "$*: said nothing like \"$text\""
}
# as CERTS ID: the connection's options.
as() {
  echo "--server 127.0.0.1:$port --ca $1/ca.pem --cert $1/$2.pem --key $1/$2.key"
}
join() {
  local identity=$1
  shift
  echo "$programs/fedlora join --run r $identity --threads 1" \
    "--base $work/base --data $work/rows.jsonl --rank 4 $*"
}

python3 "$root/tests/e2e/tiny.py" model "$work/base"
python3 "$root/tests/e2e/tiny.py" model "$work/other" --seed 2
python3 "$root/tests/e2e/tiny.py" rows "$work/rows.jsonl"
sed '3s/.*/{"prompt": "half a row"}/' "$work/rows.jsonl" >"$work/bad.jsonl"
for ((i = 0; i < 4; i++)); do echo '{"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}'; done >"$work/none.jsonl"
cat "$work/none.jsonl" <(head -3 "$work/rows.jsonl") "$work/none.jsonl" >"$work/mixed.jsonl"
member_list=ann,bob
make_certs ann bob mallory
"$root/deploy/make-certs.sh" "$work/elsewhere" --federation elsewhere ann >/dev/null
digest=$("$programs/fedlora" inspect "$work/base" --json | report field digest)
start_coordinator "$work/coordinator"
admin create r --method flora --rounds 2 --members ann,bob --base-digest "$digest" --targets q,v \
  --alpha 8 --steps 2 --batch 2 --seq 32 --lr 1e-2 --precision f32 >"$work/admin.log" 2>&1 ||
  fail_with "$work/admin.log" "create"

certs=$work/certs
# shellcheck disable=SC2046 # command lines made of words without blanks
{
  refused 3 'member' $(join "$(as "$certs" mallory)")
  refused '[123]' 'certificate|authority' $(join "$(as "$work/elsewhere" ann)")
  refused '[23]' 'base' $(join "$(as "$certs" ann)" --base "$work/other")
  refused 2 'bad.jsonl:3' $(join "$(as "$certs" ann)" --data "$work/bad.jsonl")
  refused 2 'none.jsonl:1: none of the 4 rows has a token to learn' $(join "$(as "$certs" ann)" --data "$work/none.jsonl")
  refused 3 'admin|operator' "$programs/fedlora" run list $(as "$certs" ann)
  refused 3 'client|member' $(join "$(as "$certs" ops)")
  refused '[23]' 'nothing' "$programs/fedlora" run status nothing $(as "$certs" ops)
}
refused 1 'another process uses this folder' "$programs/fedlorad" --config "$work/coordinator/fedlorad.ini"
sed 's|/coordinator/store|/second|' "$work/coordinator/fedlorad.ini" >"$work/second.ini"
refused 1 "$port.*another program" "$programs/fedlorad" --config "$work/second.ini"

# handshake OPTION...: the output of a TLS client; it has the certificate of ann unless OPTION names another.
handshake() { openssl s_client -connect "127.0.0.1:$port" -CAfile "$certs/ca.pem" -alpn h2 "$@" </dev/null; }
ann=(-cert "$certs/ann.pem" -key "$certs/ann.key")
handshake -tls1_3 "${ann[@]}" >"$work/said" 2>&1 || fail_with "$work/said" "TLS 1.3 with a certificate"
if handshake -tls1_2 "${ann[@]}" >"$work/said" 2>&1; then fail "TLS 1.2 was accepted"; fi

# ---- operators see the member that has nothing to train from, until it joins with other rows
admin status r >"$work/said"
grep -q 'member.cannot_train since .*: run r: client/ann at 127.*: none of its 4 rows of training data' "$work/said" ||
  fail_with "$work/said" "status of a member that cannot train"
# shellcheck disable=SC2046
spawn "$work/ann.log" $(join "$(as "$certs" ann)" --data "$work/mixed.jsonl" --eval-data "$work/mixed.jsonl" --json)
first=$last_child
# shellcheck disable=SC2046
spawn "$work/bob.log" $(join "$(as "$certs" bob)" --eval-data "$work/none.jsonl")
second=$last_child
wait_within 60 "$first" ann "$work/ann.log"
wait_within 60 "$second" bob "$work/bob.log"
[ "$(admin status r --json | report field phase)" = finished ] || fail "the run did not finish"

# ---- rows without a token to learn are neither weight nor evaluation, and each side is told
admin status r --json >"$work/said"
python3 - "$work/said" "$work/ann.log" <<'PY' || fail_with "$work/said" "rows that teach nothing count"
import json, sys
status = json.load(open(sys.argv[1]))
ann, bob = status["members"]
assert not any("cannot_train" in t for t in status["troubles"]), status["troubles"]
assert ann["examples"] == 3 and bob["examples"] > 3 and ann["eval_rows"] == 3 and bob["eval_rows"] == 0, (ann, bob)
last = status["history"][-1]
assert bob["eval_loss"] is None and bob["eval_accuracy"] is None, bob
assert last["eval_rows"] == 3 and last["eval_loss"] == ann["eval_loss"] > 0, last
joined = json.loads([s for s in open(sys.argv[2]) if s.startswith("{")][-1])
data = joined["data"]
assert data["rows"] == 11 and data["rows_unlearned"] == 8 and data["rows_unlearned_line"] == 1, data
assert data["learned"] > 0 and joined["eval_data"] == data, joined
PY
grep -q 'mixed.jsonl: 11 rows, ' "$work/ann.log" || fail_with "$work/ann.log" "the data report"
grep -q 'warning: .*none.jsonl:1: 4 of 4 rows have no token to learn and do not count' "$work/bob.log" ||
  fail_with "$work/bob.log" "the report about held-out rows"
# ---- with --base the run has the shapes of the base before a member joins
admin create shaped --method flora --rounds 2 --members ann,bob --base "$work/base" --targets q,v --steps 2 \
  >"$work/admin.log" 2>&1 || fail_with "$work/admin.log" "create with --base"
# shellcheck disable=SC2046
{
  refused '[123]' 'the shapes that its operator gave' \
    "$programs/fedlora" run resume shaped --forget-shapes $(as "$certs" ops)
  refused '[123]' 'has published 2 rounds' "$programs/fedlora" run resume r --forget-shapes $(as "$certs" ops)
}
# ---- a learning rate that is too high: the member says so and stops after three tries; once most members fail, the run pauses
admin create hot --method flora --rounds 2 --members ann,bob --quorum 1 --base-digest "$digest" --targets q,v \
  --steps 8 --batch 2 --seq 32 --lr 10 --weight-decay 1000 --precision f32 >"$work/admin.log" 2>&1 || fail_with "$work/admin.log" "create"
# shellcheck disable=SC2046
refused 1 'not finite; gave up after 3 tries: the run.s learning rate may be too high' \
  $(join "$(as "$certs" ann)") --run hot --work "$work/hot"
admin status hot >"$work/said" 2>&1
grep -q 'ann (its training fails: .*not finite' "$work/said" || fail_with "$work/said" "status of a failing member"
# shellcheck disable=SC2046
spawn "$work/bob.log" $(join "$(as "$certs" bob)") --run hot --work "$work/hotter"
for ((i = 0; i < 100; i++)); do
  admin status hot >"$work/said" 2>&1
  ! grep -q 'hot: flora, paused' "$work/said" || break
  sleep 0.1
done
grep -q 'waiting for an operator to resume the run: the training of 2 of 2 members fails' "$work/said" ||
  fail_with "$work/said" "a run whose members fail did not pause"
admin resume hot >"$work/said" 2>&1 || fail_with "$work/said" "resume"
kill "$last_child"

# ---- changes of an open run, as an operator types them
# shellcheck disable=SC2046 # a command line made of words without blanks
{
  changed() { "$programs/fedlora" run "$@" $(as "$certs" ops) >"$work/said" 2>&1 || fail_with "$work/said" "run $*"; }
  changed set hot quorum=2 deadline=90m
  grep -q 'a round closes with all updates, or after 1h30m with at least 2' "$work/said" ||
    fail_with "$work/said" "run set"
  refused 3 'quorum 2 would be more than the 1 members left: first fedlora run set hot quorum=1' \
    "$programs/fedlora" run member drop hot bob $(as "$certs" ops)
  refused 2 'expected add or drop' "$programs/fedlora" run member remove hot bob $(as "$certs" ops)
  # The help has the list of the coordinator.
  keys=$("$programs/fedlora" run set --help | tr '\n' ' ' | sed -n 's/.*KEY is \(.*\), with the meaning.*/\1/p')
  refused 3 "cannot be changed; expected ${keys:?}; did you mean deadline" "$programs/fedlora" run set hot deadlines=3s $(as "$certs" ops)
  changed set hot quorum=1
  changed member drop hot bob
  grep -qE '^bob +dropped ' "$work/said" || fail_with "$work/said" "run member drop"
  changed member add hot bob:rank=2
  changed drop-update hot ann
  "$programs/fedlora" run watch hot $(as "$certs" ops) >"$work/watched" 2>&1 &
  for ((i = 0; i < 100; i++)); do
    ! grep -q update.dropped "$work/watched" || break
    sleep 0.1
  done
  kill %%
  for event in 'run.changed .*quorum=2 deadline=90m' 'member.dropped .* bob' 'member.added .* bob' 'update.dropped .* ann' \
    'member.failing .* ann training' 'run.diverged'; do
    grep -qE "$event" "$work/watched" || fail_with "$work/watched" "run watch lacks $event"
  done
}
echo "all refused with a reason, and the run finished"
