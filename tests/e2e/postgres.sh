#!/usr/bin/env bash
# The store in PostgreSQL: the tests of the store, kills at steps of a run, and a deployed coordinator, as with SQLite; then
# sessions that the server ends all the while, a second coordinator, and a takeover. It starts a server of its own.
set -uo pipefail
cd "$(dirname "$0")/../.."

bin=$(compgen -G '/usr/lib/postgresql/*/bin/initdb' | sort -V | tail -1)
bin=${bin%/initdb}
if [ -z "$bin" ]; then
  echo "PostgreSQL's server is not installed (Debian package postgresql)"
  exit 77
fi
build=$FEDLORA_BUILD_DIR
work=$(mktemp -d /tmp/fedlora-postgres-XXXXXX) # not in $TMPDIR, which the user of the server may not be able to enter
chmod 711 "$work"
as=()
if [ "$(id -u)" -eq 0 ]; then # the server refuses to run as root
  as=(runuser -u postgres --)
  install -d -o postgres "$work/server"
else
  mkdir "$work/server"
fi
server() { "${as[@]}" "$bin/pg_ctl" -D "$work/server/data" -l "$work/server/log" -w -s "$@" >/dev/null 2>&1; }
clean() {
  server -m immediate stop
  rm -rf "$work"
}
trap clean EXIT
fail() { echo "FAIL: $*"; exit 1; }

# The tests make databases for moments, so flushes are left out.
(cd / && "${as[@]}" "$bin/initdb" -D "$work/server/data" -U fedlora -A trust -E UTF8 --no-sync) >"$work/initdb" 2>&1 ||
  { cat "$work/initdb"; fail initdb; }
(cd / && server -o "-k $work/server -c listen_addresses= -c fsync=off -c max_connections=200" start) ||
  { cat "$work/server/log"; fail "the server does not start"; }
export FEDLORA_TEST_DATABASE="postgresql://fedlora@/postgres?host=$work/server"

jobs=2
# run NAME [FILTER]: a test program on the server; its tests of SQLite files are skipped.
run() {
  local name=$1 since=$SECONDS
  shift
  timeout 600 "$build/$name" --jobs "$jobs" --verbose ${1:+--filter "$1"} >"$work/out" 2>&1 || {
    grep -av -e 'RUN \]' -e 'PASS\]' -e 'SKIP\]' "$work/out" | tail -30
    fail "$name $*"
  }
  grep -aq 'Passing: [1-9]' "$work/out" || fail "$name $*: no test passed"
  echo "$name $*: $(grep -ao "Passing: [0-9]*" "$work/out"), $((SECONDS - since)) s"
}

for test in store store_certificate store_change store_epoch store_files store_identity store_lineage store_publish \
  store_recover store_token; do
  run "test_unit_$test"
done
run test_fault_crash 'crash/killed_again*'
# Every step of every fault takes 10 minutes.
if [ -n "${FEDLORA_POSTGRES_ALL:-}" ]; then
  run test_fault_crash
  run test_fault_crash_private
fi
case "$build" in
  *sanitize) ;;
  *) run test_fault_report; run test_e2e_coordinator ;;
esac
jobs=1 # a test ends the sessions of all coordinators
run test_e2e_database
echo "the store in PostgreSQL: passed"
