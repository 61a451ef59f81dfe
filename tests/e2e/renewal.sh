#!/usr/bin/env bash
# Certificates of a few seconds while a run of many rounds is under way: members renew them, no round is lost, and the last
# state is the one of members whose certificates last. Then a certificate ends while nothing can renew it: join goes on, names
# the command that helps, and continues after it.
#
#   FEDLORA_RENEWALS=10 FEDLORA_LIFE=20 tests/e2e/renewal.sh     ten renewals of 20 s each
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"
life=${FEDLORA_LIFE:-5} renewals=${FEDLORA_RENEWALS:-2}
# Sanitizers make the start of a member slow, and a certificate must not end before that.
grep -q '^FEDLORA_SANITIZE:BOOL=ON' "$programs/CMakeCache.txt" && life=${FEDLORA_LIFE:-12} renewals=${FEDLORA_RENEWALS:-1}

member_list=""
"$programs/fedlorad" ca init --federation e2e --dir "$work/certs" --admin ops >"$work/ca.log"
cp "$work/certs/ops.pem" "$work/certs/ops.key"
python3 "$root/tests/e2e/tiny.py" model "$work/base"
python3 "$root/tests/e2e/tiny.py" rows "$work/ann.jsonl" --seed 1 --rows 8
python3 "$root/tests/e2e/tiny.py" rows "$work/bob.jsonl" --seed 2 --rows 8
digest=$("$programs/fedlora" inspect "$work/base" --json | report field digest)

# begin DIR LIFE: a coordinator whose members have certificates of that life, and a run that both have joined.
begin() {
  local id
  start_coordinator "$1" "[enroll]" "listen = 127.0.0.1:$(report port)" "cert = $work/certs/issuing.pem" \
    "key = $work/certs/issuing.key" "member_life = $2s"
  for id in ann bob; do
    enroll "$id" "$1"
    take_part "$id" "$1"
  done
  create r 50000
}
create() { # NAME ROUNDS
  admin create "$1" --members ann,bob --base-digest "$digest" --targets q,v --batch 4 --seq 32 --lr 1e-3 --seed 1 \
    --precision f32 --rank 2 --alpha 4 --rounds "$2" --method fedit --steps 4 >>"$work/admin.log" 2>&1 ||
    fail_with "$work/admin.log" "create $1"
}
# enroll ID DIR [OPTION...]: by a new token; an identity that is there is replaced.
enroll() {
  "$programs/fedlora" token create "$1" "${@:3}" --server "localhost:$port" --ca "$work/certs/ca.pem" --cert "$work/certs/ops.pem" \
    --key "$work/certs/ops.pem" 2>>"$work/enroll.log" |
    "$programs/fedlora" enroll - --dir "$2/$1" >>"$work/enroll.log" 2>&1 || fail_with "$work/enroll.log" "enroll $1"
}
# take_part ID DIR: in all runs; its process is last_child.
take_part() {
  spawn "$2/$1.log" "$programs/fedlora" join --stay --config "$2/$1/client.ini" --work "$2/$1/work" --threads 1 \
    --base "$work/base" --data "$work/$1.jsonl" --precision f32
}
run=r
field_of_run() { admin status "$run" --json 2>>"$work/admin.log" | report field "$1"; }
renewed() { grep -c "$1's certificate was renewed; it ends" "$work/short/$1.log" || true; }
# within SECONDS LOG CONDITION...: waits for it.
within() {
  local tries=$(($1 * 5)) log=$2
  shift 2
  until "$@"; do
    [ $((tries -= 1)) -gt 0 ] || fail_with "$log" "not within the time: $*"
    sleep 0.2
  done
}
said() { grep -qF -- "$1" "$2"; }
has_renewed() { [ "$(renewed ann)" -ge "$renewals" ] && [ "$(renewed bob)" -ge "$renewals" ]; }
has_finished() { [ "$(field_of_run phase)" = finished ]; }

