/* When a simulation ends before its last round, by its loss or accuracy on the test set:
 *
 *     loss < 0.5                      a value is reached; also > and accuracy > 60%
 *     loss not better for 5 rounds    at least 5 rounds since the best value */
#ifndef SIM_EARLY_H
#define SIM_EARLY_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

enum { EARLY_TEXT_BYTES = 160 };
struct early {
    bool any;      /* there is a rule */
    bool accuracy; /* it is about the accuracy, whose better values are larger; else the loss */
    bool above;    /* value > limit; else value < limit */
    double limit;
    uint32_t patience; /* rounds; 0: a limit */
    double best;
    uint32_t best_round; /* 0: no value was seen yet */
};

/* text: NULL or "": no rule. */
err early_parse(struct early *out, const char *text);
/* Takes the values of a round in turn; NaN: not evaluated. True: the simulation ends here, and
 * `why` says it. */
bool early_ends(struct early *e, uint32_t round, double loss, double accuracy,
                char why[EARLY_TEXT_BYTES]);

#endif
