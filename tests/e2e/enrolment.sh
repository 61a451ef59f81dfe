#!/usr/bin/env bash
# Enrolment from both sides: the authority, tokens, renewal of the list of members without a restart, requests signed by
# hand, revocation, and other programs that sign. Certificates are checked by openssl.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"
ca=$work/ca

make_config() { # LINE...: of section [enroll]
  cat >"$work/fedlorad.ini" <<INI
[server]
listen = 127.0.0.1:$port
ca = $ca/ca.pem
cert = $ca/server.pem
key = $ca/server.key
[store]
path = $work/store
[federation]
name = clinics
[enroll]
listen = 127.0.0.1:$enroll_port
INI
  printf '%s\n' "$@" >>"$work/fedlorad.ini"
}
builtin=("cert = $ca/issuing.pem" "key = $ca/issuing.key")

operator() { # WORD WORD OPTION...
  "$programs/fedlora" "$@" --server "localhost:$port" --ca "$ca/ca.pem" --cert "$ca/ops.pem" --key "$ca/ops.pem"
}
start() {
  local tries=100
  spawn "$work/fedlorad.log" "$programs/fedlorad" --config "$work/fedlorad.ini"
  coordinator=$last_child
  until operator member list >"$work/said" 2>&1; do
    alive "$coordinator" || fail_with "$work/fedlorad.log" "fedlorad ended"
    [ $((tries -= 1)) -gt 0 ] || fail_with "$work/said" "fedlorad does not answer"
    sleep 0.1
  done
}
# Tries of enrolment are counted in memory, so a start also gives five new ones.
restart() {
  kill -TERM "$coordinator"
  wait_within 10 "$coordinator" fedlorad "$work/fedlorad.log"
  start
}
logged() { grep -qF -- "$1" "$work/fedlorad.log" || fail_with "$work/fedlorad.log" "no line with \"$1\""; }
token() { operator token create "$@" 2>/dev/null; }
enroll() { "$programs/fedlora" enroll "$1" --dir "$work/$2"; }
doctor() { "$programs/fedlora" doctor --config "$work/$1/client.ini"; }
serial_of() { openssl x509 -in "$1" -noout -serial | cut -d= -f2 | tr A-F a-f; }
# verifies FILE [PURPOSE]: by openssl, with nothing but the root.
verifies() {
  openssl verify -CAfile "$ca/ca.pem" -untrusted "$1" -purpose "${2:-sslclient}" "$1" >"$work/said" 2>&1 ||
    fail_with "$work/said" "openssl does not verify $1"
}

# ---- the authority
"$programs/fedlorad" ca init --federation clinics --dir "$ca" --host fed.example.org --admin ops >"$work/said"
verifies "$ca/server.pem" sslserver
verifies "$ca/ops.pem"
for name in ca issuing server; do
  [ "$(stat -c %a "$ca/$name.key")" = 600 ] || fail "$name.key can be read by others"
done
openssl x509 -in "$ca/issuing.pem" -noout -text | grep -q "URI:clinics" || fail "the issuer has no name constraint"
openssl x509 -in "$ca/issuing.pem" -noout -text | grep -q "CA:TRUE, pathlen:0" || fail "the issuer may make authorities"
expect_refusal 2 "exists already; nothing was made" "$programs/fedlorad" ca init --federation clinics --dir "$ca"
expect_refusal 2 "did you mean ca init" "$programs/fedlorad" ca innit

# ---- tokens
port=$(report port) enroll_port=$(report port)
make_config "${builtin[@]}" "member_life = 40d"
"$programs/fedlorad" --config "$work/fedlorad.ini" --check >"$work/said" || fail_with "$work/said" "--check"
grep -q "^signer .*can sign" "$work/said" || fail_with "$work/said" "--check says nothing of the signer"
expect_refusal "1 2" "not that of its certificate" "$programs/fedlorad" --config "$work/fedlorad.ini" --check \
  --set "enroll.key=$ca/server.key"
start
north=$(token north)
enroll "$north" north >"$work/said"
verifies "$work/north/member.pem"
openssl x509 -in "$work/north/member.pem" -noout -text | grep -q "URI:fl://clinics/client/north" || fail "another identity"
openssl x509 -in "$work/north/member.pem" -noout -checkend 3455000 >/dev/null || fail "its life is shorter than 40 days"
openssl x509 -in "$work/north/member.pem" -noout -checkend 3457000 >/dev/null && fail "its life is longer than 40 days"
doctor north >"$work/said" 2>&1 || fail_with "$work/said" "the new member cannot call"

# An answer that was lost: the same key gets the same certificate; another key gets nothing.
serial=$(serial_of "$work/north/member.pem")
enroll "$north" north >"$work/said"
grep -q "has already enrolled" "$work/said" || fail_with "$work/said" "a complete enrolment was repeated"
umask 077
(grep ^Token: "$work/north/member.pem" && openssl pkey -in "$work/north/member.pem") >"$work/north/enroll.key"
umask 022
rm "$work/north/member.pem"
enroll "$north" north >"$work/said"
grep -q "^enrolled north" "$work/said" || fail_with "$work/said" "the answer was not asked for again"
[ "$(serial_of "$work/north/member.pem")" = "$serial" ] || fail "the same token and key gave another certificate"
expect_refusal 3 "this request is for key" enroll "$north" thief
expect_refusal 3 "is for north, not for nort" enroll "${north/:north:/:nort:}" thief
logged "event=token.refused member=north by=none address=127.0.0.1"
restart
expect_refusal 3 "is not known here" enroll "${north/:north:*/:north:$(printf '%032d' 7):${north##*:}}" thief
expect_refusal "2 3" "nothing was sent to it" enroll "${north%?????}00000" thief # the hash of another root: nothing is sent
[ ! -e "$work/thief/member.pem" ] || fail "a certificate was written for a refused token"
short=$(token late --ttl 1s)
operator token create early >/dev/null 2>&1
early=$(token early)
operator token revoke early >"$work/said"
[ "$(grep -c revoked "$work/said")" -eq 2 ] || fail_with "$work/said" "not all tokens of early were revoked"
expect_refusal 3 "was revoked by an operator" enroll "$early" early
sleep 1
expect_refusal 3 "ended at" enroll "$short" late
enroll "$(token boss --role admin)" boss >"$work/said"
expect_refusal 3 "this request is for key" enroll "$north" thief # the fifth try
expect_refusal 1 "times within a minute" enroll "$north" thief
"$programs/fedlora" member list --config "$work/boss/client.ini" >"$work/said" || fail "the new operator cannot call"
expect_refusal 3 "only an admin" "$programs/fedlora" member list --config "$work/north/client.ini"

