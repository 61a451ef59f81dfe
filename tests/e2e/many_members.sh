#!/usr/bin/env bash
# The status of a run of 10,000 members is more than one message, so it comes in pages: every member once, in order.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

member_list=$(python3 -c 'print(",".join(f"hospital-with-a-long-name-{i:05d}" for i in range(10000)))')
make_certs
start_coordinator "$work/store"
printf '[run]\nmembers = %s\n' "$member_list" >"$work/run.ini"
admin create big --config "$work/run.ini" --method flora --rounds 3 --quorum 2 --rank 4 --steps 1 \
  --base-digest "$(printf '%064d' 7)" >"$work/created" 2>"$work/admin.log" || fail_with "$work/admin.log" "create"
grep -q "^and [0-9]* more members (run status)$" "$work/created" || fail "the answer to create does not fit into one message, and does not say so"
admin status big --json >"$work/status.json" 2>"$work/admin.log" || fail_with "$work/admin.log" "status"
python3 - "$work/status.json" <<'PY' || fail "the pages are not the members of the run"
import json, sys
status = json.load(open(sys.argv[1]))
assert [m["id"] for m in status["members"]] == [f"hospital-with-a-long-name-{i:05d}" for i in range(10000)], len(status["members"])
assert status["member_count"] == 10000 and status["members_next"] == 0
PY
# A page is bounded in bytes, so it must have been more than one.
[ "$(wc -c <"$work/status.json")" -gt 2000000 ] || fail "the status is smaller than expected"
stop_coordinator
echo "10,000 members are read in pages"
