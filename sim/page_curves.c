/* Curves of the settings over rounds, bytes and virtual time: the mean over the seeds, with a band
 * of one standard deviation. */
#include "client/output/chart.h"
#include "sim/page_many.h"

#include <math.h>
#include <stdio.h>

enum { CURVES_MAX = 16, SEEDS_MAX = 256 };
/* Singular values that are smaller are those of rounding. */
#define SPECTRUM_LEAST 1e-6

enum axis { AXIS_ROUNDS, AXIS_UP, AXIS_TIME };

struct picture {
    const char *title, *y_label;
    enum outcome_figure figure;
    enum axis axis;
    bool log, from_zero;
};
static const struct picture pictures[] = {
    {"Test loss over rounds", "loss", OUTCOME_LOSS, AXIS_ROUNDS, false, false},
    {"Test loss over bytes", "loss", OUTCOME_LOSS, AXIS_UP, false, false},
    {"Test loss over virtual time", "loss", OUTCOME_LOSS, AXIS_TIME, false, false},
    {"Accuracy over rounds", "accuracy, %", OUTCOME_ACCURACY, AXIS_ROUNDS, false, true},
    {"Training loss of the members", "loss", OUTCOME_TRAIN_LOSS, AXIS_ROUNDS, false, false},
    {"Error of a round's published change", "% of the exact change, at least 0.001", OUTCOME_ERROR,
     AXIS_ROUNDS, true, false},
    {"Privacy spent", "epsilon", OUTCOME_EPSILON, AXIS_ROUNDS, false, true},
};

static double along(const struct simulate_round *r, enum axis axis)
{
    return axis == AXIS_ROUNDS ? r->round
           : axis == AXIS_UP   ? (double)r->bytes_up * 1e-6
                               : (double)r->virtual_ms;
}

const char *page_time_unit(double *ms, double longest_ms)
{
    *ms = longest_ms > 7.2e6 ? 3.6e6 : longest_ms > 1.2e5 ? 6e4 : 1e3;
    return *ms > 1e6 ? "virtual hours" : *ms > 1e4 ? "virtual minutes" : "virtual seconds";
}

/* The n-th round of the finished cells of a group that have it. */
static void point(struct outcome_mean *x, struct outcome_mean *y, const struct outcomes *o,
                  size_t group, size_t n, const struct picture *p)
{
    double at[SEEDS_MAX], value[SEEDS_MAX];
    size_t count = 0;
    for (size_t i = 0; i < o->count && count < SEEDS_MAX; i++) {
        const struct outcome *c = &o->one[i];
        if (c->group != group || n >= c->rounds || !outcome_finished(c)) continue;
        const struct outcome one = {.round = &c->round[n], .rounds = 1};
        value[count] = outcome_figure(&one, p->figure);
        at[count] = isfinite(value[count]) ? along(&c->round[n], p->axis) : NAN;
        count++;
    }
    *x = outcome_mean(at, count);
    *y = outcome_mean(value, count);
}

static size_t longest(const struct outcomes *o, size_t group)
{
    size_t most = 0;
    for (size_t i = 0; i < o->count; i++)
        if (o->one[i].group == group && o->one[i].rounds > most) most = o->one[i].rounds;
    return most;
}

/* *any: it has a point. */
static err make_line(struct chart_line *out, bool *any, const struct outcomes *o, size_t group,
                     const struct picture *p, struct arena *arena)
{
    size_t rounds = longest(o, group);
    double *value = NULL;
    TRY(arena_take(&value, arena, 4 * (rounds + 1), sizeof *value));
    double *x = value, *y = x + rounds, *low = y + rounds, *high = low + rounds;
    for (size_t i = 0; i < rounds; i++) {
        struct outcome_mean at, mean;
        point(&at, &mean, o, group, i, p);
        x[i] = at.mean;
        y[i] = p->log ? fmax(mean.mean, PAGE_ERROR_LEAST) : mean.mean;
        low[i] = p->log ? fmax(mean.mean - mean.sd, PAGE_ERROR_LEAST) : mean.mean - mean.sd;
        high[i] = p->log ? fmax(mean.mean + mean.sd, PAGE_ERROR_LEAST) : mean.mean + mean.sd;
        if (!isfinite(mean.mean)) y[i] = NAN;
        if (!isfinite(mean.sd)) low[i] = NAN;
        *any |= isfinite(y[i]);
    }
    *out = (struct chart_line){
        .name = o->group[group], .x = x, .y = y, .count = rounds, .low = low, .high = high};
    return ERR_NONE;
}

