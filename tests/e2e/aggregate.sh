#!/usr/bin/env bash
# fedlora aggregate and fedlora basis from the command line: adapters of different ranks become one, a cut loses as
# much as it reports, and wrong uses are refused without output. tests/oracle/peft_cat.py compares with PEFT.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

golden=$root/tests/golden/agg
fedlora() { "$programs/fedlora" "$@" --threads 1 --quiet; }
# refused TEXT COMMAND...: fails unless the command ends with status 2, a message with TEXT, and no output.
refused() {
  local text=$1 status=0
  shift
  "$@" -o "$work/not" >/dev/null 2>"$work/said" || status=$?
  [ $status -eq 2 ] || fail_with "$work/said" "$*: status $status, expected 2"
  grep -qF -- "$text" "$work/said" || fail_with "$work/said" "$*: said nothing like \"$text\""
  [ -z "$(find "$work" -maxdepth 1 -name 'not*')" ] || fail "$*: left an output"
}
# field NAME: prints the field of the JSON in $work/result.
field() { python3 -c "import json,sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])" "$work/result" "$1"; }
holds() { python3 -c "raise SystemExit(not ($1))" || fail "$2: $1"; }

fedlora aggregate "$golden"/{a,b,c} --weights 5,2,3 -o "$work/all" --verify --json >"$work/result"
holds "$(field relative_error) < 1e-6" "the exact sum"
holds "$(field verified_relative_error) < 1e-6" "recomputed densely"
rank=$(field rank_most)
fedlora inspect "$work/all" >/dev/null

fedlora aggregate "$golden"/{a,b,c} --weights 50,20,30 -o "$work/again" >/dev/null
cmp "$work/all/adapter_model.safetensors" "$work/again/adapter_model.safetensors" || fail "another unit of weights, other bytes"

fedlora aggregate "$golden"/{a,b,c} --rank 3 -o "$work/three" --verify --json >"$work/result"
holds "$(field rank_most) == 3 < $rank" "cut to rank 3"
holds "0 < $(field relative_error) < 1 and abs($(field relative_error) / $(field verified_relative_error) - 1) < 0.01" "what rank 3 cost"
fedlora aggregate "$golden"/{a,b,c} --bytes 10kB -o "$work/small" >/dev/null
size=$(stat -c %s "$work/small/adapter_model.safetensors")
holds "$size < 10000 + 6000" "10 kB of factors and a header"

status=0
fedlora aggregate "$golden/a" -o "$work/all" 2>"$work/said" || status=$?
[ $status -eq 2 ] && grep -q "exists already" "$work/said" || fail_with "$work/said" "an existing output: status $status"
refused "give only one" fedlora aggregate "$golden/a" --rank 3 --error 0.1
refused "expected 2 numbers" fedlora aggregate "$golden"/{a,b} --weights 1
refused "weight 0" fedlora aggregate "$golden"/{a,b} --weights 1,0
refused "unknown method; did you mean flora" fedlora aggregate --method flra "$golden/a"
refused "a server optimizer needs the rounds of a run" fedlora aggregate --option server=fedavgm "$golden"/{a,b}
refused "fed-sb combines small matrices between frozen factors" fedlora aggregate --method fed-sb "$golden"/{a,b}
refused "no PEFT adapter" fedlora aggregate "$golden/a" "$golden"
refused "needs one scale" fedlora aggregate --method fedit "$golden"/{a,b}
mkdir "$work/dora"
sed 's/"use_dora": false/"use_dora": true/' "$golden/a/adapter_config.json" >"$work/dora/adapter_config.json"
cp "$golden/a/adapter_model.safetensors" "$work/dora"
refused "is missing (use_dora)" fedlora aggregate "$golden/b" "$work/dora"
peft=$root/tests/golden/peft tiny=$root/tests/models/llama
refused "expected --base" fedlora aggregate "$peft/dora" "$peft/plain"
fedlora aggregate "$peft"/{dora,dora2,plain} --base "$tiny" -f -o "$work/dora-mean" --verify --json >"$work/result"
holds "$(field verified_relative_error) < 1e-6" "the mean of DoRA adapters"
refused "is a GGUF adapter: expected --base" fedlora aggregate "$peft/plain.gguf"
fedlora aggregate "$peft"/plain{,.gguf} --weights 1,-1 --base "$tiny" -o "$work/none" --verify --json >"$work/result"
holds "$(field norm) == 0 and $(field rank_most) == 1" "an adapter minus itself, in two formats"
refused 'base_model_name_or_path "qwen3", but ' fedlora aggregate "$peft"/{plain,vocabulary}
fedlora aggregate "$peft"/{resized,resized} -o "$work/resized" --verify --json >"$work/result"
holds "$(field verified_relative_error) < 1e-6" "adapters with saved embeddings"

