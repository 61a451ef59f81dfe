#include "agg/algebra/sketch.h"

#include "agg/algebra/lowrank.h"
#include "agg/algebra/matrix.h"
#include "base/rng.h"

#include <stdlib.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))

/* Singular values below this share of the largest come from the rounding of float32 gradients. */
static const double nothing = 0x1p-22;

uint32_t sketch_rank(const struct basis_shape *shape)
{
    return MIN(shape->r, MIN(shape->d_out, shape->d_in));
}

uint32_t sketch_width(const struct basis_shape *shape)
{
    return MIN(shape->r + SKETCH_OVERSAMPLE, MIN(shape->d_out, shape->d_in));
}

void sketch_probe(float *A, const struct basis_shape *shape, const struct basis_key *key)
{
    struct rng rng;
    rng_init(&rng, "sketch_probe", key->seed, key->label, 0);
    for (size_t i = 0; i < (size_t)sketch_width(shape) * shape->d_in; i++)
        A[i] = (float)rng_normal(&rng);
}

static uint32_t rank_of(const struct lowrank_svd *svd, uint32_t most)
{
    uint32_t rank = 0;
    while (rank < most && rank < svd->k && svd->sigma[rank] > nothing * svd->sigma[0])
        rank++;
    return rank;
}

struct side { /* orthonormal vectors of length d, vector j at x[i * along + j * across] */
    float *x;
    size_t d, r, along, across;
    const char *purpose;
};

/* Draws the vectors from `rank` on, orthogonal to those before. */
static err complete(const struct side *s, uint32_t rank, const struct basis_key *key)
{
    double *u = NULL;
    struct rng rng;
    if (rank == s->r) return ERR_NONE;
    TRY(matrix_take(&u, s->d, s->r));
    rng_init(&rng, s->purpose, key->seed, key->label, 0);
    for (size_t j = 0; j < s->r; j++)
        for (size_t i = 0; i < s->d; i++)
            u[j * s->d + i] =
                j < rank ? (double)s->x[i * s->along + j * s->across] : rng_normal(&rng);
    err e = matrix_orthonormalise(u, s->d, s->r);
    for (size_t j = rank; j < s->r && !err_is(e); j++)
        for (size_t i = 0; i < s->d; i++)
            s->x[i * s->along + j * s->across] = (float)u[j * s->d + i];
    free(u);
    return e;
}

err sketch_range(float *Q, const float *Y, const struct basis_shape *shape,
                 const struct basis_key *key)
{
    struct lowrank_svd svd = {0};
    size_t d = shape->d_out, q = sketch_width(shape);
    float *one = calloc(2 * q * q, sizeof *one); /* I, and right vectors that are not used */
    struct lowrank_term term = {.c = 1, .B = Y, .A = one, .r = (uint32_t)q};
    const struct lowrank_stack stack = {
        .m = shape->d_out, .n = (uint32_t)q, .term = &term, .count = 1};
    err e = one ? ERR_NONE : err_make(ERR_MACHINE, "no memory for a sketch of %zu", q);
    if (err_is(e)) goto out;
    for (size_t i = 0; i < q; i++)
        one[i * q + i] = 1;
    TRY_OUT(e, lowrank_svd_open(&svd, &stack, 1));
    TRY_OUT(e, lowrank_split(Q, one + q * q, NULL, &svd, (uint32_t)q, LOWRANK_ORTHONORMAL));
    const struct side left = {Q, d, q, q, 1, "sketch_range"};
    e = complete(&left, rank_of(&svd, (uint32_t)q), key);
out:
    lowrank_svd_close(&svd);
    free(one);
    return e;
}

err sketch_basis(float *A, float *B, struct sketch_found *found, const struct sketch_pass *pass,
                 const struct basis_shape *shape, const struct basis_key *key)
{
    struct lowrank_svd svd = {0};
    struct sketch_found f = {0};
    uint32_t r = sketch_rank(shape), q;
    struct lowrank_term term = {.c = 1, .B = pass->Q, .A = pass->Z, .r = sketch_width(shape)};
    const struct lowrank_stack stack = {
        .m = shape->d_out, .n = shape->d_in, .term = &term, .count = 1};
    err e = ERR_NONE;
    TRY_OUT(e, lowrank_svd_open(&svd, &stack, 1));
    lowrank_cut(&q, &f.tail, &svd, &(struct lowrank_cut){.rank_max = r});
    f.norm = svd.norm;
    f.rank = rank_of(&svd, r);
    TRY_OUT(e, lowrank_split(B, A, NULL, &svd, r, LOWRANK_ORTHONORMAL));
    const struct side left = {B, shape->d_out, r, r, 1, "sketch_B"};
    const struct side right = {A, shape->d_in, r, 1, shape->d_in, "sketch_A"};
    TRY_OUT(e, complete(&left, f.rank, key));
    TRY_OUT(e, complete(&right, f.rank, key));
    *found = f;
out:
    lowrank_svd_close(&svd);
    return e;
}
