#!/usr/bin/env bash
# Checks and measures a GPU in about seven minutes. Runs in the folder that pack.sh has made; the most important parts
# come first, each part has a time limit, and its output is in OUT/log.txt as soon as it is printed, so that an end at any
# time loses only the parts that follow. OUT/summary.txt has a line for each part, OUT/results.jsonl the figures, and
# OUT/results.txt the figures beside the targets.
#
#   call.sh [--out DIR] [--models DIR] [--shim LIBRARY]
#
# --out      default: $OUT, else ./out
# --models   folder of the random base models, 19 GB, kept there; default: a temporary folder
# --shim     a short form with tiny sizes that tests this script; LIBRARY is the CUDA backend on the CPU
#
# The exit status is 1 if a check failed. Measurements and missing programs (compute-sanitizer, PEFT) do not count.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${OUT:-$PWD/out} models='' shim=''
while [ $# -gt 1 ]; do
  case "$1" in
    --out) out=$2 ;;
    --models) models=$2 ;;
    --shim) shim=$(realpath "$2") ;;
    *) break ;;
  esac
  shift 2
done
[ $# -eq 0 ] || { sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
cd "$here" || exit 2
for file in log.txt summary.txt results.jsonl; do : >"$out/$file"; done
temporary=$(mktemp -d)
models=${models:-$temporary}
mkdir -p "$models" && models=$(cd "$models" && pwd) || exit 2
writer=
finish() {
  [ -z "$writer" ] || kill "$writer" 2>/dev/null
  rm -rf "$temporary"
}
trap finish EXIT
trap 'exit 130' INT TERM

# cuBLAS is in the toolkit, or in the wheels of a Python with PyTorch. Containers have the driver in /usr/local/nvidia.
export PYTHONUNBUFFERED=1 LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64:/usr/local/nvidia/lib64
for folder in $(python3 -c 'import site; print(*site.getsitepackages())' 2>/dev/null); do
  for wheel in "$folder"/nvidia/cu13/lib "$folder"/nvidia/cublas/lib; do
    [ ! -d "$wheel" ] || LD_LIBRARY_PATH+=:$wheel
  done
done
[ -z "$shim" ] || export FEDLORA_CUDA=$shim

failed=0
note() { printf '%-30s %-8s %4ss  %s\n' "$@" | tee -a "$out/summary.txt"; }
# part check|measure NAME SECONDS COMMAND...: prints the end of its output.
part() {
  local kind=$1 name=$2 limit=$3 since=$SECONDS status result=ok printed first
  shift 3
  echo "== $name [$SECONDS s]" | tee -a "$out/log.txt"
  first=$(($(wc -l <"$out/log.txt") + 1))
  timeout --kill-after=5 "$limit" "$@" >>"$out/log.txt" 2>&1 </dev/null
  status=$?
  printed=$(tail -n +$first "$out/log.txt")
  grep '^{' <<<"$printed" >>"$out/results.jsonl"
  tail -n "${lines:-3}" <<<"$printed"
  # compute-sanitizer does not run on some virtual machines.
  if [ "$status" != 0 ] && { [ "$kind" = measure ] || grep -q 'Device not supported' <<<"$printed"; }; then
    result='nothing'
  elif [ "$status" != 0 ]; then
    result='FAILED'
    failed=$((failed + 1))
  fi
  if [ "$status" = 124 ]; then result=timeout; fi
  note "$name" "$result" $((SECONDS - since)) "$(tail -1 <<<"$printed" | grep -v '^{' | cut -c 1-90)"
}
skip() { note "$1" skipped 0 "$2"; }

export machine='
  nvidia-smi -L
  nvidia-smi --query-gpu=driver_version,clocks.max.sm,power.limit,memory.total,mig.mode.current --format=csv,noheader
  /usr/local/cuda/bin/nvcc --version | tail -2
  grep -m1 "model name" /proc/cpuinfo
  ldd --version | head -1
  timeout 30 python3 -c "import torch, peft, transformers as t; print(*[(m.__name__, m.__version__) for m in (torch, peft, t)])" 2>&1 | tail -1
  ./cuda_check version'
write_models() {
  local name
  for name in "$@"; do
    [ -e "$models/$name/done" ] || { python3 ./make_base.py "$name" "$models/$name" && touch "$models/$name/done"; } || return
  done
}
# wait_model NAME: until the writer has made it.
wait_model() {
  until [ -e "$models/$1/done" ]; do
    kill -0 "$writer" 2>/dev/null || { [ -e "$models/$1/done" ]; return; }
    sleep 0.2
  done
}
sanitizer() { # TOOL
  local program
  program=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer) || { skip "$1" "no compute-sanitizer"; return; }
  part check "$1" 70 "$program" --tool "$1" --error-exitcode 7 ./cuda_check parity small
}
fedlora() { # MODEL SHAPE [VARIANT...]
  wait_model "$1" || { skip "fedlora $1 $2" "no model"; return; }
  lines=$(($# > 2 ? $# - 2 : 1)) part measure "fedlora $*" 50 ./bench_gpu "$models/$1" "${@:2}" --json
}
peft() { # MODEL SHAPE eager|compiled
  local extra=()
  [ "$3" = eager ] || extra=(--compile --discard 3)
  wait_model "$1" || { skip "peft $*" "no model"; return; }
  lines=1 part measure "peft $*" 75 python3 ./peft_train.py --base "$models/$1" --rows "$2" --device cuda "${extra[@]}"
}

# ---- the short form
if [ -n "$shim" ]; then
  lines=2 part check machine 20 ./cuda_check version
  write_models tiny &
  writer=$!
  part check ceilings 20 ./cuda_check ceilings tiny
  part check digests 60 ./cuda_check digest shim_digests.txt
  part check parity 60 ./cuda_check parity operations/zero elementwise/rope elementwise/norms
  part check 'rows repeat graph' 60 ./cuda_check rows repeat graph
  part check golden 60 ./cuda_check golden . on_linear_rope_scaling
  lines=6 part check time 60 ./cuda_check time tiny
  fedlora tiny 2x24 plain recompute+q8_0 private --steps 1
else
  lines=20 part check machine 60 bash -c "$machine"
  # A C library older than that of the build: the program cannot start.
  if ./cuda_check version 2>&1 | grep -q GLIBC; then part check rebuild 180 ./rebuild.sh programs; fi
  ./cuda_check version >/dev/null 2>&1 || { echo "no usable GPU: see docs/gpu.md"; exit 1; }
  write_models 135m 1b 8b >>"$out/log.txt" 2>&1 &
  writer=$!
  part check ceilings 30 ./cuda_check ceilings
  part check digests 60 ./cuda_check digest shim_digests.txt
  part check parity 90 ./cuda_check parity
  wait_model 135m
  part check 'rows repeat graph' 60 ./cuda_check rows repeat graph "$models/135m"
  part check golden 60 ./cuda_check golden .
  sanitizer memcheck
  sanitizer racecheck
  fedlora 135m 4x512
  fedlora 1b 4x512
  fedlora 8b 8x2048
  peft 135m 4x512 eager
  peft 1b 4x512 eager
  peft 8b 8x2048 eager
  lines=100 part measure time 60 ./cuda_check time
  fedlora 135m 8x2048
  fedlora 1b 8x2048
  fedlora 8b 4x512
  fedlora 8b 8x2048 recompute recompute+q8_0 private
  peft 135m 4x512 compiled
  peft 1b 4x512 compiled
  peft 8b 8x2048 compiled
fi

echo "== results [$SECONDS s]"
python3 ./floors.py --results "$out/results.jsonl" | tee "$out/results.txt"
echo "== summary [$SECONDS s]"
cat "$out/summary.txt"
echo "$failed checks failed"
[ $failed -eq 0 ]
