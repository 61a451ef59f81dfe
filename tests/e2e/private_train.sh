#!/usr/bin/env bash
# `fedlora train --privacy example`: training is charged in a signed ledger before the adapter is written. When the
# budget is spent it stops and writes nothing. Plans whose promise is meaningless are refused with the reason.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

for i in $(seq 1 40); do
  echo "{\"input_ids\": [1, $((i % 30 + 3)), 9, $((i % 37)), 7, 2], \"labels\": [-100, -100, 9, $((i % 37)), 7, 2]}"
done >"$work/rows.jsonl"
(umask 077 && openssl genpkey -algorithm ed25519 -out "$work/key" 2>/dev/null)
openssl pkey -in "$work/key" -pubout -out "$work/pub"

train() { # OUT OPTIONS...
  local out=$1
  shift
  "$programs/fedlora" train --base "$root/tests/models/llama" --data "$work/rows.jsonl" -o "$work/$out" \
    --rank 2 --steps 4 --sampling 0.2 --privacy example --threads 1 "$@" >"$work/log" 2>&1
}
# refused STATUS TEXT OUT OPTIONS...
refused() {
  local wanted=$1 text=$2 status=0
  shift 2
  train "$@" || status=$?
  [ $status -eq "$wanted" ] || fail_with "$work/log" "$*: status $status, expected $wanted"
  grep -qF -- "$text" "$work/log" || fail_with "$work/log" "$*: said nothing like \"$text\""
  [ ! -e "$work/$1" ] || fail "$1 was written"
}
ledger=(--ledger "$work/ledger" --ledger-key "$work/key")

refused 2 "needs --ledger FILE" none --epsilon 6 --delta 1e-3
refused 2 "--ledger has no effect without --privacy example" none --privacy none --sampling 0 "${ledger[@]}"
refused 2 "the budget is missing" none --delta 1e-3 "${ledger[@]}"
refused 2 "delta 0.05 is not below one over the 40 records" none --epsilon 6 --delta 0.05 "${ledger[@]}"
[ ! -e "$work/ledger" ] || fail "a refused plan began a ledger"

train first --epsilon 6 --delta 1e-3 "${ledger[@]}" || fail_with "$work/log" "train"
[ -e "$work/first/adapter_model.safetensors" ] || fail "no adapter"
verify() { "$programs/fedlora" budget verify "$work/ledger" --key "$work/pub" "$@"; }
grep -qE "^ledger head +$(tail -1 "$work/ledger" | grep -o '"hash":"[0-9a-f]*"' | cut -d'"' -f4)" "$work/log" ||
  fail_with "$work/log" "the ledger's head was not told"
verify --json >"$work/said" || fail_with "$work/said" "verify"
python3 - "$work/said" <<'PY'
import json, sys
s = json.load(open(sys.argv[1]))
assert s["unit"] == "example" and s["units"] == 40 and s["releases"] == 1 and s["steps"] == 4, s
assert 5.99 < s["spent"]["epsilon"] <= 6 and s["key_known"], s
PY
refused 2 "the privacy budget is not enough: epsilon 6 of 6" second --epsilon 6 --delta 1e-3 "${ledger[@]}"
refused 2 "epsilon 6 of 6" second --epsilon 7 --delta 1e-3 "${ledger[@]}" # the first line's budget stays
refused 2 "--log: not allowed with --privacy" second --epsilon 6 --delta 1e-3 "${ledger[@]}" --log "$work/steps"
refused 2 "--profile: not allowed with --privacy" second --epsilon 6 --delta 1e-3 "${ledger[@]}" --profile
# --seed only affects public choices; the drawn records and the noise have no seed.
for i in 1 2; do
  train "seed$i" --seed 7 --epsilon 6 --delta 1e-3 --ledger "$work/seed$i.ledger" --ledger-key "$work/key" ||
    fail_with "$work/log" "train --seed"
done
if cmp -s "$work"/seed{1,2}/adapter_model.safetensors; then fail "private training was repeated from a seed"; fi
# The initial adapter must be declared public and is named in the ledger, unless this ledger has released it.
"$programs/fedlora" train --base "$root/tests/models/llama" --data "$work/rows.jsonl" -o "$work/plain" --rank 2 \
  --steps 1 --quiet --precision f32
wide=(--ledger "$work/wide" --ledger-key "$work/key" --epsilon 40 --delta 1e-3 --noise 1)
train one "${wide[@]}" --adapter "$work/plain" || fail_with "$work/log" "train from an adapter"
grep -qF "privacy: $work/plain counts as public data unless this ledger released it" "$work/log" ||
  fail_with "$work/log" "nothing was said of the adapter"
train two "${wide[@]}" --adapter "$work/one" || fail_with "$work/log" "train on"
"$programs/fedlora" budget verify "$work/wide" --json >"$work/said" || fail_with "$work/said" "verify"
python3 - "$work/said" <<'PY'
import json, sys
none = "0" * 64
plans = json.load(open(sys.argv[1]))["plans"]
print([(p["bases"], p["given"] != none) for p in plans])
assert [(p["bases"], p["given"] != none) for p in plans[-2:]] == [("given", True), ("private", False)], plans
PY
"$programs/fedlora" budget verify "$work/wide" >"$work/said"
grep -qE 'starts from [0-9a-f]{16}\.\.\., which counts as public' "$work/said" || fail_with "$work/said" "the page"
sed -i '2s/"count":4/"count":3/' "$work/ledger"
if verify >"$work/said" 2>&1; then fail "a changed ledger was verified"; fi
grep -qF 'ledger:2: the line was changed' "$work/said" || fail_with "$work/said" "the line is not named"
echo "passed"
