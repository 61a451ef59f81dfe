/* The speed of this machine's matrix products at the shapes of a SmolLM2-135M training step (2048
 * tokens), by oneDNN with packed weights, in both precisions. It is the upper limit to which the
 * speed of training is compared.
 *
 *   bench_engine [--json] [--threads N] [--rows N]
 *
 * Each shape is run for about a second. The result of a precision is the number of operations in
 * one step divided by the sum of the best times. */
#include "kernels/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct shape { /* y (rows, n) = x (rows, k) W^T and back, `count` times per step */
    size_t n, k, count;
    bool head; /* the logits are float32, and the backward product uses slices */
};
static const struct shape shapes[] = {
    {960, 576, 30, false},  {576, 576, 30, false}, {3072, 576, 30, false},
    {576, 1536, 30, false}, {1536, 576, 32, true}, /* the head, by slices of the vocabulary */
};

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void must(err e)
{
    if (!err_is(e)) return;
    fprintf(stderr, "bench_engine: %s\n", e.text);
    exit(1);
}

struct best {
    double forward, back; /* seconds */
};

static struct best measure(struct backend_context *c, const struct shape *s, size_t rows)
{
    enum dtype type = backend_cpu.precision(c);
    float *values = malloc(s->n * s->k * sizeof *values);
    if (!values) must(err_make(ERR_MACHINE, "no memory for a weight"));
    for (size_t i = 0; i < s->n * s->k; i++)
        values[i] = (float)(i % 17) / 16.0f - 0.5f;
    struct weight_source source = {.n = s->n, .k = s->k, .parts = 1};
    source.part[0] = (struct weight_part){values, DTYPE_F32, (uint32_t)s->n, 0};
    source.products = BACKEND_FORWARD | BACKEND_BACKWARD;
    struct backend_weight *w;
    struct mat x = {NULL, type, s->k}, y = {NULL, s->head ? DTYPE_F32 : type, s->n};
    struct mat dy = {NULL, type, s->n}, dx = {NULL, DTYPE_F32, s->k};
    must(backend_cpu.weight_pack(&w, c, &source));
    must(backend_cpu.memory_take(&x.data, c, (rows + BACKEND_ROWS) * s->k * 4));
    must(backend_cpu.memory_take(&y.data, c, (rows + BACKEND_ROWS) * s->n * 4));
    must(backend_cpu.memory_take(&dy.data, c, (rows + BACKEND_ROWS) * s->n * 4));
    must(backend_cpu.memory_take(&dx.data, c, (rows + BACKEND_ROWS) * s->k * 4));
    struct best best = {1e9, 1e9};
    double end = seconds_now() + 1.0;
    for (int i = 0; i < 5 || seconds_now() < end; i++) {
        double at = seconds_now();
        backend_cpu.linear(c, y, x, w, NULL, NULL, rows, false);
        double half = seconds_now();
        backend_cpu.linear_back(c, dx, dy, w, NULL, NULL, rows);
        double done = seconds_now();
        if (half - at < best.forward) best.forward = half - at;
        if (done - half < best.back) best.back = done - half;
    }
    must(backend_cpu.check(c));
    backend_cpu.weight_close(w);
    free(values);
    backend_cpu.memory_give(c, x.data);
    backend_cpu.memory_give(c, y.data);
    backend_cpu.memory_give(c, dy.data);
    backend_cpu.memory_give(c, dx.data);
    return best;
}

/* GFLOP/s over the products of one step. */
static double measure_precision(enum dtype type, int threads, size_t rows, bool json)
{
    struct backend_context *c;
    struct backend_options o = {.precision = type, .threads = threads};
    double work = 0.0, seconds = 0.0;
    must(backend_cpu.open(&c, &o));
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const struct shape *s = &shapes[i];
        struct best b = measure(c, s, rows);
        double once = 2e-9 * (double)rows * (double)s->n * (double)s->k;
        work += 2.0 * once * (double)s->count;
        seconds += (b.forward + b.back) * (double)s->count;
        if (!json)
            printf("%-5s %5zu x %4zu %-4s  forward %6.0f  back %6.0f GFLOP/s\n",
                   type == DTYPE_F32 ? "f32" : "bf16", s->n, s->k, s->head ? "head" : "",
                   once / b.forward, once / b.back);
    }
    backend_cpu.close(c);
    return work / seconds;
}

int main(int argc, char **argv)
{
    bool json = false;
    int threads = 0;
    size_t rows = 2048;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--json"))
            json = true;
        else if (!strcmp(argv[i], "--threads") && i + 1 < argc)
            threads = (int)strtol(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--rows") && i + 1 < argc)
            rows = strtoul(argv[++i], NULL, 10);
        else {
            fprintf(stderr, "usage: bench_engine [--json] [--threads N] [--rows N]\n");
            return 2;
        }
    }
    if (rows < 1 || rows > 1 << 20) return 2;
    double bf16 = measure_precision(DTYPE_BF16, threads, rows, json);
    double f32 = measure_precision(DTYPE_F32, threads, rows, json);
    printf(json ? "{\"bf16\":%.1f,\"f32\":%.1f}\n" : "a step: bf16 %.0f, f32 %.0f GFLOP/s\n", bf16,
           f32);
    return 0;
}
