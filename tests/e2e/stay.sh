#!/usr/bin/env bash
# A member as a service: one process serves a run, waits quietly without any, serves the next one, continues through a
# restart of the coordinator and of itself in the middle of a round, and ends with status 0 after SIGTERM.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

member_list=ann
python3 "$root/tests/e2e/tiny.py" model "$work/base"
python3 "$root/tests/e2e/tiny.py" rows "$work/ann.jsonl" --seed 1 --rows 8
make_certs ann
digest=$("$programs/fedlora" inspect "$work/base" --json | report field digest)

# create RUN OPTION...
create() {
  local run=$1
  shift
  admin create "$run" --members ann --base-digest "$digest" --targets q,v --batch 4 --seq 32 --lr 1e-3 --seed 1 \
    --precision f32 --rank 2 --alpha 4 "$@" >>"$work/admin.log" 2>&1 || fail_with "$work/admin.log" "create $run"
}
# stay: starts the service; its process is `member`.
stay() {
  spawn "$work/ann.log" "$programs/fedlora" join --stay "$@" --server "127.0.0.1:$port" --ca "$work/certs/ca.pem" \
    --cert "$work/certs/ann.pem" --key "$work/certs/ann.key" --work "$work/ann" --threads 1 --keep-sent "$work/kept" \
    --base "$work/base" --data "$work/ann.jsonl" --precision f32
  member=$last_child
}
end_member() {
  kill -TERM "$member"
  wait_within 20 "$member" "join --stay after SIGTERM" "$work/ann.log"
}
# wait_for_phase RUN PHASE
wait_for_phase() {
  local tries=300
  until [ "$(admin status "$1" --json 2>/dev/null | report field phase)" = "$2" ]; do
    alive "$member" || fail_with "$work/ann.log" "join --stay ended"
    [ $((tries -= 1)) -gt 0 ] || fail_with "$work/ann.log" "run $1 is not $2"
    sleep 0.1
  done
}

expect_refusal 2 "leave out --run" "$programs/fedlora" join --stay --run a --server "127.0.0.1:1" --ca x --cert x --key x \
  --base x --data x

# The service starts before its coordinator, and before any run.
start_coordinator "$work/site"
stop_coordinator
notify=$work/notify
python3 - "$notify" >"$work/notified" <<'PY' &
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
while True:
    print(s.recv(4096).decode(), flush=True)
PY
children+=("$!")
until [ -S "$notify" ]; do sleep 0.05; done
export NOTIFY_SOCKET=$notify
stay
unset NOTIFY_SOCKET
sleep 1
start_coordinator "$work/site"
create a --rounds 2 --method flora --steps 5
wait_for_phase a finished
grep -q '^run a finished' "$work/ann.log" || fail_with "$work/ann.log" "the end of run a is not printed"

# Idle: no line, and the same process serves the next run.
lines=$(wc -l <"$work/ann.log") refused=$(grep -c call.refused "$work/fedlorad.log" || true)
sleep 3
[ "$(wc -l <"$work/ann.log")" = "$lines" ] || fail_with "$work/ann.log" "an idle member prints lines"
[ "$(grep -c call.refused "$work/fedlorad.log" || true)" = "$refused" ] ||
  fail_with "$work/fedlorad.log" "calls of an idle member are refused"
create b --rounds 2 --method fedit --steps 5
wait_for_phase b finished

# A restart of the coordinator while the member is idle, then one of the member within a round.
stop_coordinator
start_coordinator "$work/site"
create c --rounds 1 --method flora --steps 400
create alone --rounds 1 --method flora --steps 1
wait_for_round c 1
tries=300
until grep -q 'c round 1' "$work/ann.log" || grep -q '^joined run c' "$work/ann.log"; do
  [ $((tries -= 1)) -gt 0 ] || fail_with "$work/ann.log" "run c is not trained"
  sleep 0.1
done
end_member
stay
wait_for_phase c finished
wait_for_phase alone finished
end_member
grep -q '^STATUS=.*run a: training round' "$work/notified" || fail_with "$work/notified" "no status of run a"
grep -q '^STATUS=run b: uploading the update, .* of .* kB$' "$work/notified" || fail_with "$work/notified" "no bytes of run b"
grep -qx 'READY=1' "$work/notified" || fail_with "$work/notified" "no READY=1"
grep -qx 'STOPPING=1' "$work/notified" || fail_with "$work/notified" "no STOPPING=1"

# The journal: the chain is that of an independent program, and every update that was counted is in it and was kept.
sent() { "$programs/fedlora" sent --work "$work/ann" "$@" 2>>"$work/sent.log"; }
sent --verify --json >"$work/sent.json" || fail_with "$work/sent.log" "fedlora sent --verify"
python3 - "$work/ann/sent.jsonl" "$work/sent.json" "$work/kept" <<'PY' || fail_with "$work/ann/sent.jsonl" "the journal"
import hashlib, json, os, re, sys
prev, kinds = "0" * 64, set()
for number, line in enumerate(open(sys.argv[1], "rb").read().splitlines(), 1):
    entry = json.loads(line)
    plain = re.sub(rb'"hash":"[0-9a-f]{64}",', b"", line)
    hash = hashlib.blake2b(b"fedlora sent 1\0" + plain, digest_size=32).hexdigest()
    assert (entry["seq"], entry["prev"], entry["hash"]) == (number, prev, hash), number
    prev = hash
    kinds.add(entry["kind"])
    if entry["kind"] == "update":
        kept = f'{sys.argv[3]}/{entry["run"]}.{entry["round"]}.{entry["digest"][:16]}.safetensors'
        data = open(kept, "rb").read()
        assert hashlib.blake2b(data, digest_size=32).hexdigest() == entry["digest"] and len(data) == entry["bytes"]
assert kinds == {"hello", "progress", "update"}, kinds
assert json.load(open(sys.argv[2]))["verified"] == number
PY
[ "$(sent --run b | grep -c ' update ')" = 2 ] || fail_with "$work/ann/sent.jsonl" "fedlora sent --run b"
sed -i '5d' "$work/ann/sent.jsonl"
expect_refusal 2 "sent.jsonl:5: " "$programs/fedlora" sent --work "$work/ann" --verify
stop_coordinator
echo "a member that stays serves one run after another"
