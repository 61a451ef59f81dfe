#!/usr/bin/env bash
# One configuration file for all commands: each takes its own keys, skips those of the others, and refuses keys that no
# command knows. Without --config the user's file is found.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

fedlora=$programs/fedlora
make_certs ann
mkdir -p "$XDG_CONFIG_HOME/fedlora"
ini=$XDG_CONFIG_HOME/fedlora/client.ini
# Port 1 has no server, so each command that has read the file says that it cannot connect to it.
cat >"$ini" <<INI
[server]
address = 127.0.0.1:1
ca = $work/certs/ca.pem
cert = $work/certs/ann.pem
key = $work/certs/ann.key

[join]
base = $work/base
data = $work/rows.jsonl
threads = 1
device = cpu
precision = f32
quiet = yes
retry_for = 1ms

[privacy]
epsilon = 8
ledger = $work/ledger.jsonl
INI
python3 "$root/tests/e2e/tiny.py" model "$work/base"
python3 "$root/tests/e2e/tiny.py" rows "$work/rows.jsonl"

expect_refusal "1" "cannot connect to 127.0.0.1:1" "$fedlora" run list
expect_refusal "1" "cannot connect to 127.0.0.1:1" "$fedlora" join --work "$work/w"
[ "$(wc -l <"$work/said")" -eq 1 ] || fail_with "$work/said" "[join] quiet did nothing"
expect_refusal "1" "configuration: $ini" "$fedlora" join --verbose --no-quiet --work "$work/w"
"$fedlora" doctor --json >"$work/doctor.json" 2>/dev/null || true
grep -qF "$ini" "$work/doctor.json" || fail_with "$work/doctor.json" "doctor does not name the file"
grep -qF '"join.base"' "$work/doctor.json" || fail_with "$work/doctor.json" "doctor does not check [join]"

# The options of a run are never taken from a machine's own file, but the connection is.
echo "[run]" >"$work/run.ini"
expect_refusal "2" "--members is missing" "$fedlora" run create r --config "$work/run.ini"
cat >"$work/run.ini" <<INI
[run]
rounds = 1
INI
expect_refusal "1" "cannot connect to 127.0.0.1:1" "$fedlora" run create r --config "$work/run.ini" --method flora \
  --members ann --base "$work/base" --targets q,v

# A mistake is found with its line, also in a section of another command.
sed 's/^threads/treads/' "$ini" >"$work/typo.ini"
expect_refusal "2" "$work/typo.ini:10: unknown key join.treads" "$fedlora" join --config "$work/typo.ini"
expect_refusal "2" "$work/typo.ini:10: unknown key join.treads" "$fedlora" run list --config "$work/typo.ini"
cp "$work/typo.ini" "$ini"
expect_refusal "2" "$ini:10: unknown key join.treads" "$fedlora" join
printf '[server]\nadress = x\n' >"$ini"
expect_refusal "2" "$ini:2: unknown key server.adress; did you mean server.address?" "$fedlora" run list

# --config of a member is a file of its own, which the user's file does not change.
printf '[server]\naddress = 127.0.0.1:2\n' >"$work/other.ini"
expect_refusal "2" "--ca" "$fedlora" join --config "$work/other.ini" --base "$work/base" --data "$work/rows.jsonl"

# doctor finds faults of the machine without the coordinator, and has numbers for scripts.
# findings FILE EXPRESSION: fails unless the expression holds for doctor's document.
findings() {
  python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); sys.exit(not eval(sys.argv[2]))' "$@" ||
    fail_with "$1" "not so: $2"
}
cat >"$work/ann.ini" <<INI
[server]
address = 127.0.0.1:1
ca = $work/certs/ca.pem
cert = $work/certs/ann.pem
key = $work/certs/ann.key
[join]
base = $work/base
data = $work/rows.jsonl
[policy]
max_steps = 50
approve = ask
INI
chmod 0644 "$work/certs/ann.key"
"$fedlora" doctor --config "$work/ann.ini" --json >"$work/doctor.json" 2>/dev/null && fail "doctor: a key that others may read"
findings "$work/doctor.json" 'any(p.startswith("key file: other users may read it") for p in d["problems"])'
findings "$work/doctor.json" '"mode 0644" in d["checks"]["key file"]'
findings "$work/doctor.json" '364 < d["numbers"]["certificate_days_left"] < 366 and d["numbers"]["state_bytes"] > 1000'
findings "$work/doctor.json" 'd["numbers"]["work_free_bytes"] > d["numbers"]["state_bytes"]'
findings "$work/doctor.json" 'd["checks"]["policy"] == "max_steps = 50, approve = ask"'
findings "$work/doctor.json" 'd["checks"]["next renewal"].startswith("by hand: certificate and key are in two files")'
