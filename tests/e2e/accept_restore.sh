#!/usr/bin/env bash
# A coordinator that was put back to an older copy of its store is not believed by a member that has seen the newer one,
# until the member is started with --accept-restore.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

member_list=ann
python3 "$root/tests/e2e/tiny.py" model "$work/base"
python3 "$root/tests/e2e/tiny.py" rows "$work/ann.jsonl" --seed 1 --rows 8
make_certs ann
digest=$("$programs/fedlora" inspect "$work/base" --json | report field digest)
join() {
  join_member r ann "$work" --base "$work/base" --data "$work/ann.jsonl" --precision f32 "$@"
  member=$last_child
}
# wait_for_line TEXT: in the member's log.
wait_for_line() {
  local tries=200
  until grep -qF -- "$1" "$work/ann.log"; do
    [ $((tries -= 1)) -gt 0 ] || fail_with "$work/ann.log" "the member never said \"$1\""
    sleep 0.1
  done
}

start_coordinator "$work/site"
admin create r --members ann --base-digest "$digest" --targets q,v --batch 4 --seq 32 --steps 5 --rounds 100000 \
  --method flora --precision f32 --rank 2 --alpha 4 >>"$work/admin.log" 2>&1 || fail_with "$work/admin.log" "create"
join
wait_for_round r 2
stop_coordinator
cp -a "$work/site/store" "$work/copy"
start_coordinator "$work/site"
tries=200
until [ "$(grep -c "event=member.hello" "$work/fedlorad.log")" = 2 ]; do # the member knows the newer start
  [ $((tries -= 1)) -gt 0 ] || fail_with "$work/ann.log" "the member did not say Hello again"
  sleep 0.1
done
next=$(($(admin status r --json | report field round) + 1))
wait_for_round r $next
stop_coordinator
rm -rf "$work/site/store"
cp -a "$work/copy" "$work/site/store"
start_coordinator "$work/site"
wait_for_line "waiting for the coordinator: this coordinator runs on an old copy of its store"
kill -KILL "$member"
wait "$member" 2>/dev/null || true
join --accept-restore
wait_for_round r $next
admin stop r >>"$work/admin.log" 2>&1 || fail_with "$work/admin.log" "stop"
wait_within 20 "$member" "join --accept-restore" "$work/ann.log"
stop_coordinator
echo "a member accepts a restored store only when it is told to"
