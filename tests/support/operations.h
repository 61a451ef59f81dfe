/* Shared by the programs tests/parity/operations*.c: the backend under test, tensors on its device
 * with exact values known on the host, and comparisons. Device memory is only reached through
 * copy_in(), copy_out() and check(), because on a GPU it is not host memory.
 *
 * A test calls begin(), makes tensors, weights, factors and batches, and calls end(), which frees
 * them all. Include this header in one file of a program only. */
#ifndef TESTS_SUPPORT_OPERATIONS_H
#define TESTS_SUPPORT_OPERATIONS_H

#include "base/rng.h"
#include "kernels/backend.h"
#include "kernels/quant.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* SMALL: kernels run on emulated threads, about a thousand times slower than on a GPU. */
#ifdef OPERATIONS_LOADED /* bench/gpu/check.c has loaded the library of the CUDA backend */
extern const struct backend *operations_backend;
#define be operations_backend
enum { SMALL = 0 };
static inline bool can_bf16(void)
{
    return true;
}
#elif defined OPERATIONS_CUDA
static const struct backend *const be = &backend_cuda;
enum { SMALL = 1 };
static inline bool can_bf16(void)
{
    return true;
}
#else
#include "kernels/cpu/cpu.h"
static const struct backend *const be = &backend_cpu;
enum { SMALL = 0 };
static inline bool can_bf16(void)
{
    return cpu_can_bf16();
}
#endif

/* The sanitizers find races and stray accesses in small shapes too, and are up to a hundred times
 * slower, so they leave out the largest shapes. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { INSTRUMENTED = 1 };
#else
enum { INSTRUMENTED = 0 };
#endif
enum { HELD_MAX = 4096, THREADS = 2 };
static const float CANARY = -77.5f; /* a value of bfloat16 that no result has */

static struct backend_context *c; /* of the running test */
static enum dtype precision;
static struct {
    void *memory[HELD_MAX], *host[HELD_MAX];
    struct backend_weight *weight[HELD_MAX];
    struct backend_low_rank *low_rank[HELD_MAX];
    struct backend_batch *batch[HELD_MAX];
    size_t memories, hosts, weights, low_ranks, batches;
} held;

static inline void begin_threads(enum dtype type, int threads)
{
    struct backend_options o = {.precision = type, .threads = threads};
    memset(&held, 0, sizeof held);
    ok(be->open(&c, &o));
    precision = be->precision(c);
    cr_assert_eq(precision, type, "precision %s, expected %s", dtype_name(precision),
                 dtype_name(type));
}
static inline void begin(enum dtype type)
{
    begin_threads(type, THREADS);
}
static inline void end(void)
{
    ok(be->check(c));
    for (size_t i = 0; i < held.low_ranks; i++)
        be->low_rank_close(held.low_rank[i]);
    for (size_t i = 0; i < held.batches; i++)
        be->batch_close(held.batch[i]);
    for (size_t i = 0; i < held.weights; i++)
        be->weight_close(held.weight[i]);
    for (size_t i = 0; i < held.memories; i++)
        be->memory_give(c, held.memory[i]);
    for (size_t i = 0; i < held.hosts; i++)
        free(held.host[i]);
    be->close(c);
}
/* Runs a test in float32 and in bfloat16. */
static inline void both(void (*run)(void))
{
    begin(DTYPE_F32);
    run();
    end();
    if (!can_bf16()) cr_skip_test("bfloat16 needs AVX-512");
    begin(DTYPE_BF16);
    run();
    end();
}

static inline void *host_take(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    cr_assert(memory && held.hosts < HELD_MAX);
    return held.host[held.hosts++] = memory;
}
static inline void *device_take(size_t bytes)
{
    void *memory;
    cr_assert(held.memories < HELD_MAX);
    ok(be->memory_take(&memory, c, bytes));
    return held.memory[held.memories++] = memory;
}
static inline void device_put(void *to, const void *host, size_t bytes)
{
    be->copy_in(c, to, host, bytes);
    ok(be->check(c));
}
static inline void device_get(void *host, const void *from, size_t bytes)
{
    be->copy_out(c, host, from, bytes);
    ok(be->check(c));
}

