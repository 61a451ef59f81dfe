#!/usr/bin/env bash
# Runs the benchmarks: one command measures and prints one table.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bench/run.sh train [options]          training speed and memory, beside PEFT on PyTorch
       bench/run.sh coordinator [options]    a round of many clients: seconds, and memory
       bench/run.sh load [options]           2,000 members at once with small updates: reports, memory
       bench/run.sh poll [options]           1,000 members that poll: check-ins a second, memory, an idle coordinator
       bench/run.sh private [options]        training with example-level privacy, beside without
       bench/run.sh agg [options]            aggregation: means, whole rounds, recompression, reports
       bench/run.sh simulate [options]       fedlora simulate: processor time for each client, memory, beside peers
       bench/run.sh tokenize TEXT BASE...    tokenizers: opening, tokens a second
       bench/run.sh chats TEXT BASE TEMPLATE...  rendering 100,000 conversations, beside tokenising alone
       bench/run.sh noise [COORDINATES]      exact privacy noise: seconds on one core
       bench/run.sh account                  privacy accountants: seconds, and the longest published rows
       bench/run.sh gpu [options]            a GPU of this machine: checks, then training beside PEFT (7 minutes)
       bench/run.sh TABLE --help             the options of one

Build first: cmake --preset release && cmake --build build/release
Experiments with methods and privacy are sweeps: fedlora simulate bench/sweeps/NAME.ini. Each file says what it needs.
USAGE
}
# rival NAME PROGRAM: the round of 16 clients with another system; PROGRAM prints one JSON line with median_s.
rival() {
  local work line
  work=$(mktemp -d "${TMPDIR:-/tmp}/fedlora-rival-XXXXXX")
  line=$("${@:2}" load -w "$work/load" -k 16 2>"$work/log" | tail -n 1) || true
  python3 - "$1" "$line" <<'PYTHON' || { echo "$1: no result"; tail -n 3 "$work/log"; }
import json, sys
name, line = sys.argv[1], json.loads(sys.argv[2])
peak = max(part["total"] for part in line["peak_pss_mib"].values())
print(f"{name}: {line['median_s']:.2f} s a round, at most {peak:.0f} MiB in its server or one client")
PYTHON
  rm -rf "$work"
}
# FEDLORA_RIVALS names a folder with load programs for the rivals (nvflare_load.py, flower_load.py: K clients that
# upload 40 MB each, MODE -w WORKDIR -k K); FEDLORA_NVFLARE and FEDLORA_FLOWER the environments they are installed in.
rivals() {
  echo
  if [ -z "${FEDLORA_RIVALS:-}" ]; then
    cat <<'QUOTED'
Rivals are not measured, because FEDLORA_RIVALS names no folder with their load programs. Quoted from
another day: the same work with 16 clients on one two-core machine, TLS included, took NVFlare 2.9
10.8 s a round and 1.3 GiB, Flower 1.41 47.8 s and 2.9 GiB.
QUOTED
  else
    if [ -n "${FEDLORA_NVFLARE:-}" ]; then
      rival NVFlare "$FEDLORA_NVFLARE/bin/python" "$FEDLORA_RIVALS/nvflare_load.py"
    fi
    if [ -n "${FEDLORA_FLOWER:-}" ]; then
      FLWR_BIN=$FEDLORA_FLOWER/bin rival Flower "$FEDLORA_FLOWER/bin/python" "$FEDLORA_RIVALS/flower_load.py"
    fi
  fi
}
# Updates of rank 32 on all seven projections of SmolLM2-135M: 39 MB each.
coordinator() {
  local program=$bench/../build/release/bench_coordinator
  cmake --build "$bench/../build/release" --target bench_coordinator fedlorad >/dev/null
  if [ $# -gt 0 ]; then exec "$program" "$@"; fi
  echo "16 members, means of factors, as the rivals below combine:"
  "$program" --members 16 --rank 32 --rounds 3 --method fedit
  echo
  echo "64 members, means of factors, then exact stacking:"
  "$program" --members 64 --rank 32 --rounds 2 --method fedit
  "$program" --members 64 --rank 32 --rounds 1 --method flora
  rivals
}

bench=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case "${1:-}" in
  train)
    shift
    cmake --build "$bench/../build/release" --target bench_engine fedlora >/dev/null
    exec python3 "$bench/train.py" "$@" ;;
  coordinator)
    shift
    coordinator "$@" ;;
  poll)
    shift
    program=$bench/../build/release/bench_load
    cmake --build "$bench/../build/release" --target bench_load fedlorad >/dev/null
    if [ $# -gt 0 ]; then exec "$program" "$@"; fi
    echo "One call after the other:"
    "$program" --members 1000 --seconds 10
    echo
    echo "Waiting 30 s for an answer, as idle members do:"
    "$program" --members 1000 --seconds 20 --wait-ms 30000 ;;
  load)
    shift
    cmake --build "$bench/../build/release" --target bench_coordinator fedlorad >/dev/null
    exec "$bench/../build/release/bench_coordinator" --members 2000 --rank 4 --layers 1 --rounds 2 --method fedit "$@" ;;
  private)
    shift
    build=$bench/../build/release
    cmake --build "$build" --target bench_private >/dev/null
    base=${FEDLORA_SMOLLM2:-$HOME/.cache/fedlora/SmolLM2-135M-Instruct.Q4_1.gguf}
    for _ in 1 2 3; do
      "$build/bench_private" --base "$base" "$@"
      "$build/bench_private" --base "$base" --private "$@"
    done ;;
  agg)
    shift
    build=$bench/../build/release
    cmake --build "$build" --target bench_agg bench_recompress bench_reports >/dev/null
    dir=$(mktemp -d "${TMPDIR:-/tmp}/fedlora-bench-XXXXXX")
    trap 'rm -rf "$dir"' EXIT
    uptime
    "$build/bench_agg" --dir "$dir" "$@"
    echo
    "$build/bench_recompress"
    echo
    "$build/bench_reports" --dir "$dir"
    uptime ;;
  account)
    build=$bench/../build/release
    cmake --build "$build" --target bench_account >/dev/null
    "$build/bench_account" ;;
  simulate)
    shift
    cmake --build "$bench/../build/release" --target fedlora >/dev/null
    exec python3 "$bench/simulate.py" "$@" ;;
  tokenize)
    shift
    build=$bench/../build/release
    cmake --build "$build" --target bench_tokenize >/dev/null
    "$build/bench_tokenize" "$@" ;;
  chats) # a template is a file, a name, or "-", the base's own
    shift
    build=$bench/../build/release
    cmake --build "$build" --target bench_tokenize >/dev/null
    "$build/bench_tokenize" --chats 100000 "$1" "$2" "${@:3}" ;;
  noise)
    shift
    build=$bench/../build/release
    cmake --build "$build" --target bench_noise >/dev/null
    "$build/bench_noise" "$@" ;;
  gpu)
    shift
    cmake --build "$bench/../build/release" --target cuda_check bench_gpu fedlora_cuda cuda_on_cpu_plugin >/dev/null
    "$bench/gpu/pack.sh"
    exec "$bench/../build/gpu/call.sh" "$@" ;;
  -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
