#!/usr/bin/env bash
# Inputs that users of such programs had, with the right answers: every folder of ../shared/cases, which lie beside the
# source. Their kinds have small cases of our own in the tests of each part; these are further ones.
# Release only: 200 steps of training per file; the tests of each part run under the sanitizers.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"
judge=$root/../shared/cases/judge.py
[ -f "$judge" ] || skip "no ../shared/cases"

status=0
FEDLORA=$programs/fedlora SOURCE=$root timeout 240 python3 "$judge" >"$work/said" 2>&1 || status=$?
grep -E '^WRONG ' "$work/said" >&2 || true
[ "$status" -eq 0 ] || fail "$(tail -1 "$work/said")"
tail -1 "$work/said"
