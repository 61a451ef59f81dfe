/* Products with packed weights: right at odd sizes, and the same bits for any number of threads and
 * of rows, which the byte identity of training rests on. */
#include "base/rng.h"
#include "kernels/backend.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct random_weight {
    size_t k;
};

static void random_rows(float *out, const void *user, size_t row, size_t count)
{
    const struct random_weight *w = user;
    for (size_t i = 0; i < count; i++) {
        struct rng rng;
        rng_init(&rng, "weight", 1, "row", row + i);
        rng_fill_uniform(&rng, out + i * w->k, w->k, 1.0);
    }
}

struct linear_case {
    size_t n, k, rows;
};

/* y and dx of one context, as float32, into out (rows, n) and back (rows, k). */
static void run(float *out, float *back, enum dtype type, int threads, const struct linear_case *s)
{
    struct backend_context *c;
    struct backend_options o = {.precision = type, .threads = threads};
    struct random_weight r = {s->k};
    struct weight_source source = {.n = s->n, .k = s->k, .rows = random_rows, .user = &r};
    struct backend_weight *w;
    source.products = BACKEND_FORWARD | BACKEND_BACKWARD;
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
        random_rows((float *)wide.data + i * s->k, &r, i + 7777, 1);
    backend_cpu.convert(c, x, wide, s->rows, s->k, 1.0f);
    backend_cpu.linear(c, y, x, w, s->rows, false);
    backend_cpu.convert(c, dy, y, s->rows, s->n, 1.0f);
    backend_cpu.linear_back(c, dx, dy, w, s->rows, false);
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
}

Test(cpu_linear, multiplies_odd_sizes_as_plain_loops_do)
{
    static const struct linear_case size[] = {{1, 1, 1}, {7, 5, 3}, {65, 33, 40}, {320, 64, 9}};
    for (size_t i = 0; i < sizeof size / sizeof size[0]; i++) {
        const struct linear_case *s = &size[i];
        float *y = calloc(s->rows * s->n, 4), *dx = calloc(s->rows * s->k, 4);
        float *w = calloc(s->n * s->k, 4), *x = calloc(s->rows * s->k, 4);
        struct random_weight r = {s->k};
        random_rows(w, &r, 0, s->n);
        for (size_t t = 0; t < s->rows; t++)
            random_rows(x + t * s->k, &r, t + 7777, 1);
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

Test(cpu_linear, gives_the_same_bits_for_any_number_of_threads)
{
    static const struct linear_case shape[] = {
        {576, 576, 300},  {960, 576, 300}, {1536, 576, 160}, {576, 1536, 160}, {1536, 576, 256},
        {576, 1536, 256}, {192, 576, 32},  {320, 64, 300},   {1536, 576, 1024}};
    for (size_t i = 0; i < 2 * sizeof shape / sizeof shape[0]; i++) {
        const struct linear_case *s = &shape[i / 2];
        enum dtype type = i % 2 ? DTYPE_BF16 : DTYPE_F32;
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