/* ---- random values ---- */
static inline struct rng *next_rng(void)
{
    static struct rng rng;
    static uint64_t number;
    rng_init(&rng, "operations", 1, "values", number++);
    return &rng;
}
static inline size_t type_size(enum dtype t)
{
    return t == DTYPE_F32 ? 4 : 2;
}
static inline double rounded(double x, enum dtype t)
{
    float f = (float)x;
    return (double)(t == DTYPE_F32 ? f : f32_from_bf16(bf16_from_f32(f)));
}
/* n normal values times `scale`, rounded to `t`. */
static inline void fill_normal(double *out, size_t n, enum dtype t, double scale)
{
    struct rng *rng = next_rng();
    for (size_t i = 0; i < n; i++)
        out[i] = rounded(rng_normal(rng) * scale, t);
}
static inline float *floats_normal(size_t n, enum dtype t, double scale)
{
    float *out = host_take(n, sizeof *out);
    struct rng *rng = next_rng();
    for (size_t i = 0; i < n; i++)
        out[i] = (float)rounded(rng_normal(rng) * scale, t);
    return out;
}

/* ---- tensors ---- */
struct tensor {
    struct mat m;
    size_t rows, cols;
    double *x;      /* (rows, cols) host: values put on the device, or expected there */
    size_t room;    /* rows that exist, at least `rows` */
    bool free_rows; /* rows from `rows` on may have changed */
    bool free_cols; /* columns from `cols` on may have changed */
};

/* Copies t->x to the device, and the canary to the rows and columns around it. */
static inline void tensor_put(const struct tensor *t)
{
    size_t size = type_size(t->m.type), count = t->room * t->m.ld;
    char *raw = malloc(count * size + 1);
    for (size_t i = 0; i < t->room; i++)
        for (size_t j = 0; j < t->m.ld; j++) {
            bool inside = i < t->rows && j < t->cols;
            float x = inside ? (float)t->x[i * t->cols + j] : CANARY;
            uint16_t narrow = bf16_from_f32(x);
            memcpy(raw + (i * t->m.ld + j) * size, size == 4 ? (void *)&x : &narrow, size);
        }
    device_put(t->m.data, raw, count * size);
    free(raw);
}
/* Zeros on the host. */
static inline void tensor_clear(const struct tensor *t)
{
    for (size_t i = 0; i < t->rows * t->cols; i++)
        t->x[i] = 0.0;
}
/* A tensor of zeros on the host and canaries on the device, with `margin` columns to its right. */
static inline struct tensor tensor_new(enum dtype type, size_t rows, size_t cols, size_t margin)
{
    struct tensor t = {.m = {NULL, type, cols + margin}, .rows = rows, .cols = cols};
    t.room = (rows + BACKEND_ROWS) / BACKEND_ROWS * BACKEND_ROWS;
    t.x = host_take(rows * cols, sizeof *t.x);
    t.m.data = device_take(t.room * t.m.ld * type_size(type));
    for (size_t i = 0; i < rows * cols; i++)
        t.x[i] = (double)CANARY;
    tensor_put(&t);
    tensor_clear(&t);
    return t;
}
static inline struct tensor tensor_normal(enum dtype type, size_t rows, size_t cols, size_t margin,
                                          double scale)
{
    struct tensor t = tensor_new(type, rows, cols, margin);
    fill_normal(t.x, rows * cols, type, scale);
    tensor_put(&t);
    return t;
}
/* The same values in new memory, of type `type` and with another margin. */
static inline struct tensor tensor_copy(const struct tensor *from, enum dtype type, size_t margin)
{
    struct tensor t = tensor_new(type, from->rows, from->cols, margin);
    memcpy(t.x, from->x, t.rows * t.cols * sizeof *t.x);
    tensor_put(&t);
    return t;
}
/* For results of linear(), which may write rows up to a multiple of BACKEND_ROWS. */
static inline struct tensor tensor_result(enum dtype type, size_t rows, size_t cols, size_t margin)
{
    struct tensor t = tensor_new(type, rows, cols, margin);
    t.free_rows = true;
    return t;
}

