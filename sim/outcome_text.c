/* Figures of a sweep as the text of a table: sim/outcome.h. */
#include "base/text.h"
#include "sim/outcome.h"

#include <math.h>
#include <stdio.h>

/* One row for each figure, in the order of enum outcome_figure, which is that of the columns. */
static const struct column {
    const char *heading;
    enum { NUMBER, BYTES, DURATION } kind;
    int digits;
} columns[OUTCOME_FIGURES] = {
    [OUTCOME_LOSS] = {"test loss", NUMBER, 4},
    [OUTCOME_ACCURACY] = {"accuracy, %", NUMBER, 1},
    [OUTCOME_TRAIN_LOSS] = {"training loss", NUMBER, 4},
    [OUTCOME_ERROR] = {"error, %", NUMBER, 2},
    [OUTCOME_UP] = {"sent up", BYTES, 0},
    [OUTCOME_DOWN] = {"sent down", BYTES, 0},
    [OUTCOME_VIRTUAL] = {"virtual time", DURATION, 0},
    [OUTCOME_MEMBERS_LOSS] = {"members' loss", NUMBER, 4},
    [OUTCOME_WORST_LOSS] = {"worst 10 %", NUMBER, 4},
    [OUTCOME_EPSILON] = {"epsilon", NUMBER, 3},
};

const char *outcome_heading(enum outcome_figure figure)
{
    return columns[figure].heading;
}

void outcomes_columns(bool shown[OUTCOME_FIGURES], const struct outcomes *o)
{
    for (enum outcome_figure f = 0; f < OUTCOME_FIGURES; f++) {
        shown[f] = false;
        for (size_t i = 0; i < o->groups && !shown[f]; i++)
            shown[f] = outcomes_mean(o, i, f).count > 0;
    }
    for (int i = 0; i < REFERENCE_KINDS; i++) {
        shown[OUTCOME_LOSS] |= outcomes_reference(o, (enum reference_kind)i, false).count > 0;
        shown[OUTCOME_ACCURACY] |= outcomes_reference(o, (enum reference_kind)i, true).count > 0;
    }
}

void outcome_text(char out[OUTCOME_TEXT_BYTES], const struct outcome_mean *m,
                  enum outcome_figure figure, const char *plus_minus)
{
    const struct column *c = &columns[figure];
    out[0] = 0;
    if (!m->count) return;
    if (c->kind == BYTES)
        text_size(out, OUTCOME_TEXT_BYTES, (uint64_t)m->mean);
    else if (c->kind == DURATION)
        text_duration(out, OUTCOME_TEXT_BYTES, (uint64_t)m->mean);
    else if (isfinite(m->sd))
        snprintf(out, OUTCOME_TEXT_BYTES, "%.*f %s %.*f", c->digits, m->mean, plus_minus, c->digits,
                 m->sd);
    else
        snprintf(out, OUTCOME_TEXT_BYTES, "%.*f", c->digits, m->mean);
}
