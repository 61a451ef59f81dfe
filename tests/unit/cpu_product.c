/* Small products and attention of the CPU backend against plain double loops, in both precisions,
 * at sizes that do not fit any block. */
#include "base/rng.h"
#include "kernels/cpu/cpu.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void *take(struct backend_context *c, size_t bytes)
{
    void *memory;
    err e = backend_cpu.memory_take(&memory, c, bytes);
    cr_assert(!err_is(e), "%s", e.text);
    return memory;
}

static struct backend_context *context(enum dtype precision, int threads)
{
    struct backend_context *c;
    struct backend_options o = {.precision = precision, .threads = threads};
    err e = backend_cpu.open(&c, &o);
    cr_assert(!err_is(e), "%s", e.text);
    return c;
}

/* Random values, those of bfloat16 exactly, as a tensor of `type` and as doubles. */
static struct mat random_mat(double *exact, struct backend_context *c, enum dtype type, size_t rows,
                             size_t ld)
{
    static uint64_t number;
    struct rng rng;
    struct mat m = {take(c, rows * ld * 4 + 64), type, ld};
    rng_init(&rng, "test", 1, "mat", number++);
    for (size_t i = 0; i < rows * ld; i++) {
        float x = f32_from_bf16(bf16_from_f32((float)rng_normal(&rng)));
        exact[i] = (double)x;
        if (type == DTYPE_F32)
            ((float *)m.data)[i] = x;
        else
            ((uint16_t *)m.data)[i] = bf16_from_f32(x);
    }
    return m;
}

static double value(struct mat m, size_t i, size_t j)
{
    if (m.type == DTYPE_F32) return (double)((float *)m.data)[i * m.ld + j];
    return (double)f32_from_bf16(((uint16_t *)m.data)[i * m.ld + j]);
}

static void check_product(struct backend_context *c, enum dtype type, const struct product_shape *p)
{
    bool tn = p->kind == PRODUCT_TN, nt = p->kind == PRODUCT_NT;
    size_t ra = tn ? p->k : p->m, ca = (tn ? p->m : p->k) + 3;
    size_t rb = nt ? p->n : p->k, cb = (nt ? p->k : p->n) + 5, cc = p->n + 2;
    double *xa = malloc(ra * ca * 8), *xb = malloc(rb * cb * 8), *xc = malloc(p->m * cc * 8);
    struct mat a = random_mat(xa, c, type, ra, ca), b = random_mat(xb, c, type, rb, cb);
    struct mat out = random_mat(xc, c, DTYPE_F32, p->m, cc);
    cpu_product(c, out, a, b, p);
    double worst = 0.0;
    for (size_t i = 0; i < p->m; i++)
        for (size_t j = 0; j < p->n; j++) {
            double sum = 0.0;
            for (size_t k = 0; k < p->k; k++)
                sum +=
                    (tn ? xa[k * ca + i] : xa[i * ca + k]) * (nt ? xb[j * cb + k] : xb[k * cb + j]);
            sum = sum * (double)p->alpha + (p->add ? xc[i * cc + j] : 0.0);
            worst = fmax(worst, fabs(sum - value(out, i, j)));
        }
    for (size_t i = 0; i < p->m; i++)
        for (size_t j = p->n; j < cc; j++)
            cr_assert_eq(xc[i * cc + j], value(out, i, j), "column %zu beyond the product", j);
    cr_expect_leq(worst, 2e-6 * sqrt((double)p->k) * 10, "%s kind %d (%zu, %zu, %zu): off by %.2e",
                  dtype_name(type), (int)p->kind, p->m, p->n, p->k, worst);
    backend_cpu.memory_give(c, a.data);
    backend_cpu.memory_give(c, b.data);
    backend_cpu.memory_give(c, out.data);
    free(xa);
    free(xb);
    free(xc);
}

Test(cpu_product, multiplies_every_shape_as_plain_loops_do)
{
    static const size_t size[][3] = {{1, 1, 1},     {5, 7, 3},     {33, 16, 31},   {100, 48, 64},
                                     {48, 100, 65}, {300, 17, 33}, {17, 300, 500}, {64, 64, 16}};
    struct backend_context *c = context(DTYPE_BF16, 2);
    for (int type = 0; type < 2; type++)
        for (size_t i = 0; i < sizeof size / sizeof size[0]; i++)
            for (int kind = 0; kind < 3; kind++) {
                struct product_shape p = {
                    (enum product_kind)kind, size[i][0], size[i][1], size[i][2], 0.5f, i % 2 == 0};
                check_product(c, type ? DTYPE_BF16 : DTYPE_F32, &p);
            }
    backend_cpu.close(c);
}

struct heads {
    uint32_t start[4];
    struct attention_shape s;
    size_t tokens;
    double *q, *k, *v, *g;
};

static double score(const struct heads *h, size_t row, size_t head, size_t i, size_t j)
{
    size_t hd = h->s.head_dim, kv = head / (h->s.heads / h->s.kv_heads);
    size_t qi = (h->start[row] + i) * h->s.heads * hd + head * hd;
    size_t kj = (h->start[row] + j) * h->s.kv_heads * hd + kv * hd;
    double sum = 0.0;
    for (size_t d = 0; d < hd; d++)
        sum += h->q[qi + d] * h->k[kj + d];
    return sum / sqrt((double)hd);
}

