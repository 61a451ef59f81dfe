#!/usr/bin/env bash
# The short form of the attacks on a real coordinator (tests/attack/run.sh). The test programs of the attacks in C are
# tests of their own.
# Release only: each run takes many times as long; test_attack_rpc runs under the sanitizers.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"
FEDLORA_BUILD_DIR=$programs "$root/tests/attack/run.sh" kills syscalls flips
