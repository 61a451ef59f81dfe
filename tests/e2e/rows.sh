#!/usr/bin/env bash
# Data files as people have them: the same rows as lines, as one list, compressed, and from CSV by the command that the
# refusal prints; and a run whose options of reading rows reach its member.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"
member_list=ann

python3 "$root/tests/e2e/tiny.py" model "$work/base" --vocab 482
cp "$root"/tests/golden/tokenizer/smollm2/*.json "$work/base"
cat >"$work/rows.csv" <<'CSV'
prompt,completion
"it is ","the end"
"one, ""two"" wo","rd"
CSV
cat >"$work/rows.jsonl" <<'ROWS'
{"prompt": "it is ", "completion": "the end", "hash": 18446744073709551615}
{"prompt": "one, \"two\" wo", "completion": "rd", "hash": NaN}
ROWS
(echo '['; sed '$!s/$/,/' "$work/rows.jsonl"; echo ']') >"$work/rows.json"
gzip -c "$work/rows.json" >"$work/rows.json.gz"

# evaluated FILE OPTION...: loss and learned tokens.
evaluated() {
  local data=$1
  shift
  "$programs/fedlora" eval --base "$work/base" --data "$data" --precision f32 --no-accuracy --json -q "$@" \
    >"$work/eval.json" 2>"$work/eval.log" || fail_with "$work/eval.log" "eval $data"
  python3 -c 'import json,sys; d = json.load(open(sys.argv[1])); print(d["loss"], d["tokens"])' "$work/eval.json"
}
lines=$(evaluated "$work/rows.jsonl")
[ "$(evaluated "$work/rows.json")" = "$lines" ] || fail "a list is read otherwise than lines"
[ "$(evaluated "$work/rows.json.gz")" = "$lines" ] || fail "a compressed list is read otherwise than lines"
expect_refusal 2 "is a CSV file" "$programs/fedlora" eval --base "$work/base" --data "$work/rows.csv"
command=$(sed 's/.*convert it: //; s/ IN > OUT.jsonl//' "$work/said")
sh -c "$command '$work/rows.csv'" >"$work/converted.jsonl"
[ "$(evaluated "$work/converted.jsonl")" = "$lines" ] || fail "the converted CSV file has other rows"

# Messages with a template of another family: shown by tokenize and train, and refused by the line of the template.
chat='[{"role": "user", "content": "it is"}, {"role": "assistant", "content": "the end"}]'
printf '{"messages": %s}\n' "$chat" >"$work/chat.jsonl"
echo '{% for m in messages %}{{ m.role ~ ":" ~ m.content | trim ~ eos_token }}{% endfor %}{{ "assistant:" if add_generation_prompt }}' \
  >"$work/own.jinja"
shown=$("$programs/fedlora" tokenize --base "$work/base" --chat --template "$work/own.jinja" --show -- "$chat")
[ "$shown" = "user:it is<|im_end|>assistant:⟦the end<|im_end|>⟧" ] || fail "tokenize --show: $shown"
"$programs/fedlora" train --base "$work/base" --data "$work/chat.jsonl" --template "$work/own.jinja" --show-rows 1 --steps 1 \
  --rank 1 -o "$work/shown" >"$work/train.log" 2>&1 || fail_with "$work/train.log" "train --show-rows"
grep -qF "assistant:⟦the end<|im_end|>⟧" "$work/train.log" || fail_with "$work/train.log" "the row is not shown"
printf 'x\n{%% include "y" %%}' >"$work/bad.jinja"
expect_refusal 2 "line 2: the statement \"include\" is not supported" "$programs/fedlora" eval --base "$work/base" \
  --data "$work/chat.jsonl" --template "$work/bad.jinja"

# The member evaluates the state, which hardly differs from the base, on rows that are read as the run says.
split=$(evaluated "$work/rows.jsonl" --bos --boundary split)
[ "$split" != "$lines" ] || fail "the options change nothing"
make_certs ann
start_coordinator "$work/coordinator"
admin create rows --method fedit --rounds 1 --members ann --rank 2 --seed 1 --precision f32 --steps 1 --lr 1e-9 \
  --base-digest "$("$programs/fedlora" inspect "$work/base" --json | report field digest)" --bos --boundary split \
  >"$work/admin.log" 2>&1 || fail_with "$work/admin.log" "create"
join_member rows ann "$work" --base "$work/base" --data "$work/rows.jsonl" --eval-data "$work/rows.jsonl"
wait_within 60 "$last_child" ann "$work/ann.log"
admin status rows --json >"$work/status.json"
python3 - "$work/status.json" "$split" <<'PY' || fail "the member read its rows otherwise than the run says"
import json, sys
found = json.load(open(sys.argv[1]))["history"][-1]["eval_loss"]
sys.exit(abs(found - float(sys.argv[2].split()[0])) > 1e-5)
PY
stop_coordinator
echo "rows: passed"
