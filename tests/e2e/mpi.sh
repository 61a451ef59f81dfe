#!/usr/bin/env bash
# fedlora-mpi: a simulation has the same state for any number of ranks, continues after a rank was lost, and names the
# rank whose base is another one.
# Release only: simulate.sh runs the same code under the sanitizers.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"
cd "$work"

[ -x "$programs/fedlora-mpi" ] || { echo "fedlora-mpi was not built: MPI is not installed, or a sanitizer is on"; exit 77; }
command -v mpirun >/dev/null || { echo "mpirun is not installed"; exit 77; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_btl=self,vader,tcp OMPI_MCA_btl_vader_single_copy_mechanism=none
mpi() { # RANKS COMMAND...
  timeout -k 5 120 mpirun -n "$@"
}

python3 "$root/tests/e2e/tiny.py" model base
python3 "$root/tests/e2e/tiny.py" rows rows.jsonl --seed 1 --rows 90
options=(--base base --data rows.jsonl --clients 9 --size-sigma 1 --rounds 3 --targets q,v --steps 3 --batch 4 --lr 1e-2
  --ranks 2,4,8 --precision f32 --seed 5 --workers 1 --quiet --json)
# same_state ONE TWO: fails unless two simulations ended with the same state.
same_state() {
  python3 -c '
import json, sys
one, two = ([json.loads(line) for line in open(f"{folder}/rounds.jsonl")][-1] for folder in sys.argv[1:])
assert len(one["state"]) == 64 and (one["round"], one["state"]) == (two["round"], two["state"]), (one, two)' "$1" "$2" ||
    fail "$1 and $2 end with different states"
}

for method in flora fed-sb; do
  rank=()
  [ $method = flora ] || rank=(--rank 4)
  "$programs/fedlora" simulate "${options[@]}" --method $method "${rank[@]}" -o alone-$method >/dev/null
  for ranks in 1 2 3; do
    mpi $ranks "$programs/fedlora-mpi" simulate "${options[@]}" --method $method "${rank[@]}" -o $method-$ranks >out 2>&1 ||
      fail_with out "$method on $ranks ranks: status $?"
    same_state alone-$method $method-$ranks
  done
done

# A rank that dies ends the job; the same command then continues, with the same bytes.
cat >dies <<END
#!/usr/bin/env bash
[ "\$OMPI_COMM_WORLD_RANK" = 0 ] || { sleep 1; kill -KILL \$\$; } &
exec "$programs/fedlora-mpi" "\$@"
END
chmod +x dies
long=("${options[@]}" --method flora --rounds 40)
if mpi 2 ./dies simulate "${long[@]}" -o lost >out 2>&1; then fail "a job whose rank was killed ended well"; fi
[ ! -e lost/result.json ] || fail "the job had ended before its rank was killed"
mpi 2 "$programs/fedlora-mpi" simulate "${long[@]}" -o lost >out 2>&1 || fail_with out "after a lost rank: status $?"
"$programs/fedlora" simulate "${long[@]}" -o whole >/dev/null
same_state lost whole

# Rank 1 finds another base under the same name.
mkdir elsewhere
python3 "$root/tests/e2e/tiny.py" model elsewhere/base --seed 9
cat >other <<END
#!/usr/bin/env bash
[ "\$OMPI_COMM_WORLD_RANK" = 0 ] || cd elsewhere
exec "$programs/fedlora-mpi" "\$@"
END
chmod +x other
if mpi 2 ./other simulate "${options[@]}" --method flora -o other-base >out 2>&1; then fail "two bases were accepted"; fi
grep -q "rank 1: base: is another base model than on rank 0" out || fail_with out "the rank with another base is not named"
echo "mpi.sh: passed"
