/* Noise for running sums without any assumption on who takes part (DP-FTRL; Kairouz et al. 2021,
 * "Practical and private deep learning without sampling"; specification 1.8). Leaf t's prefix sum
 * S_t is released with the noise of the nodes in t's binary expansion; what a round adds is
 *
 *     tree_next(sum, &tree):  sum += n_t - n_(t-1),   n_t = sum of popcount(t) nodes
 *
 * so the deviation of a prefix is sigma sqrt(popcount(t)). Account with account_tree_event(). The
 * nodes are memory of the process: after a restart a new tree begins, and is charged as one. */
#ifndef PRIVACY_TREE_H
#define PRIVACY_TREE_H

#include "privacy/noise/noise.h"

enum { TREE_LEVELS = 32 };

struct tree {
    size_t dim;
    uint64_t sigma;
    uint32_t leaves;            /* released so far */
    int64_t *node[TREE_LEVELS]; /* (dim); NULL where none is live */
};

void tree_begin(struct tree *out, size_t dim, uint64_t sigma);
err tree_next(int64_t *sum /* (dim) */, struct tree *tree); /* sum untouched on failure */
void tree_close(struct tree *tree);

#endif
