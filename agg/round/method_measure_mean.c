/* Norms for methods that average A and B at one rank; contract in method_measure.h. */
#include "agg/algebra/matrix.h"
#include "agg/round/method_measure_parts.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))

/* All pairs have one rank and scale. With (P, Q) the published pair, the factors are written as
 * published + difference: B_k = P + b_k and A_k = Q + a_k for the members, B_0 = P + b_0 and
 * A_0 = Q + a_0 for the state before. Members that did not send the module count as the state, with
 * the rest of the weight. With b = sum_k p_k b_k and a = sum_k p_k a_k over all the weight,
 *
 *     exact - published = s (sum_k p_k b_k a_k + b Q + P a)
 *     D                 = exact - published - s (b_0 Q + P a_0 + b_0 a_0)
 *
 * No large terms cancel in these sums, so float32 is enough for the Gram matrices, which halves
 * their time. The Gram matrices are those of column blocks of B and row blocks of A: the members',
 * then b, b_0 and P (a, a_0 and Q). */
struct means {
    const struct method_measure *measure;
    size_t r, count, N; /* count: blocks of members that sent it; N >= (count + 3) r */
    const struct adapter_file_module **update; /* (count) */
    double *p, rest;                           /* (count); weight of members that sent nothing */
    float *left, *right;                       /* (N, N) Gram matrices, upper triangles */
};

enum {
    PANEL = 128, /* rows of B, columns of A at a time: a panel stays in the second-level cache */
    WIDE = 16,   /* N is a multiple of twice that; further columns are zero */
    TALL = 4
};
typedef float wide __attribute__((vector_size(WIDE * sizeof(float)), aligned(4), may_alias));

/* gram (N, N) += x^T x of x (d, N), in whole tiles on and above the diagonal; a tile keeps its sums
 * in registers. This is most of a report's time. cblas_ssyrk() is not used, because a BLAS that
 * does not know the processor falls back to vectors a quarter as wide. Products and sums are
 * rounded one by one, so every version gives the same bits. */
MATRIX_CLONES static void add_products(float *gram, const float *x, size_t N, size_t d)
{
    for (size_t b = 0; b < N; b += 2 * WIDE)
        for (size_t a = 0; a < b + 2 * WIDE; a += TALL) {
            wide sum[TALL][2] = {0};
            for (size_t i = 0; i < d; i++) {
                const float *row = x + i * N;
                wide first = *(const wide *)(row + b), second = *(const wide *)(row + b + WIDE);
                for (size_t j = 0; j < TALL; j++) {
                    sum[j][0] += row[a + j] * first;
                    sum[j][1] += row[a + j] * second;
                }
            }
            for (size_t j = 0; j < TALL; j++) {
                *(wide *)(gram + (a + j) * N + b) += sum[j][0];
                *(wide *)(gram + (a + j) * N + b + WIDE) += sum[j][1];
            }
        }
}

/* out = x - y, sum += p out */
MATRIX_CLONES static void subtract(float *restrict out, float *restrict sum,
                                   const float *restrict x, const float *restrict y, float p,
                                   size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float d = x[i] - y[i];
        out[i] = d;
        sum[i] += p * d;
    }
}

/* The n values at range[0] of every block's factor, blocks `stride` apart: b_k of each member, then
 * b, b_0 and P. One pass, so that b is summed while the values are in the cache. */
static void put_values(float *out, size_t stride, const struct means *s,
                       enum adapter_file_role role, const size_t range[2])
{
    size_t at = range[0], n = range[1];
    const float *was = s->measure->round->module->factor[role].f32 + at;
    const float *now = s->measure->made->factor[role].f32 + at;
    float *sum = out + s->count * stride, *old = sum + stride;
    memset(sum, 0, n * sizeof *sum);
    subtract(old, sum, was, now, (float)s->rest, n);
    for (size_t k = 0; k < s->count; k++)
        subtract(out + k * stride, sum, s->update[k]->factor[role].f32 + at, now, (float)s->p[k],
                 n);
    memcpy(old + stride, now, n * sizeof *now);
}

/* panel (d, N): rows [at, at + d) of all B. */
static void put_rows(float *panel, const struct means *s, size_t at, size_t d)
{
    for (size_t i = 0; i < d; i++)
        put_values(panel + i * s->N, s->r, s, ADAPTER_FILE_B,
                   (const size_t[2]){(at + i) * s->r, s->r});
}

/* panel (d, N): columns [at, at + d) of all A. `row` (blocks, PANEL) is scratch. */
static void put_columns(float *panel, float *row, const struct means *s, size_t at, size_t d)
{
    size_t n = s->measure->round->module->d_in;
    for (size_t i = 0; i < s->r; i++) {
        put_values(row, PANEL, s, ADAPTER_FILE_A, (const size_t[2]){i * n + at, d});
        for (size_t block = 0; block < s->count + 3; block++)
            for (size_t j = 0; j < d; j++)
                panel[j * s->N + block * s->r + i] = row[block * PANEL + j];
    }
}

static void gram_of_blocks(struct means *s, float *panel)
{
    const struct adapter_file_module *old = s->measure->round->module;
    float *row = panel + PANEL * s->N;
    for (size_t at = 0; at < old->d_out; at += PANEL) {
        size_t d = MIN(PANEL, old->d_out - at);
        put_rows(panel, s, at, d);
        add_products(s->left, panel, s->N, d);
    }
    for (size_t at = 0; at < old->d_in; at += PANEL) {
        size_t d = MIN(PANEL, old->d_in - at);
        put_columns(panel, row, s, at, d);
        add_products(s->right, panel, s->N, d);
    }
}

