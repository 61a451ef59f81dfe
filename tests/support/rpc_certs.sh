#!/usr/bin/env bash
# Makes certificates for the tests of proto/ in DIR, unless they are there: a good authority with members a and b and
# the operator ops, a foreign authority, and faulty certificates that the good authority signed.
# Usage: rpc_certs.sh MAKE-CERTS DIR
set -euo pipefail
make=$1 dir=$2
mkdir -p "$(dirname "$dir")"
exec 9>"$dir.lock"
flock 9
[ ! -e "$dir/done.2" ] || exit 0
rm -rf "$dir"
"$make" "$dir" --federation fed --admin ops a b >/dev/null
"$make" "$dir/foreign" --federation fed a >/dev/null
"$make" "$dir/other" --federation other a >/dev/null
# sign NAME EXTENSIONS [DAYS]
sign() {
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$dir/$1.key" 2>/dev/null
  openssl req -new -key "$dir/$1.key" -subj "/CN=$1" -out "$dir/csr" 2>/dev/null
  printf '%b' "$2" >"$dir/ext"
  openssl x509 -req -in "$dir/csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" \
    -set_serial "0x$(openssl rand -hex 8)" -days "${3:-30}" -extfile "$dir/ext" -out "$dir/$1.pem" 2>/dev/null
}
sign a-again "extendedKeyUsage=clientAuth\nsubjectAltName=URI:fl://fed/client/a\n"
sign wrong-use "extendedKeyUsage=serverAuth\nsubjectAltName=URI:fl://fed/client/wrong\n"
sign no-name "extendedKeyUsage=clientAuth\n"
sign bad-name "extendedKeyUsage=clientAuth\nsubjectAltName=URI:fl://fed/root/x\n"
sign two-names "extendedKeyUsage=clientAuth\nsubjectAltName=URI:fl://fed/client/a,URI:fl://fed/client/b\n"
sign other-fed "extendedKeyUsage=clientAuth\nsubjectAltName=URI:fl://elsewhere/client/a\n"
sign other-host "extendedKeyUsage=serverAuth\nsubjectAltName=DNS:example.org\n"
sign expired "extendedKeyUsage=clientAuth\nsubjectAltName=URI:fl://fed/client/late\n" 0
touch "$dir/done.2"
