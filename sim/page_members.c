/* The part of a page about the rows that members have held out. */
#include "client/output/chart.h"
#include "sim/fairness.h"
#include "sim/page_many.h"

#include <math.h>
#include <stdio.h>

enum { BARS_MAX = 40 };

static err spread_row(struct bytes *out, const char *name, const struct fairness_spread *s,
                      double scale)
{
    if (!s->members) return ERR_NONE;
    return bytes_printf(out, "<tr><td>%s</td><td>%.4g</td><td>%.4g</td><td>%.4g</td></tr>\n", name,
                        scale * s->mean, scale * s->worst, scale * s->sd);
}

/* The members come with the worst first. */
static err draw(struct bytes *out, const struct fairness_member *member, size_t count)
{
    const char *name[BARS_MAX];
    struct chart_bar bar[BARS_MAX];
    char subtitle[100];
    size_t rows = count < BARS_MAX ? count : BARS_MAX;
    for (size_t i = 0; i < rows; i++) {
        name[i] = member[i].id;
        bar[i] = (struct chart_bar){.row = i, .to = member[i].loss};
    }
    snprintf(subtitle, sizeof subtitle, "%zu of %zu members, the worst first", rows, count);
    const struct chart_rows chart = {.title = "Loss of the last state on each member's rows",
                                     .subtitle = subtitle,
                                     .x_label = "loss",
                                     .row = name,
                                     .rows = rows,
                                     .bar = bar,
                                     .bars = rows};
    TRY(bytes_printf(out, "<div class=\"wide\">"));
    TRY(chart_bars(out, &chart));
    return bytes_printf(out, "</div>\n");
}

static err write_all(struct bytes *out, struct fairness_member *member, size_t count)
{
    struct fairness_spread loss, accuracy;
    fairness_accuracy(&accuracy, member, count);
    fairness_loss(&loss, member, count);
    TRY(bytes_printf(out,
                     "<h2>Fairness</h2>\n<p>The last state on the rows that %zu members have held "
                     "out; each member counts once.</p>\n<div class=\"wide\"><table>\n<tr><th></th>"
                     "<th>mean</th><th>mean of the worst 10 %%</th><th>standard deviation</th></tr>"
                     "\n",
                     count));
    TRY(spread_row(out, "loss", &loss, 1));
    TRY(spread_row(out, "accuracy, %", &accuracy, 100));
    TRY(bytes_printf(out, "</table></div>\n"));
    return draw(out, member, count);
}

err page_members(struct bytes *out, const char *dir)
{
    struct arena arena = {0};
    struct fairness_member *member = NULL;
    size_t count = 0;
    err e = fairness_read(&member, &count, dir, &arena);
    if (!err_is(e) && count) e = write_all(out, member, count);
    arena_close(&arena);
    return e;
}
