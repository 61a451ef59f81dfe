/* Products with packed weights: correct at odd sizes, with the same bits for any number of threads
 * and of rows. The reproducibility of training depends on this. */
#include "base/rng.h"
#include "kernels/cpu/cpu.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void random_rows(float *out, size_t k, size_t row, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct rng rng;
        rng_init(&rng, "weight", 1, "row", row + i);
        rng_fill_uniform(&rng, out + i * k, k, 1.0);
    }
}

static struct weight_source source_of(const float *values, size_t n, size_t k)
{
    struct weight_source source = {.n = n, .k = k, .parts = 1};
    source.part[0] = (struct weight_part){values, DTYPE_F32, (uint32_t)n, 0};
    source.products = BACKEND_FORWARD | BACKEND_BACKWARD;
    return source;
}

struct linear_case {
    size_t n, k, rows;
};

static bool same_rows;         /* all rows are the first one */
static unsigned more_products; /* BACKEND_KEEP, or nothing */

/* y and dx of one context, as float32, into out (rows, n) and back (rows, k). */
static void run(float *out, float *back, enum dtype type, int threads, const struct linear_case *s)
{
    struct backend_context *c;
    struct backend_options o = {.precision = type, .threads = threads};
    float *values = malloc(s->n * s->k * sizeof *values);
    struct weight_source source = source_of(values, s->n, s->k);
    struct backend_weight *w;
    source.products |= more_products;
    random_rows(values, s->k, 0, s->n);
    cr_assert(!err_is(backend_cpu.open(&c, &o)));
    cr_assert(!err_is(backend_cpu.weight_pack(&w, c, &source)));
    size_t room = (s->rows + BACKEND_ROWS) * (s->n + s->k) * 4;
    struct mat x = {NULL, type, s->k}, y = {NULL, DTYPE_F32, s->n}, dx = {NULL, DTYPE_F32, s->k};
    struct mat dy = {NULL, type, s->n};
    struct mat wide = {NULL, DTYPE_F32, s->k};
    cr_assert(!err_is(backend_cpu.memory_take(&x.data, c, room)));
    cr_assert(!err_is(backend_cpu.memory_take(&y.data, c, room)));
    cr_assert(!err_is(backend_cpu.memory_take(&dx.data, c, room)));
    cr_assert(!err_is(backend_cpu.memory_take(&dy.data, c, room)));
    cr_assert(!err_is(backend_cpu.memory_take(&wide.data, c, room)));
    for (size_t i = 0; i < s->rows; i++)
        random_rows((float *)wide.data + i * s->k, s->k, same_rows ? 7777 : i + 7777, 1);
    backend_cpu.convert(c, x, wide, s->rows, s->k, 1.0f);
    backend_cpu.linear(c, y, x, w, NULL, NULL, s->rows, false);
    backend_cpu.convert(c, dy, y, s->rows, s->n, 1.0f);
    backend_cpu.linear_back(c, dx, dy, w, NULL, NULL, s->rows);
    err e = backend_cpu.check(c);
    cr_assert(!err_is(e), "%s", e.text);
    backend_cpu.convert(c, (struct mat){out, DTYPE_F32, s->n}, y, s->rows, s->n, 1.0f);
    memcpy(back, dx.data, s->rows * s->k * 4);
    backend_cpu.memory_give(c, x.data);
    backend_cpu.memory_give(c, y.data);
    backend_cpu.memory_give(c, dx.data);
    backend_cpu.memory_give(c, dy.data);
    backend_cpu.memory_give(c, wide.data);
    backend_cpu.weight_close(w);
    backend_cpu.close(c);
    free(values);
}

Test(cpu_linear, multiplies_odd_sizes_as_plain_loops_do)
{
    static const struct linear_case size[] = {{1, 1, 1}, {7, 5, 3}, {65, 33, 40}, {320, 64, 9}};
    for (size_t i = 0; i < sizeof size / sizeof size[0]; i++) {
        const struct linear_case *s = &size[i];
        float *y = calloc(s->rows * s->n, 4), *dx = calloc(s->rows * s->k, 4);
        float *w = calloc(s->n * s->k, 4), *x = calloc(s->rows * s->k, 4);
        random_rows(w, s->k, 0, s->n);
        for (size_t t = 0; t < s->rows; t++)
            random_rows(x + t * s->k, s->k, t + 7777, 1);
        run(y, dx, DTYPE_F32, 2, s);
        for (size_t t = 0; t < s->rows; t++)
            for (size_t j = 0; j < s->n; j++) {
                double sum = 0.0;
                for (size_t k = 0; k < s->k; k++)
                    sum += (double)x[t * s->k + k] * (double)w[j * s->k + k];
                cr_assert_float_eq((double)y[t * s->n + j], sum, 1e-5);
            }
        for (size_t t = 0; t < s->rows; t++)
            for (size_t k = 0; k < s->k; k++) {
                double sum = 0.0;
                for (size_t j = 0; j < s->n; j++)
                    sum += (double)y[t * s->n + j] * (double)w[j * s->k + k];
                cr_assert_float_eq((double)dx[t * s->k + k], sum, 1e-4 * (1 + fabs(sum)));
            }
        free(y);
        free(dx);
        free(w);
        free(x);
    }
}

