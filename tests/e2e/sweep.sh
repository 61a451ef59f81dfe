#!/usr/bin/env bash
# A sweep of fedlora simulate: a product of lists with settings for some cells, resume of what is missing, cells that
# fail or stop early, single cells in processes at the same time, and the report from files alone.
# Release only: simulate.sh runs the same code under the sanitizers.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"
cd "$work"

simulate() { "$programs/fedlora" simulate "$@" --precision f32 --quiet; }
# fails STATUS TEXT OPTIONS...: fails unless the command ends with this status and a message with TEXT.
fails() {
  local expected=$1 text=$2 status=0
  shift 2
  simulate "$@" >out 2>said || status=$?
  [ $status -eq "$expected" ] || fail_with said "simulate $*: status $status, expected $expected"
  grep -qF -- "$text" said || fail_with said "simulate $*: said nothing like \"$text\""
}
# csv FILE EXPRESSION: prints the value of a Python expression about the rows x of a CSV file.
csv() { python3 -c "import csv,sys; x=list(csv.DictReader(open(sys.argv[1]))); print($2)" "$1"; }
holds() { [ "$(csv "$1" "$2")" = True ] || fail_with "$1" "$1: not $2"; }
state() { python3 -c "import json,sys; print(json.load(open(sys.argv[1]))['last']['state'])" "$1/result.json"; }

python3 "$root/tests/e2e/tiny.py" model base
python3 "$root/tests/e2e/tiny.py" rows rows.jsonl --seed 1 --rows 40
python3 "$root/tests/e2e/tiny.py" rows test.jsonl --seed 1 --rows 8
cat >lab.ini <<'END'
[data]
train = rows.jsonl
test = test.jsonl
[fleet]
members = 3
[run]
base = base
rank = 2
rounds = 3
targets = q,v
[train]
steps = 2
batch = 2
lr = 1e-2
[sweep]
run.method = flora, fed-sb, fedit ; a comment
run.seed = 1, 2
[when run.method=fed-sb]
train.lr = 4e-2
run.rank = 4
[when run.method=fedit run.seed=2]
run.rounds = 2
END

# The product, with the settings of some cells; the files; and nothing left to do.
simulate lab.ini >out
[ "$(ls lab/cells)" = "$(printf '%s\n' fed-sb_seed-{1,2} fedit_seed-{1,2} flora_seed-{1,2})" ] || fail "other cells"
holds lab/results.csv '[r["rounds"] for r in x] == ["3", "3", "3", "3", "3", "2"] and all(r["status"] == "done" for r in x)'
holds lab/results.csv '[(r["run.method"], r["run.seed"]) for r in x][:3] == [("flora", "1"), ("flora", "2"), ("fed-sb", "1")]'
holds lab/results.csv 'all(float(r["loss"]) < 4.3 for r in x) and len({r["state"] for r in x}) == 6'
holds lab/results.csv 'float(x[0]["error_percent"]) < 0.1 < float(x[4]["error_percent"])'
grep -q "^lr = 0.04$" lab/cells/fed-sb_seed-1/run.ini || fail_with lab/cells/fed-sb_seed-1/run.ini "no own lr"
grep -q "^lr = 0.01$" lab/cells/flora_seed-1/run.ini || fail_with lab/cells/flora_seed-1/run.ini "another lr"
grep -qE "^method=fed-sb +2 of 2 +[0-9.]+ \+- [0-9.]+ " out || fail_with out "no mean over seeds"
python3 - <<'END' || fail_with out "another mean or standard deviation"
import csv, re, statistics
loss = [float(r["loss"]) for r in csv.DictReader(open("lab/results.csv")) if r["run.method"] == "flora"]
mean, sd = re.search(r"^method=flora +2 of 2 +([0-9.]+) \+- ([0-9.]+)", open("out").read(), re.M).groups()
assert f"{statistics.mean(loss):.4f}" == mean and f"{statistics.stdev(loss):.4f}" == sd
END
find lab -name result.json -exec stat -c "%n %Y %i" {} + | sort >before
cp lab/results.csv first.csv
simulate lab.ini >out
find lab -name result.json -exec stat -c "%n %Y %i" {} + | sort | cmp - before || fail "a finished cell was run again"
cmp first.csv lab/results.csv || fail "the results have changed"

# One cell again by its own file, and exactly what is missing. The whole sweep in two processes at the same time.
simulate lab/cells/fed-sb_seed-2/run.ini --run lab -o again >out
[ "$(state again)" = "$(state lab/cells/fed-sb_seed-2)" ] || fail "run.ini does not repeat its cell"
rm -rf lab/cells/flora_seed-2 lab/cells/fedit_seed-1/result.json
simulate lab.ini >out
cmp first.csv lab/results.csv || fail "the missing cells have other results"
for cell in 1 2 3 4 5 6; do
  spawn "cell$cell.log" "$programs/fedlora" simulate lab.ini --precision f32 --quiet -o array --cell $cell
