#!/usr/bin/env bash
# A first simulation: makes a small base and data in simulation/, lets 100 members train in virtual time, and writes
# simulation/result/report.html. Needs build/release/fedlora (deploy/demo.sh or README.md build it) and no network.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=${FEDLORA_BUILD_DIR:-$root/build/release}/fedlora
[ -x "$program" ] || { echo "$program is missing: build Fedlora first, see README.md" >&2; exit 2; }
[ -e simulation/rows.jsonl ] || python3 "$root/deploy/simulate_data.py" simulation
"$program" simulate "$root/deploy/simulate.ini" -o simulation/result "$@"
