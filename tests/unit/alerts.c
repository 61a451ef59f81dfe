/* Alerts and the dashboard name metrics of the table only. e2e/monitoring.sh lets each alert
 * fire. */
#include "coordinator/http/alerts.h"
#include "coordinator/http/metrics.h"

#include <criterion/criterion.h>
#include <ctype.h>
#include <stdio.h>
#include <string.h>

static bool is_metric(const char *word, size_t size)
{
    static const char *const ends[] = {"", "_bucket", "_sum", "_count"};
    for (size_t i = 0; i < metrics_count; i++) {
        size_t parts = metrics_rows[i].kind == METRICS_HISTOGRAM ? 4 : 1;
        for (size_t k = 0; k < parts; k++) {
            char name[128];
            int n = snprintf(name, sizeof name, "%s%s", metrics_rows[i].name, ends[k]);
            if ((size_t)n == size && !memcmp(name, word, size)) return true;
        }
    }
    return false;
}

/* Each word that begins like a metric of ours. */
static void expect_metrics(const char *expression, const char *of)
{
    for (const char *at = expression; (at = strstr(at, "fedlora_"));) {
        size_t size = 0;
        while (isalnum((unsigned char)at[size]) || at[size] == '_')
            size++;
        cr_expect(is_metric(at, size), "%s: there is no metric %.*s", of, (int)size, at);
        at += size;
    }
}

Test(alerts, name_metrics_of_the_table)
{
    for (size_t i = 0; i < alerts_count; i++)
        expect_metrics(alerts_rows[i].expression, alerts_rows[i].name);
    for (size_t i = 0; i < metrics_count; i++)
        if (metrics_rows[i].panel) expect_metrics(metrics_rows[i].query, metrics_rows[i].panel);
}

/* `kind=~"a|b"` in an expression names troubles, which may get other names. */
Test(alerts, name_troubles_that_there_are)
{
    size_t found = 0;
    for (size_t i = 0; i < alerts_count; i++) {
        const char *at = strstr(alerts_rows[i].expression, "fedlora_troubles{kind=~\"");
        if (!at) continue;
        for (at = strchr(at, '"') + 1; *at != '"'; at += *at == '|') {
            size_t size = strcspn(at, "|\""), is = 0;
            for (int k = 0; k < TROUBLE_KINDS; k++) {
                const char *name = trouble_name((enum trouble_kind)k);
                is += strlen(name) == size && !memcmp(name, at, size);
            }
            cr_expect_eq(is, 1, "there is no trouble %.*s", (int)size, at);
            at += size;
            found++;
        }
    }
    cr_expect_gt(found, 0);
}

Test(alerts, are_complete_and_safe_inside_the_quotes_of_yaml)
{
    for (size_t i = 0; i < alerts_count; i++) {
        const struct alerts_row *row = &alerts_rows[i];
        const char *const texts[] = {row->name, row->expression, row->summary, row->todo};
        for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
            cr_assert_not_null(texts[k], "%s", row->name);
            cr_expect(!strchr(texts[k], '\'') && !strchr(texts[k], '\n'), "%s", texts[k]);
        }
        cr_expect(!strcmp(row->severity, "page") || !strcmp(row->severity, "warn"));
        for (size_t k = 0; k < i; k++)
            cr_expect_str_neq(row->name, alerts_rows[k].name);
    }
}

Test(alerts, have_a_panel_with_all_its_parts_or_none)
{
    for (size_t i = 0; i < metrics_count; i++) {
        const struct metrics_row *row = &metrics_rows[i];
        bool any = row->panel || row->query || row->legend || row->unit;
        bool all = row->panel && row->query && row->legend && row->unit;
        cr_expect_eq(any, all, "%s", row->name);
    }
}
