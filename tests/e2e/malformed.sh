#!/usr/bin/env bash
# Malformed files: for every file of gguf-handcrafted and safetensors-conformance the exit status must match the
# verdict of the reference loaders, and each refusal must be one line that names the file.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

data=$root/../shared/data
[ -d "$data/gguf-handcrafted" ] || skip "no ../shared/data/gguf-handcrafted"
checked=0

# verdict FILE ok|anything else
verdict() {
  local status=0 wanted=2
  if [ "$2" = ok ]; then wanted=0; fi
  "$programs/fedlora" inspect "$1" --json >"$work/out" 2>"$work/said" || status=$?
  [ $status -eq $wanted ] || fail_with "$work/said" "inspect $1: status $status, the reference says $2"
  if [ $wanted -eq 2 ]; then
    [ "$(wc -l <"$work/said")" -eq 1 ] || fail_with "$work/said" "inspect $1: expected one line"
    grep -qF "$(basename "$1")" "$work/said" || fail_with "$work/said" "inspect $1: does not name the file"
  fi
  checked=$((checked + 1))
}

while IFS=$'\t' read -r file _ said _; do
  verdict "$data/gguf-handcrafted/$file" "$said"
done < <(tail -n +2 "$data/gguf-handcrafted/expected_seed42.tsv")
while IFS=$'\t' read -r file _ said _; do
  verdict "$data/safetensors-conformance/$file" "$said"
done < <(tail -n +2 "$data/safetensors-conformance/expected.tsv")
[ $checked -gt 30 ] || fail "only $checked files"
echo "$checked verdicts"