/* c times the product of column block b and row block a. */
struct block {
    double c;
    size_t b, a;
};

/* Only the tiles on and above the diagonal are computed. */
static float entry(const float *gram, size_t N, size_t i, size_t j)
{
    return i <= j ? gram[i * N + j] : gram[j * N + i];
}

/* <x, y> of two blocks: c_x c_y sum (b_x^T b_y) o (a_x a_y^T), in float64 over (r, r). */
static double block_inner(const struct means *s, const struct block *x, const struct block *y)
{
    size_t r = s->r, N = s->N;
    double sum = 0;
    for (size_t i = 0; i < r; i++)
        for (size_t j = 0; j < r; j++)
            sum += (double)entry(s->left, N, x->b * r + i, y->b * r + j) *
                   (double)entry(s->right, N, x->a * r + i, y->a * r + j);
    return x->c * y->c * sum;
}

/* s ||sum of the blocks||_F. */
static double block_norm(const struct means *s, const struct block *block, size_t count)
{
    double square = 0;
    for (size_t i = 0; i < count; i++) {
        square += block_inner(s, &block[i], &block[i]);
        for (size_t j = i + 1; j < count; j++)
            square += 2 * block_inner(s, &block[i], &block[j]);
    }
    return s->measure->round->module->scale * sqrt(fmax(0, square));
}

static err norms_of_blocks(double *norm, const struct means *s)
{
    struct block *block = calloc(s->count + 6, sizeof *block);
    size_t n = 0, sum = s->count, old = sum + 1, now = old + 1;
    if (!block) return err_sys(ENOMEM, "%zu members", s->count);
    for (; n < s->count; n++)
        block[n] = (struct block){s->p[n], n, n};
    block[n++] = (struct block){1, sum, now};
    block[n++] = (struct block){1, now, sum};
    if (s->rest > 0) block[n++] = (struct block){s->rest, old, old};
    norm[MEASURE_ERROR] = block_norm(s, block, n);
    /* D has the same blocks and three more. */
    block[n++] = (struct block){-1, old, now};
    block[n++] = (struct block){-1, now, old};
    block[n++] = (struct block){-1, old, old};
    norm[MEASURE_CHANGE] = block_norm(s, block, n);
    const struct block state = {1, now, now};
    norm[MEASURE_STATE] = block_norm(s, &state, 1);
    free(block);
    return ERR_NONE;
}

static void means_close(struct means *s)
{
    free(s->update);
    free(s->p);
    free(s->left);
    free(s->right);
}

static err means_open(struct means *out, const struct method_measure *x)
{
    const struct method_round *round = x->round;
    struct means s = {.measure = x, .r = round->module->rank, .rest = 1};
    err e = ERR_NONE;
    s.update = calloc(round->count + 1, sizeof *s.update);
    s.p = calloc(round->count + 1, sizeof *s.p);
    for (size_t k = 0; k < round->count && s.update && s.p; k++) {
        if (!round->update[k]) continue;
        s.update[s.count] = round->update[k];
        s.p[s.count++] = round->p[k];
        s.rest -= round->p[k];
    }
    if (s.rest < 1e-9) s.rest = 0; /* only rounding of the weights */
    /* Padded to whole tiles; the columns that are added stay zero. */
    s.N = ((s.count + 3) * s.r + 2 * WIDE - 1) / (2 * WIDE) * (2 * WIDE);
    s.left = calloc(s.N * s.N, sizeof *s.left);
    s.right = calloc(s.N * s.N, sizeof *s.right);
    if (!s.update || !s.p || !s.left || !s.right) {
        e = err_sys(ENOMEM, "Gram matrices of %zu columns", s.N);
        goto out;
    }
    *out = s;
    return ERR_NONE;
out:
    means_close(&s);
    return e;
}

err measure_mean(double *norm, const struct method_measure *x)
{
    struct means s = {0};
    float *panel = NULL;
    err e = ERR_NONE;
    TRY(means_open(&s, x));
    panel = calloc((s.N + s.count + 3) * PANEL, sizeof *panel);
    if (!panel) {
        e = err_sys(ENOMEM, "%zu columns", s.N);
        goto out;
    }
    gram_of_blocks(&s, panel);
    for (size_t k = 0; k < x->round->count && x->round->done; k++)
        x->round->done(x->round, k);
    e = norms_of_blocks(norm, &s);
out:
    free(panel);
    means_close(&s);
    return e;
}

/* Every pair has one rank and one scale, there is no carry, and the Gram matrices in float32 are
 * less work than the dense sum in float64. */
bool measure_is_mean(const struct method_measure *x)
{
    const struct adapter_file_module *old = x->round->module, *made = x->made;
    double m = old->d_out, n = old->d_in;
    size_t sent = 0;
    bool same = !x->method->fresh && old->rank == made->rank && !old->carry_rank &&
                !made->carry_rank && old->factor[ADAPTER_FILE_A].f32 &&
                made->factor[ADAPTER_FILE_A].f32 && old->factor[ADAPTER_FILE_B].f32 &&
                made->factor[ADAPTER_FILE_B].f32;
    for (size_t k = 0; k < x->round->count && same; k++) {
        const struct adapter_file_module *u = x->round->update[k];
        if (!u) continue;
        same = u->rank == old->rank && fabs(u->scale - old->scale) <= 1e-9 * old->scale &&
               u->factor[ADAPTER_FILE_A].f32 && u->factor[ADAPTER_FILE_B].f32;
        sent++;
    }
    return same && sent && (double)((sent + 3) * old->rank) * (m + n) < 4 * m * n;
}
