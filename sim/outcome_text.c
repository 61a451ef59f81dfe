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

bool outcomes_have(const struct outcomes *o, enum outcome_figure figure)
{
    for (size_t i = 0; i < o->groups; i++)
        if (outcomes_mean(o, i, figure).count) return true;
    if (figure != OUTCOME_LOSS && figure != OUTCOME_ACCURACY) return false;
    for (int i = 0; i < REFERENCE_KINDS; i++)
        if (outcomes_reference(o, (enum reference_kind)i, figure == OUTCOME_ACCURACY).count)
            return true;
    return false;
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
