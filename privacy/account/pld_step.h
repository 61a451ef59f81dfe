/* The privacy loss distribution of one release of sampled Gaussian noise, on a grid, from above.
 *
 * Connect-the-dots (Doroshenko, Ghazi, Kamath, Kumar, Manurangsi 2022, section 3): the probability
 * between two neighbouring points of the grid is moved to these two points so that P and Q of the
 * cell do not change. The result dominates the true pair at every epsilon, and equals it on the
 * grid. */
#ifndef PRIVACY_PLD_STEP_H
#define PRIVACY_PLD_STEP_H

#include "base/arena.h"
#include "privacy/account/pld_pair.h"

#include <stddef.h>
#include <stdint.h>

struct pld_step {
    double interval;
    double *mass; /* (size): probability under P of the loss (first + i) * interval */
    int64_t first;
    size_t size;
    double infinity; /* probability of an infinite loss */
};

/* Number of cells of the pair on a grid of this spacing. */
double pld_step_cells(const struct pld_pair *pair, double interval);
err pld_step_take(struct pld_step *out, const struct pld_pair *pair, double interval,
                  struct arena *arena);

/* ln sum mass_i e^(lambda loss_i), without the infinite one. |lambda| * interval at most 40. */
double pld_step_log_moment(const struct pld_step *step, double lambda);

#endif
