#!/usr/bin/env bash
# An HTTP proxy between a member and the coordinator: calls, enrolment and `fedlora doctor` take the same way, errors name the
# proxy and its answer, no_proxy excludes hosts and networks, and no output has the password.
set -euo pipefail
member_list=north
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"
unset http_proxy https_proxy grpc_proxy no_proxy no_grpc_proxy

# A further address of this machine, because a proxy is never used for 127.0.0.1.
address=$(hostname -I 2>/dev/null | tr ' ' '\n' | grep -E '^[0-9.]+$' | head -1 || true)
make_certs --host fed.example.org ${address:+--host "$address"} north
port=$(report port) enroll_port=$(report port)
mkdir "$work/f"
cat >"$work/f/fedlorad.ini" <<INI
[server]
listen = 0.0.0.0:$port
ca = $work/certs/ca.pem
cert = $work/certs/server.pem
key = $work/certs/server.key

[store]
path = $work/f/store

[federation]
name = e2e
members = north

[enroll]
listen = 0.0.0.0:$enroll_port
cert = $work/certs/ca.pem
key = $work/certs/ca.key
INI
start_coordinator "$work/f"

# start_proxy NAME OPTION...: sets NAME to its port; its requests are in $work/NAME.log.
start_proxy() {
  local name=$1 tries=50
  shift
  spawn "$work/$name.port" python3 "$root/tests/support/proxy.py" "$work/$name.log" "$@"
  until [ -s "$work/$name.port" ]; do
    [ $((tries -= 1)) -gt 0 ] || fail "the proxy does not start"
    sleep 0.1
  done
  printf -v "$name" %s "$(cat "$work/$name.port")"
  : >"$work/$name.log"
}
start_proxy open --credentials 'north:s3cret@x'
start_proxy closed --status 403

# list and doctor HOST VARIABLE=VALUE...: one call, and the same way by the probe; $work/said has what they print.
list() {
  local host=$1
  shift
  env "$@" "$programs/fedlora" run list --server "$host:$port" --ca "$work/certs/ca.pem" \
    --cert "$work/certs/ops.pem" --key "$work/certs/ops.key" >"$work/said" 2>&1
}
doctor() {
  local host=$1
  shift
  env "$@" "$programs/fedlora" doctor --server "$host:$port" --ca "$work/certs/ca.pem" \
    --cert "$work/certs/north.pem" --key "$work/certs/north.key" >"$work/said" 2>&1 || true
}
says() { grep -qE -- "$1" "$work/said" || fail_with "$work/said" "expected \"$1\""; }
requests() { wc -l <"$work/$1.log"; }

# ---- through a proxy that asks for a password
with="https_proxy=http://north:s3cret%40x@127.0.0.1:$open"
list fed.example.org "$with" || fail_with "$work/said" "run list through the proxy"
[ "$(requests open)" -eq 1 ] || fail "the proxy was not used once"
doctor fed.example.org "$with"
says "^ok +proxy +127\.0\.0\.1:$open, from https_proxy, with a user and a password$"
says '^ok +server +fed\.example\.org:'
says '^ok +coordinator +serving'
[ "$(grep -c "^CONNECT fed.example.org:$port HTTP/1.[01] 200$" "$work/open.log")" -eq "$(requests open)" ] ||
  fail_with "$work/open.log" "a request was refused"

# Enrolment takes the same way, for its first look at the server and for the call.
token=$("$programs/fedlora" token create south --address "fed.example.org:$enroll_port" --server "127.0.0.1:$port" \
  --ca "$work/certs/ca.pem" --cert "$work/certs/ops.pem" --key "$work/certs/ops.key" 2>"$work/said") ||
  fail_with "$work/said" "token create"
before=$(requests open)
env "http_proxy=http://127.0.0.1:$closed" "$programs/fedlora" enroll "$token" --dir "$work/south" >"$work/said" 2>&1 &&
  fail "the proxy refuses"
says "the proxy 127\.0\.0\.1:$closed \(from http_proxy\): no connection to fed\.example\.org:$enroll_port: it answers 403"
env "$with" "$programs/fedlora" enroll "$token" --dir "$work/south" >"$work/said" 2>&1 ||
  fail_with "$work/said" "enroll through the proxy"
[ "$(requests open)" -eq $((before + 2)) ] || fail "the proxy was not used twice"

# ---- refused by it
list fed.example.org "https_proxy=http://north:wr0ng%40x@127.0.0.1:$open" && fail "the password is wrong"
says "the proxy 127\.0\.0\.1:$open \(from https_proxy\): no connection to fed\.example\.org:$port: it answers 407"
! grep -qE 's3cret|wr0ng|bm9ydGg' "$work/said" || fail_with "$work/said" "the password is printed"
list fed.example.org "http_proxy=http://127.0.0.1:$closed" && fail "the proxy refuses"
says "the proxy 127\.0\.0\.1:$closed \(from http_proxy\): .* it answers 403 Refused by the test"
doctor fed.example.org "http_proxy=http://127.0.0.1:$closed"
says '^! +server +the proxy 127.* it answers 403'
list fed.example.org http_proxy=http://127.0.0.1:1 && fail "there is no proxy"
says 'cannot connect to 127\.0\.0\.1:1: .*\(the proxy that http_proxy names\)'
list fed.example.org https_proxy=socks5://127.0.0.1:1 && fail "no HTTP proxy"
says 'https_proxy: proxies of this kind cannot be used'

# ---- excluded hosts are connected directly by both
before=$(requests closed)
list fed.example.org "http_proxy=http://127.0.0.1:$closed" no_proxy=other,.example.org && fail "no such host"
says 'the name cannot be looked up'
doctor fed.example.org "http_proxy=http://127.0.0.1:$closed" no_proxy=other,.example.org
says '^ok +proxy +none: no_proxy excludes fed\.example\.org'
says '^! +server .*the name cannot be looked up'
if [ -n "$address" ]; then
  list "$address" "$with" || fail_with "$work/said" "an address through the proxy"
  list "$address" "http_proxy=http://127.0.0.1:$closed" && fail "the proxy refuses"
  before=$(requests closed)
  list "$address" "http_proxy=http://127.0.0.1:$closed" no_proxy="${address%%.*}.0.0.0/8" ||
    fail_with "$work/said" "no_proxy with a network"
  doctor "$address" "http_proxy=http://127.0.0.1:$closed" no_proxy="${address%%.*}.0.0.0/8"
  says '^ok +server '
  says '^ok +coordinator +serving'
fi
list 127.0.0.1 "http_proxy=http://127.0.0.1:$closed" || fail_with "$work/said" "this machine needs no proxy"
[ "$(requests closed)" -eq "$before" ] || fail "the proxy was asked for an excluded host"
echo "calls and probes take the same way"