/* The values on the device (rows, cols); fails if a canary around them has changed. */
static inline double *tensor_get(const struct tensor *t, const char *name)
{
    size_t size = type_size(t->m.type), count = t->room * t->m.ld;
    char *raw = malloc(count * size + 1);
    double *out = host_take(t->rows * t->cols, sizeof *out);
    device_get(raw, t->m.data, count * size);
    for (size_t i = 0; i < t->room; i++)
        for (size_t j = 0; j < t->m.ld; j++) {
            float x;
            uint16_t narrow;
            memcpy(size == 4 ? (void *)&x : &narrow, raw + (i * t->m.ld + j) * size, size);
            if (size == 2) x = f32_from_bf16(narrow);
            if (i < t->rows && j < t->cols)
                out[i * t->cols + j] = (double)x;
            else if (!(i >= t->rows && t->free_rows) && !(j >= t->cols && t->free_cols))
                cr_assert_eq(x, CANARY, "%s: wrote %g at (%zu, %zu), beyond (%zu, %zu)", name,
                             (double)x, i, j, t->rows, t->cols);
        }
    free(raw);
    return out;
}

/* Tolerance of values that were rounded once to `type`. */
static inline double near_of(enum dtype type)
{
    return type == DTYPE_F32 ? 1e-6 : 4e-3;
}

/* Every got[i] within tolerance * (|want[i]| + root mean square of want); NaN is never within. */
static inline void values_near(const double *got, const double *want, size_t rows, size_t cols,
                               double tolerance, const char *name)
{
    double square = 0.0, worst = 0.0;
    size_t at = 0, n = rows * cols;
    for (size_t i = 0; i < n; i++)
        square += want[i] * want[i];
    double rms = n ? sqrt(square / (double)n) : 0.0;
    for (size_t i = 0; i < n; i++) {
        double off = fabs(got[i] - want[i]) / (fabs(want[i]) + rms + 1e-30);
        if (got[i] == want[i]) off = 0.0;
        if (!(off <= worst)) worst = off, at = i;
        if (isnan(off)) break;
    }
    cr_assert(worst <= tolerance,
              "%s %s (%zu, %zu): at (%zu, %zu) %.9g, expected %.9g: off by %.2e",
              dtype_name(precision), name, rows, cols, cols ? at / cols : 0, cols ? at % cols : 0,
              n ? got[at] : 0.0, n ? want[at] : 0.0, worst);
}
static inline void tensor_near(const struct tensor *t, double tolerance, const char *name)
{
    values_near(tensor_get(t, name), t->x, t->rows, t->cols, tolerance, name);
}

/* For sums of products: their distance from `want` in the Frobenius norm, and each single value,
 * because that norm may hide one that is wrong. */
static inline void values_sums(const double *got, const double *want, size_t rows, size_t cols,
                               enum dtype type, const char *name)
{
    double square = 0.0, wrong = 0.0, tolerance = type == DTYPE_F32 ? 3e-6 : 8e-3;
    for (size_t i = 0; i < rows * cols; i++) {
        square += want[i] * want[i];
        wrong += (got[i] - want[i]) * (got[i] - want[i]);
    }
    values_near(got, want, rows, cols, 6 * tolerance, name);
    cr_assert(sqrt(wrong) <= tolerance * sqrt(square), "%s %s (%zu, %zu): off by %.2e",
              dtype_name(precision), name, rows, cols, sqrt(wrong / (square + 1e-300)));
}
static inline void tensor_sums(const struct tensor *t, enum dtype type, const char *name)
{
    values_sums(tensor_get(t, name), t->x, t->rows, t->cols, type, name);
}

/* Rows [first, first + rows) of two results have the same bits. */
static inline void rows_same(const double *a, size_t first_a, const double *b, size_t first_b,
                             size_t rows, size_t cols, const char *name)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++) {
            double x = a[(first_a + i) * cols + j], y = b[(first_b + i) * cols + j];
            cr_assert(!memcmp(&x, &y, sizeof x), "%s %s: row %zu, column %zu: %.9g and %.9g",
                      dtype_name(precision), name, i, j, x, y);
        }
}

