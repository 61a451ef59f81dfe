/* The singular values of what a state adds to the base, carry and adapter together: how many
 * directions a method really uses. */
#ifndef SIM_SPECTRUM_H
#define SIM_SPECTRUM_H

#include "sim/federation.h"

enum { SPECTRUM_VALUES = 256, SPECTRUM_MODULES = 8 };

struct spectrum {
    size_t modules;                /* measured, evenly chosen of all that the state changes */
    size_t values;                 /* as many as the module with the most has, at most all */
    double value[SPECTRUM_VALUES]; /* s_i / s_1, mean over the modules */
};
/* Of the newest state. No modules: it changes nothing. */
err spectrum_measure(struct spectrum *out, const struct federation *f);

#endif
