# Helpers of the scripts tests/e2e/*.sh, which source this file: a work folder, processes that end with the script,
# and a coordinator with its members on this machine, over TLS. FEDLORA_BUILD_DIR names the build to test.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
programs=${FEDLORA_BUILD_DIR:-$root/build/release}
work=$(mktemp -d "${TMPDIR:-/tmp}/fedlora-e2e-XXXXXX")
export XDG_STATE_HOME=$work/state # members write their state here
export XDG_CONFIG_HOME=$work/config # no configuration of this machine's user
children=() last_child=0

skip() { echo "$*"; exit 77; }
fail() { echo "FAILED: $*" >&2; exit 1; }
# fail_with LOG TEXT: prints the end of a log, then TEXT, and fails.
fail_with() { tail -20 "$1" >&2; fail "$2"; }

# expect_refusal STATUSES TEXT COMMAND...: fails unless the command ends with one of the statuses and prints TEXT.
expect_refusal() {
  local statuses=$1 text=$2 status=0
  shift 2
  "$@" >"$work/said" 2>&1 || status=$?
  [[ " $statuses " == *" $status "* ]] || fail_with "$work/said" "$*: status $status, expected $statuses"
  grep -qF -- "$text" "$work/said" || fail_with "$work/said" "$*: said nothing like \"$text\""
}

# spawn LOG COMMAND...: starts it in the background; it is killed when this script ends for any reason.
spawn() {
  local log=$1
  shift
  setpriv --pdeathsig KILL -- "$@" >>"$log" 2>&1 &
  last_child=$!
  children+=("$last_child")
}
alive() { kill -0 "$1" 2>/dev/null; }
end_children() {
  local pid
  for pid in ${children[@]+"${children[@]}"}; do kill -KILL "$pid" 2>/dev/null || true; done
  wait
  if [ -z "${KEEP:-}" ]; then rm -rf "$work"; fi
}
trap end_children EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# wait_within SECONDS PID NAME LOG: fails unless the process ends with status 0 within the time.
wait_within() {
  local tenths=$(($1 * 10))
  while alive "$2"; do
    [ $((tenths -= 1)) -gt 0 ] || fail_with "$4" "$3 has not ended after $1 s"
    sleep 0.1
  done
  wait "$2" || fail_with "$4" "$3 ended with status $?"
}

[ -x "$programs/fedlora" ] && [ -x "$programs/fedlorad" ] || skip "$programs has no fedlora and fedlorad"

# ---- a federation; one coordinator at a time

report() { python3 "$root/deploy/demo_report.py" "$@"; }

make_certs() {
  "$root/deploy/make-certs.sh" "$work/certs" --federation e2e --admin ops "$@" >"$work/certs.log" 2>&1 ||
    fail_with "$work/certs.log" "make-certs.sh"
}

# start_coordinator DIR [LINE...]: keeps its files in DIR, with these lines at the end of its configuration; with the DIR of an earlier coordinator it continues from there.
# The coordinator answers calls when this returns.
start_coordinator() {
  local tries=100
  if [ ! -e "$1/fedlorad.ini" ]; then
    mkdir -p "$1"
    port=$(report port)
    cat >"$1/fedlorad.ini" <<INI
[server]
listen = 127.0.0.1:$port
ca = $work/certs/ca.pem
cert = $work/certs/server.pem
key = $work/certs/server.key

[store]
path = $1/store

[federation]
name = e2e
members = $member_list
INI
    [ $# -eq 1 ] || printf '%s\n' "${@:2}" >>"$1/fedlorad.ini"
  fi
  spawn "$work/fedlorad.log" "$programs/fedlorad" --config "$1/fedlorad.ini"
  coordinator=$last_child
  until admin list --json >/dev/null 2>"$work/list.log"; do
    alive "$coordinator" || fail_with "$work/fedlorad.log" "fedlorad ended"
    [ $((tries -= 1)) -gt 0 ] || fail_with "$work/list.log" "fedlorad does not answer"
    sleep 0.1
  done
}
stop_coordinator() {
  kill -TERM "$coordinator"
  wait_within 10 "$coordinator" fedlorad "$work/fedlorad.log"
}
admin() {
  local verb=$1
  shift
  "$programs/fedlora" run "$verb" "$@" --server "127.0.0.1:$port" --ca "$work/certs/ca.pem" \
    --cert "$work/certs/ops.pem" --key "$work/certs/ops.key"
}
# join_member RUN ID DIR OPTION...: starts a member in the background, with one thread and its files in DIR.
join_member() {
  local run=$1 id=$2
  shift 2
  spawn "$work/$id.log" "$programs/fedlora" join --run "$run" --server "127.0.0.1:$port" \
    --ca "$work/certs/ca.pem" --cert "$work/certs/$id.pem" --key "$work/certs/$id.key" \
    --work "$1/$id" --threads 1 "${@:2}"
}
# wait_for_round RUN N: waits until the run is in round N or later.
wait_for_round() {
  local tries=300 round
  until round=$(admin status "$1" --json 2>/dev/null | report field round) && [ "$round" -ge "$2" ]; do
    [ $((tries -= 1)) -gt 0 ] || fail_with "$work/fedlorad.log" "run $1 does not reach round $2"
    sleep 0.1
  done
}
