#!/usr/bin/env bash
# A whole federation of three members over TLS, with a tiny model, for every method: runs to its end;
# gives the same bytes again with fedlorad killed (-9) in the middle of it and with members killed and
# started again; and what it made loads, and is better on the members' rows than the base.
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "${BASH_SOURCE[0]}")/support.sh.inc"

members=(ann bob cat) ranks=(2 4 8)
python3 "$root/tests/e2e/tiny.py" model "$work/base"
for i in 0 1 2; do
  python3 "$root/tests/e2e/tiny.py" rows "$work/${members[i]}.jsonl" --seed $((i + 1)) --rows $((8 + 4 * i))
done
cat "$work"/*.jsonl >"$work/all.rows"
"$root/deploy/make-certs.sh" "$work/certs" --federation e2e --admin ops "${members[@]}" >/dev/null
digest=$("$programs/fedlora" inspect "$work/base" --json | report field digest)

report() { python3 "$root/deploy/demo_report.py" "$@"; }
