#!/usr/bin/env bash
# The attacks of tests/attack/front.py, all at once for a moment, on a coordinator that may open 1,024 files: an honest member's
# calls are answered all the time, each attacker is named in the log, and the coordinator stops as usual.
# The long form, one after the other, measures: FEDLORA_ATTACK_SECONDS=10 tests/e2e/attacks.sh
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

# In a moment beside other tests the 99th percentile is nearly the maximum, and shows little but the machine's load.
how=(--seconds 1 --together --floor 2000)
[ -z "${FEDLORA_ATTACK_SECONDS:-}" ] || how=(--seconds "$FEDLORA_ATTACK_SECONDS")
member_list=honest
make_certs honest evil-{idle,resets,varint,bomb,continuations,pings,settings,priorities,windows,empty-data,unread}
ulimit -n 1024
start_coordinator "$work/coordinator"
python3 "$root/tests/attack/front.py" --server "127.0.0.1:$port" --certs "$work/certs" --pid "$coordinator" \
  "${how[@]}" || fail_with "$work/fedlorad.log" "a target was missed"

for reason in "resets RST_STREAM" "varint block" "bomb 8192" "continuations CONTINUATION" "pings PING" \
  "settings SETTINGS" "priorities PRIORITY" "empty-data DATA"; do
  grep "event=connection.refused" "$work/fedlorad.log" | grep "peer=evil-${reason% *} " | grep -q "${reason#* }" ||
    fail_with "$work/fedlorad.log" "the log does not say that ${reason% *} was cut off for ${reason#* }"
done
if grep -q "peer=honest" "$work/fedlorad.log"; then fail_with "$work/fedlorad.log" "the honest member was refused"; fi
stop_coordinator
echo "attacked, and served"
