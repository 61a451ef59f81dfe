#!/usr/bin/env bash
# The pages for monitoring of a real coordinator: probes, metrics, and clients that misbehave.
set -uo pipefail
. "$(dirname "$0")/../support/e2e.sh"
member_list=north,south,west
make_certs north south west

# page PATH: the text, or the status code of an answer that is not 200.
page() { python3 "$root/tests/support/http_page.py" "$http" "$@"; }
# expect_page PATH TEXT...: waits a few seconds until the page has all texts.
expect_page() {
  local path=$1 tries=40 text missing
  shift
  while :; do
    missing=""
    page "$path" >"$work/page" 2>&1 || true
    for text in "$@"; do grep -qF -- "$text" "$work/page" || missing=$text; done
    [ -n "$missing" ] || return 0
    [ $((tries -= 1)) -gt 0 ] || fail_with "$work/page" "$path does not say $missing"
    sleep 0.2
  done
}

http=$(report port)
start_coordinator "$work/c" "[http]" "listen = 127.0.0.1:$http"

expect_page /healthz "200" "ok"
expect_page /readyz "200" '{"ready":true}'
expect_page /nothing "404"
expect_page / "200" "<h1>e2e</h1>" "Ready" "default-src 'none'; style-src 'sha256-"
expect_page /status.json "200" '"federation":"e2e"' '"enrolled":3' '"ready":true'
expect_page /metrics "200" 'fedlora_members{state="enrolled"} 3' 'fedlora_ready 1' \
  'fedlora_calls_total{method="ListRuns",code="OK"}' 'fedlora_certificate_not_after_seconds{role="admin",id="ops"}'
# says PATTERN ARGUMENT...: the page has a line like this.
says() {
  page "${@:2}" >"$work/page" 2>&1 || true
  grep -qiE -- "$1" "$work/page" || fail_with "$work/page" "${*:2}: no line $1"
}
says '^405' /metrics POST
says "^content-security-policy: default-src 'none'" /healthz
if command -v promtool >/dev/null; then
  page /metrics body | promtool check metrics >"$work/promtool" 2>&1 || fail_with "$work/promtool" "promtool"
else
  echo "promtool is not installed: the metrics were not checked with it"
fi

# --check looks at the address too: beside the running service, and when another program has the port.
check() { "$programs/fedlorad" --config "$work/c/fedlorad.ini" --check "$@"; }
check >"$work/said" || fail_with "$work/said" "--check"
grep -q "^http .*$http: in use, probably by the running service" "$work/said" || fail_with "$work/said" "--check has no line http"
expect_refusal "1 2" "http.listen: cannot listen on 127.0.0.1:$http" "$programs/fedlorad" --config "$work/c/fedlorad.ini" \
  --check --data "$work/elsewhere" --listen 127.0.0.1:0

# Handshakes without a certificate are counted, also those that the log leaves out.
for _ in 1 2 3; do openssl s_client -connect "127.0.0.1:$port" </dev/null >/dev/null 2>&1; done
expect_page /metrics 'fedlora_handshakes_refused_total{reason="no_certificate"} 3'

# Clients that hold their connection, and requests without end, do not keep the loop from its work.
spawn "$work/hold.log" python3 "$root/tests/support/http_page.py" "$http" / hold
holder=$last_child
until grep -qs holding "$work/hold.log"; do sleep 0.1; done
for _ in 1 2 3; do admin list --json >"$work/list.log" || fail "an operator is not answered"; done
kill "$holder"
says '^4[0-9][0-9]' /healthz long
expect_page /healthz "200"

# A coordinator whose certificate ends within a day is not ready.
mkdir "$work/old"
mv "$work"/certs/server.* "$work/old"
"$root/deploy/make-certs.sh" "$work/certs" --days 1 >"$work/certs.log" 2>&1 || fail_with "$work/certs.log" "make-certs.sh"
expect_page /readyz "503" '"ready":false' '"check":"certificate"' "certificate ends in 23h"
expect_page /metrics "fedlora_ready 0"
mv "$work"/old/server.* "$work/certs"
expect_page /readyz "200"

stop_coordinator
grep -q 'level=error' "$work/fedlorad.log" && fail_with "$work/fedlorad.log" "errors in the log"
echo "http: passed"
