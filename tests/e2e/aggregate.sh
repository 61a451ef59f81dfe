#!/usr/bin/env bash
# fedlora aggregate and fedlora basis from the command line: adapters of different ranks become one, cuts cost
# what they say, and wrong uses are refused with nothing written. (tests/oracle/peft_cat.py: the same as PEFT.)
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

golden=$root/tests/golden/agg
fedlora() { "$programs/fedlora" "$@" --threads 1 --quiet; }
# refused TEXT COMMAND...: with status 2 and such a message, and no output left.
refused() {
  local text=$1 status=0
  shift
  "$@" -o "$work/not" >/dev/null 2>"$work/said" || status=$?
  [ $status -eq 2 ] || fail_with "$work/said" "$*: status $status, expected 2"
  grep -qF -- "$text" "$work/said" || fail_with "$work/said" "$*: said nothing like \"$text\""
  [ ! -e "$work/not" ] || fail "$*: left an output"
}
# field NAME: of the JSON in $work/result.
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
refused "give one" fedlora aggregate "$golden/a" --rank 3 --error 0.1
refused "expected 2 numbers" fedlora aggregate "$golden"/{a,b} --weights 1
refused "weight 0" fedlora aggregate "$golden"/{a,b} --weights 1,0
refused "no such method; did you mean flora" fedlora aggregate --method flra "$golden/a"
refused "a server optimizer goes on from round to round" fedlora aggregate --option server=fedavgm "$golden"/{a,b}
refused "fed-sb combines small matrices between frozen factors" fedlora aggregate --method fed-sb "$golden"/{a,b}
refused "no PEFT adapter" fedlora aggregate "$golden/a" "$golden"
refused "needs one scale" fedlora aggregate --method fedit "$golden"/{a,b}
mkdir "$work/dora"
sed 's/"use_dora": false/"use_dora": true/' "$golden/a/adapter_config.json" >"$work/dora/adapter_config.json"
cp "$golden/a/adapter_model.safetensors" "$work/dora"
refused "DoRA" fedlora aggregate "$golden/b" "$work/dora"

base=$root/tests/models/llama
fedlora basis --base "$base" --rank 8 -o "$work/basis" --json >"$work/result"
digest=$(field digest)
[ ${#digest} -eq 64 ] || fail "basis: digest $digest"
fedlora basis --base "$base" --rank 8 -o "$work/basis2" >/dev/null
cmp "$work/basis" "$work/basis2" || fail "the basis is not the same twice"
refused "target nothing" fedlora basis --base "$base" --targets nothing
