#!/usr/bin/env bash
# An older coordinator and older members are replaced in the middle of a run, which ends with the bytes it has without
# that; the older fedlorad refuses the new store, and goes on from the copy that the upgrade kept (docs/operating.md).
# Needs a build of an older version: FEDLORA_OLD_BUILD_DIR=/path/to/older/build/release
# Release only: the programs are tested under the sanitizers elsewhere.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"
old=${FEDLORA_OLD_BUILD_DIR:-}
[ -n "$old" ] || skip "FEDLORA_OLD_BUILD_DIR does not name a build of an older version"
new=$programs
"$old/fedlorad" --version && "$new/fedlorad" --version

members=(ann bob) member_list=ann,bob rounds=8
python3 "$root/tests/e2e/tiny.py" model "$work/base"
for i in 0 1; do python3 "$root/tests/e2e/tiny.py" rows "$work/${members[$i]}.jsonl" --seed $((i + 1)) --rows 8; done
make_certs "${members[@]}"
digest=$("$old/fedlora" inspect "$work/base" --json | report field digest)

create() {
  admin create r --method flora --rounds $rounds --members $member_list --base-digest "$digest" --targets q,v \
    --steps 60 --batch 4 --seq 32 --lr 1e-3 --seed 1 --precision f32 --rank 2 --alpha 4 >>"$work/admin.log" 2>&1 ||
    fail_with "$work/admin.log" "create"
}
# join DIR ID: starts the member; its process is joined[ID].
declare -A joined
join() {
  join_member r "$2" "$1" --base "$work/base" --data "$work/$2.jsonl"
  joined[$2]=$last_child
}
finish() { # DIR
  local id
  for id in "${members[@]}"; do wait_within 120 "${joined[$id]}" "$id" "$work/$id.log"; done
  admin export r -o "$1/r.safetensors" >>"$work/admin.log" 2>&1 || fail_with "$work/admin.log" "export"
  stop_coordinator
}

# ---- the run without any upgrade, by the older version
programs=$old
start_coordinator "$work/alone"
create
for id in "${members[@]}"; do join "$work/alone" "$id"; done
finish "$work/alone"

# ---- upgrade: the coordinator in round 2, one member in round 5
start_coordinator "$work/up"
create
for id in "${members[@]}"; do join "$work/up" "$id"; done
wait_for_round r 2
stop_coordinator
programs=$new
start_coordinator "$work/up"
grep -q "event=store.migrated" "$work/fedlorad.log" || fail_with "$work/fedlorad.log" "no line of the migration"
copy=$(ls "$work/up/store"/fedlora.db.v*)
mkdir "$work/down"
cp "$copy" "$work/down/copy"
wait_for_round r 5
kill -KILL "${joined[bob]}"
wait "${joined[bob]}" 2>/dev/null || true
join "$work/up" bob
finish "$work/up"
cmp "$work/alone/r.safetensors" "$work/up/r.safetensors" || fail "other bytes after an upgrade"

# ---- downgrade, with the steps of the page
expect_refusal 2 "made by a newer fedlorad" "$old/fedlorad" --config "$work/up/fedlorad.ini"
cp -a "$work/up/store" "$work/down/store"
sed "s|^path = .*|path = $work/down/store|" "$work/up/fedlorad.ini" >"$work/down/fedlorad.ini"
(cd "$work/down/store" && rm -f fedlora.db-wal fedlora.db-shm && cp -p "$(basename "$copy")" fedlora.db)
cmp "$work/down/copy" "$work/down/store/fedlora.db" || fail "the copy was changed later"
"$old/fedlorad" --config "$work/down/fedlorad.ini" --accept-copy >"$work/said" || fail_with "$work/said" "--accept-copy"
programs=$old
start_coordinator "$work/down"
admin status r >"$work/said" || fail_with "$work/said" "the run of the copy"
stop_coordinator
