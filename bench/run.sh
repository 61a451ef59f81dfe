#!/usr/bin/env bash
# What is measured, against whom; one command a table.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bench/run.sh train [options]          training speed and memory, beside PEFT on PyTorch
       bench/run.sh coordinator [options]    a round of many clients: seconds, and memory
       bench/run.sh agg [options]            aggregation: means, whole rounds, recompression
       bench/run.sh tokenize TEXT BASE...    tokenizers: opening, tokens a second
       bench/run.sh TABLE --help             the options of one

Build first: cmake --preset release && cmake --build build/release
USAGE
}
bench=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case "${1:-}" in
  train | coordinator)
    table=$1
    shift
    exec python3 "$bench/$table.py" "$@" ;;
  agg)
    shift
    build=$bench/../build/release
    cmake --build "$build" --target bench_agg >/dev/null
    dir=$(mktemp -d "${TMPDIR:-/tmp}/fedlora-bench-XXXXXX")
    trap 'rm -rf "$dir"' EXIT
    "$build/bench_agg" --dir "$dir" "$@" ;;
  tokenize)
    shift
    build=$bench/../build/release
    cmake --build "$build" --target bench_tokenize >/dev/null
    "$build/bench_tokenize" "$@" ;;
  -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