/* ---- batches ---- */
struct rows_of_batch {
    struct backend_batch *b;
    struct batch_rows now;
    int32_t *id, *target;
    uint32_t *start, *position, *index;
    double *nll;
};
/* Rows of these lengths, with random ids below `vocab`. Two tokens of three are learned. */
static inline struct rows_of_batch rows_make(const uint32_t *length, size_t rows, uint32_t vocab)
{
    struct rows_of_batch r = {.now = {.rows = rows, .gradient_scale = 0.5f}};
    size_t tokens = 0, learned = 0;
    struct rng *rng = next_rng();
    r.start = host_take(rows + 1, sizeof *r.start);
    for (size_t i = 0; i < rows; i++)
        r.start[i + 1] = (uint32_t)(tokens += length[i]);
    r.id = host_take(tokens, sizeof *r.id);
    r.position = host_take(tokens, sizeof *r.position);
    r.index = host_take(tokens, sizeof *r.index);
    r.target = host_take(tokens, sizeof *r.target);
    r.nll = host_take(tokens, sizeof *r.nll);
    for (size_t i = 0; i < rows; i++)
        for (uint32_t t = r.start[i]; t < r.start[i + 1]; t++) {
            r.id[t] = (int32_t)rng_below(rng, vocab);
            r.position[t] = t - r.start[i];
            if (t % 3 == 1) continue;
            r.target[learned] = (int32_t)rng_below(rng, vocab);
            r.index[learned++] = t;
        }
    r.now.tokens = tokens;
    r.now.learned = learned;
    r.now.id = r.id;
    r.now.start = r.start;
    r.now.position = r.position;
    r.now.index = r.index;
    r.now.target = r.target;
    return r;
}
static inline void rows_set(struct rows_of_batch *r)
{
    be->batch_set(c, r->b, &r->now);
}
static inline struct rows_of_batch batch_of(const uint32_t *length, size_t rows, uint32_t vocab)
{
    struct rows_of_batch r = rows_make(length, rows, vocab);
    struct batch_rows most = {.tokens = r.now.tokens, .rows = rows, .learned = r.now.learned};
    ok(be->batch_open(&r.b, c, &most));
    cr_assert(held.batches < HELD_MAX);
    held.batch[held.batches++] = r.b;
    rows_set(&r);
    return r;
}
/* One row of this many tokens. */
static inline struct rows_of_batch batch_flat(size_t tokens)
{
    uint32_t length = (uint32_t)tokens;
    return batch_of(&length, 1, 1);
}

/* ---- weights ---- */
struct part_kind {
    enum dtype type;
    uint32_t rows, rope_heads;
};
struct test_weight {
    struct backend_weight *w;
    size_t n, k;
    double *x;   /* (n, k) in the order of the operations, rounded to the precision */
    float *bias; /* (n), or NULL */
    double cap;  /* of the logits; 0: none */
};
static float weight_cap; /* of the weights that are made next */

static inline size_t file_types(enum dtype out[DTYPE_COUNT])
{
    size_t n = 0;
    for (enum dtype t = DTYPE_NONE; t < DTYPE_COUNT; t++)
        if (quant_known(t)) out[n++] = t;
    return n;
}
/* Random bytes of a file type; the scales of blocks are set so that values stay below about 1. */
static inline void fill_part(uint8_t *out, enum dtype t, size_t n)
{
    static const struct {
        enum dtype type;
        size_t block, at, second; /* places of the scale, and of the minimum */
        uint16_t scale;
    } kind[] = {{DTYPE_Q4_0, 18, 0, 0, 0x2c00},      {DTYPE_Q4_1, 20, 0, 2, 0x2c00},
                {DTYPE_Q5_0, 22, 0, 0, 0x2800},      {DTYPE_Q5_1, 24, 0, 2, 0x2800},
                {DTYPE_Q8_0, 34, 0, 0, 0x1c00},      {DTYPE_Q2_K, 84, 80, 82, 0x2000},
                {DTYPE_Q3_K, 110, 108, 108, 0x1c00}, {DTYPE_Q4_K, 144, 0, 2, 0x1000},
                {DTYPE_Q5_K, 176, 0, 2, 0x0c00},     {DTYPE_Q6_K, 210, 208, 208, 0x0800},
                {DTYPE_IQ4_NL, 18, 0, 0, 0x1c00},    {DTYPE_IQ4_XS, 136, 0, 0, 0x0800}};
    struct rng *rng = next_rng();
    size_t bytes;
    cr_assert(dtype_bytes(&bytes, t, n));
    for (size_t i = 0; i < bytes; i++)
        out[i] = (uint8_t)rng_u32(rng);
    for (size_t i = 0; i < sizeof kind / sizeof kind[0]; i++)
        for (size_t at = 0; kind[i].type == t && at < bytes; at += kind[i].block)
            for (int side = 0; side < 2; side++) {
                uint16_t h = (uint16_t)(kind[i].scale | (rng_u32(rng) & 0x3ff));
                memcpy(out + at + (side ? kind[i].second : kind[i].at), &h, 2);
            }
    for (size_t at = 0; t == DTYPE_MXFP4 && at < bytes; at += 17) /* 2^(e - 128), some subnormal */
        out[at] = (uint8_t)(rng_below(rng, 3) ? 121 + rng_below(rng, 4) : rng_below(rng, 3));
    for (size_t i = 0; i < n; i++) {
        float x = (float)(rng_normal(rng) * 0.3);
        uint16_t bf16 = bf16_from_f32(x);
        uint16_t f16 = (uint16_t)((rng_u32(rng) & 0x83ff) | (11 + rng_below(rng, 3)) << 10);
        if (t == DTYPE_F32) memcpy(out + 4 * i, &x, 4);
        if (t == DTYPE_F16) memcpy(out + 2 * i, &f16, 2);
        if (t == DTYPE_BF16) memcpy(out + 2 * i, &bf16, 2);
    }
}
/* Row t of a head of d rows is in the file at 2 t for its first half, and at 2 (t - d / 2) + 1 for
 * its second. */
