/* An independent check by plain loops in float64, one row at a time; contract in combine.h. */
#include "agg/combine/combine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct pair { /* p times the change of an adapter, its factors widened */
    double p, s;
    const float *A, *B, *m; /* m: magnitudes, or NULL */
    uint32_t r;
};

static err pair_of(struct pair *out, const struct adapter_file_module *m, double p,
                   struct arena *arena)
{
    out->p = p;
    out->s = m->scale;
    out->r = m->rank;
    out->m = NULL;
    if (m->magnitude.rows) TRY(adapter_file_f32(&out->m, &m->magnitude, arena));
    TRY(adapter_file_f32(&out->A, &m->factor[ADAPTER_FILE_A], arena));
    return adapter_file_f32(&out->B, &m->factor[ADAPTER_FILE_B], arena);
}

/* v (n) += c B[row] A */
static void add_product(double *v, double c, const struct pair *p, size_t row, size_t n)
{
    for (size_t l = 0; l < p->r; l++) {
        double b = c * (double)p->B[row * p->r + l];
        for (size_t j = 0; j < n; j++)
            v[j] += b * (double)p->A[l * n + j];
    }
}

struct lines { /* of one row, each (n) */
    double *sum, *v;
    float *base; /* W0; not set if no adapter has magnitudes */
};

/* sum += p (W' - W0) of one row, with W' = W0 + s B A, or m (W0 + s B A) / ||W0 + s B A||. */
static void add_row(struct lines *x, const struct pair *p, size_t row, size_t n)
{
    if (!p->m) {
        add_product(x->sum, p->p * p->s, p, row, n);
        return;
    }
    double square = 0;
    for (size_t j = 0; j < n; j++)
        x->v[j] = (double)x->base[j];
    add_product(x->v, p->s, p, row, n);
    for (size_t j = 0; j < n; j++)
        square += x->v[j] * x->v[j];
    for (size_t j = 0; j < n; j++)
        x->sum[j] += p->p * ((double)p->m[row] / sqrt(square) * x->v[j] - (double)x->base[j]);
}

/* |p s| ||B||_F ||A||_F, for the rounding of sums in which terms cancel. */
static double size_of(const struct pair *p, const struct adapter_file_module *m)
{
    double a = 0, b = 0;
    for (size_t j = 0; j < (size_t)p->r * m->d_in; j++)
        a += (double)p->A[j] * (double)p->A[j];
    for (size_t j = 0; j < (size_t)m->d_out * p->r; j++)
        b += (double)p->B[j] * (double)p->B[j];
    return fabs(p->p * p->s) * sqrt(a) * sqrt(b);
}

static double square_sum(const double *x, size_t n)
{
    double sum = 0;
    for (size_t j = 0; j < n; j++)
        sum += x[j] * x[j];
    return sum;
}

static err lines_take(struct lines *out, struct arena *arena, size_t n)
{
    TRY(arena_take(&out->sum, arena, n, sizeof *out->sum));
    TRY(arena_take(&out->v, arena, n, sizeof *out->v));
    return arena_take(&out->base, arena, n, sizeof *out->base);
}

/* Squares of both norms of one row. The last pair is the result, with p < 0. */
static err one_row(double square[2], struct lines *x, const struct combine *c, size_t i,
                   const struct pair *pair, size_t count, size_t row)
{
    size_t n = c->module[i].d_in;
    if (c->dora) TRY(c->base_rows(x->base, c->base, &c->module[i], (uint32_t)row, 1));
    memset(x->sum, 0, n * sizeof *x->sum);
    for (size_t k = 0; k + 1 < count; k++)
        add_row(x, &pair[k], row, n);
    square[0] = square_sum(x->sum, n);
    add_row(x, &pair[count - 1], row, n);
    square[1] = square_sum(x->sum, n);
    return ERR_NONE;
}

/* square (m, 2), row by row. */
static err rows_of(double *square, const struct combine *c, size_t i, const struct pair *pair,
                   size_t count)
{
    err failed = ERR_NONE;
#pragma omp parallel
    {
        struct arena arena = {0};
        struct lines x = {0};
        err e = lines_take(&x, &arena, c->module[i].d_in);
#pragma omp for
        for (size_t row = 0; row < c->module[i].d_out; row++)
            if (!err_is(e)) e = one_row(square + 2 * row, &x, c, i, pair, count, row);
#pragma omp critical(combine_verify)
        if (err_is(e)) failed = e;
        arena_close(&arena);
    }
    return failed;
}

err combine_verify(struct combine_verified *out, const struct combine *c, size_t i,
                   const struct adapter_file *result)
{
    const struct adapter_file_module *m = &c->module[i];
    const struct adapter_file_module *got = result ? adapter_file_find(result, m->name) : m;
    struct arena arena = {0};
    struct pair *pair;
    double *square, sums[2] = {0}, size = 0;
    size_t count = 0;
    err e = ERR_NONE;
    if (!got) return err_make(ERR_INPUT, "%s: module %s is missing", result->path, m->name);
    TRY_OUT(e, arena_take(&pair, &arena, c->file_count + 1, sizeof *pair));
    TRY_OUT(e, arena_take(&square, &arena, 2 * (size_t)m->d_out, sizeof *square));
    for (size_t k = 0; k < c->file_count; k++) {
        const struct adapter_file_module *x = adapter_file_find(&c->file[k], m->name);
        if (!x || !x->rank) continue;
        TRY_OUT(e, pair_of(&pair[count], x, c->p[k], &arena));
        size += size_of(&pair[count++], m);
    }
    TRY_OUT(e, pair_of(&pair[count++], got, -1, &arena));
    TRY_OUT(e, rows_of(square, c, i, pair, count));
    for (size_t row = 0; row < m->d_out; row++)
        for (int s = 0; s < 2; s++)
            sums[s] += square[2 * row + (size_t)s];
    *out = (struct combine_verified){.norm = sqrt(sums[0]),
                                     .error = sqrt(sums[1]),
                                     .noise = size * 0x1p-52 *
                                              (m->d_out > m->d_in ? m->d_out : m->d_in)};
out:
    for (size_t k = 0; k < c->file_count; k++)
        adapter_file_drop(&c->file[k]);
    arena_close(&arena);
    return e;
}

err combine_verify_saved(double *error, const struct combine *c, size_t i,
                         const struct adapter_file *result)
{
    const struct tensor *want = c->saved[i].tensor;
    double off = 0, largest = 0, all = 0;
    for (size_t k = 0; k < c->file_count; k++)
        all += c->p[k];
    if (i >= result->saved_count || strcmp(result->saved[i].name, c->saved[i].name) != 0 ||
        result->saved[i].tensor->count != want->count)
        return err_make(ERR_INPUT, "%s: tensor %s is missing", result->path, c->saved[i].name);
    for (size_t j = 0; j < want->count; j++) {
        double sum = 0;
        float x;
        for (size_t k = 0; k < c->file_count; k++) {
            const struct tensor *t = c->file[k].saved[i].tensor;
            TRY(dtype_to_f32(&x, (const char *)t->data + j * (t->size / t->count), t->dtype, 1));
            sum += c->p[k] / all * (double)x;
        }
        memcpy(&x, (const float *)result->saved[i].tensor->data + j, sizeof x);
        largest = fmax(largest, fabs(sum));
        off = fmax(off, fabs((double)x - sum));
    }
    *error = largest > 0 ? off / largest : off;
    return ERR_NONE;
}
