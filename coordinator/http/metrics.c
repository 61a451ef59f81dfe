/* The text of /metrics. */
#include "coordinator/http/metrics.h"

#include "base/text.h"
#include "coordinator/http/escape.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *metrics_kind_name(enum metrics_kind kind)
{
    static const char *const name[] = {"gauge", "counter", "histogram"};
    return name[kind];
}

/* Names of runs and members are letters and digits, but a reason or a version may be anything, so
 * all values are escaped. */
static err labels(struct bytes *out, const struct metrics_row *row, const char *const *value)
{
    for (size_t i = 0; row->label[i]; i++) {
        TRY(bytes_printf(out, "%s%s=\"", i ? "," : "{", row->label[i]));
        TRY(escape_label(out, value[i]));
        TRY(bytes_printf(out, "\""));
    }
    return row->label[0] ? bytes_printf(out, "}") : ERR_NONE;
}

/* 15 digits keep counters and times exact up to 2^49. A value that is not known is left out. */
err metrics_sample(struct metrics_out *out, double value, const char *const *label)
{
    if (isnan(value)) return ERR_NONE;
    TRY(bytes_printf(out->text, "%s", out->row->name));
    TRY(labels(out->text, out->row, label));
    return bytes_printf(out->text, " %.15g\n", value);
}

/* ---- the runs and members with series of their own */

/* An open run never loses its series to one that is over. */
static err choose_runs(struct metrics_out *out, const struct serve *s, struct arena *arena)
{
    size_t over = 0, newest = 0;
    TRY(arena_take(&out->run, arena, METRICS_RUNS, sizeof *out->run));
    for (const struct run *run = s->runs; run; run = run->next) {
        over += serve_is_over(run);
        if (!serve_is_over(run) && out->runs < METRICS_RUNS) out->run[out->runs++] = run;
    }
    /* The list is in order of creation: the last of those that are over are taken. */
    size_t room = METRICS_RUNS - out->runs, skip = over > room ? over - room : 0;
    for (const struct run *run = s->runs; run; run = run->next)
        if (serve_is_over(run) && newest++ >= skip) out->run[out->runs++] = run;
    return ERR_NONE;
}

/* By name and not by their last call, so that the same members have series in each scrape. */
static err choose_members(struct metrics_out *out, const struct serve *s, struct arena *arena)
{
    const struct option_list *all = &s->config->allowed;
    TRY(arena_take(&out->member, arena, all->count, sizeof *out->member));
    memcpy(out->member, all->item, all->count * sizeof *out->member);
    if (all->count) qsort(out->member, all->count, sizeof *out->member, text_order);
    out->members = all->count < METRICS_MEMBERS ? all->count : METRICS_MEMBERS;
    return ERR_NONE;
}

/* HELP and TYPE stand also where a metric has no sample now, so that a reader sees what there could
 * be. */
static err write_rows(struct metrics_out *out, const struct facts *f)
{
    for (size_t i = 0; i < metrics_count; i++) {
        const struct metrics_row *row = &metrics_rows[i];
        out->row = row;
        TRY(bytes_printf(out->text, "# HELP %s %s\n# TYPE %s %s\n", row->name, row->help, row->name,
                         metrics_kind_name(row->kind)));
        TRY(row->read(out, f));
    }
    return ERR_NONE;
}

/* The lists are chosen once, because every row must show the same runs: series of one run are
 * joined in alerts. */
err metrics_write(struct bytes *out, const struct facts *f)
{
    struct arena arena = {0};
    struct metrics_out to = {.text = out};
    err e = ERR_NONE;
    TRY_OUT(e, choose_runs(&to, f->serve, &arena));
    TRY_OUT(e, choose_members(&to, f->serve, &arena));
    TRY_OUT(e, write_rows(&to, f));
out:
    arena_close(&arena);
    return e;
}

/* In the order of the table, which groups what belongs together. */
err metrics_doc(struct bytes *out)
{
    TRY(bytes_printf(out, "| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n"));
    for (size_t i = 0; i < metrics_count; i++) {
        const struct metrics_row *row = &metrics_rows[i];
        TRY(bytes_printf(out, "| `%s` | %s |", row->name, metrics_kind_name(row->kind)));
        for (size_t k = 0; row->label[k]; k++)
            TRY(bytes_printf(out, "%s `%s`", k ? "," : "", row->label[k]));
        TRY(bytes_printf(out, " | %s |\n", row->help));
    }
    return ERR_NONE;
}