/* Operands made from the file at each use give the bits of packed ones. */
static void check_kept(enum dtype type)
{
    static const struct linear_case shape[] = {{1, 1, 1},      {7, 5, 3},       {65, 33, 40},
                                               {33, 65, 300},  {17, 100, 9},    {100, 17, 70},
                                               {320, 64, 300}, {576, 1536, 256}};
    for (size_t i = 0; i < sizeof shape / sizeof shape[0]; i++) {
        const struct linear_case *s = &shape[i];
        size_t ny = s->rows * s->n, nx = s->rows * s->k;
        float *y = malloc(2 * ny * 4), *dx = malloc(2 * nx * 4);
        run(y, dx, type, 2, s);
        more_products = BACKEND_KEEP;
        run(y + ny, dx + nx, type, 3, s);
        more_products = 0;
        cr_expect(!memcmp(y, y + ny, ny * 4), "%s (%zu, %zu): y", dtype_name(type), s->n, s->k);
        cr_expect(!memcmp(dx, dx + nx, nx * 4), "%s (%zu, %zu): dx", dtype_name(type), s->n, s->k);
        free(y);
        free(dx);
    }
}

Test(cpu_linear, kept_and_packed_weights_give_the_same_bits)
{
    check_kept(DTYPE_F32);
    if (cpu_can_bf16()) check_kept(DTYPE_BF16);
}

static void check_threads(enum dtype type)
{
    static const struct linear_case shape[] = {
        {576, 576, 300},  {960, 576, 300}, {1536, 576, 160}, {576, 1536, 160}, {1536, 576, 256},
        {576, 1536, 256}, {192, 576, 32},  {320, 64, 300},   {1536, 576, 1024}};
    for (size_t i = 0; i < sizeof shape / sizeof shape[0]; i++) {
        const struct linear_case *s = &shape[i];
        size_t ny = s->rows * s->n, nx = s->rows * s->k;
        float *y = malloc(2 * ny * 4), *dx = malloc(2 * nx * 4);
        run(y, dx, type, 1, s);
        for (int threads = 2; threads <= 3; threads++) {
            run(y + ny, dx + nx, type, threads, s);
            cr_expect(!memcmp(y, y + ny, ny * 4), "%s (%zu, %zu): y with %d threads",
                      dtype_name(type), s->n, s->k, threads);
            cr_expect(!memcmp(dx, dx + nx, nx * 4), "%s (%zu, %zu): dx with %d threads",
                      dtype_name(type), s->n, s->k, threads);
        }
        free(y);
        free(dx);
    }
}

Test(cpu_linear, gives_the_same_bits_for_any_number_of_threads)
{
    check_threads(DTYPE_F32);
}

Test(cpu_linear, gives_the_same_bits_in_bfloat16)
{
    if (!cpu_can_bf16()) cr_skip_test("bfloat16 needs AVX-512");
    check_threads(DTYPE_BF16);
}

/* As many rows as one has, and wherever it stands among them: the same bits come of it. */
Test(cpu_linear, a_float32_row_does_not_know_its_neighbours)
{
    static const struct linear_case shape[] = {{33, 17, 400}, {192, 576, 400}, {576, 1536, 400}};
    for (size_t i = 0; i < sizeof shape / sizeof shape[0]; i++) {
        struct linear_case s = shape[i];
        size_t most = s.rows;
        float *y = malloc(2 * most * s.n * 4), *dx = malloc(2 * most * s.k * 4);
        same_rows = true;
        for (s.rows = BACKEND_FEW; s.rows <= most; s.rows += s.n < 64 && s.rows < 200 ? 1 : 13) {
            run(y + most * s.n, dx + most * s.k, DTYPE_F32, 2, &s);
            if (s.rows == BACKEND_FEW) {
                memcpy(y, y + most * s.n, s.n * 4);
                memcpy(dx, dx + most * s.k, s.k * 4);
            }
            for (size_t t = 0; t < s.rows; t++) {
                cr_assert(!memcmp(y, y + (most + t) * s.n, s.n * 4), "y: row %zu of %zu", t,
                          s.rows);
                cr_assert(!memcmp(dx, dx + (most + t) * s.k, s.k * 4), "dx: row %zu of %zu", t,
                          s.rows);
            }
        }
        same_rows = false;
        free(y);
        free(dx);
    }
}

Test(cpu_linear, says_where_bfloat16_cannot_be)
{
    struct backend_context *c;
    struct backend_options o = {.precision = DTYPE_BF16, .threads = 1};
    static const float values[16];
    struct weight_source source = source_of(values, 4, 4);
    struct backend_weight *w = NULL;
    cr_assert(!err_is(backend_cpu.open(&c, &o)));
    err e = backend_cpu.weight_pack(&w, c, &source);
    cr_expect_eq(err_is(e), !cpu_can_bf16());
    if (err_is(e)) cr_expect(e.kind == ERR_INPUT && strstr(e.text, "AVX-512"), "%s", e.text);
    backend_cpu.weight_close(w);
    backend_cpu.close(c);
}
