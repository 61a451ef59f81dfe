#!/usr/bin/env bash
# fedlora simulate plan: its bytes and times equal what a simulation of the same options reports, for every method and
# with slow, late and lost clients; the table, JSON, and refusals.
# Release only: simulate.sh runs the same code under the sanitizers.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"
cd "$work"

simulate() { "$programs/fedlora" simulate "$@"; }
python3 "$root/tests/e2e/tiny.py" model base
python3 "$root/tests/e2e/tiny.py" rows rows.jsonl --seed 1 --rows 60
mkdir alone
cp base/config.json alone

# compare RULE NAME OPTIONS...: simulates and plans; RULE is == or, where the carry's rank depends on values, <=.
compare() {
  local rule=$1 name=$2
  shift 2
  simulate "$@" "${common[@]}" --run "$name" -o "$name" --quiet >out 2>said || fail_with said "simulate $*"
  # The weights are not read, so a copy of config.json alone gives the same figures.
  simulate plan "$@" "${common[@]}" --base alone --run "$name" --quiet --json >"$name.plan" 2>said ||
    fail_with said "simulate plan $*"
  python3 - "$name" "$rule" <<'PY' || fail_with "$name.plan" "plan and simulation of $name differ"
import json, sys
name, rule = sys.argv[1:]
last = [json.loads(line) for line in open(name + "/rounds.jsonl")][-1]
plan = json.load(open(name + ".plan"))["methods"][0]
keys = ["bytes_up", "bytes_down", "virtual_s"]
have, want = [last[k] for k in keys], [plan[k] for k in keys]
if rule == "==" and have == want or rule == "<=" and plan["at_most"] and all(a <= b for a, b in zip(have, want)):
    sys.exit(0)
print(name, keys, "simulated", have, "planned", want, file=sys.stderr)
sys.exit(1)
PY
}
common=(--base base --data rows.jsonl --clients 6 --rounds 3 --steps 1 --batch 2 --precision f32 --targets q,v
  --workers 2 --jitter 0.3 --class 'quick:share=50%:speed=2000:up=1Mbit:down=10Mbit'
  --class 'slow:share=50%:speed=50:up=100kbit:down=1Mbit')
for method in fed-sb fedit fedsa hetlora ffa rolora lora-fair fedsvd flexlora; do
  compare == "$method" --method "$method" --rank 4
done
for method in flora florist fedex; do compare '<=' "$method" --method "$method" --rank 4; done
compare == ranks --method hetlora --rank 4 --ranks 2,4 --alpha 7.5 --rslora
compare == exact --method flora --ranks 2,4 --carry-error 0 --rounds 2
compare == basis --method ffa --rank 4 --ranks 2,3 --option basis=gradient --rounds 4
compare == own --method fed-sb --rank 40 --members m1:rank=8:targets=q,m2:rank=3 --option server=fedavgm
compare == lost --method fedit --rank 4 --quorum 3 --deadline 1s
compare == late --method fedit --rank 4 --quorum 3 --deadline 2s --late next --rounds 5
compare == early --method fedit --rank 4 --quorum 3 --rounds 4
compare == cohort --method fed-sb --rank 4 --cohort 3 --over-select 1 --rounds 4
compare '<=' drawn --method flora --ranks 2,4 --cohort 2 --carry-error 0 --rounds 4
compare == buffer --method fedit --rank 4 --cohort 4 --quorum 2 --late-rounds 2 --rounds 5
compare == vanish --method fedit --rank 4 --vanish 0.5 --quorum 2 --deadline 2s --rounds 5 --seed 4
compare == flip --method fed-sb --rank 4 --attack 'sign-flip 34%' --vanish 0.2 --quorum 3 --rounds 4
compare == crash --method fed-sb --rank 4 --crash 0.3

# Several methods: a row for each that the coordinator would accept, and the reason for each other one.
simulate plan "${common[@]}" --ranks 2,4 --methods all >out 2>said
grep -qE '^flora +[0-9]+ - [0-9]+ ' out || fail_with out "no row of flora with a range of ranks"
grep -q '^fedit: refused: method fedit needs the run.s rank' out || fail_with out "no reason for fedit"
simulate plan "${common[@]}" --rank 4 --methods fed-sb --quiet >out
grep -q 'frozen factors, fetched once, have' out || fail_with out "does not say what published tables leave out"

# The memory of a class: the plan says who cannot train, and the simulation refuses before it makes a folder.
small=(--base base --data rows.jsonl --clients 6 --rounds 2 --steps 1 --batch 2 --rank 4 --method fedit --precision f32
  --class 'site:share=50%:memory=1GB' --class 'phone:share=50%')
simulate plan "${small[@]}" --quiet >out
needs=$(simulate plan "${small[@]}" --quiet --json | python3 -c \
  "import json, sys; print(json.load(sys.stdin)['methods'][0]['classes'][1]['memory_bytes'])")
grep -qE '^fedit +site +3 +[0-9.]+ [kM]B +1.0 GB +0$' out || fail_with out "the plan does not say that sites can train"
small[-1]="phone:share=50%:memory=$((needs - 1))"
simulate plan "${small[@]}" --quiet >out
grep -qE '^fedit +phone +3 .* 3$' out || fail_with out "the plan does not say that phones cannot train"
expect_refusal 2 "class phone: 3 of 3 clients cannot train" simulate "${small[@]}" -o small
[ ! -e small ] || fail "a refused simulation left a folder"
small[-1]="phone:share=50%:memory=$needs"
simulate "${small[@]}" -o small --quiet >out 2>said || fail_with said "enough memory was refused"

# Without rows each counts as --seq tokens.
simulate plan --base alone/config.json --method fedit --rank 4 --rounds 2 --steps 3 --batch 2 --seq 64 --json >out 2>said
[ "$(python3 -c "import json; print(json.load(open('out'))['methods'][0]['tokens'])")" = $((10 * 2 * 3 * 2 * 64)) ] ||
  fail_with out "other tokens"
grep -q 'every row counts as 64 tokens' said || fail_with said "does not say how rows are counted"

refused() { expect_refusal "1 2" "$1" simulate "${@:2}"; } # TEXT OPTIONS...
refused "--steps is missing" plan --base alone --method fedit --rank 4 --rounds 2
refused "--methods: \"fedlt\" is not a method; did you mean fedit?" plan --base alone --methods fedit,fedlt --rank 4 --rounds 2 --steps 1
refused "--method is missing" plan --base alone --rank 4 --rounds 2 --steps 1
refused "target \"x\" names no module" plan --base alone --method fedit --targets x --rank 4 --rounds 2 --steps 1
refused "has no tokenizer" plan --base alone --method fedit --rank 4 --rounds 2 --data "$root/README.md"
refused "--methods has no effect without simulate plan" "${common[@]}" --method fedit --rank 4 --methods all
refused "can never close" plan --base alone --method fedit --rank 4 --rounds 2 --steps 1 --class 'all:drop=90%'
refused "--data is missing" --base base --method fedit --rank 4 --rounds 1
echo "simulate_plan: passed"