done
wait
simulate lab.ini -o array >out
cmp first.csv array/results.csv || fail "cells in processes of their own have other results"

# A failed cell is shown, the others run, and the next call tries it again and nothing else.
sed 's/^run.method = .*/data.train = none.jsonl, rows.jsonl/; /^\[when/,$d; s/^rank = 2/rank = 2\nmethod = fedit/' lab.ini >bad.ini
fails 1 "1 of 2 cells failed" bad.ini --set run.seed=1 -o bad
grep -q "^cell 1  train=none.jsonl seed=1: failed: .*none.jsonl" out || fail_with out "the table does not show the error"
holds bad/results.csv '[r["status"] for r in x] == ["failed", "done"] and "none.jsonl" in x[0]["note"]'
grep -q "none.jsonl: No such file" bad/report.html || fail_with bad/report.html "the page does not show the error"
cp rows.jsonl none.jsonl
simulate bad.ini --set run.seed=1 -o bad >out
holds bad/results.csv '[r["status"] for r in x] == ["done", "done"] and x[0]["state"] == x[1]["state"]'

# Cells that stop early say so, also after an interruption between the round and the end.
simulate bad.ini --seeds 1 --stop "loss < 9" -o stop >out
grep -q "stopped early: loss [0-9.]* < 9 after round 1" out || fail_with out "no reason for the early end"
holds stop/results.csv 'all(r["status"] == "stopped early" and r["rounds"] == "1" for r in x)'
rm stop/cells/*/result.json
simulate bad.ini --seeds 1 --stop "loss < 9" -o stop >out
holds stop/results.csv 'all(r["status"] == "stopped early" and r["rounds"] == "1" for r in x)'

# Bands over the seeds, links to the cells' own pages, and commands to repeat them.
[ "$(grep -o '<polygon' lab/report.html | wc -l)" -ge 9 ] || fail_with lab/report.html "no bands"
grep -q 'href="cells/flora_seed-1/report.html"' lab/report.html || fail "no link to a cell's page"
grep -q "fedlora simulate lab/cells/fedit_seed-2/run.ini --run lab -o repeated" lab/report.html || fail "no command"
grep -q "fedlora simulate again/run.ini --run lab -o repeated" again/report.html || fail "no command of one simulation"

# The event files for TensorBoard, read by a parser of their format.
python3 - <<'END' || fail "another event file"
import glob, json, struct

def crc(data):
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF

def fields(data):
    at = 0
    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
    found = []
    while at < len(data):
        key = varint()
        size = {0: 0, 1: 8, 5: 4}.get(key & 7)
        size = varint() if size is None else size
        found.append((key >> 3, varint() if key & 7 == 0 else data[at:at + size]))
        at += size
    return found

[path] = glob.glob("lab/tb/fedit_seed-1/*tfevents*")
data, at, events = open(path, "rb").read(), 0, []
while at < len(data):
    size, check = struct.unpack_from("<QI", data, at)
    event = data[at + 12:at + 12 + size]
    assert check == crc(data[at:at + 8]) and struct.unpack_from("<I", data, at + 12 + size)[0] == crc(event)
    events.append(fields(event))
    at += size + 16
assert events[0][1] == (3, b"brain.Event:2")
rounds = [json.loads(line) for line in open("lab/cells/fedit_seed-1/rounds.jsonl")]
assert len(events) == 1 + len(rounds) == 4
for event, row in zip(events[1:], rounds):
    event = dict(event)
    values = {tag.decode(): struct.unpack("<f", x)[0] for (_, tag), (_, x) in
              (fields(value) for _, value in fields(event[5]))}
    assert event[2] == row["round"] and abs(struct.unpack("<d", event[1])[0] - row["virtual_s"]) < 2e-3
    assert abs(values["test/loss"] - row["loss"]) < 1e-5 and values["sent/up_bytes"] == row["bytes_up"]
END

# Rows that members hold out are not trained on; fedlora eval measures the same losses. All rows of a member are equal,
# so it does not matter which ones it holds out.
mkdir same
for i in 1 2 3; do
  for _ in 1 2 3 4 5 6 7 8; do sed -n ${i}p rows.jsonl; done >same/m$i.jsonl
done
simulate lab.ini --data same --set run.method=flora --set run.seed=1 --held-out 25% -o fair >out
cell=fair/cells/flora_seed-1
python3 - $cell <<'END' || fail_with $cell/members.csv "other members"
import csv, json, statistics, sys
rows = list(csv.DictReader(open(sys.argv[1] + "/members.csv")))
assert [(r["member"], r["rows"]) for r in rows] == [("m1", "2"), ("m2", "2"), ("m3", "2")]
assert {r["examples"] for r in csv.DictReader(open(sys.argv[1] + "/updates.csv"))} == {"6"}
loss = [float(r["loss"]) for r in rows]
members = json.load(open(sys.argv[1] + "/result.json"))["members"]
assert members["measured"] == 3 and abs(members["loss"]["mean"] - statistics.mean(loss)) < 1e-6
assert abs(members["loss"]["worst_tenth"] - max(loss)) < 1e-6
assert abs(members["loss"]["sd"] - statistics.stdev(loss)) < 1e-6
END
state_file=$(python3 -c "import json; print(json.load(open('$cell/result.json'))['state_file'])")
for i in 1 2 3; do
  "$programs/fedlora" eval --base base --data same/m$i.jsonl --state "$state_file" --precision f32 --quiet --json >evaluated
  python3 -c "
import csv, json
rows = list(csv.DictReader(open('$cell/members.csv')))
assert abs(float(rows[$i - 1]['loss']) - json.load(open('evaluated'))['loss']) < 1e-5" || fail_with evaluated "another loss of m$i"
done
grep -q "Loss of the last state on each member" $cell/report.html || fail "no bars of the members"

# Reference lines: the base model as fedlora eval measures it, and pooled data and members alone as simulations of one
# member have them.
mkdir parts one
sed -n 1,12p rows.jsonl >parts/m1.jsonl
sed -n 13,20p rows.jsonl >parts/m2.jsonl
sed -n 21,40p rows.jsonl >parts/m3.jsonl
cat >>lab.ini <<'END'
[reference]
base = yes
pooled = yes
alone = yes
END
simulate lab.ini --data parts --set run.method=flora,ffa --set run.seed=1,2 -o lines >out
[ "$(ls lines/reference)" = "$(printf '%s\n' flora_seed-{1,2})" ] || fail "not the references of the first setting"
"$programs/fedlora" eval --base base --data test.jsonl --precision f32 --quiet --json >evaluated
lone() { # lone NAME STEPS FILE...: the loss of one member with these rows; learning_rate: 1e-2 unless set
  local name=$1 steps=$2
  shift 2
  rm -rf one && mkdir one && cat "$@" >one/"$name".jsonl
  simulate lines/cells/flora_seed-1/run.ini --no-reference-base --no-reference-pooled --no-reference-alone --data one \
    --run lab --method fedit --steps "$steps" --lr "${learning_rate:-1e-2}" -o "lone-$name${learning_rate:-}" >/dev/null
  python3 -c "import json; print(json.load(open('lone-$name${learning_rate:-}/result.json'))['last']['loss'])"
}
losses="$(lone pooled 6 parts/m1.jsonl parts/m2.jsonl parts/m3.jsonl) $(lone m1 2 parts/m1.jsonl) \
$(lone m2 2 parts/m2.jsonl) $(lone m3 2 parts/m3.jsonl)"
python3 - $losses <<'END' || fail_with lines/reference/flora_seed-1/reference.json "other references than $losses"
import json, sys
pooled, *alone = map(float, sys.argv[1:])
found = json.load(open("lines/reference/flora_seed-1/reference.json"))
assert abs(found["base"]["loss"] - json.load(open("evaluated"))["loss"]) < 1e-6
assert abs(found["pooled"]["loss"] - pooled) < 1e-9
assert abs(found["alone"]["loss"] - sum(alone) / 3) < 1e-9 and abs(found["worst"]["loss"] - max(alone)) < 1e-9
END
grep -qE "^pooled data +2 +[0-9.]+ \+- " out || fail_with out "no row of the pooled data"
grep -q ">worst member alone</text>" lines/report.html || fail "no line of the worst member"
# Reference lines with a learning rate of their own.
simulate lab.ini --data parts --set run.method=ffa --seeds 1 --no-reference-alone --reference-lr 5e-3 -o rate >out
learning_rate=5e-3 lone pooled 6 parts/m1.jsonl parts/m2.jsonl parts/m3.jsonl >rate.loss
python3 - <<'END' || fail_with rate/reference/ffa_seed-1/reference.json "not the loss of another learning rate"
import json
pooled = json.load(open("rate/reference/ffa_seed-1/reference.json"))["pooled"]["loss"]
before = json.load(open("lines/reference/flora_seed-1/reference.json"))["pooled"]["loss"]
assert abs(pooled - float(open("rate.loss").read())) < 1e-9 and pooled != before
END
fails 2 "--reference-lr has no effect" lab.ini --no-reference-pooled --no-reference-alone --reference-lr 1e-2 -o not
fails 2 "measured on --test, which is missing" lab.ini --test "" -o not

# The spectrum of the state: as many directions as the method can use, from 1 downwards.
python3 - <<'END' || fail_with lab/cells/flora_seed-1/result.json "another spectrum"
import json
for name, ranks in (("flora_seed-1", range(10, 19)), ("fed-sb_seed-1", range(1, 5)), ("fedit_seed-1", range(1, 3))):
    spectrum = json.load(open(f"lab/cells/{name}/result.json"))["spectrum"]
    assert spectrum[0] == 1 and spectrum == sorted(spectrum, reverse=True), name
    assert sum(s > 1e-6 for s in spectrum) in ranks, (name, spectrum)
END
grep -q "Spectrum of what the last state adds" lab/report.html lab/cells/flora_seed-1/report.html || fail "no spectrum"

# The report from files alone, of one folder and of several, and as JSON.
rm lab/report.html
"$programs/fedlora" simulate report lab again -o both.html >out
grep -q "^again  *1 of 1 " out || fail_with out "no row of the second folder"
"$programs/fedlora" simulate report lab --json >out
[ "$(python3 -c "import json; print(len(json.load(open('out'))['cells']))")" = 6 ] || fail_with out "not six cells"
[ -s lab/report.html ] || fail "no page"
! grep -qiE "<script|https?://[^w]" lab/report.html both.html || fail "the page needs a script or the network"

# The split of one cell.
"$programs/fedlora" simulate split lab.ini --cell 2 --set run.seed=5,6 --write split >/dev/null
"$programs/fedlora" simulate split lab/cells/flora_seed-1/run.ini --set run.seed=6 --write split2 >/dev/null
diff -r split split2 || fail "--set has no effect on a split"

fails 2 "holds a sweep with other settings" lab.ini --rounds 4
fails 2 "--seed has no effect, because the sweep has a list of run.seed" lab.ini --seed 3 -o not
fails 2 "--cell 7: the sweep has 6 cells" lab.ini --cell 7 -o not
fails 2 "--cell has no effect without a sweep" lab/cells/flora_seed-1/run.ini --cell 7 -o not
fails 2 "cell 1 (method=flora seed=1) and 5 more: unknown key run.metod" lab.ini --set run.metod=x -o not
# All cells that the coordinator would refuse, before the first one runs; --cell looks at its own.
sed 's/^run.method = .*/run.method = flora, fedit, fed-sb, nix/; /^\[when run.method=fedit/,$d' lab.ini >wrong.ini
printf 'run.members = m1:rslora=yes\n[when run.method=fedit]\nrun.rank = 0\nfleet.ranks = 2,4\n' >>wrong.ini
fails 2 "6 of 8 cells are refused, and none was run" wrong.ini -o not
for text in 'cell 3 (method=fedit seed=1) and 1 more: method fedit needs the run' \
  'cell 5 (method=fed-sb seed=1) and 1 more: member m1: method fed-sb trains at the state' \
  'cell 7 (method=nix seed=1) and 1 more: method "nix" is not known'; do
  grep -qF "$text" said || fail_with said "does not say: $text"
done
fails 2 "cell 4 (method=fedit seed=2): method fedit needs the run's rank" wrong.ini --cell 4 -o not
fails 2 "expected a rule such as" lab.ini --stop "loss = 3" -o not
# A single simulation begins anew with other settings.
fails 2 "holds a simulation with other data or options" lab/cells/flora_seed-1/run.ini --run lab -o again --rounds 1
simulate lab/cells/flora_seed-1/run.ini --run lab -o again --rounds 1 --force >out
[ "$(wc -l <again/rounds.jsonl)" -eq 1 ] || fail_with again/rounds.jsonl "--force has left old rounds"
fails 2 "begins all cells anew" lab.ini --force --cell 1
[ ! -e not ] || fail "a refused sweep left a folder"
"$programs/fedlora" simulate lab.ini --rounds 1 --set run.method=flora --set run.seed=1 --precision f32 --force >out 2>said
grep -qF "[when run.method=fed-sb] applies to no cell" said || fail_with said "no note on a section without cells"
holds lab/results.csv '[r["rounds"] for r in x] == ["1"]'
[ "$(ls lab/cells)" = flora_seed-1 ] || fail "--force has left old cells"
echo "sweep: passed"
