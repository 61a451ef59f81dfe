/* A number of bytes spent over all modules on singular values: what is kept of module i costs
 * 4 (m_i + n_i) bytes a direction and is worth its s^2, so the largest s^2 / (m + n) come first.
 * That is the best in the Frobenius norm over all modules together, up to the last direction that
 * does not fit. Pure. */
#ifndef AGG_BUDGET_H
#define AGG_BUDGET_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

struct budget_module {
    uint32_t m, n;       /* its shape */
    uint32_t k;          /* singular values; 0: nothing to keep, costs nothing */
    const double *sigma; /* (k), decreasing */
};
/* rank[i] is how many to keep; every module with any keeps at least one. ERR_INPUT where the bytes
 * do not hold that. */
err budget_spend(uint32_t *rank, const struct budget_module *module, size_t count, uint64_t bytes);

#endif
