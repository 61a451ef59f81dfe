#!/usr/bin/env bash
# deploy/make-certs.sh: its certificates are valid for TLS, members can be added later, no file is overwritten, and
# bad names are refused before any file is written.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
make=$root/deploy/make-certs.sh
work=$(mktemp -d "${TMPDIR:-/tmp}/fedlora-certs-XXXXXX")
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }

# has FILE TEXT: fails unless openssl prints TEXT for the certificate.
has() { openssl x509 -in "$work/c/$1.pem" -noout -text | grep -q "$2" || fail "$1.pem has no \"$2\""; }
# refuses TEXT OPTION...: fails unless make-certs.sh ends with status 2, a message, and no new file.
refuses() {
  local text=$1 before after status=0
  shift
  before=$(ls -la "$work/c" 2>/dev/null || true)
  "$make" "$@" >"$work/said" 2>&1 || status=$?
  after=$(ls -la "$work/c" 2>/dev/null || true)
  [ $status -eq 2 ] || fail "$*: status $status, expected 2"
  grep -q "$text" "$work/said" || fail "$*: said $(cat "$work/said"), not \"$text\""
  [ "$before" = "$after" ] || fail "$*: something was made"
}

refuses "is no identity" "$work/c" "../evil"
refuses "is no identity" "$work/c" --admin "a b"
refuses "unknown option" "$work/c" --federations x
refuses "needs a value" "$work/c" --host
refuses "name of a file of the authority" "$work/c" server
refuses "usage" </dev/null

"$make" "$work/c" --federation clinics --host fed.example.org --host 10.1.2.3 --admin ops north >"$work/said"
for name in server north ops; do
  openssl verify -CAfile "$work/c/ca.pem" "$work/c/$name.pem" >/dev/null || fail "$name.pem"
  [ "$(stat -c %a "$work/c/$name.key")" = 600 ] || fail "$name.key can be read by others"
  has "$name" "prime256v1"
done
# The clock of the machine that checks a certificate may be behind this one's.
for name in ca server north; do
  starts=$(date -d "$(openssl x509 -in "$work/c/$name.pem" -noout -startdate | cut -d= -f2)" +%s)
  ago=$(($(date +%s) - starts))
  [ $ago -ge 300 ] && [ $ago -lt 400 ] || fail "$name.pem is valid since $ago s, expected 300"
  ends=$(date -d "$(openssl x509 -in "$work/c/$name.pem" -noout -enddate | cut -d= -f2)" +%s)
  days=365
  [ $name != ca ] || days=3650
  [ $(((ends - $(date +%s) + 60) / 86400)) -eq $days ] || fail "$name.pem is not valid for $days days"
done
[ "$(stat -c %a "$work/c/ca.key")" = 600 ] || fail "ca.key can be read by others"
has server "TLS Web Server Authentication"
has server "DNS:localhost, IP Address:127.0.0.1, .*DNS:fed.example.org, IP Address:10.1.2.3"
has north "URI:fl://clinics/client/north"
has north "TLS Web Client Authentication"
has ops "URI:fl://clinics/admin/ops"

server=$(sha256sum "$work/c/server.pem" "$work/c/ca.pem")
"$make" "$work/c" south >"$work/said"
has south "URI:fl://clinics/client/south"
[ "$server" = "$(sha256sum "$work/c/server.pem" "$work/c/ca.pem")" ] || fail "the authority changed"
refuses "exists already; nothing was made" "$work/c" east south
refuses "belongs to federation" "$work/c" --federation other west
refuses "with other names" "$work/c" --host elsewhere.example.org west
rm "$work/c/ca.key"
refuses "cannot be signed here" "$work/c" west
echo "certificates as they should be; members added later; nothing overwritten"
