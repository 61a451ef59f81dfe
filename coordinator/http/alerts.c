#include "coordinator/http/alerts.h"

/* Expressions join series by `instance`, so that one Prometheus can watch several coordinators. No
 * expression has a quote ', because the rules are written inside such quotes. */
const struct alerts_row alerts_rows[] = {
    {"FedloraDown", "up{job=\"fedlora\"} == 0 or fedlora_ready == 0", "2m", "page",
     "{{ $labels.instance }} cannot be reached or is not ready",
     "ask `/readyz` for the reason; look at the log"},
    {"FedloraRunStuck",
     "time() - fedlora_run_progress_timestamp_seconds > 6*3600 and on(instance, run) "
     "fedlora_run_phase{phase=~\"waiting|training|aggregating\"} == 1",
     NULL, "page", "run {{ $labels.run }} has not moved for 6 hours",
     "`fedlora run status` says for whom it waits"},
    {"FedloraRunFailed", "fedlora_run_phase{phase=\"failed\"} == 1", NULL, "page",
     "run {{ $labels.run }} has failed",
     "`fedlora run status` has the reason; then `fedlora run resume`"},
    {"FedloraNoQuorum", "fedlora_run_round_overdue_seconds > 900", NULL, "warn",
     "run {{ $labels.run }}: the deadline has passed without a quorum",
     "find the members that are away, or lower the quorum by `fedlora run set`"},
    {"FedloraMemberAway", "time() - fedlora_member_seen_seconds > 3600", NULL, "warn",
     "{{ $labels.member }} has not called for an hour",
     "ask its administrator for the output of `fedlora doctor`"},
    /* Certificates of operators are good for some days only, and are renewed when they are used. */
    {"FedloraCertificateEnds",
     "fedlora_certificate_not_after_seconds{role!=\"admin\"} - time() < 7*86400", NULL, "warn",
     "the certificate of {{ $labels.role }} {{ $labels.id }} ends in less than 7 days",
     "renew it; a member renews its own while `fedlora join` runs"},
    /* A slope over less than an hour says nothing, see facts_disk_days(). */
    {"FedloraDiskLow",
     "fedlora_store_free_bytes <= on(instance, job) 4*max by (instance, job) "
     "(fedlora_store_bytes{kind=\"states\"}) or (predict_linear(fedlora_store_free_bytes[6h], "
     "86400) < 0 and on(instance) time() - fedlora_start_time_seconds > 3600)",
     "15m", "warn", "the disk of {{ $labels.instance }} has room for few more rounds",
     "make room, or keep less (`[store]` in fedlorad.ini)"},
    {"FedloraDiskFull",
     "increase(fedlora_store_refusals_total[5m]) > 0 or fedlora_store_free_bytes == 0", NULL,
     "page", "the disk of {{ $labels.instance }} is full: uploads wait", "make room"},
    /* Kinds that no other alert is about. A full disk, which has its own, also stops the audit
     * log. */
    {"FedloraTrouble",
     "fedlora_troubles{kind=~\"audit.waits|blob.missing|log.lost|store.old_copy\"} > 0 unless "
     "on(instance) fedlora_store_free_bytes == 0",
     NULL, "page", "{{ $labels.instance }} has a trouble of its own: {{ $labels.kind }}",
     "`fedlora run list` prints the troubles in words"},
    {"FedloraBackupOld", "time() - fedlora_backup_timestamp_seconds > 36*3600", NULL, "warn",
     "the last backup of {{ $labels.instance }} is older than 36 hours",
     "look at the job that runs `fedlorad backup`"},
    {"FedloraUpdatesRefused", "increase(fedlora_updates_total{outcome=\"refused\"}[1h]) > 3", NULL,
     "warn", "run {{ $labels.run }}: several updates were refused in an hour",
     "`fedlora run status` names the members and the reasons"},
    {"FedloraBudgetNearlySpent", "fedlora_run_epsilon / fedlora_run_epsilon_budget > 0.9", NULL,
     "warn", "run {{ $labels.run }} has spent more than 90 % of its privacy budget",
     "the run stops when the budget is spent; plan its end"},
};
const size_t alerts_count = sizeof alerts_rows / sizeof *alerts_rows;

/* The texts hold no quote ', see above, so they need no escaping. */
err alerts_rules(struct bytes *out)
{
    TRY(bytes_printf(out,
                     "# Alerts on a coordinator. Made by `fedlorad metrics --rules`; the job of "
                     "its scrapes is called fedlora.\n"
                     "groups:\n  - name: fedlora\n    rules:\n"));
    for (size_t i = 0; i < alerts_count; i++) {
        const struct alerts_row *row = &alerts_rows[i];
        TRY(bytes_printf(out, "      - alert: %s\n        expr: '%s'\n", row->name,
                         row->expression));
        if (row->lasts) TRY(bytes_printf(out, "        for: %s\n", row->lasts));
        TRY(bytes_printf(out,
                         "        labels:\n          severity: %s\n"
                         "        annotations:\n          summary: '%s'\n"
                         "          action: '%s'\n",
                         row->severity, row->summary, row->todo));
    }
    return ERR_NONE;
}

/* A | would end the cell. */
static err cell(struct bytes *out, const char *text)
{
    for (; *text; text++)
        TRY(bytes_printf(out, *text == '|' ? "\\%c" : "%c", *text));
    return ERR_NONE;
}

err alerts_doc(struct bytes *out)
{
    TRY(bytes_printf(out, "| alert | severity | fires when | do this |\n"
                          "| --- | --- | --- | --- |\n"));
    for (size_t i = 0; i < alerts_count; i++) {
        const struct alerts_row *row = &alerts_rows[i];
        TRY(bytes_printf(out, "| `%s` | %s | `", row->name, row->severity));
        TRY(cell(out, row->expression));
        TRY(bytes_printf(out, "`%s%s | %s |\n", row->lasts ? " for " : "",
                         row->lasts ? row->lasts : "", row->todo));
    }
    return ERR_NONE;
}