/* out, dq, dk, dv of one head of one row by the definitions. */
static void plain_attention(const struct heads *h, size_t row, size_t head, double *out[4])
{
    size_t hd = h->s.head_dim, n = h->start[row + 1] - h->start[row];
    size_t kv = head / (h->s.heads / h->s.kv_heads), wq = h->s.heads * hd, wk = h->s.kv_heads * hd;
    for (size_t i = 0; i < n; i++) {
        double p[200], total = 0.0, mean = 0.0;
        size_t from = h->s.window && i + 1 > h->s.window ? i + 1 - h->s.window : 0;
        size_t qi = (h->start[row] + i) * wq + head * hd;
        for (size_t j = from; j <= i; j++)
            total += p[j] = exp(score(h, row, head, i, j));
        for (size_t j = from; j <= i; j++) {
            size_t kj = (h->start[row] + j) * wk + kv * hd;
            double dp = 0.0;
            p[j] /= total;
            for (size_t d = 0; d < hd; d++) {
                out[0][qi + d] += p[j] * h->v[kj + d];
                out[3][kj + d] += p[j] * h->g[qi + d];
                dp += h->g[qi + d] * h->v[kj + d];
            }
            mean += p[j] * dp;
        }
        for (size_t j = from; j <= i; j++) {
            size_t kj = (h->start[row] + j) * wk + kv * hd;
            double dp = 0.0, ds;
            for (size_t d = 0; d < hd; d++)
                dp += h->g[qi + d] * h->v[kj + d];
            ds = p[j] * (dp - mean) / sqrt((double)hd);
            for (size_t d = 0; d < hd; d++) {
                out[1][qi + d] += ds * h->k[kj + d];
                out[2][kj + d] += ds * h->q[qi + d];
            }
        }
    }
}

static double distance(struct mat m, const double *want, size_t rows, size_t cols)
{
    double wrong = 0.0, norm = 1e-30;
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++) {
            double d = value(m, i, j) - want[i * cols + j];
            wrong += d * d;
            norm += want[i * cols + j] * want[i * cols + j];
        }
    return sqrt(wrong / norm);
}

static void check_attention(enum dtype type, size_t heads, size_t kv_heads, size_t hd,
                            size_t window)
{
    struct backend_context *c = context(type, 2);
    struct heads h = {.start = {0, 37, 37, 150}};
    struct backend_batch batch = {.rows = {.tokens = 150, .rows = 3, .start = h.start}};
    size_t n = h.tokens = 150, wq = heads * hd, wk = kv_heads * hd;
    h.s = (struct attention_shape){
        (uint32_t)heads, (uint32_t)kv_heads, (uint32_t)hd, (uint32_t)window, 0, 0};
    double *want[4], *all = calloc(n * (wq * 4 + wk * 4), sizeof *all);
    h.q = all, h.g = h.q + n * wq, h.k = h.g + n * wq, h.v = h.k + n * wk;
    want[0] = h.v + n * wk, want[1] = want[0] + n * wq, want[2] = want[1] + n * wq;
    want[3] = want[2] + n * wk;
    struct attention_tensors t = {.q = random_mat(h.q, c, type, n, wq)}, g = {0};
    t.k = random_mat(h.k, c, type, n, wk);
    t.v = random_mat(h.v, c, type, n, wk);
    g.out = random_mat(h.g, c, type, n, wq);
    t.out = (struct mat){take(c, n * wq * 4), type, wq};
    t.lse = take(c, n * heads * 4);
    g.q = (struct mat){take(c, n * wq * 4), type, wq};
    g.k = (struct mat){take(c, n * wk * 4), type, wk};
    g.v = (struct mat){take(c, n * wk * 4), type, wk};
    backend_cpu.attention(c, &t, &h.s, &batch);
    backend_cpu.attention_back(c, &g, &t, &h.s, &batch);
    for (size_t row = 0; row < 3; row++)
        for (size_t head = 0; head < heads; head++)
            plain_attention(&h, row, head, want);
    double most = type == DTYPE_F32 ? 2e-6 : 8e-3;
    double got[4] = {distance(t.out, want[0], n, wq), distance(g.q, want[1], n, wq),
                     distance(g.k, want[2], n, wk), distance(g.v, want[3], n, wk)};
    for (int i = 0; i < 4; i++)
        cr_expect_leq(got[i], most, "%s, %zu/%zu heads of %zu, window %zu: %s off by %.2e",
                      dtype_name(type), heads, kv_heads, hd, window,
                      i == 0   ? "out"
                      : i == 1 ? "dq"
                      : i == 2 ? "dk"
                               : "dv",
                      got[i]);
    void *memory[] = {t.q.data, t.k.data, t.v.data, t.out.data, t.lse,
                      g.q.data, g.k.data, g.v.data, g.out.data};
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++)
        backend_cpu.memory_give(c, memory[i]);
    free(all);
    backend_cpu.close(c);
}

Test(cpu_product, attends_and_goes_back_as_the_definition_says)
{
    static const size_t shape[][4] = {{4, 2, 16, 0}, {3, 1, 64, 0}, {2, 2, 24, 7},  {6, 3, 40, 33},
                                      {1, 1, 6, 2},  {2, 1, 80, 0}, {2, 1, 128, 64}};
    for (size_t i = 0; i < sizeof shape / sizeof shape[0]; i++) {
        const size_t *s = shape[i];
        check_attention(DTYPE_F32, s[0], s[1], s[2], s[3]);
        check_attention(DTYPE_BF16, s[0], s[1], s[2], s[3]);
    }
}
