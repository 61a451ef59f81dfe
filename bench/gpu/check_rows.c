/* The same bits: rows alone and in company, the same training twice, and with and without recorded
 * passes. Private training needs the first, reproducible runs the second. */
#include "bench/gpu/check.h"
#include "engine/train/train_private.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 6, STEPS = 3, LENGTH_MAX = 512 };

static int report(const char *name, const char *what, enum dtype type, bool same)
{
    printf("%-4s %s %s, %s\n", same ? "ok" : "FAIL", name, what, dtype_name(type));
    return !same;
}

/* ---- Products: the first, middle and last rows of a large product, computed in smaller ones. */
struct product {
    const char *name;
    size_t n, k;
};

static bool same_rows(const struct mat *all, const struct mat *some, size_t first, size_t rows,
                      size_t cols)
{
    struct mat part = mat_at(*all, first, 0);
    const void *a = check_bytes(&part, rows, cols), *b = check_bytes(some, rows, cols);
    return !memcmp(a, b, rows * cols * (all->type == DTYPE_F32 ? 4 : 2));
}

static int check_product(const struct product *p, enum dtype type, size_t most)
{
    const struct check_values v = {1.0f, false};
    const size_t count[] = {BACKEND_FEW, most / 8 + 3, most / 2};
    bool forward = true, back = true;
    check_must(gpu_reopen(type));
    struct backend_weight *w = check_weight(p->n, p->k, v, BACKEND_FORWARD | BACKEND_BACKWARD);
    struct mat x = check_random(type, most, p->k, v), dy = check_random(type, most, p->n, v);
    struct mat y = check_empty(type, most, p->n), dx = check_empty(type, most, p->k);
    struct mat y_some = check_empty(type, most, p->n), dx_some = check_empty(type, most, p->k);
    gpu->linear(gpu_context, y, x, w, NULL, NULL, most, false);
    gpu->linear_back(gpu_context, dx, dy, w, NULL, NULL, most);
    for (size_t i = 0; i < sizeof count / sizeof count[0]; i++) {
        /* Rows start at multiples of 16 bytes in every case, as they do in the engine. */
        size_t rows = count[i], first = (most - rows) / 16 * 8;
        gpu->linear(gpu_context, y_some, mat_at(x, first, 0), w, NULL, NULL, rows, false);
        gpu->linear_back(gpu_context, dx_some, mat_at(dy, first, 0), w, NULL, NULL, rows);
        forward = forward && same_rows(&y, &y_some, first, rows, p->n);
        back = back && same_rows(&dx, &dx_some, first, rows, p->k);
    }
    check_free();
    char what[96];
    snprintf(what, sizeof what, "%s %zu x %zu", p->name, p->n, p->k);
    return report("rows", what, type, forward) + report("rows, back", what, type, back);
}

/* ---- Trainings with the engine */
struct setup {
    struct model model;
    struct engine *engine;
    struct backend backend; /* its table, which may be changed */
    struct adapter adapter;
    struct dataset data;
    struct data_row row[ROWS];
    int32_t id[ROWS][LENGTH_MAX];
};

static void setup_open(struct setup *s, const char *path, enum dtype type)
{
    struct engine_options o = {.device = "cuda", .precision = type};
    struct adapter_fresh fresh = {.targets = "q,k,v,o,gate,up,down", .rank = 8, .alpha = 16.0};
    uint32_t x = 3, most = LENGTH_MAX;
    memset(s, 0, sizeof *s);
    check_must(model_open(&s->model, path));
    check_must(engine_open(&s->engine, &s->model, &o));
    check_must(adapter_open_fresh(&s->adapter, &s->model.arch, &fresh));
    s->backend = *s->engine->be;
    s->engine->be = &s->backend;
    if (s->model.arch.d_model < 256) most = 40; /* a model of the tests */
    for (uint32_t i = 0; i < ROWS; i++) {       /* lengths differ */
        uint32_t count = most - i * most / 8;
        for (uint32_t t = 0; t < count; t++) {
            x = x * 1664525u + 1013904223u;
            s->id[i][t] = (int32_t)((x >> 8) % s->model.arch.vocab);
        }
        s->row[i] = (struct data_row){.id = s->id[i], .label = s->id[i], .count = count};
        s->data.learned += count - 1;
        s->data.tokens += count;
    }
    s->data.row = s->row;
    s->data.count = ROWS;
    gpu_fill(s->adapter.value, s->adapter.value_count, 0.05f);
}

