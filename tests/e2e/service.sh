#!/usr/bin/env bash
# fedlorad as a service: messages to a service manager, SIGHUP, --check beside it, backup and restore by command.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"
command -v python3 >/dev/null || skip "python3 is not installed"
member_list=north,south
make_certs north south

# The other end of NOTIFY_SOCKET: each message becomes a line, with its parts separated by blanks.
cat >"$work/listen.py" <<'PY'
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
with open(sys.argv[2], "w", buffering=1) as out:
    while True:
        out.write(s.recv(4096).decode().replace("\n", " ") + "\n")
PY
touch "$work/told"
spawn "$work/listen.log" python3 "$work/listen.py" "$work/socket" "$work/told"
for _ in $(seq 100); do [ ! -S "$work/socket" ] || break; sleep 0.05; done

# told N TEXT: waits until N messages have this text.
told() {
  local tries=200
  until [ "$(grep -c -- "$2" "$work/told")" -ge "$1" ]; do
    [ $((tries -= 1)) -gt 0 ] || fail_with "$work/told" "not $1 messages \"$2\""
    sleep 0.05
  done
}

export NOTIFY_SOCKET=$work/socket WATCHDOG_USEC=400000
unset WATCHDOG_PID
start_coordinator "$work/one"
told 1 '^STATUS=checking the store'
told 1 '^READY=1 STATUS=0 open runs of 0'
told 3 '^WATCHDOG=1'
grep -q 'event=fedlorad.starting version=0[.0-9]* commit=[^ ]* store=[0-9]* config=[^ ]* config_digest=[0-9a-f]\{16\} certificate_days=36[45]$' \
  "$work/fedlorad.log" || fail_with "$work/fedlorad.log" "no first line"
kill -HUP "$coordinator"
told 1 '^RELOADING=1 MONOTONIC_USEC='
told 2 '^READY=1 '

# ---- --check beside it, and its faults by name
ini=$work/one/fedlorad.ini
"$programs/fedlorad" --config "$ini" --check >"$work/said" || fail_with "$work/said" "--check beside a service"
grep -q "^data .*in use by a running fedlorad, process $coordinator\$" "$work/said" || fail_with "$work/said" "no process"
"$programs/fedlorad" --config "$ini" --check --json >"$work/said"
python3 - "$work/said" <<'PY'
import json, sys
report = json.load(open(sys.argv[1]))
assert report["good"] and report["running"], report
names = [c["check"] for c in report["checks"]]
assert names == ["configuration", "federation", "certificate", "data", "store", "address"], names
PY
status=0
"$programs/fedlorad" --config "$ini" --check --json --set server.cert=/nothing --set store.reserve=900TB >"$work/said" 2>/dev/null || status=$?
[ $status -eq 2 ] || fail "--check with two faults: status $status"
python3 - "$work/said" <<'PY'
import json, sys
report = json.load(open(sys.argv[1]))
bad = [c["check"] for c in report["checks"] if not c["good"]]
assert not report["good"] and bad == ["certificate", "data", "address"], report
PY

# ---- backup while it runs, restore, and the service on the restored folder
"$programs/fedlorad" backup --config "$ini" --to "$work/backup" >"$work/said" || fail_with "$work/said" "backup"
"$programs/fedlorad" verify "$work/backup" >"$work/said" || fail_with "$work/said" "verify"
grep -q "is whole: " "$work/said" || fail_with "$work/said" "no sum"
"$programs/fedlorad" verify --store --config "$ini" >"$work/said" || fail_with "$work/said" "verify --store"
expect_refusal 2 "--incremental" "$programs/fedlorad" backup --config "$ini" --to "$work/backup"
"$programs/fedlorad" backup --config "$ini" --to "$work/backup" --incremental --json | python3 -c 'import json,sys; assert json.load(sys.stdin)["wrong"] == 0'
expect_refusal 2 "is no backup" "$programs/fedlorad" verify "$work/certs"
expect_refusal 2 "is not empty" "$programs/fedlorad" restore "$work/backup" --to "$work/certs"
for _ in $(seq 300); do ! grep -q "event=backup.made path=$work/backup" "$work/fedlorad.log" || break; sleep 0.1; done
grep -q "event=backup.made path=$work/backup files=[0-9]* bytes=[0-9]* wrong=0" "$work/fedlorad.log" ||
  fail_with "$work/fedlorad.log" "the service does not say that a backup was made"
stop_coordinator
told 1 '^STOPPING=1'
"$programs/fedlorad" restore "$work/backup" --to "$work/restored" --accept >"$work/said" || fail_with "$work/said" "restore"
mv "$work/one/store" "$work/one/store.was"
mv "$work/restored" "$work/one/store"
start_coordinator "$work/one"
grep -q "event=store.restored from=.*accepted $work/backup" "$work/fedlorad.log" || fail_with "$work/fedlorad.log" "no line of the restore"
grep -q '"action":"store.restored"' "$work/one/store/audit/"*.jsonl || fail "the audit log does not have the restore"
[ ! -e "$work/one/store/restored" ] || fail "the restore would be told again"
stop_coordinator
"$programs/fedlora" audit verify "$work/one/store/audit" --key "$work/one/store/audit/audit.pub" >"$work/said" 2>&1 ||
  fail_with "$work/said" "the audit log does not go on after a restore"
