#!/usr/bin/env bash
# Runs fuzz targets under libFuzzer: tests/fuzz/campaign.sh [--seconds N | --inputs N] [--work DIR] [--no-build]
# [--pack] [TARGET...]
#
# Builds the preset "fuzz" (clang, libFuzzer, address and undefined-behaviour sanitizers) and runs each TARGET
# (tests/fuzz/TARGET.c; all of them without names) for N seconds, 60 by default, or N inputs, one process at a time, with
# at most 2 GiB of memory and 10 seconds for an input. Corpora, logs and inputs that crash stay in DIR, by default
# /tmp/fedlora-fuzz, outside the source tree; the next campaign continues from them. Prints a table: inputs of this
# campaign and of all campaigns in DIR, inputs a second, coverage edges, crashes. The exit status is 1 after a crash.
# --pack runs nothing: it minimises each corpus and writes its smallest inputs to tests/fuzz/seeds/TARGET.pack, which
# the driver of CI and the next campaign start from.
set -uo pipefail
cd "$(dirname "$0")/../.."

limit=(-max_total_time=60) work=${TMPDIR:-/tmp}/fedlora-fuzz build=yes pack=no names=()
usage() { echo "tests/fuzz/campaign.sh: $1" >&2; exit 2; }
number() { case "$2" in '' | *[!0-9]* | 0) usage "$1 needs a number" ;; esac; }
while [ $# -gt 0 ]; do
  case "$1" in
    --seconds) number "$1" "${2:-}"; limit=("-max_total_time=$2"); shift ;;
    --inputs) number "$1" "${2:-}"; limit=("-runs=$2"); shift ;;
    --work) [ -n "${2:-}" ] || usage "--work needs a folder"; work=$2; shift ;;
    --no-build) build=no ;;
    --pack) pack=yes build=no ;;
    -h | --help) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) usage "unknown option $1" ;;
    *) [ -e "tests/fuzz/$1.c" ] || usage "there is no target $1"; names+=("$1") ;;
  esac
  shift
done
if [ ${#names[@]} -eq 0 ]; then
  for source in tests/fuzz/*.c; do
    name=$(basename "$source" .c)
    [ "$name" = driver ] || names+=("$name")
  done
fi
mkdir -p "$work" || exit 1
work=$(cd "$work" && pwd)

targets=()
for name in "${names[@]}"; do targets+=("test_fuzz_$name"); done
if [ $build = yes ]; then
  cmake --preset fuzz >"$work/build.log" 2>&1 && cmake --build --preset fuzz --target "${targets[@]}" >>"$work/build.log" 2>&1 ||
    { tail -20 "$work/build.log"; echo "the build failed: $work/build.log" >&2; exit 1; }
fi

# The seeds that the target names, and its packed ones.
fill_corpus() { # NAME FOLDER
  local seed
  mkdir -p "$2"
  for seed in $(grep -oE '"(tests|\.\.)/[^"]+"' "tests/fuzz/$1.c" | tr -d '"'); do
    [ ! -f "$seed" ] || cp -f "$seed" "$2/seed-$(basename "$(dirname "$seed")")-$(basename "$seed")"
  done
  [ ! -e "tests/fuzz/seeds/$1.pack" ] || python3 tests/fuzz/pack.py unpack "tests/fuzz/seeds/$1.pack" "$2" || exit 1
}

export TMPDIR=/tmp
[ ! -w /dev/shm ] || export TMPDIR=/dev/shm # targets that need files make them here
export OMP_NUM_THREADS=1 UBSAN_OPTIONS=print_stacktrace=1 ASAN_OPTIONS=${ASAN_OPTIONS:-allocator_may_return_null=1}
export LSAN_OPTIONS="suppressions=$PWD/tests/lsan.supp:print_suppressions=0"
bounds=(-rss_limit_mb=2048 -malloc_limit_mb=2048 -timeout=10)

if [ $pack = yes ]; then
  for name in "${names[@]}"; do
    [ -d "$work/$name/corpus" ] || continue
    rm -rf "$work/$name/small" && mkdir "$work/$name/small"
    "build/fuzz/test_fuzz_$name" -merge=1 "${bounds[@]}" "$work/$name/small" "$work/$name/corpus" >"$work/$name/merge.log" 2>&1 &&
      python3 tests/fuzz/pack.py pack "tests/fuzz/seeds/$name.pack" "$work/$name/small" || exit 1
  done
  exit 0
fi

child=
trap '[ -z "$child" ] || kill "$child" 2>/dev/null; exit 130' INT TERM
total=0 sum=0 crashes=0
printf '%-16s %12s %14s %10s %8s %8s\n' target inputs 'of all time' inputs/s edges crashes
for name in "${names[@]}"; do
  mkdir -p "$work/$name"
  fill_corpus "$name" "$work/$name/corpus"
  log=$work/$name/log since=$(date +%s%N)
  "build/fuzz/test_fuzz_$name" "${limit[@]}" "${bounds[@]}" -print_final_stats=1 \
    "-artifact_prefix=$work/$name/" "$work/$name/corpus" >"$log" 2>&1 &
  child=$!
  wait "$child"
  status=$?
  child=
  inputs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -1)
  took=$((($(date +%s%N) - since) / 1000000 + 1)) # milliseconds, with the start of the program
  edges=$(grep -aoE 'cov: [0-9]+' "$log" | tail -1 | tr -dc 0-9)
  before=$(cat "$work/$name/inputs" 2>/dev/null || echo 0)
  echo $((before + ${inputs:-0})) >"$work/$name/inputs"
  bad=$((status != 0))
  total=$((total + ${inputs:-0})) sum=$((sum + before + ${inputs:-0})) crashes=$((crashes + bad))
  printf '%-16s %12s %14s %10s %8s %8s\n' "$name" "${inputs:-?}" $((before + ${inputs:-0})) $((${inputs:-0} * 1000 / took)) "${edges:-?}" $bad
  [ $bad = 0 ] || grep -aE -m 3 'ERROR: |runtime error|SUMMARY: |Test unit written' "$log" | sed 's/^/    /'
done
printf '%-16s %12s %14s %10s %8s %8s\n' total $total $sum '' '' $crashes
[ $crashes = 0 ]