/* Times in milliseconds become times in a readable unit, whose name is returned. */
static const char *scale_times(struct chart_line *line, size_t lines)
{
    double longest_ms = 0, unit;
    for (size_t i = 0; i < lines; i++)
        for (size_t k = 0; k < line[i].count; k++)
            if (line[i].x[k] > longest_ms) longest_ms = line[i].x[k];
    const char *name = page_time_unit(&unit, longest_ms);
    for (size_t i = 0; i < lines; i++)
        for (size_t k = 0; k < line[i].count; k++)
            ((double *)(uintptr_t)line[i].x)[k] /= unit;
    return name;
}

static err draw(struct bytes *out, const struct outcomes *o, const struct picture *p,
                struct arena *arena)
{
    struct chart_line line[CURVES_MAX];
    size_t lines = o->groups < CURVES_MAX ? o->groups : CURVES_MAX;
    bool any = false;
    for (size_t i = 0; i < lines; i++)
        TRY(make_line(&line[i], &any, o, i, p, arena));
    if (!any) return ERR_NONE;
    const char *x_label = p->axis == AXIS_ROUNDS ? "rounds" : "MB sent up";
    if (p->axis == AXIS_TIME) x_label = scale_times(line, lines);
    struct chart_level level[REFERENCE_KINDS];
    bool tested = p->figure == OUTCOME_LOSS || p->figure == OUTCOME_ACCURACY;
    size_t levels = tested ? page_levels(level, o, p->figure == OUTCOME_ACCURACY) : 0;
    const struct chart chart = {.title = p->title,
                                .level = level,
                                .levels = levels,
                                .x_label = x_label,
                                .y_label = p->y_label,
                                .line = line,
                                .lines = lines,
                                .log = p->log,
                                .from_zero = p->from_zero};
    TRY(bytes_printf(out, "<div class=\"wide\">"));
    TRY(chart_lines(out, &chart));
    return bytes_printf(out, "</div>\n");
}

/* ---- spectrum ---- */

/* The n-th singular value of the finished cells of a group that have it. */
static double mean_spectrum(const struct outcomes *o, size_t group, size_t n)
{
    double value[SEEDS_MAX];
    size_t count = 0;
    for (size_t i = 0; i < o->count && count < SEEDS_MAX; i++)
        if (o->one[i].group == group && n < o->one[i].spectrum_values)
            value[count++] = o->one[i].spectrum[n];
    double mean = outcome_mean(value, count).mean;
    return mean >= SPECTRUM_LEAST ? mean : NAN;
}

err page_spectrum(struct bytes *out, const struct outcomes *o)
{
    static double x[SPECTRUM_VALUES], y[CURVES_MAX][SPECTRUM_VALUES];
    struct chart_line line[CURVES_MAX];
    size_t lines = o->groups < CURVES_MAX ? o->groups : CURVES_MAX;
    bool any = false;
    for (size_t i = 0; i < SPECTRUM_VALUES; i++)
        x[i] = (double)i + 1;
    for (size_t g = 0; g < lines; g++) {
        for (size_t i = 0; i < SPECTRUM_VALUES; i++)
            y[g][i] = mean_spectrum(o, g, i);
        line[g] =
            (struct chart_line){.name = o->group[g], .x = x, .y = y[g], .count = SPECTRUM_VALUES};
        any |= isfinite(y[g][0]);
    }
    if (!any) return ERR_NONE;
    const struct chart chart = {.title = "Spectrum of what the last state adds to the base",
                                .x_label = "singular value, by size",
                                .y_label = "in parts of the largest",
                                .line = line,
                                .lines = lines,
                                .log = true};
    TRY(bytes_printf(out, "<div class=\"wide\">"));
    TRY(chart_lines(out, &chart));
    return bytes_printf(out, "</div>\n");
}

size_t page_levels(struct chart_level level[REFERENCE_KINDS], const struct outcomes *o,
                   bool accuracy)
{
    size_t n = 0;
    for (int i = 0; i < REFERENCE_KINDS; i++) {
        const struct outcome_mean m = outcomes_reference(o, (enum reference_kind)i, accuracy);
        if (m.count) level[n++] = (struct chart_level){reference_names[i], m.mean};
    }
    return n;
}

err page_curves(struct bytes *out, const struct outcomes *o)
{
    struct arena arena = {0};
    TRY(bytes_printf(out, "<h2>Curves</h2>\n<p>Means over the seeds of the finished cells; a band "
                          "is one standard deviation to each side.</p>\n"));
    if (o->groups > CURVES_MAX)
        TRY(bytes_printf(out, "<p>The first %d of %zu settings.</p>\n", CURVES_MAX, o->groups));
    err e = ERR_NONE;
    for (size_t i = 0; i < sizeof pictures / sizeof *pictures && !err_is(e); i++)
        e = draw(out, o, &pictures[i], &arena);
    if (!err_is(e)) e = page_spectrum(out, o);
    arena_close(&arena);
    return e;
}