# ---- a request that is signed by hand
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$work/west.key" -subj "/CN=boss" \
  -out "$work/west.csr" 2>/dev/null
operator member sign "$work/west.csr" -o "$work/west.crt" >"$work/said"
verifies "$work/west.crt"
openssl x509 -in "$work/west.crt" -noout -text | grep -q "URI:fl://clinics/client/west" || fail "another identity"
openssl req -new -newkey rsa:2048 -nodes -keyout "$work/rsa.key" -subj "/" -out "$work/rsa.csr" 2>/dev/null
expect_refusal 3 "expected P-256" operator member sign "$work/rsa.csr" -o "$work/rsa.crt"

# ---- members: added and revoked without a restart
operator member add east --name "St. Mary" >"$work/said"
grep -q "St. Mary" "$work/said" || fail_with "$work/said" "no name"
operator member list >"$work/said"
grep -qE "^late +client +invited" "$work/said" || fail_with "$work/said" "late is not invited"
grep -qE "^north +client +active .* 127\.0\.0\.1 " "$work/said" || fail_with "$work/said" "north was not seen"
operator member revoke north --serial "$serial" --reason "lost laptop" >"$work/said"
expect_refusal 1 "was revoked" doctor north
restart
expect_refusal 1 "was revoked" doctor north
enroll "$(token north)" north2 >"$work/said"
doctor north2 >"$work/said" 2>&1 || fail_with "$work/said" "a new certificate of north is refused"
expect_refusal 3 "member nroth is not known here" operator member revoke nroth
operator member revoke north >"$work/said"
expect_refusal 1 "north was revoked" doctor north2
expect_refusal 3 "north was revoked" operator token create north
operator member add north >"$work/said"
expect_refusal 1 "was revoked" doctor north2 # its old certificates stay bad
enroll "$(token north)" north3 >"$work/said"
doctor north3 >"$work/said" 2>&1 || fail_with "$work/said" "north was admitted again, but is refused"
expect_refusal 3 "cannot revoke itself" operator member revoke ops --role admin
operator member revoke boss --role admin >"$work/said"
# The way back for an operator who has lost every certificate, beside the running service.
restart
enroll "$("$programs/fedlorad" token second --role admin --config "$work/fedlorad.ini" --address "localhost:$enroll_port")" \
  second >"$work/said"
"$programs/fedlora" token list --config "$work/second/client.ini" >"$work/said" || fail_with "$work/said" "second cannot call"
expect_refusal 3 "boss was revoked" "$programs/fedlora" member list --config "$work/boss/client.ini"
"$programs/fedlora" audit verify "$work/store/audit" --key "$work/store/audit/audit.pub" >"$work/said" 2>&1 ||
  fail_with "$work/said" "the audit log is not whole"
for action in token.created token.used token.refused certificate.issued member.added member.revoked; do
  grep -q "\"action\":\"$action\"" "$work"/store/audit/*.jsonl || fail "the audit log has no $action"
done

# ---- other programs that sign
cat >"$work/signer" <<SIGNER
#!/usr/bin/env bash
set -euo pipefail
dir=\$(mktemp -d)
trap 'rm -rf "\$dir"' EXIT
cat >"\$dir/csr"
[ ! -e "$work/slow" ] || sleep 60
[ ! -e "$work/wrong" ] || FEDLORA_URI=fl://clinics/admin/root
printf '%s\n' "extendedKeyUsage=clientAuth" "subjectAltName=URI:\$FEDLORA_URI" >"\$dir/ext"
openssl x509 -req -in "\$dir/csr" -CA "$ca/issuing.pem" -CAkey "$ca/issuing.key" -days \$((FEDLORA_LIFE / 86400)) \
  -extfile "\$dir/ext" 2>/dev/null
cat "$ca/issuing.pem"
SIGNER
chmod +x "$work/signer"
make_config "signer = command:$work/signer" "signer_timeout = 2s"
restart
enroll "$(token hsm)" hsm >"$work/said"
verifies "$work/hsm/member.pem"
doctor hsm >"$work/said" 2>&1 || fail_with "$work/said" "the certificate of the command is refused"
touch "$work/wrong"
expect_refusal "1 3" "come back later" operator member sign "$work/west.csr" -o "$work/wrong.crt"
logged "its identity is fl://clinics/admin/root, expected fl://clinics/client/west"
rm "$work/wrong"
touch "$work/slow"
expect_refusal "1 3" "come back later" operator member sign "$work/west.csr" -o "$work/slow.crt"
logged "took longer than 2000 ms"
echo "enrolment: all good"
