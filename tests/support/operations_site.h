/* The low-rank part at one weight: factors, the batch's parts that use them, and the results that
 * the formulas of backend.h give in float64. check_site() compares them with those of the backend.
 * The masks of dropout are read from the backend: with A = identity, H is the input after dropout.
 * Include this header in one file of a program only. */
#ifndef TESTS_SUPPORT_OPERATIONS_SITE_H
#define TESTS_SUPPORT_OPERATIONS_SITE_H

#include "tests/support/operations.h"
#ifdef OPERATIONS_CUDA
#include "tests/cuda_on_cpu/shim.h"
#endif

enum { BOTH = BACKEND_FORWARD | BACKEND_BACKWARD, CARRY = 8, EVERY = 15 };
enum { MODULES = 3, USES = 4 };

enum { A = LOW_RANK_A, B = LOW_RANK_B, R = LOW_RANK_R };

struct spec { /* of one module */
    uint32_t row, rows, rank, carry;
    unsigned trains;
    bool small;
};
enum { WIDE_N = 168, WIDE_K = 72 };
static const struct spec wide_qkv[] = {
    {0, 88, 16, 0, A | B, false}, {88, 40, 3, 2, A | B, false}, {144, 24, 24, 0, A | B | R, true}};
static const struct spec wide_qv[] = {{0, 88, 8, 6, A | R, true}, {128, 40, 20, 0, B, false}};

struct test_module {
    struct low_rank_module m;
    float *a, *b, *r, *carry_a, *carry_b; /* the values on the device */
};
struct factors {
    struct backend_low_rank *l;
    struct test_module module[MODULES];
    size_t modules, width, k, values; /* values: of the trained block */
};

/* Kernels launched since the last call whose names contain one of these, of which each must have
 * run, or none if not `expected`. Without CUDA there is nothing to count. */
static inline void expect_kernels(bool expected, const char *const *name, size_t names)
{
#ifdef OPERATIONS_CUDA
    for (size_t i = 0; i < names; i++)
        cr_assert_eq(shim_launches_of(name[i]) > 0, expected, "%s: %s launched %s",
                     dtype_name(precision), name[i], expected ? "never" : "");
    shim_counts_reset();
#else
    (void)expected, (void)name, (void)names;
#endif
}

static size_t carry_of(const struct test_module *t)
{
    return t->m.width - t->m.rank;
}

/* New random values of some factors, LOW_RANK_A | ... | CARRY. The host copies that the backend has
 * read are destroyed. */
static void module_load(const struct factors *f, size_t module, unsigned which)
{
    const struct test_module *t = &f->module[module];
    size_t rank = t->m.rank, carry = carry_of(t), k = f->k, rows = t->m.rows;
    struct {
        float *to;
        size_t n;
        unsigned bit;
        double scale;
    } all[] = {{t->a, rank * k, LOW_RANK_A, 1 / sqrt((double)k)},
               {t->b, rows * rank, LOW_RANK_B, 1.0},
               {t->r, t->r ? rank * rank : 0, LOW_RANK_R, 1 / sqrt((double)rank + 1)},
               {t->carry_a, carry * k, CARRY, 1 / sqrt((double)k)},
               {t->carry_b, rows * carry, CARRY, 1.0}};
    float *copy[5] = {NULL};
    for (int i = 0; i < 5; i++) {
        if (!(which & all[i].bit) || !all[i].n) continue;
        memcpy(all[i].to, floats_normal(all[i].n, precision, all[i].scale), all[i].n * 4);
        copy[i] = malloc(all[i].n * 4);
        memcpy(copy[i], all[i].to, all[i].n * 4);
    }
    struct low_rank_values v = {copy[0], copy[1], copy[2], copy[3], copy[4]};
    be->low_rank_load(c, f->l, module, &v);
    for (int i = 0; i < 5; i++) {
        if (copy[i]) memset(copy[i], 0xff, all[i].n * 4);
        free(copy[i]);
    }
}

