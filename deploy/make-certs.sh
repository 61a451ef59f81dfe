#!/usr/bin/env bash
# A private certificate authority for one federation: the authority, the coordinator's certificate,
# and one certificate for every member and operator. P-256 keys, TLS 1.3, identity in a URI SAN.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: make-certs.sh DIR [--federation NAME] [--host NAME]... [--admin ID]... [--days N] [MEMBER-ID]...

Makes in DIR, where missing: ca.pem and ca.key; server.pem and server.key (for localhost, 127.0.0.1, ::1
and every --host NAME); and for every MEMBER-ID and --admin ID its ID.pem and ID.key. Run it again with
the same DIR to add members. Nothing is ever overwritten: a certificate that exists is an error, but for
the authority and the server's, which are kept.

  --federation NAME  the name in every identity, fl://NAME/client/ID (default: fedlora; an existing
                     authority keeps the name it was made with)
  --host NAME        another name or address by which clients reach the coordinator
  --admin ID         an operator, fl://NAME/admin/ID
  --days N           how long members' and the server's certificates are good (default: 365)

Keep ca.key off the coordinator's machine: whoever has it can be anyone.
Example: make-certs.sh certs --federation clinics --host fed.example.org --admin ops north south east
USAGE
}
die() { echo "make-certs: $*" >&2; exit 2; }
is_name() { [[ "$1" =~ ^[A-Za-z0-9_][A-Za-z0-9._-]{0,126}$ ]]; }

dir="" federation="" days=365 hosts=() admins=() members=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --federation | --host | --admin | --days)
      [ $# -ge 2 ] || die "$1 needs a value"
      case "$1" in
        --federation) federation=$2 ;;
        --host) hosts+=("$2") ;;
        --admin) admins+=("$2") ;;
        --days) days=$2 ;;
      esac
      shift 2 ;;
    -*) die "unknown option $1; --help lists them" ;;
    *) if [ -z "$dir" ]; then dir=$1; else members+=("$1"); fi; shift ;;
  esac
done
[ -n "$dir" ] || { usage >&2; exit 2; }
[[ "$days" =~ ^[1-9][0-9]{0,4}$ ]] || die "--days $days: expected a number of days from 1 to 99999"
for id in ${admins[@]+"${admins[@]}"} ${members[@]+"${members[@]}"}; do
  is_name "$id" || die "\"$id\" is no identity: letters, digits, '.', '_' and '-', at most 127"
  [ "$id" != ca ] && [ "$id" != server ] || die "\"$id\" is the name of a file of the authority; choose another"
  [ ! -e "$dir/$id.pem" ] && [ ! -e "$dir/$id.key" ] || die "$dir/$id.pem exists already; nothing was made"
done
for host in ${hosts[@]+"${hosts[@]}"}; do
  [[ "$host" =~ ^[A-Za-z0-9.:*-]{1,253}$ ]] || die "--host $host: expected a host name or an address"
done
command -v openssl >/dev/null || die "openssl is not installed (deploy/install-deps.sh installs it)"

umask 077
mkdir -p "$dir"
work=$(mktemp -d "$dir/.making.XXXXXX")
trap 'rm -rf "$work"' EXIT

# sign DAYS OPTION...: makes $work/pem from $work/csr and $work/ext. It is valid from five minutes ago, because the clocks of
# the machines that check it may be behind this one. `openssl ca` is the command of OpenSSL 3.0 that can set that time.
sign() {
  local days=$1
  shift
  : >"$work/index"
  openssl ca -batch -config "$work/ca.conf" -in "$work/csr" -out "$work/pem" -notext -preserveDN \
    -startdate "$(date -u -d '-5 minutes' +%Y%m%d%H%M%SZ)" -enddate "$(date -u -d "+$days days" +%Y%m%d%H%M%SZ)" \
    -extfile "$work/ext" "$@" 2>"$work/said"
}
cat >"$work/ca.conf" <<CONF
[ca]
default_ca = authority
[authority]
database = $work/index
new_certs_dir = $work
default_md = sha256
unique_subject = no
rand_serial = yes
policy = subject
[subject]
organizationName = optional
commonName = optional
CONF