# Two federations do the same run, one of them with certificates that last.
begin "$work/long" 86400
port_long=$port coordinator_long=$coordinator
begin "$work/short" "$life"
port_short=$port bob=$last_child
key=$(openssl pkey -in "$work/short/ann/member.pem" -pubout)
within $((life * (renewals + 3) + 30)) "$work/short/ann.log" has_renewed
[ "$key" != "$(openssl pkey -in "$work/short/ann/member.pem" -pubout)" ] || fail "the new certificate is of the old key"
[ "$(openssl x509 -in "$work/short/ann/member.pem" -pubkey -noout)" = "$(openssl pkey -in "$work/short/ann/member.pem" -pubout)" ] ||
  fail "member.pem is no pair"
said "certificate.renewed" "$work/fedlorad.log" || fail_with "$work/fedlorad.log" "no event of a renewal"

# A command of an operator renews the operator's certificate too, without a word.
enroll boss "$work/short" --role admin
serial=$(openssl x509 -in "$work/short/boss/member.pem" -noout -serial)
sed -i 's/^Renew-At: .*/Renew-At: 1/' "$work/short/boss/member.pem"
"$programs/fedlora" run list --config "$work/short/boss/client.ini" >"$work/list.log" 2>&1 || fail_with "$work/list.log" "run list"
[ "$serial" != "$(openssl x509 -in "$work/short/boss/member.pem" -noout -serial)" ] || fail "the operator's certificate was not renewed"
! grep -qi certificate "$work/list.log" || fail_with "$work/list.log" "a renewal is reported"

# Both runs end after the same round.
last=0
for port in "$port_long" "$port_short"; do
  admin pause r >>"$work/admin.log" 2>&1 || fail_with "$work/admin.log" "pause"
  round=$(field_of_run round)
  [ "$round" -le "$last" ] || last=$round
done
for port in "$port_long" "$port_short"; do
  admin set r "rounds=$((last + 2))" >>"$work/admin.log" 2>&1 || fail_with "$work/admin.log" "set"
  admin resume r >>"$work/admin.log" 2>&1 || fail_with "$work/admin.log" "resume"
done
within 60 "$work/short/ann.log" has_finished
state=$(field_of_run state_digest)
port=$port_long
within 60 "$work/long/ann.log" has_finished
[ "$state" = "$(field_of_run state_digest)" ] || fail "renewals changed the result of $((last + 2)) rounds"
grep -q "was renewed" "$work/long/ann.log" && fail_with "$work/long/ann.log" "a certificate of a day was renewed at once"
port=$port_short
kill -TERM "$coordinator_long"

# The coordinator is away for longer than a certificate lives. Only another token helps.
stop_coordinator
kill -TERM "$bob"
sleep $((life + 1))
start_coordinator "$work/short"
take_part bob "$work/short" # a machine that was off for so long
bob=$last_child
within 10 "$work/short/bob.log" said "s ago; run: fedlora enroll TOKEN" "$work/short/bob.log"
alive "$bob" || fail_with "$work/short/bob.log" "join --stay ended for a certificate that has ended"
within 30 "$work/short/ann.log" said "s ago; run: fedlora enroll TOKEN" "$work/short/ann.log"
[ "$(grep -c "ago; run: fedlora enroll TOKEN" "$work/short/ann.log")" -eq 1 ] || fail_with "$work/short/ann.log" "said twice"
enroll ann "$work/short"
before=$(grep -c "the certificate was renewed; connecting again" "$work/short/ann.log" || true)
within 30 "$work/short/ann.log" eval '[ "$(grep -c "the certificate was renewed; connecting again" "$work/short/ann.log")" -gt "$before" ]'
enroll bob "$work/short"
create r2 1
run=r2
within 60 "$work/short/bob.log" has_finished
echo "$renewals renewals of $life s each in $((last + 2)) rounds; an ended certificate was replaced"
