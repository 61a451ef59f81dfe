#!/usr/bin/env bash
# fedlorad ca renew: a new certificate of the server has the names and the key of the old one, a new issuing key has the
# constraints of the old one, and openssl follows both to the root. With --due nothing happens early.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

fedlorad=$programs/fedlorad ca=$work/ca
"$fedlorad" ca init --federation clinics --dir "$ca" --host fed.example.org --host 10.0.0.7 >"$work/out"
extension() { openssl x509 -in "$ca/$1.pem" -noout -ext "$2"; }
serial() { openssl x509 -in "$ca/$1.pem" -noout -serial; }
leads_to_root() {
  openssl verify -x509_strict -purpose sslserver -CAfile "$ca/ca.pem" -untrusted "$ca/server.pem" "$ca/server.pem" \
    >"$work/said" 2>&1 || fail_with "$work/said" "openssl verify"
}
names=$(extension server subjectAltName) key=$(sha256sum <"$ca/server.key") first=$(serial server)
grep -q 'DNS:fed.example.org.*IP Address:10.0.0.7' <<<"$names" || fail "names of the server: $names"

"$fedlorad" ca renew --dir "$ca" --due >"$work/out"
grep -q 'not due' "$work/out" || fail_with "$work/out" "renewed early"
[ "$(serial server)" = "$first" ] || fail "--due changed a new certificate"

"$fedlorad" ca renew --dir "$ca" --server-life 3s --json >"$work/out"
grep -q '"renewed": *true' "$work/out" || fail_with "$work/out" "not renewed"
[ "$(serial server)" != "$first" ] || fail "the certificate is the old one"
[ "$(extension server subjectAltName)" = "$names" ] || fail "other names: $(extension server subjectAltName)"
[ "$(sha256sum <"$ca/server.key")" = "$key" ] || fail "the server's key has changed"
[ "$(stat -c %a "$ca/server.pem")" = 644 ] || fail "server.pem is not readable by the service"
leads_to_root
# Its life of five minutes before now and three seconds after is two thirds over.
"$fedlorad" ca renew --dir "$ca" --due >"$work/out"
grep -q 'valid for 89 days\|valid for 90 days' "$work/out" || fail_with "$work/out" "not renewed when it was due"
leads_to_root

rm "$ca/server.key"
expect_refusal "1 2" server.key "$fedlorad" ca renew --dir "$ca"
"$fedlorad" ca renew --dir "$ca" --new-key >"$work/out"
[ "$(openssl pkey -in "$ca/server.key" -pubout)" = "$(openssl x509 -in "$ca/server.pem" -noout -pubkey)" ] || fail "another key"
leads_to_root

permitted=$(extension issuing nameConstraints) old=$(sha256sum <"$ca/issuing.key")
"$fedlorad" ca renew --dir "$ca" --issuing >"$work/out"
[ "$(sha256sum <"$ca/issuing.key")" != "$old" ] || fail "the issuing key is the old one"
[ "$(stat -c %a "$ca/issuing.key")" = 600 ] || fail "others may read issuing.key"
[ "$(extension issuing nameConstraints)" = "$permitted" ] || fail "other constraints"
"$fedlorad" ca renew --dir "$ca" >"$work/out"
leads_to_root

rm "$ca/ca.key"
expect_refusal "1 2" ca.key "$fedlorad" ca renew --dir "$ca" --issuing
echo "the server's certificate and the issuing key are renewed"
