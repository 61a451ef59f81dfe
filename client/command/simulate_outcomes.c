/* The tables of a sweep on the terminal, and the same as JSON. */
#include "client/command/simulate_sweep.h"
#include "client/output/report.h"
#include "client/output/table.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

/* ---- for people ---- */

/* The table has one row for each setting, so that the seeds of a setting are one number with its
 * spread; then the reference lines, which have no traffic and no virtual time of interest. The rows
 * of single cells are in results.csv and in the page. */

/* Means of cells that are not finished would be those of other rounds, so only finished ones
 * count, and the second column says how many there are. */
static err group_row(struct table *t, const struct outcomes *o, size_t group, const bool *shown)
{
    char text[OUTCOME_TEXT_BYTES];
    size_t cells = 0, finished = 0;
    for (size_t i = 0; i < o->count; i++) {
        const struct outcome *c = &o->one[i];
        if (c->group != group) continue;
        cells++;
        finished += outcome_finished(c);
    }
    TRY(table_cell(t, "%s", o->group[group]));
    TRY(table_cell(t, "%zu of %zu", finished, cells));
    for (enum outcome_figure f = 0; f < OUTCOME_FIGURES; f++) {
        const struct outcome_mean m = outcomes_mean(o, group, f);
        if (!shown[f]) continue;
        outcome_text(text, &m, f, "+-");
        TRY(table_cell(t, "%s", *text ? text : "-"));
    }
    return ERR_NONE;
}

static err reference_row(struct table *t, const struct outcomes *o, enum reference_kind kind,
                         const bool *shown)
{
    char text[OUTCOME_TEXT_BYTES];
    const struct outcome_mean own[] = {[OUTCOME_LOSS] = outcomes_reference(o, kind, false),
                                       [OUTCOME_ACCURACY] = outcomes_reference(o, kind, true)};
    if (!own[OUTCOME_LOSS].count) return ERR_NONE;
    TRY(table_cell(t, "%s", reference_names[kind]));
    TRY(table_cell(t, "%zu", own[OUTCOME_LOSS].count));
    for (enum outcome_figure f = 0; f < OUTCOME_FIGURES; f++) {
        if (!shown[f]) continue;
        text[0] = 0;
        if (f <= OUTCOME_ACCURACY) outcome_text(text, &own[f], f, "+-");
        TRY(table_cell(t, "%s", *text ? text : "-"));
    }
    return ERR_NONE;
}

/* Failed cells are never left out, and neither is the reason why a cell ended early. */
static void print_notes(const struct outcomes *o)
{
    for (size_t i = 0; i < o->count; i++) {
        const struct outcome *c = &o->one[i];
        if (c->status == OUTCOME_DONE) continue;
        printf("cell %zu  %s: %s%s%s\n", i + 1, c->label, outcome_statuses[c->status],
               *c->note ? ": " : "", c->note);
    }
    printf("%zu cell%s: %zu done, %zu stopped early, %zu failed, %zu missing; mean +- standard "
           "deviation over seeds\n",
           o->count, o->count == 1 ? "" : "s", outcomes_with(o, OUTCOME_DONE),
           outcomes_with(o, OUTCOME_STOPPED), outcomes_with(o, OUTCOME_FAILED),
           outcomes_with(o, OUTCOME_MISSING));
}

/* Columns without any value are left out: most sweeps have no privacy, or no held-out rows. */
static err print_table(const struct outcomes *o)
{
    const char *head[OUTCOME_FIGURES + 3] = {"setting", "cells"};
    char align[OUTCOME_FIGURES + 3] = "lr";
    bool shown[OUTCOME_FIGURES];
    size_t columns = 2;
    struct table t;
    outcomes_columns(shown, o);
    for (enum outcome_figure f = 0; f < OUTCOME_FIGURES; f++) {
        if (!shown[f]) continue;
        head[columns] = outcome_heading(f);
        align[columns++] = 'r';
    }
    table_begin(&t, align);
    err e = table_row(&t, head);
    for (size_t i = 0; i < o->groups && !err_is(e); i++)
        e = group_row(&t, o, i, shown);
    for (int i = 0; i < REFERENCE_KINDS && !err_is(e); i++)
        e = reference_row(&t, o, (enum reference_kind)i, shown);
    if (!err_is(e)) e = table_print(&t);
    table_close(&t);
    if (!err_is(e)) print_notes(o);
    return e;
}

/* ---- for programs ---- */

static const char *const figures[OUTCOME_FIGURES] = {
    "loss",       "accuracy_percent", "train_loss",   "error_percent",    "bytes_up",
    "bytes_down", "virtual_ms",       "members_loss", "worst_tenth_loss", "epsilon"};

static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

/* Keys are those of results.csv where both have the figure. NaN has no JSON, so it is null. */
static json_t *group_json(const struct outcomes *o, size_t group)
{
    json_t *all = json_pack("{s:s}", "setting", o->group[group]);
    for (int i = 0; i < OUTCOME_FIGURES; i++) {
        struct outcome_mean m = outcomes_mean(o, group, (enum outcome_figure)i);
        json_object_set_new(all, figures[i],
                            json_pack("{s:o,s:o,s:I}", "mean", number(m.mean), "sd", number(m.sd),
                                      "seeds", (json_int_t)m.count));
    }
    return all;
}

static json_t *references_json(const struct outcomes *o)
{
    json_t *all = json_object();
    for (int i = 0; i < REFERENCE_KINDS; i++) {
        struct outcome_mean m = outcomes_reference(o, (enum reference_kind)i, false);
        if (m.count)
            json_object_set_new(all, reference_names[i],
                                json_pack("{s:f,s:o,s:I}", "loss", m.mean, "sd", number(m.sd),
                                          "seeds", (json_int_t)m.count));
    }
    return all;
}

static json_t *cell_json(const struct outcome *c)
{
    json_t *all =
        json_pack("{s:s,s:s,s:s,s:s,s:I}", "label", c->label, "folder", c->dir, "status",
                  outcome_statuses[c->status], "note", c->note, "rounds", (json_int_t)c->rounds);
    for (int i = 0; i < OUTCOME_FIGURES; i++)
        json_object_set_new(all, figures[i], number(outcome_figure(c, (enum outcome_figure)i)));
    return all;
}

/* A document without memory for one part is refused as a whole by report_print(). */
err simulate_outcomes_print(const struct outcomes *o, bool json)
{
    if (!json) return print_table(o);
    json_t *settings = json_array(), *cells = json_array();
    for (size_t i = 0; i < o->groups; i++)
        json_array_append_new(settings, group_json(o, i));
    for (size_t i = 0; i < o->count; i++)
        json_array_append_new(cells, cell_json(&o->one[i]));
    return report_print(json_pack("{s:o,s:o,s:o}", "settings", settings, "references",
                                  references_json(o), "cells", cells),
                        &(struct report_options){.json = true});
}