/* Places of trained factors start at `values` of the block and have gaps. All factors are 0. */
static struct factors factors_zero(const struct test_weight *w, const struct spec *spec,
                                   size_t count, uint32_t place, size_t values)
{
    struct factors f = {.modules = count, .k = w->k, .values = values};
    struct low_rank_module m[MODULES];
    for (size_t i = 0; i < count; i++) {
        const struct spec *s = &spec[i];
        struct test_module *t = &f.module[i];
        size_t rank = s->rank;
        t->m = (struct low_rank_module){.row = s->row,
                                        .rows = s->rows,
                                        .col = (uint32_t)f.width,
                                        .rank = s->rank,
                                        .width = s->rank + s->carry,
                                        .scale = i % 2 ? 0.7f : 0.5f,
                                        .small = s->small,
                                        .trains = s->trains,
                                        .place = place + 3 * (uint32_t)i};
        if (s->trains & LOW_RANK_A) t->m.a_at = f.values, f.values += rank * w->k + 3;
        if (s->trains & LOW_RANK_B) t->m.b_at = f.values, f.values += s->rows * rank + 2;
        if (s->trains & LOW_RANK_R) t->m.r_at = f.values, f.values += rank * rank + 1;
        t->a = host_take(rank * w->k, sizeof(float));
        t->b = host_take(s->rows * rank, sizeof(float));
        if (s->small) t->r = host_take(rank * rank, sizeof(float));
        t->carry_a = host_take(s->carry * w->k, sizeof(float));
        t->carry_b = host_take(s->rows * s->carry, sizeof(float));
        f.width += s->rank + s->carry;
        m[i] = t->m;
    }
    ok(be->low_rank_open(&f.l, c, w->w, m, count));
    cr_assert(held.low_ranks < HELD_MAX);
    held.low_rank[held.low_ranks++] = f.l;
    return f;
}
static struct factors factors_of(const struct test_weight *w, const struct spec *spec, size_t count,
                                 uint32_t place)
{
    struct factors f = factors_zero(w, spec, count, place, 0);
    for (size_t i = 0; i < count; i++)
        module_load(&f, i, EVERY);
    return f;
}

/* ---- one site: what is to be computed, and how ---- */
struct part { /* of the batch's tokens */
    const struct factors *f;
    size_t first, tokens;
    bool gradient;
    size_t row, rows; /* rows > 0: a gradient for each */
};
struct site {
    const struct test_weight *w;
    struct rows_of_batch r;
    struct part part[USES];
    size_t parts;
    bool add;
    struct tensor x, y, dy, dx;
    double *mask[USES][MODULES]; /* (tokens of the batch, k) 0 or 1 / (1 - dropout), or NULL */
    double *h[USES], *g[USES];   /* (tokens of the part, width) expected */
    double *gradient[USES];      /* expected, with the initial values */
    float *block[USES];          /* device */
    size_t stride[USES], block_size[USES];
};

static size_t widest_of(const struct site *s)
{
    size_t width = 1;
    for (size_t i = 0; i < s->parts; i++)
        if (s->part[i].f && s->part[i].f->width > width) width = s->part[i].f->width;
    return width;
}

/* The input after dropout of the module with this number, for the parts of the site. */
static double *probe_mask(const struct site *s, uint32_t place)
{
    size_t k = s->w->k, tokens = s->r.now.tokens, room = be->low_rank_room(c, k);
    struct test_weight w = weight_of(8, k, false, BOTH);
    struct spec spec = {0, 8, (uint32_t)k, 0, 0, false};
    struct factors f = factors_zero(&w, &spec, 1, place, 0);
    struct tensor x = tensor_new(precision, tokens, k, room);
    struct tensor h = tensor_new(precision, tokens, k, 0);
    float *identity = host_take(k * k, sizeof *identity);
    for (size_t i = 0; i < k; i++)
        identity[i * k + i] = 1.0f;
    for (size_t i = 0; i < tokens * k; i++)
        x.x[i] = 1.0;
    tensor_put(&x);
    h.free_rows = true;
    be->low_rank_load(c, f.l, 0, &(struct low_rank_values){.a = identity});
    struct low_rank_use use[USES];
    for (size_t i = 0; i < s->parts; i++)
        use[i] = (struct low_rank_use){
            .factors = f.l, .first = s->part[i].first, .tokens = s->part[i].tokens};
    struct low_rank_site site = {.use = use, .uses = s->parts, .h = h.m};
    be->low_rank_shrink(c, &site, x.m, s->r.b);
    double *mask = tensor_get(&h, "mask"), kept = 1.0 / (1.0 - (double)s->r.now.dropout);
    for (size_t i = 0; i < s->parts; i++)
        for (size_t j = s->part[i].first * k; j < (s->part[i].first + s->part[i].tokens) * k; j++) {
            cr_assert(fabs(mask[j]) < 1e-6 || fabs(mask[j] - kept) < 1e-2 * kept,
                      "dropout: %g, expected 0 or %g", mask[j], kept);
            mask[j] = mask[j] > 0.5 ? kept : 0.0;
        }
    return mask;
}