# broken NAME SED: adapter a with its configuration changed.
broken() {
  mkdir "$work/$1"
  sed "$2" "$golden/a/adapter_config.json" >"$work/$1/adapter_config.json"
  cp "$golden/a/adapter_model.safetensors" "$work/$1"
}
broken rank-zero 's/"r": 4/"r": 0/'
refused "r: 0" fedlora aggregate "$golden/b" "$work/rank-zero"
broken rank-huge 's/"r": 4/"r": 5000/'
refused "r: 5000" fedlora aggregate "$golden/b" "$work/rank-huge"
broken alpha-zero 's/"lora_alpha": 8/"lora_alpha": 0/'
refused "lora_alpha 0, expected a number above zero" fedlora aggregate "$golden/b" "$work/alpha-zero"
broken pissa 's/"init_lora_weights": true/"init_lora_weights": "pissa"/'
refused 'init_lora_weights "pissa"' fedlora aggregate "$golden/b" "$work/pissa"
broken head 's/"modules_to_save": null/"modules_to_save": ["o_proj"]/'
refused 'has no tensor of modules_to_save ["o_proj"]' fedlora aggregate "$golden/b" "$work/head"
broken nan ''
printf '\0\0\300\177' | dd of="$work/nan/adapter_model.safetensors" bs=1 conv=notrunc status=none \
  seek=$(($(stat -c %s "$work/nan/adapter_model.safetensors") - 4))
refused "is NaN, expected finite numbers" fedlora aggregate "$golden/b" "$work/nan"
broken cut ''
truncate -s -100 "$work/cut/adapter_model.safetensors"
refused "$work/cut/adapter_model.safetensors" fedlora aggregate "$golden/b" "$work/cut"
fedlora aggregate "$golden"/{a,b,a} -o "$work/twice" --json >"$work/result"
norm=$(field norm)
fedlora aggregate "$golden"/{a,b} --weights 2,1 -o "$work/weighed" --json >"$work/result"
holds "abs($norm / $(field norm) - 1) < 1e-12" "one adapter twice is one of twice the weight"
fedlora aggregate "$golden"/{a,a,b,b,c} --compare --option robust=geometric -o "$work/compared" --json >"$work/result"
holds "0.1 < $(field cosine_mean) < 0.3" "two of ten pairs are the same adapter"
fedlora aggregate "$golden"/{a,b,c} --stack -o "$work/stack" --verify --json >"$work/result"
holds "$(field verified_relative_error) < 1e-6" "the stack"
fedlora aggregate "$golden"/{a,b,c} --method flexlora -o "$work/flex" --verify --json >"$work/result"
holds "$(field rank_most) == 9" "flexlora keeps the largest rank"
fedlora aggregate "$golden"/{a,b,c} --method florist --option energy=0.8 -o "$work/florist" --json >"$work/result"
holds "0.05 < $(field relative_error) < 0.2 ** 0.5" "florist's energy"

base=$root/tests/models/llama
fedlora basis --base "$base" --rank 8 -o "$work/basis" --json >"$work/result"
digest=$(field digest)
[ ${#digest} -eq 64 ] || fail "basis: digest $digest"
fedlora basis --base "$base" --rank 8 -o "$work/basis2" >/dev/null
cmp "$work/basis" "$work/basis2" || fail "the basis is not the same twice"
refused "target nothing" fedlora basis --base "$base" --targets nothing
