/* A budget of bytes spent over all modules on singular values. A direction of module i costs
 * 4 (m_i + n_i) bytes and is worth s^2, so the directions of largest s^2 / (m + n) are kept first.
 * This gives the smallest Frobenius error over all modules together, up to the last direction that
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
/* rank[i] is the number of directions kept of module i: at least one if it has any. ERR_INPUT if
 * the bytes do not suffice for that. */
err budget_spend(uint32_t *rank, const struct budget_module *module, size_t count, uint64_t bytes);

#endif