# issue NAME SUBJECT EXTENSIONS: makes a key and a certificate signed by the authority, and renames both when complete.
issue() {
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$work/key" 2>/dev/null
  openssl req -new -key "$work/key" -subj "$2" -out "$work/csr" 2>/dev/null
  printf '%s\n' "basicConstraints=critical,CA:FALSE" "keyUsage=critical,digitalSignature" \
    "subjectKeyIdentifier=hash" "authorityKeyIdentifier=keyid" "$3" >"$work/ext"
  sign "$days" -cert "$dir/ca.pem" -keyfile "$dir/ca.key" ||
    die "cannot sign the certificate of $1: $(tail -1 "$work/said")"
  mv "$work/key" "$dir/$1.key"
  chmod 0644 "$work/pem"
  mv "$work/pem" "$dir/$1.pem"
}

if [ -e "$dir/ca.pem" ]; then
  [ -e "$dir/ca.key" ] || die "$dir/ca.pem is here but ca.key is not: certificates cannot be signed here"
  known=$(openssl x509 -in "$dir/ca.pem" -noout -subject -nameopt multiline | sed -n 's/.*organizationName *= //p')
  [ -z "$federation" ] || [ "$federation" = "$known" ] ||
    die "$dir/ca.pem belongs to federation \"$known\", not \"$federation\""
  federation=$known
  echo "make-certs: kept    $dir/ca.pem, the authority of federation \"$federation\""
else
  federation=${federation:-fedlora}
  is_name "$federation" || die "--federation $federation: letters, digits, '.', '_' and '-', at most 127"
  [ ! -e "$dir/ca.key" ] || die "$dir/ca.key is here without ca.pem; nothing was made"
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$work/ca.key" 2>/dev/null
  openssl req -new -key "$work/ca.key" -subj "/O=$federation/CN=$federation federation authority" -out "$work/csr" 2>/dev/null
  printf '%s\n' "basicConstraints=critical,CA:TRUE,pathlen:0" "keyUsage=critical,keyCertSign,cRLSign" \
    "subjectKeyIdentifier=hash" >"$work/ext"
  sign 3650 -selfsign -keyfile "$work/ca.key" || die "cannot make the authority: $(tail -1 "$work/said")"
  mv "$work/pem" "$work/ca.pem"
  mv "$work/ca.key" "$dir/ca.key"
  chmod 0644 "$work/ca.pem"
  mv "$work/ca.pem" "$dir/ca.pem"
  echo "make-certs: made    $dir/ca.pem, the authority of federation \"$federation\" (10 years)"
fi

if [ -e "$dir/server.pem" ]; then
  [ ${#hosts[@]} -eq 0 ] || die "$dir/server.pem exists; move it and server.key away to make one with other names"
  echo "make-certs: kept    $dir/server.pem"
else
  names="DNS:localhost,IP:127.0.0.1,IP:::1"
  for host in ${hosts[@]+"${hosts[@]}"}; do
    if [[ "$host" =~ ^[0-9.]+$ || "$host" == *:* ]]; then names+=",IP:$host"; else names+=",DNS:$host"; fi
  done
  issue server "/O=$federation/CN=coordinator" "extendedKeyUsage=serverAuth
subjectAltName=$names"
  echo "make-certs: made    $dir/server.pem, for $names ($days days)"
fi

# identity ID ROLE
identity() {
  issue "$1" "/O=$federation/CN=$(printf '%.64s' "$1")" "extendedKeyUsage=clientAuth
subjectAltName=URI:fl://$federation/$2/$1"
  echo "make-certs: made    $dir/$1.pem, fl://$federation/$2/$1 ($days days)"
}
for id in ${members[@]+"${members[@]}"}; do identity "$id" client; done
for id in ${admins[@]+"${admins[@]}"}; do identity "$id" admin; done