static inline size_t file_row(const struct part_kind *p, size_t row)
{
    if (!p->rope_heads) return row;
    size_t d = p->rows / p->rope_heads, t = row % d;
    return row - t + (t < d / 2 ? 2 * t : 2 * (t - d / 2) + 1);
}
/* W (n, k) of parts; their bytes start at odd addresses. */
static inline struct test_weight weight_of_parts(const struct part_kind *part, size_t parts,
                                                 size_t k, bool bias, unsigned products)
{
    struct weight_source s = {.k = k, .parts = parts, .cap = weight_cap, .products = products};
    struct test_weight w = {.k = k, .cap = (double)weight_cap};
    for (size_t i = 0; i < parts; i++)
        w.n += part[i].rows;
    s.n = w.n;
    w.x = host_take(w.n * k, sizeof *w.x);
    float *row = malloc(k * sizeof *row);
    for (size_t i = 0, at = 0; i < parts; at += part[i++].rows) {
        size_t bytes, stride;
        cr_assert(dtype_bytes(&bytes, part[i].type, part[i].rows * k));
        cr_assert(dtype_bytes(&stride, part[i].type, k));
        uint8_t *data = (uint8_t *)host_take(bytes + 1, 1) + 1;
        fill_part(data, part[i].type, part[i].rows * k);
        s.part[i] = (struct weight_part){data, part[i].type, part[i].rows, part[i].rope_heads};
        for (size_t r = 0; r < part[i].rows; r++) {
            quant_to_f32(row, data + file_row(&part[i], r) * stride, part[i].type, k);
            for (size_t j = 0; j < k; j++)
                w.x[(at + r) * k + j] = rounded((double)row[j], precision);
        }
    }
    free(row);
    if (bias) s.bias = w.bias = floats_normal(w.n, DTYPE_F32, 1.0);
    cr_assert(held.weights < HELD_MAX);
    ok(be->weight_pack(&w.w, c, &s));
    held.weight[held.weights++] = w.w;
    return w;
}
static inline struct test_weight weight_of(size_t n, size_t k, bool bias, unsigned products)
{
    struct part_kind part = {DTYPE_F32, (uint32_t)n, 0};
    return weight_of_parts(&part, 1, k, bias, products);
}

/* y (rows, n) += x (rows, k) W^T;  dx (rows, k) += dy (rows, n) W */
static inline void add_product(double *y, const double *x, const double *w, size_t rows, size_t n,
                               size_t k)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = 0.0;
            for (size_t p = 0; p < k; p++)
                sum += x[i * k + p] * w[j * k + p];
            y[i * n + j] += sum;
        }
}
static inline void add_product_back(double *dx, const double *dy, const double *w, size_t rows,
                                    size_t n, size_t k)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < n; j++) {
            double g = dy[i * n + j];
            for (size_t p = 0; p < k; p++)
                dx[i * k + p] += g * w[j * k + p];
        }
}

#endif
