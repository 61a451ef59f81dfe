#!/usr/bin/env bash
# --device cuda on the shim: it trains and evaluates; a missing GPU, an old driver, a wrong number, too little memory and
# a failure in the middle of training end with one line and no adapter; only auto then takes the CPU, and says so.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

shim=$programs/libfedlora_cuda_on_cpu.so
[ -e "$shim" ] || skip "this build has no $(basename "$shim")"
python3 - "$work/rows.jsonl" <<'PYTHON'
import json, sys
with open(sys.argv[1], "w", encoding="utf-8") as file:
    for i in range(6):
        ids = [3 + (7 * i + 5 * k) % 37 for k in range(12 + i)]
        file.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
PYTHON

# train NAME OPTION...: the exit status; output in $work/NAME.log, the adapter in $work/NAME
train() {
  local name=$1
  shift
  FEDLORA_CUDA=$shim "$programs/fedlora" train --base "$root/tests/models/llama" --data "$work/rows.jsonl" -o "$work/$name" \
    --rank 4 --targets q,v --steps 3 --batch 2 --no-eos --seed 1 --quiet --json "$@" >"$work/$name.json" 2>"$work/$name.log"
}
refused() { # NAME STATUS TEXT OPTION...: one line with TEXT, no adapter
  local name=$1 status=$2 text=$3 got=0
  shift 3
  train "$name" "$@" || got=$?
  [ "$got" = "$status" ] || fail_with "$work/$name.log" "$name: status $got, expected $status"
  [ "$(wc -l <"$work/$name.log")" = 1 ] || fail_with "$work/$name.log" "$name: not one line"
  grep -q "$text" "$work/$name.log" || fail_with "$work/$name.log" "$name: does not say: $text"
  [ ! -e "$work/$name" ] || fail "$name: left an adapter"
}

train gpu --device cuda --precision f32 || fail_with "$work/gpu.log" "training on the shim"
train cpu --device cpu --precision f32 || fail_with "$work/cpu.log" "training on the CPU"
python3 - "$work/gpu.json" "$work/cpu.json" <<'PYTHON' || fail "the losses differ"
import json, sys
gpu, cpu = (json.load(open(path, encoding="utf-8")) for path in sys.argv[1:])
assert gpu["device"] == "cuda" and cpu["device"] == "cpu"
assert abs(gpu["loss_last"] / cpu["loss_last"] - 1) < 1e-5, (gpu["loss_last"], cpu["loss_last"])
PYTHON

refused number 2 'cuda:7: this machine has 2 GPUs' --device cuda:7
SHIM_DEVICES=0 refused none 1 'no GPU' --device cuda
SHIM_DEVICES=-1 refused driver 1 'driver' --device cuda
SHIM_MEMORY=1000000 refused memory 1 'out of memory' --device cuda
SHIM_MEMORY=33700000 refused plan 1 '2 x [0-9]* tokens need .* are free: no smaller batch fits' --device cuda
SHIM_FAULT=malloc:20 refused malloc 1 'out of memory' --device cuda
SHIM_FAULT=launch:20 refused launch 1 'cuda:0' --device cuda
SHIM_FAULT=kernel:100 refused kernel 1 'cuda:0' --device cuda
SHIM_FAULT=graph:1 refused graph 1 'running a recorded pass' --device cuda

# A pass that CUDA does not record runs directly and gives the same bytes.
SHIM_FAULT=capture:1 train unrecorded --device cuda --precision f32 || fail_with "$work/unrecorded.log" "without a record"
cmp "$work/gpu/adapter_model.safetensors" "$work/unrecorded/adapter_model.safetensors" || fail "the record changes bytes"

# Example-level privacy: in bf16 if the rows of all products are independent, else refused; float32 is then offered.
(umask 077 && openssl genpkey -algorithm ed25519 -out "$work/key" 2>/dev/null)
private=(--device cuda --privacy example --epsilon 40 --noise 1 --delta 1e-3 --sampling 0.5 --ledger-key "$work/key")
train private "${private[@]}" --precision bf16 --ledger "$work/ledger" || fail_with "$work/private.log" "private training in bf16"
grep -q '"precision":"BF16"' "$work/private.json" || fail_with "$work/private.json" "not bf16"
SHIM_PRODUCTS=10 refused rows 2 'private training in bf16 on cuda: .*use --precision f32' "${private[@]}" --precision bf16 --ledger "$work/none"
SHIM_PRODUCTS=10 train float "${private[@]}" --ledger "$work/float.ledger" || fail_with "$work/float.log" "private training in f32"
SHIM_PRODUCTS=3 refused both 2 'private training in f32 on cuda: .*use --device cpu' "${private[@]}" --ledger "$work/none"

# doctor prints what private training would find.
while read -r products line; do
  SHIM_PRODUCTS=$products FEDLORA_CUDA=$shim "$programs/fedlora" doctor --device cuda >"$work/doctor.out" 2>&1 || true
  grep -q "rows alone *$line" "$work/doctor.out" || fail_with "$work/doctor.out" "doctor, SHIM_PRODUCTS=$products: not: $line"
done <<'LINES'
-1 f32: yes, bf16: yes
10 f32: yes, bf16: no
3 f32: no, bf16: no
LINES

# Several devices: the losses are those of one, apart from rounding.
train two --device cuda:0,cuda:1 --precision f32 || fail_with "$work/two.log" "training on two devices"
SHIM_DEVICES=3 train all --device cuda:all --precision f32 || fail_with "$work/all.log" "training on all devices"
python3 - "$work/gpu.json" "$work/two.json" "$work/all.json" <<'PYTHON' || fail "the losses of several devices differ"
import json, sys
one, two, all = (json.load(open(path, encoding="utf-8")) for path in sys.argv[1:])
assert two["device"] == "cuda:0,cuda:1" and all["device"] == "cuda:0,cuda:1,cuda:2", (two["device"], all["device"])
for other in two, all:
    assert abs(other["loss_last"] / one["loss_last"] - 1) < 1e-5, (other["loss_last"], one["loss_last"])
PYTHON
refused twice 2 'device cuda:0,cuda:0: cuda:0 is named twice' --device cuda:0,cuda:0
refused missing 2 'cuda:5: this machine has 2 GPUs' --device cuda:1,cuda:5
refused mixed 2 'expected cpu, cuda, cuda:N, a list as cuda:0,cuda:1' --device cuda:0,cpu
SHIM_DEVICES=0 refused allnone 1 'no GPU' --device cuda:all
SHIM_FAULT=kernel:180 refused second 1 'cuda:[01]: ' --device cuda:0,cuda:1
refused privately 2 'example-level privacy uses one device' --device cuda:0,cuda:1 "${private[@]:2}" --ledger "$work/none"
FEDLORA_CUDA=$shim "$programs/fedlora" eval --base "$root/tests/models/llama" --data "$work/rows.jsonl" --no-eos --quiet \
  --device cuda:1,cuda:0 >"$work/eval.out" 2>&1 || fail_with "$work/eval.out" "eval with a list of devices"

SHIM_DEVICES=0 train auto --device auto || fail_with "$work/auto.log" "auto without a GPU"
grep -q '"device":"cpu"' "$work/auto.json" || fail_with "$work/auto.json" "auto did not take the CPU"