/* to (rows, n) += scale * a (rows, k) b (n, k)^T, where rows of a and to are ld apart */
static void add_nt(double *to, size_t ldto, const double *a, size_t lda, const float *b,
                   size_t rows, size_t n, size_t k, double scale)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = 0.0;
            for (size_t p = 0; p < k; p++)
                sum += a[i * lda + p] * (double)b[j * k + p];
            to[i * ldto + j] += scale * sum;
        }
}
/* to (rows, n) += scale * a (rows, k) b (k, n) */
static void add_nn(double *to, size_t ldto, const double *a, size_t lda, const float *b,
                   size_t rows, size_t n, size_t k, double scale)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t p = 0; p < k; p++) {
            double x = scale * a[i * lda + p];
            for (size_t j = 0; j < n; j++)
                to[i * ldto + j] += x * (double)b[p * n + j];
        }
}
/* to (m, n) += scale * a (rows, m)^T b (rows, n) */
static void add_tn(double *to, const double *a, size_t lda, const double *b, size_t ldb,
                   size_t rows, size_t m, size_t n, double scale)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t p = 0; p < m; p++) {
            double x = scale * a[i * lda + p];
            for (size_t j = 0; j < n; j++)
                to[p * n + j] += x * b[i * ldb + j];
        }
}

/* One module for the tokens [first, first + tokens) of part u, which begins at `begin`. The
 * gradients are added at `gradient` unless it is NULL. */
static void expect_module(struct site *s, size_t u, size_t i, size_t first, size_t tokens,
                          double *gradient)
{
    const struct factors *f = s->part[u].f;
    const struct test_module *t = &f->module[i];
    size_t k = f->k, n = s->w->n, width = f->width, rank = t->m.rank, carry = carry_of(t);
    size_t at = (first - s->part[u].first) * width + t->m.col;
    double scale = (double)t->m.scale, *h = s->h[u] + at, *g = s->g[u] + at;
    double *x = s->x.x + first * k, *y = s->y.x + first * n + t->m.row;
    double *dx = s->dx.x + first * k, *dy = s->dy.x + first * n + t->m.row;
    double *dropped = malloc(tokens * k * sizeof *dropped);
    double *through = calloc(tokens * k + 1, sizeof *through);
    double *v = calloc(tokens * rank + 1, sizeof *v), *p = calloc(tokens * rank + 1, sizeof *p);
    const double *mask = s->mask[u][i] ? s->mask[u][i] + first * k : NULL;
    for (size_t j = 0; j < tokens * k; j++)
        dropped[j] = x[j] * (mask ? mask[j] : 1.0);
    add_nt(h, width, dropped, k, t->a, tokens, rank, k, 1.0);
    add_nt(h + rank, width, x, k, t->carry_a, tokens, carry, k, 1.0);
    if (t->r) add_nt(v, rank, h, width, t->r, tokens, rank, rank, 1.0);
    for (size_t j = 0; j < tokens * rank && !t->r; j++)
        v[j] = h[j / rank * width + j % rank];
    add_nt(y, n, v, rank, t->b, tokens, t->m.rows, rank, scale);
    add_nt(y, n, h + rank, width, t->carry_b, tokens, t->m.rows, carry, 1.0);
    add_nn(p, rank, dy, n, t->b, tokens, rank, t->m.rows, 1.0);
    if (t->r) add_nn(g, width, p, rank, t->r, tokens, rank, rank, scale);
    for (size_t j = 0; j < tokens * rank && !t->r; j++)
        g[j / rank * width + j % rank] = scale * p[j];
    add_nn(g + rank, width, dy, n, t->carry_b, tokens, carry, t->m.rows, 1.0);
    add_nn(through, k, g, width, t->a, tokens, k, rank, 1.0);
    for (size_t j = 0; j < tokens * k; j++)
        dx[j] += through[j] * (mask ? mask[j] : 1.0);
    add_nn(dx, k, g + rank, width, t->carry_a, tokens, k, carry, 1.0);
    unsigned trains = gradient ? t->m.trains : 0;
    if (trains & LOW_RANK_A)
        add_tn(gradient + t->m.a_at, g, width, dropped, k, tokens, rank, k, 1.0);
    if (trains & LOW_RANK_B)
        add_tn(gradient + t->m.b_at, dy, n, v, rank, tokens, t->m.rows, rank, scale);
    if (trains & LOW_RANK_R)
        add_tn(gradient + t->m.r_at, p, rank, h, width, tokens, rank, rank, scale);
    free(dropped);
    free(through);
    free(v);
    free(p);
}

