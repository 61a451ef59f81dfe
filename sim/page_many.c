#include "sim/page_many.h"

#include "base/file.h"
#include "client/output/chart.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SPLIT_BYTES = 1 << 20 };

static const char style[] =
    "body{font:16px/1.5 sans-serif;color:#222;max-width:60rem;margin:0 auto;padding:1rem}"
    "h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}"
    "svg{width:100%;height:auto;box-sizing:border-box;border:1px solid #ddd;margin:.5rem 0}"
    "table{border-collapse:collapse;font-size:.9rem}.wide td,.wide th{white-space:nowrap}"
    ".wide td.text{white-space:normal;min-width:22rem;text-align:left}"
    ".wide td.text:empty{min-width:0}"
    "td,th{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child,.left{text-align:left}.bad{color:#b03a48}"
    ".wide{overflow-x:auto}@media(max-width:40rem){.wide "
    "svg{width:40rem}}pre{font-size:.8rem;overflow-x:auto}code{overflow-wrap:anywhere}"
    "@media print{svg{break-inside:avoid}}";

err page_begin(struct bytes *out, const char *title)
{
    return bytes_printf(out,
                        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
                        "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
                        "<title>%s</title><style>%s</style></head>\n<body>\n<h1>%s</h1>\n",
                        title, style, title);
}

err page_cell(struct bytes *out, const char *tag, const char *text)
{
    TRY(bytes_printf(out, "<%s>", tag));
    TRY(chart_text(out, text));
    return bytes_printf(out, "</%.*s>", (int)strcspn(tag, " "), tag);
}

/* ---- tables ---- */

#define PLUS_MINUS "\u00b1"

static err group_row(struct bytes *out, const struct outcomes *o, size_t group, const bool *shown)
{
    char text[OUTCOME_TEXT_BYTES];
    size_t cells = 0;
    for (size_t i = 0; i < o->count; i++)
        cells += o->one[i].group == group;
    TRY(bytes_printf(out, "<tr>"));
    TRY(page_cell(out, "td", o->group[group]));
    TRY(bytes_printf(out, "<td>%zu of %zu</td>", outcomes_mean(o, group, OUTCOME_UP).count, cells));
    for (enum outcome_figure f = 0; f < OUTCOME_FIGURES; f++) {
        const struct outcome_mean m = outcomes_mean(o, group, f);
        if (!shown[f]) continue;
        outcome_text(text, &m, f, PLUS_MINUS);
        TRY(page_cell(out, "td", text));
    }
    return bytes_printf(out, "</tr>\n");
}

static err reference_row(struct bytes *out, const struct outcomes *o, enum reference_kind kind,
                         const bool *shown)
{
    char text[OUTCOME_TEXT_BYTES];
    const struct outcome_mean own[] = {[OUTCOME_LOSS] = outcomes_reference(o, kind, false),
                                       [OUTCOME_ACCURACY] = outcomes_reference(o, kind, true)};
    if (!own[OUTCOME_LOSS].count) return ERR_NONE;
    TRY(bytes_printf(out, "<tr><td><em>%s</em></td><td>%zu</td>", reference_names[kind],
                     own[OUTCOME_LOSS].count));
    for (enum outcome_figure f = OUTCOME_LOSS; f <= OUTCOME_ACCURACY; f++) {
        if (!shown[f]) continue;
        outcome_text(text, &own[f], f, PLUS_MINUS);
        TRY(page_cell(out, "td", text));
    }
    return bytes_printf(out, "</tr>\n");
}

static err write_groups(struct bytes *out, const struct outcomes *o)
{
    bool shown[OUTCOME_FIGURES];
    outcomes_columns(shown, o);
    TRY(bytes_printf(
        out,
        "<h2>Settings</h2>\n<p>Mean &plusmn; standard deviation over the finished "
        "cells of a setting. The losses of members and of the worst 10 %% are those on the "
        "rows that members have held out. Rows in italics are reference lines, trained with the "
        "settings of the first cell unless [reference] has its own rate.</p>\n<div "
        "class=\"wide\"><table>\n<tr><th>setting</th>"
        "<th>cells</th>"));
    for (enum outcome_figure f = 0; f < OUTCOME_FIGURES; f++)
        if (shown[f]) TRY(page_cell(out, "th", outcome_heading(f)));
    TRY(bytes_printf(out, "</tr>\n"));
    for (size_t i = 0; i < o->groups; i++)
        TRY(group_row(out, o, i, shown));
    for (int i = 0; i < REFERENCE_KINDS; i++)
        TRY(reference_row(out, o, (enum reference_kind)i, shown));
    return bytes_printf(out, "</table></div>\n");
}

static err number_cell(struct bytes *out, double x)
{
    return isfinite(x) ? bytes_printf(out, "<td>%.4g</td>", x) : page_cell(out, "td", "");
}

