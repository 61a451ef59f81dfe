#!/usr/bin/env bash
# The command line: help, misspelled names, exit statuses, errors of one line, output files that are never partial or
# overwritten, JSON that parses, and an interrupt.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

fedlora=$programs/fedlora
# run STATUS COMMAND...: fails unless the command ends with STATUS; its output is in $work/out and $work/err.
run() {
  local wanted=$1 status=0
  shift
  timeout 120 "$@" >"$work/out" 2>"$work/err" </dev/null || status=$?
  [ "$status" -eq "$wanted" ] || fail_with "$work/err" "$*: status $status, expected $wanted"
}
# refused TEXT COMMAND...: fails unless the command ends with status 2, no output, and one line of error with TEXT.
refused() {
  local text=$1
  shift
  run 2 "$@"
  [ ! -s "$work/out" ] || fail_with "$work/out" "$*: wrote to standard output"
  [ "$(wc -l <"$work/err")" -eq 1 ] || fail_with "$work/err" "$*: expected one line"
  grep -qF -- "$text" "$work/err" || fail_with "$work/err" "$*: expected \"$text\""
  grep -q '^fedlora: ' "$work/err" || fail_with "$work/err" "$*: expected \"fedlora: ...\""
}
# holds EXPRESSION: in Python, where `d` is the JSON document on standard output.
holds() {
  python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); assert eval(sys.argv[2]), d' \
    "$work/out" "$1" || fail "not so: $1"
}
says() { grep -qE -- "$1" "$work/$2" || fail_with "$work/$2" "expected $1 on standard $2"; }