static void setup_close(struct setup *s)
{
    adapter_close(&s->adapter);
    engine_close(s->engine);
    model_close(&s->model);
}

/* The gradient of each row, alone and in a pass with all. */
static int check_gradients(struct setup *s, enum dtype type)
{
    size_t n = s->adapter.value_count;
    struct engine_row row[ROWS];
    float *all = calloc(ROWS * n, sizeof *all), *alone = calloc(n, sizeof *alone);
    bool same = all && alone;
    for (size_t i = 0; i < ROWS; i++)
        row[i] = (struct engine_row){s->row[i].id, s->row[i].label, s->row[i].count, &s->adapter};
    check_must(train_private_gradients(all, s->engine, &s->adapter, row, ROWS));
    for (size_t i = 0; i < ROWS && same; i++) {
        check_must(train_private_gradients(alone, s->engine, &s->adapter, &row[i], 1));
        same = !memcmp(alone, all + i * n, n * sizeof *alone);
    }
    free(all);
    free(alone);
    return report("rows", "gradient of a record in a pass with others", type, same);
}

static void plain_repeat(struct backend_context *c, struct backend_record **record, uint64_t key,
                         void (*work)(void *user), void *user)
{
    (void)c, (void)record, (void)key;
    work(user);
}

/* The values after a few steps, in new memory. */
static float *train(struct setup *s, bool recompute, bool recorded)
{
    size_t bytes = s->adapter.value_count * sizeof(float);
    float *start = malloc(bytes), *out = malloc(bytes);
    struct train_options o;
    struct train_result result;
    if (!start || !out) check_must(err_make(ERR_MACHINE, "no memory for an adapter"));
    memcpy(start, s->adapter.value, bytes);
    train_defaults(&o);
    o.steps = STEPS;
    o.batch = ROWS / 2;
    o.dropout = 0.1;
    o.checkpoint = recompute;
    s->backend.repeat = recorded ? gpu->repeat : plain_repeat;
    check_must(train_run(&result, &s->adapter, s->engine, &s->data, &o));
    memcpy(out, s->adapter.value, bytes);
    memcpy(s->adapter.value, start, bytes);
    free(start);
    return out;
}

static int check_trainings(struct setup *s, enum dtype type, const char *name)
{
    bool graph = !strcmp(name, "graph"), same[2];
    for (int recompute = 0; recompute < 2; recompute++) {
        float *a = train(s, recompute, true), *b = train(s, recompute, !graph);
        same[recompute] = !memcmp(a, b, s->adapter.value_count * sizeof *a);
        free(a);
        free(b);
    }
    return report(name, graph ? "training recorded and not" : "training twice", type, same[0]) +
           report(name, graph ? "recomputing, recorded and not" : "recomputing, twice", type,
                  same[1]);
}

static int check_model(const struct check_arguments *a, const char *path, enum dtype type)
{
    static struct setup s;
    int failed = 0;
    setup_open(&s, path, type);
    if (check_has(a, "rows")) failed += check_gradients(&s, type);
    if (check_has(a, "repeat")) failed += check_trainings(&s, type, "repeat");
    if (check_has(a, "graph")) failed += check_trainings(&s, type, "graph");
    setup_close(&s);
    return failed;
}

int check_same(const struct check_arguments *a)
{
    static const struct product tiny[] = {{"qkv", 96, 64}, {"down", 64, 176}};
    static const struct product real[] = {
        {"qkv", 960, 576},   {"o", 576, 576},          {"gate_up", 3072, 576},
        {"down", 576, 1536}, {"gate_up", 11264, 2048}, {"down", 2048, 5632},
        {"qkv", 6144, 4096}, {"gate_up", 28672, 4096}, {"down", 4096, 14336}};
    const struct product *product = gpu_is_emulated() ? tiny : real;
    size_t products = gpu_is_emulated() ? 2 : sizeof real / sizeof real[0];
    const char *path = "tests/models/llama";
    int failed = 0;
    for (int i = 0; i < a->count; i++)
        if (strcmp(a->text[i], "rows") && strcmp(a->text[i], "repeat") &&
            strcmp(a->text[i], "graph"))
            path = a->text[i];
    for (int narrow = 0; narrow < 2; narrow++) {
        enum dtype type = narrow ? DTYPE_BF16 : DTYPE_F32;
        for (size_t i = 0; i < products && check_has(a, "rows"); i++)
            failed += check_product(&product[i], type, gpu_is_emulated() ? 72 : 2048);
        failed += check_model(a, path, type);
    }
    return failed;
}
