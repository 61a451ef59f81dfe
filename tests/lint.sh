#!/usr/bin/env bash
# House rules a machine can check: include arrows, banned functions, gRPC's place, forbidden words, lengths,
# names, comments. Prints one FILE:LINE: TEXT for each finding. Exit status 1 after an error; warnings do not fail.
set -uo pipefail
cd "$(dirname "$0")/.."

fails=0 warnings=0
fail() { echo "$1"; fails=$((fails + 1)); }
warn() { echo "$1 (warning)"; warnings=$((warnings + 1)); }

mapfile -t sources < <(git ls-files -co --exclude-standard -- '*.c' '*.h' '*.cu' '*.cuh' '*.cpp' | sort)

# The folders that a folder may include from, besides itself; sub-folders are not implied. Tests and
# benchmarks may include anything.
agg="agg/algebra agg/adapter agg/round" privacy="privacy/account privacy/noise privacy/ledger"
engine="engine/model engine/tokens engine engine/train engine/member"
allowed() {
  case "$1" in
    base) ;;
    kernels | proto | agg/algebra | privacy/account | privacy/noise | client/output) echo base ;;
    kernels/*) echo kernels base ;;
    agg/adapter) echo agg/algebra base ;;
    agg/round) echo agg/algebra agg/adapter base ;;
    agg/methods | agg/combine) echo "$agg base" ;;
    privacy/ledger) echo privacy/account privacy/noise base ;;
    engine/model) echo kernels base ;;
    engine/tokens) echo engine/model base ;;
    engine) echo engine/model engine/tokens kernels agg/algebra agg/adapter base ;;
    engine/train) echo "engine/model engine/tokens engine kernels $privacy base" ;;
    engine/member) echo "engine/model engine/tokens engine engine/train kernels agg/adapter agg/round $privacy base" ;;
    lineage) echo "privacy/ledger base" ;;
    coordinator/audit) echo "lineage privacy/ledger proto base" ;;
    coordinator/store) echo "$privacy base" ;;
    coordinator/work) echo "coordinator/store $agg $privacy base" ;;
    coordinator/run) echo "coordinator coordinator/audit lineage coordinator/store coordinator/work $agg $privacy proto base" ;;
    coordinator/serve) echo "coordinator coordinator/audit lineage coordinator/store coordinator/work coordinator/run $agg $privacy proto base" ;;
    coordinator) echo "coordinator/audit lineage coordinator/store coordinator/work coordinator/run coordinator/serve coordinator/http $agg $privacy proto base" ;;
    coordinator/http) echo "coordinator coordinator/store coordinator/run coordinator/serve proto base" ;;
    client/export) echo "engine/model engine/tokens engine agg/algebra agg/adapter base" ;;
    client/identity) echo proto base ;;
    client/session) echo "$engine client/identity client/output kernels $agg $privacy proto base" ;;
    client/command) echo "lineage sim $engine client/identity client/session client/export client/output kernels $agg agg/combine $privacy proto base" ;;
    client) echo client/command ;;
    client/mpi) echo client/command sim base ;;
    sim) echo "$engine coordinator/run client/session client/output kernels $agg $privacy proto base" ;;
    *) return 1 ;;
  esac
}

check_arrows() {
  local file folder line target
  declare -A may
  for folder in $(printf '%s\n' "${sources[@]%/*}" | grep -vE '^(tests|bench)(/|$)' | sort -u); do
    may[$folder]=" $folder $(allowed "$folder") " || fail "$folder: tests/lint.sh does not know this folder"
  done
  while IFS=: read -r file line target; do
    folder=${file%/*} target=${target%/*}
    [ -d "$target" ] || { fail "$file:$line: no folder is called $target/"; continue; }
    case "$file ${may[$folder]:-}" in
      tests/* | bench/* | *" $target "*) ;;
      *) fail "$file:$line: $folder may not include $target/" ;;
    esac
  done < <(grep -nHE '^#include "[^"]*/' "${sources[@]}" | sed -E 's/#include "([^"]*)".*/\1/')
}

