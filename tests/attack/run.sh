#!/usr/bin/env bash
# Attacks on a real coordinator: tests/attack/run.sh [--long] [--preset PRESET] [NAME...]
#
# Runs the attacks (without names all of them) against the programs of build/PRESET, by default release, and prints a
# table of what was tried and what held. The short form takes seconds; --long takes hours:
#
#     kills      fedlorad and members are killed at random moments, all methods, both units of privacy
#     syscalls   single system calls of fedlorad fail or end it
#     flips      single bits of the store's files are flipped
#     rpc        mutated calls to every procedure; with --preset sanitize under the sanitizers
#     seeds      the simulator of tests/fault/seeds.c
#
# The exit status is 1 if something did not hold. Attacks of strangers on the network are in http2.py and front.py.
set -uo pipefail
cd "$(dirname "$0")/../.."

long=no preset=release names=()
while [ $# -gt 0 ]; do
  case "$1" in
    --long) long=yes ;;
    --preset) preset=${2:-}; shift ;;
    -h | --help) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 0 ;;
    kills | syscalls | flips | rpc | seeds) names+=("$1") ;;
    *) echo "tests/attack/run.sh: there is no attack $1" >&2; exit 2 ;;
  esac
  shift
done
[ ${#names[@]} -gt 0 ] || names=(kills syscalls flips rpc seeds)
export FEDLORA_BUILD_DIR=${FEDLORA_BUILD_DIR:-$PWD/build/$preset}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

attack() { # NAME: the command of the short or the long form
  local seconds=()
  [ $long = no ] || seconds=(--seconds 3600)
  case "$1" in
    kills | syscalls | flips) python3 "tests/attack/$1.py" "${seconds[@]}" ;;
    rpc) [ $long = no ] || export FEDLORA_ATTACK_CALLS=1000000
      "$FEDLORA_BUILD_DIR/test_attack_rpc" --timeout 20000 ;;
    seeds) "$FEDLORA_BUILD_DIR/test_fault_seeds" --seeds 1 $([ $long = yes ] && echo 1000000 || echo 20) ;;
  esac
}

failed=0 table=()
for name in "${names[@]}"; do
  attack "$name" 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  result=$(sed -n 's/^RESULT //p' "$log" | tail -1)
  case "$status $name" in
    77*) table+=("$(printf '%-10s skipped: %s' "$name" "$(tail -1 "$log")")"); continue ;;
    *) [ "$status" = 0 ] || failed=1 ;;
  esac
  read -r _ tried held more <<<"${result:-$name ? ? ended with status $status}"
  table+=("$(printf '%-10s %10s %10s  %s' "$name" "$tried" "$held" "$more")")
done
printf '\n%-10s %10s %10s\n' attack tried held
printf '%s\n' "${table[@]}"
exit $failed