# ---- every command explains itself
run 0 "$fedlora" --version
says '^fedlora [0-9]+\.[0-9]+\.[0-9]+\+(g[0-9a-f]{9,}(\.dirty)?|unknown), store [0-9]+$' out
build=$(sed 's/^fedlora //' "$work/out")
run 0 "$fedlora"d --version
says "^fedlorad ${build//+/\\+}$" out
run 0 "$fedlora" --help
mapfile -t commands < <(sed -nE 's/^  ([a-z]+( [a-z]+)?)  +.*/\1/p' "$work/out")
[ ${#commands[@]} -ge 12 ] || fail "--help lists ${#commands[@]} commands"
for command in "${commands[@]}"; do
  read -ra words <<<"$command"
  run 0 "$fedlora" "${words[@]}" --help
  says "^fedlora $command: .+" out
  says "^usage: fedlora $command" out
  says '^example: fedlora ' out
  says '--json' out
  awk '/^ / && length($0) > 100 { exit 1 }' "$work/out" || fail "$command --help has a wide line"
  refused 'unknown option --jsno; did you mean --json?' "$fedlora" "${words[@]}" --jsno
done
refused 'unknown command trian; did you mean train?' "$fedlora" trian
refused 'unknown command simulat; did you mean simulate?' "$fedlora" simulat
refused 'did you mean create?' "$fedlora" run craete
run 0 "$fedlora" run --help
says 'run create' out

# ---- bad input is reported in one line, before any work
base=$work/base rows=$work/rows.jsonl
python3 "$root/tests/e2e/tiny.py" model "$base"
python3 "$root/tests/e2e/tiny.py" rows "$rows" --rows 12
train=("$fedlora" train --base "$base" --data "$rows" -o "$work/lora" --precision f32 --seq 32 --quiet)
refused '--base is missing' "$fedlora" train --data "$rows" -o "$work/x"
refused "$work/nothing" "$fedlora" eval --base "$work/nothing" --data "$rows"
refused 'nothing.jsonl: ' "$fedlora" eval --base "$base" --data "$work/nothing.jsonl"
refused '--rank: 0 is out of range: expected 1 to' "${train[@]}" --rank 0
refused '--lr: "fast" is not a number' "${train[@]}" --lr fast
refused 'did you mean cosine' "${train[@]}" --schedule cosin
refused 'exclude each other' "${train[@]}" --adapter a --state b
refused '--seq needs a value' "${train[@]}" --seq
refused 'cuda' "${train[@]}" --device cuda
refused 'unexpected argument "more"' "${train[@]}" more
refused 'folder' "${train[@]}" -o "$work/missing/lora"
refused 'target x: expected q' "${train[@]}" --targets q,x
sed '3s/.*/{"prompt": "half a row"}/' "$rows" >"$work/bad.jsonl"
refused 'bad.jsonl:3: ' "$fedlora" eval --base "$base" --data "$work/bad.jsonl"
sed '5s/.*/{"input_ids": [1,/' "$rows" >"$work/bad.jsonl"
refused 'bad.jsonl:5' "${train[@]}" --data "$work/bad.jsonl"
echo '{"text": "words"}' >"$work/bad.jsonl"
refused 'tokenizer' "${train[@]}" --data "$work/bad.jsonl"
sed 's/"hidden_size": *32/"hidden_size": 48/' "$base/config.json" >"$work/config" &&
  cp -r "$base" "$work/wrong" && cp "$work/config" "$work/wrong/config.json"
refused "$work/wrong" "$fedlora" inspect "$work/wrong"
head -c 3000 "$base/model.safetensors" >"$work/wrong/model.safetensors"
refused 'MetadataIncompleteBuffer' "$fedlora" inspect "$work/wrong/model.safetensors"
refused 'no such file' "$fedlora" inspect "$work/nothing"
refused 'expected a directory with config.json' "$fedlora" inspect "$work"

# ---- train, and its output files
run 0 "${train[@]}" --steps 6 --batch 4 --lr 1e-2 --rank 4 --alpha 8 --json --profile \
  --log "$work/steps.jsonl"
holds 'd["steps"] == 6 and d["loss_last"] < d["loss_first"] and len(d["profile"]) > 5'
python3 - "$work/steps.jsonl" <<'PY' || fail "the log is not as promised"
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
assert [row["step"] for row in rows] == list(range(6)), rows
assert all({"loss", "lr", "grad_norm", "tokens", "seconds"} <= row.keys() for row in rows), rows[0]
assert rows[0]["lr"] == 1e-2 and abs(rows[3]["lr"] - 0.5e-2) < 1e-9, [row["lr"] for row in rows]
PY
[ ! -s "$work/err" ] || fail_with "$work/err" "--quiet printed"
refused "$work/lora: exists already; --force replaces it" "${train[@]}" --steps 1
before=$(md5sum <"$work/lora/adapter_model.safetensors")
rm "$work/steps.jsonl"
run 0 "${train[@]}" --steps 6 --batch 4 --lr 1e-2 --rank 4 --alpha 8 --force --threads 1
[ "$before" = "$(md5sum <"$work/lora/adapter_model.safetensors")" ] ||
  fail "the same training gave other bytes"
run 0 "${train[@]}" --steps 6 --batch 4 --lr 1e-2 --rank 4 --alpha 8 --force --base-memory file
[ "$before" = "$(md5sum <"$work/lora/adapter_model.safetensors")" ] ||
  fail "training from the file gave other bytes"
refused 'did you mean file' "${train[@]}" --base-memory fil
run 0 "${train[@]}" --steps 6 --batch 4 --lr 1e-2 --rank 4 --alpha 8 --force --seed 1
[ "$before" != "$(md5sum <"$work/lora/adapter_model.safetensors")" ] ||
  fail "another seed gave the same bytes"
ls "$work" | grep -q '\.part' && fail "a part is left"
run 0 "${train[@]}" --steps 2 --adapter "$work/lora" -o "$work/more" --no-quiet
says '^training ' err

# ---- eval, inspect
run 0 "$fedlora" eval --base "$base" --data "$rows" --precision f32 --json --quiet
holds 'd["rows"] == 12 and d["tokens"] > 0 and "accuracy" not in d'
holds 'd["data"]["rows"] == 12 and d["data"]["learned"] == d["tokens"] and d["data"]["rows_unlearned"] == 0'
[ ! -s "$work/err" ] || fail_with "$work/err" "--quiet printed"
alone=$(report field loss <"$work/out")
run 0 "$fedlora" eval --base "$base" --adapter "$work/lora" --data "$rows" --precision f32 --json --quiet \
  --logits "$work/logits.safetensors" --per-row "$work/rows.out"
holds "d['loss'] < $alone"
for _ in 1 2; do echo '{"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}'; done >"$work/none.jsonl"
run 0 "$fedlora" eval --base "$base" --data "$work/none.jsonl" --json
holds 'd["loss"] is None and d["rows"] == 0 and d["tokens"] == 0 and d["data"]["rows_unlearned"] == 2'
says 'warning: .*none.jsonl:1: 2 of 2 rows have no token to learn and do not count' err
run 0 "$fedlora" eval --base "$base" --data "$work/none.jsonl" -q
says '^loss +none$' out
refused 'none.jsonl:1: none of the 2 rows has a token to learn: all labels are -100' \
  "${train[@]}" --data "$work/none.jsonl" -o "$work/x"
[ "$(wc -l <"$work/rows.out")" -eq 12 ] || fail "--per-row has not a line a row"
refused "$work/logits.safetensors: exists already" "$fedlora" eval --base "$base" --data "$rows" \
  --logits "$work/logits.safetensors"
run 0 "$fedlora" inspect "$work/logits.safetensors" --json
holds 'd["kind"] == "safetensors" and len(d["tensors"]) == 12 and d["tensors"][0]["shape"][1] == 64'
run 0 "$fedlora" inspect "$work/lora" --json
holds 'd["kind"] == "adapter" and d["module_count"] == 14 and d["rank_most"] == 4'
holds 'all(m["norm_change"] > 0 and m["scale"] == 2 for m in d["modules"])'
run 0 "$fedlora" inspect "$base" --json
holds 'd["kind"] == "base" and d["family"] == "llama" and d["layers"] == 2 and len(d["digest"]) == 64'
holds 'd["parameters"] == 2 * 64 * 32 + 32 + 2 * (2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)'
run 0 "$fedlora" inspect "$base"
says '^family +llama' out
run 0 "$fedlora" inspect "$root/tests/models/llama/q8_0.gguf" --json
holds 'd["format"] == "GGUF" and "general.architecture" in d["metadata"] and "Q8_0" in d["tensors_by_dtype"]'

# ---- an interrupt ends training within a moment, with status 130 and nothing half written
"${train[@]}" -o "$work/never" --steps 1000000 --log "$work/long.jsonl" >"$work/out" 2>"$work/err" &
long=$! tries=100
until [ -s "$work/long.jsonl" ]; do
  [ $((tries -= 1)) -gt 0 ] || fail "training did not start"
  sleep 0.1
done
kill -TERM $long
status=0
wait $long || status=$?
[ $status -eq 130 ] || fail_with "$work/err" "interrupted training ended with status $status, expected 130"
[ ! -e "$work/never" ] || fail "an interrupted training wrote its output"
says '^fedlora: interrupted' err

# ---- text: a small tokenizer alone, then a model with it
tokenizer=$root/tests/golden/tokenizer/gpt2
run 0 "$fedlora" tokenize --base "$tokenizer" --json "the cat" "" "sat on"
holds 'len(d) == 3 and d[1] == [] and all(isinstance(i, int) for i in d[0] + d[2])'
ids=$(python3 -c 'import json, sys; print(*json.load(open(sys.argv[1]))[0])' "$work/out")
# shellcheck disable=SC2086
run 0 "$fedlora" tokenize --base "$tokenizer" --decode $ids
says '^the cat$' out
printf '"the cat"\n\n"sat"\n' | "$fedlora" tokenize --base "$tokenizer" --json >"$work/out"
holds 'len(d) == 2'
status=0
printf '"the cat"\nbare words\n' | "$fedlora" tokenize --base "$tokenizer" --json >"$work/out" \
  2>"$work/err" || status=$?
[ $status -eq 2 ] || fail "a bare line: status $status, expected 2"
[ ! -s "$work/out" ] || fail "half a list was printed"
says '^fedlora: standard input:2' err
refused 'is not a token id' "$fedlora" tokenize --base "$tokenizer" --decode "1 two"
refused 'chat template' "$fedlora" tokenize --base "$tokenizer" --chat hello
refused 'is a JSON file, expected a safetensors file' "$fedlora" inspect "$tokenizer/tokenizer.json"

status=0 # 1 where it finds a problem with this machine
"$fedlora" doctor --json >"$work/out" 2>"$work/err" || status=$?
[ $status -le 1 ] || fail_with "$work/err" "doctor: status $status"
holds 'd["ok"] == (not d["problems"]) and "processor" in d["checks"] and d["checks"]["rows alone"].startswith("f32: yes, bf16: ")'
# The configuration file of join is also one of doctor.
printf '[join]\nbase = %s\ndata = %s/rows\nmemory = 2GB\n[privacy]\nepsilon = 4\n' "$tokenizer" "$work" >"$work/north.ini"
"$fedlora" doctor --config "$work/north.ini" --json >"$work/out" 2>"$work/err" && fail "doctor: there are no rows"
holds 'd["checks"]["join.base"] == "'"$tokenizer"'" and "join.data: No such file or directory" in d["problems"]'
sed -i 's/^memory/memori/' "$work/north.ini"
"$fedlora" doctor --config "$work/north.ini" --json >"$work/out" 2>"$work/err" && fail "doctor: a wrong key"
holds '"configuration: fedlora join cannot read it" in d["problems"] and "memori" in d["checks"]["configuration"]'
echo "the command line is as promised"

stories=$root/../shared/data/stories260k
[ -e "$stories/stories260K.bin" ] || exit 0
python3 "$root/tests/stories260k/convert.py" "$stories/stories260K.bin" "$stories/tok512.bin" "$work/stories"
run 0 "$fedlora" generate --base "$work/stories" --prompt "Once upon a time" --tokens 12 --precision f32 \
  --json
holds 'd["tokens"] == 12 and len(d["text"]) > 10'
text=$(report field text <"$work/out")
run 0 "$fedlora" generate --base "$work/stories" --prompt "Once upon a time" --tokens 12 --precision f32
[ "$text" = "$(cat "$work/out")" ] || fail "streamed text differs from the whole"
# This model was never trained on its end-of-sequence token: the row of that token in the head is almost zero.
for i in 1 2 3 4 5 6 7 8; do
  printf '{"prompt":"Name %d:","completion":" a cat"}\n' $i
done >"$work/cat.jsonl"
run 0 "$fedlora" train --base "$work/stories" --data "$work/cat.jsonl" -o "$work/cat" --steps 40 --lr 3e-3 \
  --precision f32 --quiet --no-eos
run 0 "$fedlora" eval --base "$work/stories" --adapter "$work/cat" --data "$work/cat.jsonl" --precision f32 \
  --json --quiet --no-eos
holds 'd["accuracy"] == 1 and d["completions"] == 8'
run 0 "$fedlora" eval --base "$work/stories" --data "$work/cat.jsonl" --precision f32 --json --quiet --no-eos
holds 'd["accuracy"] == 0'
# With the space in the prompt its token would hold the first letter of the answer too.
sed 's/:","completion":" /: ","completion":"/' "$work/cat.jsonl" >"$work/spaced.jsonl"
tokens() { # OPTION...
  run 0 "$fedlora" eval --base "$work/stories" --data "$work/spaced.jsonl" --no-accuracy --json --quiet "$@"
  report field tokens <"$work/out"
}
[ "$(tokens --boundary split)" -gt "$(tokens)" ] || fail "--boundary split learns no more than merge"
prompt() { # OPTION...
  run 0 "$fedlora" generate --base "$work/stories" --tokens 1 --json --quiet "$@"
  report field prompt_tokens <"$work/out"
}
n=$(prompt --prompt 'Once')
[ "$(prompt --bos --prompt 'Once')" = $((n + 1)) ] || fail "--bos puts no token before a prompt"
[ "$(prompt --bos --prompt '<s>Once')" = $((n + 1)) ] || fail "--bos puts a second token before a prompt"
