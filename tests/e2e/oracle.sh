#!/usr/bin/env bash
# Runs tests/oracle/*.py, which compare with Hugging Face PEFT, by the Python FEDLORA_ORACLE_PYTHON or python3.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export FEDLORA_BUILD_DIR=${FEDLORA_BUILD_DIR:-$root/build/release}
python=${FEDLORA_ORACLE_PYTHON:-python3}
passed=0 skipped=""
for script in "$root"/tests/oracle/*.py; do
  name=$(basename "$script")
  if [ "$name" = oracle.py ]; then continue; fi
  status=0
  said=$("$python" "$script" 2>&1) || status=$?
  case $status in
    0) passed=$((passed + 1)) ;;
    77) skipped="$name $(tail -1 <<<"$said")" ;;
    *) echo "$said"; echo "FAILED: $name"; exit 1 ;;
  esac
done
if [ $passed -eq 0 ]; then echo "${skipped:-no scripts}"; exit 77; fi
