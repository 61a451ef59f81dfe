#!/usr/bin/env bash
# Builds and runs every test: tests/run.sh [--preset PRESET|all] [--no-build] [--list] [--jobs N] [NAME...]
#
# Runs every program test_FOLDER_NAME of the preset's build folder and every script tests/e2e/NAME.sh, or with NAMEs
# only those that have a NAME in their own. PRESET is release, sanitize, race, debug or coverage; all, the default,
# means the first three. The preset race has only the programs that run CUDA kernels on the CPU. The tests inside a
# Criterion program are counted; a script or a plain program counts as one test, and exit status 77 means skipped. A
# program may take TEST_TIMEOUT seconds (default 300, scripts 600; more under the sanitizers). N of them run at the same
# time (default: one more than there are processor cores, at most 4), because many wait for processes or use one core. Any
# sanitizer report fails the program, leaks included; reports go to files, because Criterion hides the output of its child
# processes. The last line is "N passed, N failed[, N skipped]"; the status is 0 only when something passed and nothing
# failed.
set -uo pipefail
cd "$(dirname "$0")/.."

presets=(release sanitize race)
build=yes
list=no
jobs=$(($(nproc) + 1)) # one more than cores, because many tests wait for processes
[ "$jobs" -le 4 ] || jobs=4
names=()
while [ $# -gt 0 ]; do
  case "$1" in
    --preset) case "${2:-}" in
        all) ;;
        release | sanitize | race | debug | coverage) presets=("$2") ;;
        *) echo "tests/run.sh: --preset needs release, sanitize, race, debug, coverage or all" >&2; exit 2 ;;
      esac; shift ;;
    --no-build) build=no ;;
    --list) list=yes ;;
    --jobs) case "${2:-}" in [1-9] | [1-9][0-9]) jobs=$2 ;; *) echo "tests/run.sh: --jobs needs a number from 1 to 99" >&2; exit 2 ;; esac
      shift ;;
    -h | --help) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "tests/run.sh: unknown option $1" >&2; exit 2 ;;
    *) names+=("$1") ;;
  esac
  shift
done

[ $list = no ] || build=no
passed=0 failed=0 skipped=0
failures=()
if [ "${FEDLORA_LINT_FAILED:-0}" != 0 ]; then # .ci/run: one count for everything
  failed=1
  failures+=("tests/lint.sh")
fi
scratch=$(mktemp -d "${TMPDIR:-/tmp}/fedlora-tests-XXXXXX")
child=
# Every test runs in a process group of its own, so that none outlives this script when it is interrupted.
finish() {
  [ -z "$child" ] || kill -KILL -- "-$child" 2>/dev/null
  [ -z "${running[*]}" ] || { kill "${!running[@]}"; wait; } 2>/dev/null
  rm -rf "$scratch"
}
declare -A running=() # tests under way: process -> their folder in $scratch
trap finish EXIT
trap 'exit 130' INT TERM

wanted() { # NAME: does it match any of the names given?
  [ ${#names[@]} -eq 0 ] && return 0
  local part
  for part in "${names[@]}"; do [[ "$1" == *"$part"* ]] && return 0; done
  return 1
}

failure() { # TEXT
  failures+=("$1")
  echo "FAIL $1"
}

# Runs a command with a time limit in a process group of its own; its output in $scratch/output.
bounded() { # SECONDS COMMAND...
  local limit=$1 status
  shift
  setsid timeout --kill-after=10 "$limit" "$@" >"$scratch/output" 2>&1 </dev/null &
  child=$!
  wait "$child"
  status=$?
  kill -KILL -- "-$child" 2>/dev/null # what it left running
  child=
  return $status
}

# Criterion itself leaks 48 bytes when a test has a timeout. A leak report is ignored when every stack in it lies
# in libcriterion alone. A suppression by library would not do: Criterion calls every test, so it would hide all leaks.
only_criterion() { # REPORT
  ! grep -q 'ERROR: AddressSanitizer\|runtime error' "$1" &&
    ! grep -aE '^ +#[0-9]+ ' "$1" | grep -vqE 'libsanitizer|libasan|libcriterion\.so'
}

# Prints the reports and fails if there is one; harmless=yes if the only one was Criterion's own.
sanitizer_reports() { # PRESET NAME
  local report found=0
  harmless=no
  for report in "$scratch"/report.*; do
    [ -e "$report" ] || continue
    if only_criterion "$report"; then harmless=yes; else found=1; head -40 "$report"; fi
    rm -f "$report"
  done
  [ $found -eq 0 ] || failure "$1 $2: a sanitizer report (above)"
  return $found
}

has_source() { # NAME: of a program; old build folders hold programs whose source was deleted
  local rest=${1#test_}
  case $rest in
    cuda_*) compgen -G "tests/cuda_on_cpu/${rest#cuda_}_test.c*" >/dev/null ;;
    parity_cuda_*) [ -e "tests/parity/${rest#parity_cuda_}.c" ] ;;
    *) [ -e "tests/${rest%%_*}/${rest#*_}.c" ] ;;
  esac
}

