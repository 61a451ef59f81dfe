#!/usr/bin/env bash
# Counts what people type from clean hosts to the first published state of a federation of three institutions, and after
# that: add, revoke, renew, back up. Four hosts are four network namespaces, each with an /etc and a /var/lib of its own, in
# which the Debian packages are unpacked and the commands of docs/operator.md and docs/hospital.md are typed.
# Release only: the programs are tested under the sanitizers elsewhere.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

[ "$(id -u)" -eq 0 ] || skip "network namespaces need root"
command -v dh >/dev/null || skip "debhelper is not installed: deploy/install-deps.sh --packages"
grep -q '^FEDLORA_SANITIZE:BOOL=ON' "$programs/CMakeCache.txt" && skip "packages are made of optimised builds"
tag=fl$$
hosts=()
end_hosts() {
  local host
  for host in ${hosts[@]+"${hosts[@]}"}; do ip netns del "$tag$host" 2>/dev/null || true; done
  end_children
}
trap end_hosts EXIT
ip netns add "$tag"probe 2>/dev/null || skip "ip netns is not possible here"
hosts=(probe)
ip netns exec "$tag"probe ip link add vprobe type veth peer name vpeer 2>/dev/null || skip "veth is not possible here"

# ---- hosts: the coordinator fed has one wire to each institution, and one address for all of them
make_host() {
  hosts+=("$1")
  ip netns add "$tag$1" && ip netns exec "$tag$1" ip link set lo up
  mkdir -p "$work/$1/lib" "$work/$1/root" && cp -a /etc "$work/$1/etc" && rm -rf "$work/$1/etc/fedlora"
  echo "10.77.0.1 fed.example.org" >>"$work/$1/etc/hosts" # DNS
}
wire() { # HOST NUMBER
  ip -n "${tag}fed" link add "v$1" type veth peer name eth0 netns "$tag$1"
  ip -n "${tag}fed" addr add "10.77.$2.1/24" dev "v$1" && ip -n "${tag}fed" link set "v$1" up
  ip -n "$tag$1" addr add "10.77.$2.2/24" dev eth0 && ip -n "$tag$1" link set eth0 up
  ip -n "$tag$1" route add default via "10.77.$2.1"
}
# on HOST COMMAND...: with the host's own /etc and /var/lib, and the programs of its packages.
on() {
  local host=$1
  shift
  ip netns exec "$tag$host" unshare -m sh -c 'mount --bind "$1/etc" /etc && mount --bind "$1/lib" /var/lib && shift && exec "$@"' \
    - "$work/$host" env PATH="$work/$host/root/usr/bin:$PATH" XDG_STATE_HOME=/var/lib OMP_NUM_THREADS=1 "$@"
}
# The command of a unit, as the service manager would start it.
start_unit() { # HOST PACKAGE-UNIT
  local command
  command=$(sed -n 's/^ExecStart=\/usr\/bin\///p' "$work/$1/root/lib/systemd/system/$2.service")
  # shellcheck disable=SC2086 # the words of a unit
  spawn "$work/$1.log" "$BASH" -c "$(declare -f on); tag=$tag work=$work; on $1 $command"
}

