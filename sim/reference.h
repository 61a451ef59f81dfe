/* Reference lines for a simulation, trained by the same code on the same base:
 *
 *     base      the base model without training
 *     pooled    one member that has the rows of all, and trains as many tokens as all of them
 *     alone     each member by itself, with the tokens that it has in the federation
 *
 * Pooled and alone are simulations of one member, with plain averaging, on a machine that never
 * fails. Files in the folder: pooled/ and alone/ID/ while they are made, and at the end
 * reference.json, which has the losses and accuracies on the test set. */
#ifndef SIM_REFERENCE_H
#define SIM_REFERENCE_H

#include "sim/simulate.h"

enum reference_kind {
    REFERENCE_BASE,
    REFERENCE_POOLED,
    REFERENCE_ALONE, /* mean over the members */
    REFERENCE_WORST, /* the worst member alone */
    REFERENCE_KINDS,
};
extern const char *const reference_names[REFERENCE_KINDS];

struct reference_values { /* NaN: not measured */
    double loss[REFERENCE_KINDS], accuracy[REFERENCE_KINDS];
};
struct reference_options {
    const char *dir;
    const struct simulate_options *simulation; /* its settings; its folder is not used */
    bool base, pooled, alone;
    double lr; /* of pooled and alone; 0: that of the simulation */
};
/* Makes what is missing. ERR_STOPPED: interrupted; the next call goes on. ERR_INPUT: the folder has
 * lines of another learning rate. */
err reference_run(const struct fleet *fleet, const struct reference_options *o);
/* Of a folder without the file all are NaN. */
err reference_read(struct reference_values *out, const char *dir);

#endif