# A test whose first comment says "Release only" and why: the sanitizers would need minutes for it.
release_only() { # PRESET NAME SOURCE...
  [ "$1" != release ] && [ "$1" != debug ] && grep -qs 'Release only:' "${@:3}" || return 1
  skipped=$((skipped + 1))
  printf '%-9s %-40s skipped: release only\n' "$1" "$2"
}

# The order in which the CPU runs the threads of CUDA kernels (tests/cuda_on_cpu/shim.h): in release all four, whose
# results must have the same bits; else one order, with asynchronous copies as late, or as early, as they can be.
choose_schedule() { # PRESET NAME
  unset SHIM_VERIFY SHIM_SCHEDULE
  case "$2 $1" in
    *_parity_cuda_*' release') export SHIM_VERIFY=1 ;;
    *_parity_cuda_*' sanitize') export SHIM_SCHEDULE=2 ;;
    *_parity_cuda_*' race') export SHIM_SCHEDULE=3 ;;
  esac
}

# Tests of the engine that name no device run a second time, with the CUDA backend on the CPU; golden cases, records and
# the long trainings in release alone, since the sanitizers would need many minutes for them.
takes_device() { # PRESET NAME
  local rest=${2#test_}
  case "$1 $rest" in
    sanitize*golden_* | 'sanitize unit_train_private' | 'sanitize parity_records' | 'sanitize parity_training') return 1 ;;
  esac
  [ -e "build/$1/libfedlora_cuda_on_cpu.so" ] && grep -qsE 'support_device\(\)|setup_engine\(|private_fixture\.h' "tests/${rest%%_*}/${rest#*_}.c"
}
run_on_cuda() { # PRESET PROGRAM
  FEDLORA_TEST_DEVICE=cuda FEDLORA_CUDA=$PWD/build/$1/libfedlora_cuda_on_cpu.so \
    run_criterion "$1" "$2" "$(basename "$2") on cuda"
}

run_criterion() { # PRESET PROGRAM [NAME]
  local preset=$1 program=$2 name=${3:-$(basename "$2")} status summary p f c t s since=$SECONDS
  local limit=${TEST_TIMEOUT:-$([ "$preset" = sanitize ] && echo 600 || echo 300)}
  bounded "$limit" "$program" --jobs 2 --verbose
  status=$?
  summary=$(sed 's/\x1b\[[0-9;]*m//g' "$scratch/output" | grep -a 'Synthesis: Tested:' | tail -1)
  if [ -z "$summary" ]; then
    tail -30 "$scratch/output"
    failed=$((failed + 1))
    failure "$preset $name: ended with status $status after at most ${limit}s and without a summary"
    sanitizer_reports "$preset" "$name"
    return
  fi
  read -r t p f c < <(sed -E 's/.*Tested: ([0-9]+) \| Passing: ([0-9]+) \| Failing: ([0-9]+) \| Crashing: ([0-9]+).*/\1 \2 \3 \4/' <<<"$summary")
  s=$(sed 's/\x1b\[[0-9;]*m//g' "$scratch/output" | grep -ac '^\[SKIP\]')
  passed=$((passed + p)) failed=$((failed + f + c)) skipped=$((skipped + s))
  sanitizer_reports "$preset" "$name" || failed=$((failed + 1))
  [ $harmless = no ] || status=0
  if [ "$status" -ne 0 ] || [ $((f + c)) -gt 0 ]; then
    grep -av -e "RUN \]" -e "PASS\]" "$scratch/output" | tail -60
    [ $((f + c)) -gt 0 ] || failed=$((failed + 1))
    failure "$preset $name: $((f + c)) of $t, status $status"
  fi
  printf '%-9s %-40s %4d passed %4ds%s%s\n' "$preset" "$name" "$p" $((SECONDS - since)) \
    "$([ $((f + c)) -gt 0 ] && echo ", $((f + c)) failed")" "$([ "$s" -gt 0 ] && echo ", $s skipped")"
  [ "$s" -eq 0 ] || sed 's/\x1b\[[0-9;]*m//g' "$scratch/output" | grep -a '^\[SKIP\]' | sed 's/^/    /'
}

