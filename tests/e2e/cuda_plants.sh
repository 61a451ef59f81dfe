#!/usr/bin/env bash
# The shim that runs CUDA kernels on the CPU finds each planted fault of tests/cuda_on_cpu/plants.cu, in every build,
# and finds nothing in the same kernels without a fault.
set -euo pipefail
cd "$(dirname "$0")/../.."

build=${FEDLORA_BUILD_DIR:-build/release}
plants=$build/cuda_plants
[ -x "$plants" ] || { echo "$build has no cuda_plants"; exit 77; }
kind=$(basename "$build")
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Reports go to this script, and not to the files that tests/run.sh takes for failures.
export ASAN_OPTIONS=abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS="halt_on_error=1 exitcode=66 symbolize=0"

fail() { echo "cuda_plants.sh: $1"; cat "$log"; exit 1; }
bits='found: schedule' other='leaves other bits than schedule 0' race='ThreadSanitizer: data race'

# NAME RELEASE SANITIZE RACE: the text that each build must print; it must not end with status 0. Empty: not run.
expect() {
  local want=$2
  case $kind in sanitize) want=$3 ;; race) want=$4 ;; esac
  [ -n "$want" ] || return 0
  if ("$plants" "$1"; exit $?) >"$log" 2>&1; then fail "$1: not found"; fi
  grep -q "$want" "$log" || fail "$1: found, but without the text \"$want\""
}
"$plants" right >"$log" 2>&1 || fail "right kernels are taken for wrong"
SHIM_VERIFY=1 "$plants" right >"$log" 2>&1 || fail "right kernels are taken for wrong with SHIM_VERIFY=1"

expect no-barrier "$bits" "$bits" "$race"
expect no-loop-barrier "$bits" "$bits" "$race"
expect no-wait "$bits" "$bits" "$bits"
expect divergent 'this one is at a barrier' 'this one is at a barrier' "$race"
SHIM_RACE_BLOCKS=1 expect two-blocks "$bits" "$bits" "$race"
expect one-place "$bits" "$bits" "$bits"
expect global-beyond 'behind an allocation' use-after-poison 'behind an allocation'
expect shared-beyond "$bits" 'index 4 out of bounds' "$bits"
expect host-reads '' use-after-poison ''
export SHIM_VERIFY=1
expect no-barrier "$other" "$other" "$race"
expect two-blocks "$other" "$other" "$race"