# ---- steps: everything that a person types is counted
declare -A steps=()
step() { # PERSON HOST COMMAND...
  typed "$1"
  local host=$2
  shift 2
  on "$host" "$@" >"$work/step" 2>&1 || fail_with "$work/step" "$host: $*"
}
typed() { steps[$1]=$((${steps[$1]:-0} + 1)); }
budget() { [ "${steps[$1]:-0}" -le "$2" ] || fail "$1: ${steps[$1]} steps, at most $2"; }
# apt install, but without the packages that ours need, which are on this machine.
apt_install() { # PERSON HOST PACKAGE...
  local host=$2 package
  typed "$1"
  for package in "${@:3}"; do dpkg-deb -x "$(ls "$work/out/${package}"_*.deb)" "$work/$host/root"; done
  mkdir -p "$work/$host/etc/fedlora" "$work/$host/lib/fedlora" "$work/$host/lib/fedlora-member"
  cp "$work/$host"/root/etc/fedlora/* "$work/$host/etc/fedlora/" 2>/dev/null || true
}
# The member's path unit starts its service as soon as the files of the enrolment are there.
enrol() { # HOST
  apt_install hospital "$1" fedlora fedlora-member
  typed hospital
  on "$1" fedlora enroll "$(token_of "$1")" --base /var/lib/srv/base --data /var/lib/srv/rows.jsonl >"$work/step" 2>&1 ||
    fail_with "$work/step" "$1: fedlora enroll"
  start_unit "$1" fedlora-member
}
token_of() { grep -oE "fedlora1:[^ ]*:$1:[^ ]+" "$work/tokens" | tail -1; }

DEB_BUILD_OPTIONS=noautodbgsym "$root/deploy/make-packages.sh" -o "$work/out" --build "$programs" >"$work/made" ||
  fail_with "$work/out/build.log" "make-packages.sh"
python3 "$root/tests/e2e/tiny.py" model "$work/base"
digest=$("$programs/fedlora" inspect "$work/base" --json | report field digest)
make_host fed
ip -n "${tag}fed" addr add 10.77.0.1/32 dev lo
number=0
for host in north east south west; do
  make_host "$host"
  wire "$host" $((number += 1))
  mkdir -p "$work/$host/lib/srv" && cp -r "$work/base" "$work/$host/lib/srv/base"
  python3 "$root/tests/e2e/tiny.py" rows "$work/$host/lib/srv/rows.jsonl" --rows 12 --seed $number
done

# ---- the operator's first hour
apt_install operator fed fedlora fedlora-coordinator
step operator fed fedlorad ca init --federation clinics --dir /etc/fedlora --host fed.example.org --admin ops
step operator fed sed -i 's/^name = .*/name = clinics/' /etc/fedlora/fedlorad.ini
# Certificates that live for seconds are for this test, and not a step.
sed -i '/^\[enroll\]/a member_life = 20s' "$work/fed/etc/fedlora/fedlorad.ini"
typed operator && start_unit fed fedlorad # systemctl enable --now fedlorad
tries=100
until on fed fedlora run list >"$work/list" 2>&1; do
  [ $((tries -= 1)) -gt 0 ] || fail_with "$work/list" "the coordinator does not answer: $(tail -3 "$work/fed.log")"
  sleep 0.1
done
step operator fed fedlora token create north east south
cp "$work/step" "$work/tokens"
step operator fed fedlora run create demo --method flora --rounds 1 --members north,east,south --base-digest "$digest" \
  --rank 4 --alpha 8 --targets q,v --steps 5 --batch 4 --seq 32 --lr 1e-3 --precision f32

# ---- the institutions, and the first published state
for host in north east south; do
  steps[hospital]=0
  enrol "$host"
  budget hospital 2
done
before=$(sha256sum <"$work/north/etc/fedlora/member.pem")
tries=300
until on fed fedlora run export demo -o /var/lib/state.safetensors >"$work/export" 2>&1; do
  [ $((tries -= 1)) -gt 0 ] || fail_with "$work/north.log" "no state is published: $(cat "$work/export")"
  sleep 0.2
done
[ -s "$work/fed/lib/state.safetensors" ] || fail "the state is empty"
echo "from clean hosts to the first state: operator ${steps[operator]}, hospital ${steps[hospital]}"
budget operator 6

# ---- later
steps=()
step operator fed fedlora token create west
cp "$work/step" "$work/tokens"
enrol west # of which one step is the installation
budget operator 1
budget hospital 2
steps=()
step operator fed fedlora member revoke west
step backup fed fedlorad backup --config /etc/fedlora/fedlorad.ini --to /var/lib/backup
budget operator 1
budget backup 1
tries=300
until [ "$(sha256sum <"$work/north/etc/fedlora/member.pem")" != "$before" ]; do
  [ $((tries -= 1)) -gt 0 ] || fail_with "$work/north.log" "the certificate of north is not renewed"
  sleep 0.2
done
echo "add 1+1, revoke 1, back up 1, renew 0"