# The exit status of a plain program is its result: 0 passed, 77 skipped; its last line then gives the reason.
run_plain() { # PRESET NAME COMMAND...
  local preset=$1 name=$2 status limit since=$SECONDS
  shift 2
  limit=${TEST_TIMEOUT:-$([ "$preset" = sanitize ] && echo 900 || echo 600)}
  FEDLORA_BUILD_DIR="$PWD/build/$preset" bounded "$limit" "$@"
  status=$?
  case $status in
    0) passed=$((passed + 1))
       printf '%-9s %-40s %4d passed %4ds\n' "$preset" "$name" 1 $((SECONDS - since)) ;;
    77) skipped=$((skipped + 1)); printf '%-9s %-40s skipped: %s\n' "$preset" "$name" "$(tail -1 "$scratch/output")" ;;
    *) tail -60 "$scratch/output"
       failed=$((failed + 1))
       failure "$preset $name: status $status (limit ${limit}s)" ;;
  esac
  sanitizer_reports "$preset" "$name" || failed=$((failed + 1))
}

build_preset() { # PRESET
  local log=$scratch/build
  if ! cmake --preset "$1" >"$log" 2>&1 || ! cmake --build --preset "$1" >"$log" 2>&1; then
    grep -aE 'error|FAILED|Error' -A 5 "$log" | head -60
    tail -5 "$log"
    failed=$((failed + 1))
    failure "$1: the build"
    return 1
  fi
}

# ---- several tests at the same time: each in a process of its own, with a folder for its output and counts ----

collect() { # FOLDER: prints what the test printed, and adds its counts
  local p=0 f=1 s=0 line
  cat "$1/log"
  [ -e "$1/counts" ] && read -r p f s <"$1/counts" || failures+=("a test ended without its counts")
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  [ ! -e "$1/failures" ] || while IFS= read -r line; do failures+=("$line"); done <"$1/failures"
  rm -rf "$1"
}

await() { # N: waits until fewer than N tests are under way
  local pid
  while [ ${#running[@]} -ge "$1" ]; do
    wait -n -p pid "${!running[@]}"
    collect "${running[$pid]}"
    unset "running[$pid]"
  done
}

start() { # COMMAND...: a test in the background
  await "$jobs"
  local folder
  folder=$(mktemp -d "$scratch/job-XXXXXX")
  (
    passed=0 failed=0 skipped=0 failures=() running=()
    child= scratch=$folder
    trap '[ -z "$child" ] || kill -KILL -- "-$child" 2>/dev/null' EXIT
    trap 'exit 130' INT TERM
    export ASAN_OPTIONS="detect_leaks=1:abort_on_error=0:log_path=$scratch/report"
    export UBSAN_OPTIONS="print_stacktrace=1:log_path=$scratch/report"
    export TSAN_OPTIONS="halt_on_error=0:exitcode=66:log_path=$scratch/report"
    mkdir "$scratch/tmp"
    export TMPDIR=$scratch/tmp
    "$@"
    [ ${#failures[@]} -eq 0 ] || printf '%s\n' "${failures[@]}" >"$scratch/failures"
    echo "$passed $failed $skipped" >"$scratch/counts"
  ) >"$folder/log" 2>&1 </dev/null &
  running[$!]=$folder
}

test_program() { # PRESET PROGRAM
  local name
  name=$(basename "$2")
  choose_schedule "$1" "$name"
  case "$1 $name" in
    *' test_fuzz_'* | *' test_threads_'* | 'race '*) run_plain "$1" "$name" "$2" ;;
    *) run_criterion "$1" "$2"
       if takes_device "$1" "$name"; then run_on_cuda "$1" "$2"; fi ;;
  esac
}

started=$SECONDS
export LSAN_OPTIONS="suppressions=$PWD/tests/lsan.supp:print_suppressions=0"
# Several programs share few cores, so waiting threads must not spin.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

for preset in "${presets[@]}"; do
  if [ $build = yes ]; then build_preset "$preset" || continue; fi
  for script in tests/e2e/*.sh; do # first, because they take the longest
    [ -e "$script" ] && wanted "$(basename "$script")" || continue
    case "$preset $script" in race*/cuda_plants.sh) ;; race*) continue ;; esac
    if [ $list = yes ]; then echo "$preset $(basename "$script")"; continue; fi
    release_only "$preset" "$(basename "$script")" "$script" || start run_plain "$preset" "$(basename "$script")" bash "$script"
  done
  while IFS= read -r program; do
    [ -n "$program" ] || continue
    name=$(basename "$program")
    wanted "$name" && has_source "$name" || continue
    if [ $list = yes ]; then echo "$preset $name"; continue; fi
    release_only "$preset" "$name" "tests/e2e/${name#test_e2e_}.c" || start test_program "$preset" "$program"
  done < <(find "build/$preset" -maxdepth 1 -type f -name 'test_*' -executable | sort)
  await 1
done
[ $list = no ] || exit 0

echo
for failure in "${failures[@]}"; do echo "FAIL $failure"; done
echo "took $(((SECONDS - started) / 60))m$(printf %02d $(((SECONDS - started) % 60)))s"
line="$passed passed, $failed failed"
[ $skipped -eq 0 ] || line="$line, $skipped skipped"
echo "$line"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
