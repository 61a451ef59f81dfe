/* The loss through the head against plain double loops: vocabularies of one slice and of many. */
#include "base/rng.h"
#include "kernels/cpu/cpu.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 24, ROWS = 70 };

static void head_rows(float *out, size_t row, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct rng rng;
        rng_init(&rng, "head", 1, "row", row + i);
        rng_fill_uniform(&rng, out + i * WIDTH, WIDTH, 1.0);
    }
}

/* A batch whose tokens are all learned. */
static struct backend_batch *batch_of(struct backend_context *c, const int32_t *target)
{
    uint32_t start[2] = {0, ROWS}, any[ROWS] = {0};
    struct backend_batch *batch;
    struct batch_rows rows = {.tokens = ROWS, .rows = 1, .learned = ROWS, .start = start};
    rows.id = target;
    rows.position = any;
    rows.index = any;
    rows.target = target;
    rows.gradient_scale = 0.5f;
    cr_assert(!err_is(backend_cpu.batch_open(&batch, c, &rows)));
    backend_cpu.batch_set(c, batch, &rows);
    return batch;
}

static void check_head(enum dtype type, size_t vocab, unsigned more_products)
{
    struct backend_context *c;
    struct backend_weight *w;
    struct backend_options o = {.precision = type, .threads = 2};
    float *wide = malloc(ROWS * WIDTH * 4), *head = malloc(vocab * WIDTH * 4);
    struct weight_source source = {.n = vocab, .k = WIDTH, .parts = 1};
    source.part[0] = (struct weight_part){head, DTYPE_F32, (uint32_t)vocab, 0};
    source.products = BACKEND_FORWARD | BACKEND_BACKWARD | BACKEND_HEAD | more_products;
    head_rows(head, 0, vocab);
    cr_assert(!err_is(backend_cpu.open(&c, &o)));
    cr_assert(!err_is(backend_cpu.weight_pack(&w, c, &source)));
    struct mat x = {NULL, type, WIDTH}, dx = {NULL, DTYPE_F32, WIDTH};
    cr_assert(!err_is(backend_cpu.memory_take(&x.data, c, (ROWS + BACKEND_ROWS) * WIDTH * 4)));
    cr_assert(!err_is(backend_cpu.memory_take(&dx.data, c, (ROWS + BACKEND_ROWS) * WIDTH * 4)));
    int32_t target[ROWS];
    double nll[ROWS], *p = malloc(vocab * sizeof *p), tolerance = type == DTYPE_F32 ? 1e-5 : 2e-2;
    head_rows(wide, 1000000, ROWS);
    backend_cpu.convert(c, x, (struct mat){wide, DTYPE_F32, WIDTH}, ROWS, WIDTH, 1.0f);
    for (size_t i = 0; i < ROWS; i++)
        target[i] = (int32_t)(i * 7919 % vocab);
    struct backend_batch *batch = batch_of(c, target);
    backend_cpu.head_loss(c, dx, x, w, batch, 0, ROWS);
    backend_cpu.batch_nll(c, nll, batch);
    err e = backend_cpu.check(c);
    cr_assert(!err_is(e), "%s", e.text);
    for (size_t i = 0; i < ROWS; i++) {
        double sum = 0.0, want[WIDTH] = {0};
        for (size_t v = 0; v < vocab; v++) {
            double z = 0.0;
            for (size_t k = 0; k < WIDTH; k++)
                z += (double)wide[i * WIDTH + k] * (double)head[v * WIDTH + k];
            sum += p[v] = exp(z);
        }
        double expected = log(sum) - log(p[target[i]]);
        cr_expect_float_eq(nll[i], expected, tolerance * expected, "row %zu: %.6f, expected %.6f",
                           i, nll[i], expected);
        for (size_t v = 0; v < vocab; v++)
            for (size_t k = 0; k < WIDTH; k++)
                want[k] +=
                    0.5 * (p[v] / sum - (v == (size_t)target[i])) * (double)head[v * WIDTH + k];
        for (size_t k = 0; k < WIDTH; k++)
            cr_assert_float_eq((double)((float *)dx.data)[i * WIDTH + k], want[k], tolerance,
                               "row %zu, column %zu", i, k);
    }
    backend_cpu.memory_give(c, x.data);
    backend_cpu.memory_give(c, dx.data);
    backend_cpu.batch_close(batch);
    backend_cpu.weight_close(w);
    backend_cpu.close(c);
    free(wide);
    free(head);
    free(p);
}

static void check_heads(enum dtype type)
{
    static const unsigned more[] = {0, BACKEND_KEEP};
    for (int i = 0; i < 2; i++) {
        check_head(type, 3, more[i]);
        check_head(type, 1201, more[i]);
        check_head(type, 33000, more[i]);
    }
}

Test(cpu_head, gives_the_likelihood_and_its_gradient)
{
    check_heads(DTYPE_F32);
}

Test(cpu_head, gives_them_in_bfloat16)
{
    if (!cpu_can_bf16()) cr_skip_test("bfloat16 needs AVX-512");
    check_heads(DTYPE_BF16);
}
