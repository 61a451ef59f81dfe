#!/usr/bin/env bash
# An adapter has the same loss in every form of export: as trained, as PEFT, merged into a base directory and into a
# GGUF base. A cut to a smaller rank reports its error, and wrong uses are refused.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

base=$root/tests/models/llama
fedlora() { "$programs/fedlora" "$@" --threads 1 --quiet; }
loss() { fedlora eval --data "$work/rows.jsonl" --precision f32 --json "$@" | report field loss; }
# near A B WHAT: fails unless A is B within 1e-5 of B.
near() {
  python3 -c "a, b = $1, $2; raise SystemExit(abs(a - b) > 1e-5 * abs(b))" || fail "$3: loss $1, expected $2"
}
refused() { expect_refusal 2 "$@"; } # TEXT COMMAND...

for i in 1 2 3 4 5 6; do
  echo "{\"input_ids\": [1, $((i + 3)), 9, $((i * 5)), 7, 11, $((i + 20)), 2], \"labels\": [-100, -100, 9, $((i * 5)), 7, 11, $((i + 20)), 2]}"
done >"$work/rows.jsonl"
fedlora train --base "$base" --data "$work/rows.jsonl" -o "$work/adapter" --rank 3 --alpha 6 \
  --targets q,k,v,o,gate,up,down --steps 12 --batch 2 --lr 0.05 --precision f32 >"$work/log" 2>&1 ||
  fail_with "$work/log" "train"

plain=$(loss --base "$base")
wanted=$(loss --base "$base" --adapter "$work/adapter")
python3 -c "raise SystemExit($plain - $wanted < 0.5)" || fail "training did little: $plain to $wanted"
export_as() { fedlora export "$work/adapter" "$@" >"$work/log" 2>&1 || fail_with "$work/log" "export $*"; }

export_as --as peft -o "$work/peft"
near "$(loss --base "$base" --adapter "$work/peft")" "$wanted" "exported as PEFT"
export_as --as merged --base "$base" -o "$work/merged"
near "$(loss --base "$work/merged")" "$wanted" "merged"
export_as --as merged --base "$base/f16.gguf" -o "$work/merged-gguf"
near "$(loss --base "$work/merged-gguf")" "$wanted" "merged into a GGUF's weights"
export_as --as gguf -o "$work/adapter.gguf" # train has recorded the base
"$programs/fedlora" inspect "$work/adapter.gguf" --json | grep -q "blk.0.attn_q.weight.lora_a" ||
  fail "the GGUF adapter lists no lora_a"

cut=$(fedlora export "$work/adapter" --as peft -o "$work/cut" --rank 1 --json | report field relative_error)
python3 -c "raise SystemExit(not 0 < $cut < 1)" || fail "cut to rank 1: relative error $cut"
[ "$(loss --base "$base" --adapter "$work/cut")" != "$wanted" ] || fail "a cut that changes nothing"

# Into PEFT again, and used directly with a GGUF base.
fedlora export "$work/adapter.gguf" --as peft --base "$base" -o "$work/back" >"$work/log" 2>&1 || fail_with "$work/log" "back"
near "$(loss --base "$base" --adapter "$work/back")" "$wanted" "from GGUF to PEFT"
near "$(loss --base "$base/f32.gguf" --adapter "$work/adapter.gguf")" "$wanted" "a GGUF adapter on a GGUF base"
refused "goes with a GGUF base; for" fedlora eval --base "$base" --adapter "$work/adapter.gguf" --data "$work/rows.jsonl"

# Other parts than A and B (tests/unit/adapted_peft.c has PEFT's numbers).
for one in resized-tied dora; do
  for to in peft merged; do
    fedlora export "$root/tests/golden/peft/$one" --as $to --base "$base" -o "$work/$one-$to" >"$work/log" 2>&1 ||
      fail_with "$work/log" "export of $one"
  done
  whole=$(loss --base "$base" --adapter "$root/tests/golden/peft/$one")
  near "$(loss --base "$base" --adapter "$work/$one-peft")" "$whole" "$one as PEFT"
  near "$(loss --base "$work/$one-merged")" "$whole" "$one merged"
  refused "holds only A and B" fedlora export "$root/tests/golden/peft/$one" --as gguf --base "$base" -o "$work/x"
  refused "not supported here" fedlora train --base "$base" --adapter "$root/tests/golden/peft/$one" \
    --data "$work/rows.jsonl" -o "$work/x" --steps 1
done

sed 's/"base_model_name_or_path": .*/"base_model_name_or_path": null,/' "$work/peft/adapter_config.json" >"$work/config"
cp "$work/config" "$work/peft/adapter_config.json"
refused "expected --base" fedlora export "$work/peft" --as gguf -o "$work/none.gguf"
refused "exists already" fedlora export "$work/adapter" --as peft -o "$work/peft"
refused "give only one" fedlora export "$work/adapter" --as peft -o "$work/x" --rank 1 --error 0.1
refused "as in the base" fedlora export "$work/adapter" --as merged --base "$root/tests/models/qwen3" -o "$work/x"
[ ! -e "$work/x" ] && [ ! -e "$work/none.gguf" ] || fail "a refused export left something"

# fedsa: the state of a run with one member, and the factors that this member keeps, are its model.
"$programs/fedlora" simulate --base "$base" --data "$work/rows.jsonl" --test "$work/rows.jsonl" --clients 1 --rounds 2 \
  --method fedsa --rank 3 --steps 6 --batch 2 --lr 0.05 --precision f32 --quiet -o "$work/sim" >"$work/log" 2>&1 ||
  fail_with "$work/log" "simulate fedsa"
wanted=$(tail -1 "$work/sim/rounds.jsonl" | python3 -c 'import json, sys; print(json.load(sys.stdin)["loss"])')
state=$(python3 -c 'import json; print(json.load(open("'"$work"'/sim/result.json"))["state_file"])')
fedlora export "$state" --as peft -o "$work/own" --kept "$work/sim/kept/m1" >"$work/log" 2>&1 ||
  fail_with "$work/log" "export --kept"
near "$(loss --base "$base" --adapter "$work/own")" "$wanted" "a member's own model"
python3 -c "raise SystemExit($plain - $wanted < 0.1)" || fail "fedsa trained little: $plain to $wanted"
