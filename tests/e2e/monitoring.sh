#!/usr/bin/env bash
# The files made from the tables of metrics and alerts are those of the repository, every alert has a test in
# tests/support/alerts_test.yml, and Prometheus' own tool accepts and runs both.
# Release only: the programs are tested under the sanitizers elsewhere.
set -uo pipefail
. "$(dirname "$0")/../support/e2e.sh"
cd "$root"

# made OPTION FILE: the file is what the program prints, or has it as a part.
made() {
  "$programs/fedlorad" metrics "$1" >"$work/made" || fail "fedlorad metrics $1"
  case "$2" in
    *.md) python3 -c 'import sys; sys.exit(open(sys.argv[1]).read() not in open(sys.argv[2]).read())' "$work/made" "$2" ;;
    *) cmp -s "$work/made" "$2" ;;
  esac || fail "$2 is not the current output of fedlorad metrics $1"
}
made --rules deploy/prometheus/fedlora.rules.yml
made --dashboard deploy/grafana/fedlora.json
made --table docs/monitoring.md
made --alerts docs/monitoring.md
python3 -m json.tool deploy/grafana/fedlora.json >/dev/null || fail "the dashboard is no JSON"
expect_refusal 2 "expected one of --rules" "$programs/fedlorad" metrics
expect_refusal 2 "expected one of --rules" "$programs/fedlorad" metrics --rules --table

# An alert without a test that makes it fire would be an alert that nobody has seen.
for alert in $(sed -n 's/.*- alert: //p' deploy/prometheus/fedlora.rules.yml); do
  grep -A1 "alertname: $alert\$" tests/support/alerts_test.yml | grep -q exp_alerts || fail "$alert has no test that fires"
done

command -v promtool >/dev/null || skip "promtool (package prometheus) is not installed: rules were not tried"
promtool check rules deploy/prometheus/fedlora.rules.yml >"$work/said" 2>&1 || fail_with "$work/said" "the rules are wrong"
promtool test rules tests/support/alerts_test.yml >"$work/said" 2>&1 || fail_with "$work/said" "an alert is wrong"
echo "monitoring: passed"