/* The page of a cell is found from the page of its sweep. */
static err label_cell(struct bytes *out, const struct outcomes *o, const struct outcome *c)
{
    const char *name = strrchr(c->dir, '/');
    if (!o->keys || !name || !outcome_finished(c))
        return page_cell(out, "td class=\"left\"", c->label);
    TRY(bytes_printf(out, "<td class=\"left\"><a href=\"cells%s/report.html\">", name));
    TRY(chart_text(out, c->label));
    return bytes_printf(out, "</a></td>");
}

static err cell_row(struct bytes *out, const struct outcomes *o, size_t n)
{
    const struct outcome *c = &o->one[n];
    bool bad = c->status == OUTCOME_FAILED || c->status == OUTCOME_MISSING;
    TRY(bytes_printf(out, "<tr><td>%zu</td>", n + 1));
    TRY(label_cell(out, o, c));
    TRY(page_cell(out, bad ? "td class=\"bad\"" : "td", outcome_statuses[c->status]));
    TRY(bytes_printf(out, "<td>%zu</td>", c->rounds));
    TRY(number_cell(out, outcome_figure(c, OUTCOME_LOSS)));
    TRY(number_cell(out, outcome_figure(c, OUTCOME_ACCURACY)));
    TRY(page_cell(out, "td class=\"text\"", c->note));
    TRY(bytes_printf(out, "<td class=\"text\"><code>"));
    TRY(chart_text(out, c->repeat));
    return bytes_printf(out, "</code></td></tr>\n");
}

/* Failed cells stand here with their errors. */
static err write_cells(struct bytes *out, const struct outcomes *o)
{
    TRY(bytes_printf(out, "<h2>Cells</h2>\n<div class=\"wide\"><table>\n<tr><th>cell</th>"
                          "<th class=\"left\">settings</th><th>status</th><th>rounds</th>"
                          "<th>test loss</th><th>accuracy, %%</th><th class=\"left\">why</th>"
                          "<th class=\"left\">how to repeat it</th></tr>\n"));
    for (size_t i = 0; i < o->count; i++)
        TRY(cell_row(out, o, i));
    return bytes_printf(out, "</table></div>\n");
}

/* The first finished cell stands for all; others may have run elsewhere, and say so in their own
 * pages. */
static err write_run(struct bytes *out, const struct outcomes *o)
{
    TRY(bytes_printf(out, "<h2>How it was run</h2>\n"));
    if (*o->command) {
        TRY(bytes_printf(out, "<p><code>"));
        TRY(chart_text(out, o->command));
        TRY(bytes_printf(out, "</code>, with the values below; each cell's folder has its settings "
                              "in run.ini and the digests of its states in rounds.jsonl.</p>\n"));
    }
    for (size_t i = 0; i < o->count; i++) {
        if (!*o->one[i].machine) continue;
        TRY(bytes_printf(out, "<p>The first cell ran on: "));
        TRY(chart_text(out, o->one[i].machine));
        return bytes_printf(out, ".</p>\n");
    }
    return ERR_NONE;
}

/* Of the first cell that has a histogram. */
static err write_split(struct bytes *out, const struct outcomes *o)
{
    char path[LIMIT_PATH_BYTES], *text = NULL;
    size_t size = 0;
    for (size_t i = 0; i < o->count && !size; i++) {
        free(text);
        text = NULL;
        TRY(file_join(path, sizeof path, o->one[i].dir, "split.txt"));
        if (file_exists(path)) TRY(file_read_all(&text, &size, path, SPLIT_BYTES));
    }
    err e = ERR_NONE;
    if (size) {
        e = bytes_printf(out, "<h2>Split of the data in the first cell</h2>\n<pre>");
        if (!err_is(e)) e = chart_text(out, text);
        if (!err_is(e)) e = bytes_printf(out, "</pre>\n");
    }
    free(text);
    return e;
}

err page_many(struct bytes *out, const struct outcomes *o)
{
    TRY(page_begin(out, "Simulated federations"));
    TRY(bytes_printf(out,
                     "<p>%zu simulations of %zu settings: %zu done, %zu stopped early, "
                     "<span class=\"%s\">%zu failed, %zu missing</span>. Times of devices are "
                     "assumptions, not measurements.</p>\n",
                     o->count, o->groups, outcomes_with(o, OUTCOME_DONE),
                     outcomes_with(o, OUTCOME_STOPPED),
                     outcomes_with(o, OUTCOME_FAILED) ? "bad" : "",
                     outcomes_with(o, OUTCOME_FAILED), outcomes_with(o, OUTCOME_MISSING)));
    TRY(write_groups(out, o));
    TRY(page_curves(out, o));
    TRY(write_cells(out, o));
    TRY(write_split(out, o));
    TRY(write_run(out, o));
    return bytes_printf(out, "</body></html>\n");
}