/* All that is expected of one site. Parts with a gradient for each row are computed row by row. */
static void expect_site(struct site *s)
{
    size_t n = s->w->n, tokens = s->r.now.tokens;
    if (!s->add) tensor_clear(&s->y);
    for (size_t i = 0; s->w->bias && i < tokens * n; i++)
        s->y.x[i] += (double)s->w->bias[i % n];
    add_product(s->y.x, s->x.x, s->w->x, tokens, n, s->w->k);
    add_product_back(s->dx.x, s->dy.x, s->w->x, tokens, n, s->w->k);
    for (size_t u = 0; u < s->parts; u++) {
        struct part *p = &s->part[u];
        if (!p->f) continue;
        s->h[u] = host_take(p->tokens * p->f->width, sizeof(double));
        s->g[u] = host_take(p->tokens * p->f->width, sizeof(double));
        for (size_t row = 0; row < (p->rows ? p->rows : 1); row++) {
            size_t first = p->rows ? s->r.start[p->row + row] : p->first;
            size_t count = p->rows ? s->r.start[p->row + row + 1] - first : p->tokens;
            double *gradient = s->gradient[u] ? s->gradient[u] + row * s->stride[u] : NULL;
            for (size_t i = 0; i < p->f->modules; i++)
                expect_module(s, u, i, first, count, gradient);
        }
    }
}

/* The rows of each part, columns 0 .. width - 1. */
static void parts_near(const struct site *s, const struct tensor *t, double *const *want,
                       const char *name)
{
    const double *got = tensor_get(t, name);
    for (size_t u = 0; u < s->parts; u++) {
        const struct part *p = &s->part[u];
        if (!p->f || !p->tokens) continue;
        size_t width = p->f->width;
        double *x = host_take(p->tokens * width, sizeof *x);
        for (size_t i = 0; i < p->tokens; i++)
            memcpy(x + i * width, got + (p->first + i) * t->cols, width * sizeof *x);
        values_sums(x, want[u], p->tokens, width, precision, name);
    }
}

static struct tensor tensor_wide(const struct site *s)
{
    struct tensor t = tensor_result(precision, s->r.now.tokens, widest_of(s), 3);
    return t;
}

/* Initial values of the trained blocks on the device, and the same as doubles. */
static void blocks_new(struct site *s)
{
    for (size_t u = 0; u < s->parts; u++) {
        const struct part *p = &s->part[u];
        if (!p->f || !p->gradient) continue;
        s->stride[u] = p->f->values + 5;
        s->block_size[u] = s->stride[u] * (p->rows ? p->rows : 1);
        float *start = floats_normal(s->block_size[u], DTYPE_F32, 1.0);
        s->block[u] = device_take(s->block_size[u] * sizeof(float));
        device_put(s->block[u], start, s->block_size[u] * sizeof *start);
        s->gradient[u] = host_take(s->block_size[u], sizeof(double));
        for (size_t i = 0; i < s->block_size[u]; i++)
            s->gradient[u][i] = (double)start[i];
    }
}

static void uses_of(struct low_rank_use *use, const struct site *s)
{
    for (size_t u = 0; u < s->parts; u++) {
        const struct part *p = &s->part[u];
        use[u] = (struct low_rank_use){
            p->f ? p->f->l : NULL, p->first, p->tokens, s->block[u], p->row, p->rows, s->stride[u]};
    }
}

/* Results are computed with the operations in the orders of the engine: linear; the backward
 * product with and without dx; the gradients, after the input was made again. */