# PATTERN WHY FILES...: fails for each match outside lines of comment.
forbid() {
  local pattern=$1 why=$2 hit
  shift 2
  [ $# -gt 0 ] || return 0
  while IFS= read -r hit; do
    [ -n "$hit" ] && fail "$(cut -d: -f1,2 <<<"$hit"): $why"
  done < <(grep -nHE "$pattern" "$@" | grep -vE '^[^:]+:[0-9]+: *(\*|/\*|//)')
}

check_words() {
  local ours=() not_main=() not_rpc=() file
  for file in "${sources[@]}"; do
    case "$file" in tests/* | bench/*) continue ;; esac
    ours+=("$file")
    case "$file" in */main.c | base/err.c) ;; *) not_main+=("$file") ;; esac
    case "$file" in proto/rpc*) ;; *) not_rpc+=("$file") ;; esac
  done
  forbid '\b(strcpy|strcat|strncpy|strncat|sprintf|vsprintf|gets|atoi|atol|atof|strtok|tmpnam|mktemp|alloca)\(' \
    'banned function' "${sources[@]}"
  forbid '(^|[^_[:alnum:]])(exit|_exit|abort|quick_exit)\(' 'only main.c ends the process' "${not_main[@]}"
  forbid '(^|[^_[:alnum:]])s?rand(om)?\(' 'use base/rng.h, or libsodium for secrets' "${sources[@]}"
  forbid 'randombytes_(set_implementation|buf_deterministic)|#include "base/rng\.h"' \
    'noise must not be seeded: privacy/noise/keystream.h' \
    $(printf '%s\n' "${ours[@]}" | grep '^privacy/')
  forbid 'randombytes_set_implementation' 'nothing may replace the randomness' "${ours[@]}"
  forbid '\bgrpc_[a-z]|#include <grpc' 'gRPC only in proto/rpc*' "${not_rpc[@]}"
  local kernels=()
  mapfile -t kernels < <(printf '%s\n' "${sources[@]}" | grep '^kernels/cuda/')
  if [ ${#kernels[@]} -gt 0 ]; then
    forbid '\batomic[A-Z][A-Za-z]*\(' 'no atomics: a sum of floats must have one order' "${kernels[@]}"
    forbid '\basm\b|<<<|__shared__' 'only cuda_common.cuh has PTX, launches and __shared__, for the CPU build' \
      $(printf '%s\n' "${kernels[@]}" | grep -v '/cuda_common\.cuh$')
  fi
  local everything
  mapfile -t everything < <(git ls-files -co --exclude-standard | grep -vE '^(tests/lint\.sh|LICENSE)$|\.(safetensors|gguf|bin|png)$')
  while IFS= read -r file; do
    fail "$(cut -d: -f1,2 <<<"$file"): unfinished work is not committed"
  done < <(grep -nHIE '\b(TODO|FIXME|XXX|HACK)\b' -- "${everything[@]}" | grep -v 'XXXXXX')
}

# A function starts at a "{" in column one and ends at a "}" in column one.
check_lengths() {
  local report
  report=$(awk '
    FNR == 1 { open = 0 }
    length($0) > 100 { width[FILENAME ":" FNR] = 1; print "warn " FILENAME ":" FNR ": " length($0) " columns, at most 100" }
    /^\{/ { open = FNR }
    /^\}/ && open {
      n = FNR - open + 1
      if (n > 60) print (n > 80 && FILENAME !~ /^tests\// ? "fail " : "warn ") FILENAME ":" open ": a function of " n " lines, at most 60"
      open = 0
    }
    { lines[FILENAME] = FNR }
    END {
      for (f in lines) if (lines[f] > 500)
        print (lines[f] > 650 && f !~ /^tests\// ? "fail " : "warn ") f ":1: " lines[f] " lines, at most 500"
    }' "${sources[@]}")
  local kind rest
  while read -r kind rest; do
    case "$kind" in fail) fail "$rest" ;; warn) warn "$rest" ;; esac
  done <<<"$report"
}

check_names() { # one name for one file, because a symbol's prefix is its file; one name for one struct
  local double ours
  ours=$(printf '%s\n' "${sources[@]}" | grep -vE '^(tests|bench)/')
  for double in $(grep '\.c$' <<<"$ours" | grep -v '/main\.c$' | sed 's|.*/||' | sort | uniq -d); do
    fail "$double: two files have this name"
  done
  local headers # each backend defines the types that kernels/backend.h leaves open
  mapfile -t headers < <(grep '\.h$' <<<"$ours" | grep -v '^kernels/cuda/')
  for double in $(sed -nE 's/^(struct|union|enum) ([a-z0-9_]+) \{.*/\2/p' "${headers[@]}" | sort | uniq -d); do
    warn "$(grep -nHE "^(struct|union|enum) $double \{" "${headers[@]}" | cut -d: -f1,2 | paste -sd' '): two types are called $double"
  done
}

# Sentences of comments, references that lead nowhere, and how much of the code is commented.
check_comments() {
  local scripts kind rest
  mapfile -t scripts < <(git ls-files -co --exclude-standard -- '*.sh' '*.py' '*.proto' '*CMakeLists.txt' .ci/run)
  while read -r kind rest; do
    case "$kind" in warn) warn "$rest" ;; *) echo "$rest" ;; esac
  done < <(python3 tests/lint_comments.py "${sources[@]}" "${scripts[@]}" || echo "warn tests/lint_comments.py failed")
}

# A relative link of a page names a file of the repository.
check_links() {
  local file line target
  while IFS=: read -r file line target; do
    target=${target#](} target=${target%%#*}
    case "$target" in '' | *://* | mailto:*) continue ;; esac
    [ -e "$(dirname "$file")/$target" ] || fail "$file:$line: the link to $target leads nowhere"
  done < <(git ls-files -co --exclude-standard -- '*.md' | xargs -r grep -noHE '\]\([^) ]+')
}

check_picture() {
  local text
  text=$(docs/includes.py --check 2>&1) || warn "$text"
}

check_format() {
  command -v clang-format >/dev/null || { echo "clang-format is not installed: format not checked"; return; }
  local file
  while IFS= read -r file; do
    [ -n "$file" ] && warn "$file: not as clang-format would write it"
  done < <(printf '%s\n' "${sources[@]}" | grep -E '\.([ch]|cpp)$' | xargs clang-format --dry-run 2>&1 | grep -E '^[^ :]+:[0-9]+:[0-9]+: (warning|error)' | cut -d: -f1 | sort -u)
}

if [ ${#sources[@]} -gt 0 ]; then
  check_arrows
  check_words
  check_lengths
  check_names
  check_comments
  check_links
  check_picture
  check_format
fi
echo "lint: $fails errors, $warnings warnings in ${#sources[@]} files"
[ $fails -eq 0 ]
