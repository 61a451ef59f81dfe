/* Measures the recompression of the stacks of ten clients to 0.9999 of the energy, and the dense
 * SVD of LAPACK in the same run, both on one thread. The times of the shapes are multiplied by
 * their number in a 7B model (224 modules).
 *
 *   bench_recompress [SIDE]
 *
 * SIDE is the side of the dense SVD that is timed, 4096 by default. Its time at other shapes is
 * scaled by min^2 max. */
#include "agg/algebra/lowrank.h"
#include "base/rng.h"
#include "base/text.h"

#include <lapacke.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static void must(err e)
{
    if (err_is(e)) fprintf(stderr, "bench_recompress: %s\n", e.text);
    REQUIRE(!err_is(e));
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static float *random_floats(size_t n, uint64_t seed)
{
    struct rng rng;
    float *x = malloc(n * sizeof *x);
    if (!x) must(err_make(ERR_MACHINE, "no memory"));
    rng_init(&rng, "bench", seed, "", 0);
    rng_fill_uniform(&rng, x, n, 0.05);
    return x;
}

static double time_dense(size_t side)
{
    float *x = random_floats(side * side, 5);
    double *a = malloc(side * side * 8), *u = malloc(side * side * 8), *v = malloc(side * side * 8);
    double *s = malloc(side * 8);
    if (!a || !u || !v || !s) must(err_make(ERR_MACHINE, "no memory"));
    for (size_t i = 0; i < side * side; i++)
        a[i] = (double)x[i];
    double t = now();
    if (LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'S', (int)side, (int)side, a, (int)side, s, u, (int)side,
                       v, (int)side) != 0)
        must(err_make(ERR_MACHINE, "dgesdd failed"));
    t = now() - t;
    free(x);
    free(a);
    free(u);
    free(v);
    free(s);
    return t;
}

static double time_recompress(uint32_t m, uint32_t n, uint32_t *q, double *error)
{
    static const uint32_t ranks[] = {64, 32, 16, 16, 8, 8, 4, 4, 4, 4};
    enum { CLIENTS = sizeof ranks / sizeof *ranks };
    struct lowrank_term term[CLIENTS];
    float *block = random_floats((size_t)(m + n) * 160, m), *x = block;
    for (size_t k = 0; k < CLIENTS; x += (size_t)(m + n) * ranks[k], k++)
        term[k] =
            (struct lowrank_term){.c = 0.1, .B = x, .A = x + (size_t)m * ranks[k], .r = ranks[k]};
    struct lowrank_stack s = {.m = m, .n = n, .term = term, .count = CLIENTS};
    struct lowrank_svd svd = {0};
    double tail, rounding, t = now();
    must(lowrank_svd_open(&svd, &s, CLIENTS));
    lowrank_cut(q, &tail, &svd, &(struct lowrank_cut){.energy = 0.9999});
    float *B = malloc((size_t)m * *q * 4), *A = malloc((size_t)n * *q * 4);
    if (!A || !B) must(err_make(ERR_MACHINE, "no memory"));
    must(lowrank_split(B, A, &rounding, &svd, *q, LOWRANK_BALANCED));
    t = now() - t;
    *error = tail / svd.norm;
    lowrank_svd_close(&svd);
    free(block);
    free(A);
    free(B);
    return t;
}

static void recompression(size_t dense_side)
{
    static const uint32_t shape[][2] = {
        {576, 576}, {1536, 576}, {2048, 2048}, {4096, 4096}, {11008, 4096}};
    static const double in_7b[] = {0, 0, 0, 32 * 4, 32 * 3}; /* modules of a 7B model */
    int before = lowrank_begin();
    double dense = time_dense(dense_side), side = (double)dense_side, whole[2] = {0};
    printf("recompression of ten clients, ranks 64 to 4 (R = 160), to 0.9999 of the energy; one "
           "thread\n");
    printf("  dense SVD (dgesdd) of %zu x %zu: %.2f s; at other shapes scaled by min^2 max\n",
           dense_side, dense_side, dense);
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) {
        uint32_t m = shape[i][0], n = shape[i][1], q;
        double error, least = m < n ? m : n, most = m < n ? n : m;
        double t = time_recompress(m, n, &q, &error);
        double scaled = dense * least * least * most / (side * side * side);
        printf("  %5u x %-5u %8.4f s  rank %3u, error %.1e   dense %8.2f s%s  %6.0f times\n", m, n,
               t, q, error, scaled, m == dense_side && n == dense_side ? "         " : " (scaled)",
               scaled / t);
        whole[0] += in_7b[i] * t;
        whole[1] += in_7b[i] * scaled;
    }
    printf("  a 7B model, 224 modules: %.1f s, dense %.0f s: %.0f times\n", whole[0], whole[1],
           whole[1] / whole[0]);
    lowrank_end(before);
}

int main(int argc, char **argv)
{
    int64_t side = 4096;
    if (argc > 1) must(text_parse_int(&side, argv[1], 64, 1 << 15));
    recompression((size_t)side);
    return 0;
}
