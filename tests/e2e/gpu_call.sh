#!/usr/bin/env bash
# bench/gpu: pack.sh makes a folder below 10 MB, and call.sh in it runs all checks on the shim in a short form with status
# 0. A wrong digest, a kernel that fails and a missing library give status 1, and the parts after it still run.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

shim=$programs/libfedlora_cuda_on_cpu.so
[ -e "$shim" ] && [ -x "$programs/cuda_check" ] || skip "this build has no $(basename "$shim") or cuda_check"
cd "$root"
check() { FEDLORA_CUDA=$shim "$programs/cuda_check" "$@" >"$work/check.log" 2>&1; }

bench/gpu/pack.sh --build "$programs" --out "$work/gpu" >"$work/pack.log" 2>&1 || fail_with "$work/pack.log" "pack.sh"
grep -q ' kB, needs GLIBC_' "$work/pack.log" || fail_with "$work/pack.log" "pack.sh does not print the size"
for program in cuda_check bench_gpu; do
  needed=$(readelf -d "$work/gpu/$program" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | grep -vE '^lib(c|m|dl|pthread)\.so' | paste -sd' ' || true)
  [ -z "$needed" ] || fail "$program needs $needed"
done

call() { # NAME STATUS [ENVIRONMENT]
  local got=0
  env OUT="$work/$1" "${@:3}" "$work/gpu/call.sh" --shim "$shim" >"$work/$1.log" 2>&1 </dev/null || got=$?
  [ "$got" = "$2" ] || fail_with "$work/$1.log" "call.sh, $1: status $got, expected $2"
}
call good 0
for name in machine ceilings digests parity 'rows repeat graph' golden time; do
  grep -qE "^$name +ok " "$work/good/summary.txt" || fail_with "$work/good/summary.txt" "no line: $name ok"
done
[ "$(wc -l <"$work/good/results.jsonl")" = 3 ] || fail_with "$work/good/results.jsonl" "not three measurements"
grep -q '^0 checks failed' "$work/good.log" || fail_with "$work/good.log" "no count of failed checks"

# docs/performance.md has the targets as floors.py counts them.
python3 bench/gpu/floors.py | while IFS= read -r line; do
  grep -qF "$line" docs/performance.md || fail "docs/performance.md has not: $line"
done

# The digests cover the low-rank kernels on tensor cores and the others, and long contexts.
SHIM_COUNTS=1 check digest "$work/gpu/shim_digests.txt" || fail_with "$work/check.log" "the digests of the package"
for kernel in shrink gradient gradient_sum expand decode join; do
  grep -q "\b${kernel}_kernel\b" "$work/check.log" || fail_with "$work/check.log" "no digest of ${kernel}_kernel"
done
for kernel in shrink gradient; do
  grep -q "\b${kernel}_mma_kernel\b" "$work/check.log" || fail_with "$work/check.log" "no digest of ${kernel}_mma_kernel"
done

# One digest of another kernel's bits.
sed -i '7s/.$/x/' "$work/gpu/shim_digests.txt"
check digest "$work/gpu/shim_digests.txt" && fail "another digest was not found"
grep -q '^other bits: ' "$work/check.log" || fail_with "$work/check.log" "no name of the result with other bits"
check digest /nowhere && fail "a missing file was not reported"
SHIM_FAULT=kernel:40 check parity operations/ && fail "a failing kernel was not found"
grep -q ' failed$' "$work/check.log" || fail_with "$work/check.log" "no count of failed tests"
SHIM_PRODUCTS=3 check rows && fail "products whose rows depend on their number were not found"
check nothing && fail "an unknown subcommand was accepted"

# Without a GPU every part fails with one line, and call.sh comes to its end.
call none 1 SHIM_DEVICES=0
grep -q 'no GPU' "$work/none/log.txt" || fail_with "$work/none/log.txt" "the reason is missing"
