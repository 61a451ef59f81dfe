#include "privacy/noise/tree.h"

#include <sodium.h>

void tree_begin(struct tree *out, size_t dim, uint64_t sigma)
{
    REQUIRE(dim > 0);
    *out = (struct tree){.dim = dim, .sigma = sigma};
}

/* From t - 1 to t the nodes of t's trailing zeros give way to one above them. */
err tree_next(int64_t *sum, struct tree *tree)
{
    struct noise noise = {0};
    int level = __builtin_ctz(tree->leaves + 1);
    REQUIRE(tree->leaves < UINT32_MAX && !tree->node[level]);
    TRY(noise_draw(&noise, tree->dim, tree->sigma));
    int64_t *made = sodium_allocarray(tree->dim, sizeof *made);
    if (!made) {
        noise_close(&noise);
        return err_make(ERR_MACHINE, "no memory for a node of %zu values", tree->dim);
    }
    sodium_memzero(made, tree->dim * sizeof *made);
    noise_add(made, tree->dim, &noise);
    for (size_t i = 0; i < tree->dim; i++)
        sum[i] += made[i];
    for (int l = 0; l < level; l++) {
        for (size_t i = 0; i < tree->dim; i++)
            sum[i] -= tree->node[l][i];
        sodium_free(tree->node[l]);
        tree->node[l] = NULL;
    }
    tree->node[level] = made;
    tree->leaves++;
    noise_close(&noise);
    return ERR_NONE;
}

void tree_close(struct tree *tree)
{
    for (int l = 0; l < TREE_LEVELS; l++)
        sodium_free(tree->node[l]);
    *tree = (struct tree){0};
}