static void run_site(const struct site *s, enum dtype y_type, enum dtype dx_type)
{
    size_t rows = s->r.now.tokens, room = be->low_rank_room(c, widest_of(s));
    struct low_rank_use use[USES];
    struct tensor h[2] = {tensor_wide(s), tensor_wide(s)};
    struct tensor g[2] = {tensor_wide(s), tensor_wide(s)};
    struct tensor p[2] = {tensor_wide(s), tensor_wide(s)}, x[2], dy[2];
    /* Rows of other lengths, which stay multiples of 16 bytes if they can be. */
    size_t more = s->w->k % 8 == 0 && s->w->n % 8 == 0 ? 8 : 1;
    for (size_t i = 0; i < 2; i++) {
        x[i] = tensor_copy(&s->x, precision, room + i * more);
        dy[i] = tensor_copy(&s->dy, precision, room + i * more);
        x[i].free_rows = x[i].free_cols = dy[i].free_rows = dy[i].free_cols = true;
    }
    uses_of(use, s);
    struct low_rank_site site = {.use = use, .uses = s->parts};
    site.h = h[0].m, site.g = g[0].m, site.p = p[0].m;
    be->linear(c, s->y.m, x[0].m, s->w->w, &site, s->r.b, rows, s->add);
    tensor_sums(&s->y, y_type == DTYPE_F32 ? precision : y_type, "low-rank linear");
    parts_near(s, &h[0], s->h, "low-rank H");
    tensor_near(&x[0], 0.0, "low-rank linear: x");
    be->linear_back(c, s->dx.m, dy[0].m, s->w->w, &site, s->r.b, rows);
    tensor_sums(&s->dx, dx_type == DTYPE_F32 ? precision : dx_type, "low-rank linear_back");
    parts_near(s, &g[0], s->g, "low-rank G");
    site.h = h[1].m, site.g = g[1].m, site.p = p[1].m;
    be->low_rank_shrink(c, &site, x[1].m, s->r.b);
    parts_near(s, &h[1], s->h, "low_rank_shrink");
    be->linear_back(c, (struct mat){0}, dy[1].m, s->w->w, &site, s->r.b, rows);
    parts_near(s, &g[1], s->g, "low-rank G alone");
    be->low_rank_gradient(c, &site, dy[1].m, x[1].m, s->r.b);
    for (size_t u = 0; u < s->parts; u++) {
        if (!s->block[u]) continue;
        float *got = host_take(s->block_size[u], sizeof *got);
        double *wide = host_take(s->block_size[u], sizeof *wide);
        device_get(got, s->block[u], s->block_size[u] * sizeof *got);
        for (size_t i = 0; i < s->block_size[u]; i++)
            wide[i] = (double)got[i];
        values_sums(wide, s->gradient[u], 1, s->block_size[u], precision, "low_rank_gradient");
    }
}

static void check_site(const struct test_weight *w, const struct rows_of_batch *r,
                       const struct part *part, size_t parts, bool add)
{
    struct site s = {.w = w, .r = *r, .parts = parts, .add = add};
    enum dtype type = add ? DTYPE_F32 : precision;
    size_t tokens = r->now.tokens;
    memcpy(s.part, part, parts * sizeof *part);
    s.x = tensor_normal(precision, tokens, w->k, 0, 1.0);
    s.dy = tensor_normal(precision, tokens, w->n, 0, 1.0);
    s.y = tensor_normal(type, tokens, w->n, 2, 1.0);
    s.dx = tensor_result(type, tokens, w->k, 1);
    s.y.free_rows = true;
    blocks_new(&s);
    for (size_t u = 0; u < parts && r->now.dropout > 0; u++)
        for (size_t i = 0; part[u].f && i < part[u].f->modules; i++)
            s.mask[u][i] = probe_mask(&s, part[u].f->module[i].m.place);
    expect_site(&s);
    run_site(&s, type, type);
}

/* The whole batch with one set of factors. */
static void check_whole(const struct factors *f, const struct test_weight *w, size_t tokens,
                        bool add)
{
    struct rows_of_batch r = batch_flat(tokens);
    struct part whole = {f, 0, tokens, true, 0, 0};
    check_site(w, &r, &whole, 1, add);
}

#endif
