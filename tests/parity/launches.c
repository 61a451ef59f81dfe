/* A step of training asks little of a device: its host data enters once, it waits once, it takes no
 * memory and copies nothing, and it queues few operations. They are counted by a table that passes
 * every call on to the CPU backend. */
#include "engine/train/train_parts.h"
#include "tests/support/engine_fixture.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 8, LENGTH = 24 };

/* X(name, parameters, arguments) for each operation without a result. */
#define OPERATIONS(X)                                                                              \
    X(copy_in, (struct backend_context * c, void *to, const void *host, size_t n),                 \
      (c, to, host, n))                                                                            \
    X(copy_out, (struct backend_context * c, void *host, const void *from, size_t n),              \
      (c, host, from, n))                                                                          \
    X(zero, (struct backend_context * c, struct mat m, size_t rows, size_t cols),                  \
      (c, m, rows, cols))                                                                          \
    X(convert,                                                                                     \
      (struct backend_context * c, struct mat to, struct mat from, size_t rows, size_t cols,       \
       float scale),                                                                               \
      (c, to, from, rows, cols, scale))                                                            \
    X(add,                                                                                         \
      (struct backend_context * c, struct mat to, struct mat from, size_t rows, size_t cols,       \
       float scale),                                                                               \
      (c, to, from, rows, cols, scale))                                                            \
    X(batch_set,                                                                                   \
      (struct backend_context * c, struct backend_batch * b, const struct batch_rows *rows),       \
      (c, b, rows))                                                                                \
    X(batch_nll, (struct backend_context * c, double *nll, const struct backend_batch *b),         \
      (c, nll, b))                                                                                 \
    X(embed,                                                                                       \
      (struct backend_context * c, struct mat to, const struct backend_weight *w,                  \
       const struct backend_batch *b),                                                             \
      (c, to, w, b))                                                                               \
    X(low_rank_load,                                                                               \
      (struct backend_context * c, struct backend_low_rank * l, size_t module,                     \
       const struct low_rank_values *v),                                                           \
      (c, l, module, v))                                                                           \
    X(low_rank_set,                                                                                \
      (struct backend_context * c, struct backend_low_rank *const *all, size_t count,              \
       const float *value),                                                                        \
      (c, all, count, value))                                                                      \
    X(linear,                                                                                      \
      (struct backend_context * c, struct mat y, struct mat x, const struct backend_weight *w,     \
       const struct low_rank_site *l, const struct backend_batch *b, size_t rows, bool add),       \
      (c, y, x, w, l, b, rows, add))                                                               \
    X(low_rank_shrink,                                                                             \
      (struct backend_context * c, const struct low_rank_site *l, struct mat x,                    \
       const struct backend_batch *b),                                                             \
      (c, l, x, b))                                                                                \
    X(linear_back,                                                                                 \
      (struct backend_context * c, struct mat dx, struct mat dy, const struct backend_weight *w,   \
       const struct low_rank_site *l, const struct backend_batch *b, size_t rows),                 \
      (c, dx, dy, w, l, b, rows))                                                                  \
    X(low_rank_gradient,                                                                           \
      (struct backend_context * c, const struct low_rank_site *l, struct mat dy, struct mat x,     \
       const struct backend_batch *b),                                                             \
      (c, l, dy, x, b))                                                                            \
    X(head_loss,                                                                                   \
      (struct backend_context * c, struct mat dhidden, struct mat hidden,                          \
       const struct backend_weight *w, struct backend_batch *b, size_t first, size_t rows),        \
      (c, dhidden, hidden, w, b, first, rows))                                                     \
    X(learned_take,                                                                                \
      (struct backend_context * c, struct mat to, struct mat from, const struct backend_batch *b,  \
       size_t first, size_t rows, size_t cols),                                                    \
      (c, to, from, b, first, rows, cols))                                                         \
    X(learned_add,                                                                                 \
      (struct backend_context * c, struct mat to, struct mat from, const struct backend_batch *b,  \
       size_t first, size_t rows, size_t cols),                                                    \
      (c, to, from, b, first, rows, cols))                                                         \
    X(norm,                                                                                        \
      (struct backend_context * c, struct mat y, float *inv, struct mat copy, struct mat x,        \
       const float *weight, const struct norm_shape *s),                                           \
      (c, y, inv, copy, x, weight, s))                                                             \
    X(norm_back,                                                                                   \
      (struct backend_context * c, struct mat dx, struct mat narrow, struct mat dy, struct mat x,  \
       const float *inv, const float *weight, const struct norm_shape *s, bool set),               \
      (c, dx, narrow, dy, x, inv, weight, s, set))                                                 \
    X(rope,                                                                                        \
      (struct backend_context * c, struct mat to, struct mat from, const struct rope_shape *s,     \
       const struct backend_batch *b),                                                             \
      (c, to, from, s, b))                                                                         \
    X(attention,                                                                                   \
      (struct backend_context * c, const struct attention_tensors *t,                              \
       const struct attention_shape *s, const struct backend_batch *b),                            \
      (c, t, s, b))                                                                                \
    X(attention_back,                                                                              \
      (struct backend_context * c, const struct attention_tensors *grad,                           \
       const struct attention_tensors *t, const struct attention_shape *s,                         \
       const struct backend_batch *b),                                                             \
      (c, grad, t, s, b))                                                                          \
    X(attention_decode,                                                                            \
      (struct backend_context * c, const struct attention_tensors *t, const struct decode_row *r,  \
       size_t rows, const struct attention_shape *s),                                              \
      (c, t, r, rows, s))                                                                          \
    X(gate,                                                                                        \
      (struct backend_context * c, struct mat h, struct mat gate, struct mat up,                   \
       const struct gate_shape *s),                                                                \
      (c, h, gate, up, s))                                                                         \
    X(gate_back,                                                                                   \
      (struct backend_context * c, struct mat dgate, struct mat dup, struct mat dh,                \
       struct mat gate, struct mat up, const struct gate_shape *s),                                \
      (c, dgate, dup, dh, gate, up, s))                                                            \
    X(adamw,                                                                                       \
      (struct backend_context * c, double norm2[2], const struct optimizer *o,                     \
       const struct adamw *a),                                                                     \
      (c, norm2, o, a))

enum operation {
#define X(name, parameters, arguments) COUNT_##name,
    OPERATIONS(X)
#undef X
        COUNT_operations,
    COUNT_check = COUNT_operations,
    COUNT_memory_take,
    COUNT_batch_open,
    COUNT_low_rank_open,
    COUNT_ALL,
};
static size_t counted[COUNT_ALL];

#define X(name, parameters, arguments)                                                             \
    static void counted_##name parameters                                                          \
    {                                                                                              \
        counted[COUNT_##name]++;                                                                   \
        backend_cpu.name arguments;                                                                \
    }
OPERATIONS(X)
#undef X

static err counted_check(struct backend_context *c)
{
    counted[COUNT_check]++;
    return backend_cpu.check(c);
}
static err counted_memory_take(void *out, struct backend_context *c, size_t bytes)
{
    counted[COUNT_memory_take]++;
    return backend_cpu.memory_take(out, c, bytes);
}
static err counted_batch_open(struct backend_batch **out, struct backend_context *c,
                              const struct batch_rows *most)
{
    counted[COUNT_batch_open]++;
    return backend_cpu.batch_open(out, c, most);
}
static err counted_low_rank_open(struct backend_low_rank **out, struct backend_context *c,
                                 struct backend_weight *w, const struct low_rank_module *module,
                                 size_t modules)
{
    counted[COUNT_low_rank_open]++;
    return backend_cpu.low_rank_open(out, c, w, module, modules);
}

static struct backend counting(void)
{
    struct backend b = backend_cpu;
#define X(name, parameters, arguments) b.name = counted_##name;
    OPERATIONS(X)
#undef X
    b.check = counted_check;
    b.memory_take = counted_memory_take;
    b.batch_open = counted_batch_open;
    b.low_rank_open = counted_low_rank_open;
    return b;
}

static struct backend table;
static size_t passes; /* of a step */

static void setup_open(struct setup *s, const char *name)
{
    struct rng rng;
    setup_model(s, name);
    struct engine_options o = {.device = "cpu", .precision = DTYPE_F32, .threads = 2};
    ok(engine_open(&s->engine, &s->model, &o));
    table = counting();
    s->engine->be = &table;
    setup_fresh(s, 4);
    rng_init(&rng, "test", 1, "rows", 0);
    for (uint32_t i = 0; i < ROWS; i++) /* each row longer than the one before it */
        setup_row(s, &rng, LENGTH - ROWS + i, 0);
}

static bool expect_few(void *user, const struct train_step *step)
{
    const struct setup *s = user;
    size_t sum = 0;
    for (int i = 0; i < COUNT_operations; i++)
        sum += counted[i];
    if (step->step > 0) {
        size_t none[] = {counted[COUNT_copy_in],       counted[COUNT_copy_out],
                         counted[COUNT_memory_take],   counted[COUNT_batch_open],
                         counted[COUNT_low_rank_open], counted[COUNT_low_rank_load]};
        for (size_t i = 0; i < sizeof none / sizeof none[0]; i++)
            cr_expect_eq(none[i], 0, "step %zu, call %zu: %zu times", (size_t)step->step, i,
                         none[i]);
        cr_expect_eq(counted[COUNT_check], 1);
        cr_expect_eq(counted[COUNT_batch_set], passes);
        cr_expect_eq(counted[COUNT_batch_nll], passes);
        cr_expect_leq(sum, passes * 50 * s->model.arch.layers + 40, "%zu operations", sum);
    }
    memset(counted, 0, sizeof counted);
    return true;
}

static void check_steps(const char *model, bool checkpoint, uint32_t accumulate, double prox)
{
    struct setup s;
    struct train_options o;
    struct train_result result;
    setup_open(&s, model);
    train_defaults(&o);
    o.steps = 4;
    o.batch = 2;
    o.accumulate = accumulate;
    o.checkpoint = checkpoint;
    o.dropout = 0.1;
    o.prox = prox;
    o.clip = 1.0;
    o.on_step = expect_few;
    o.user = &s;
    passes = accumulate;
    ok(train_run(&result, &s.adapter, s.engine, &s.data, &o));
    setup_close(&s);
}

Test(launches, a_step_copies_nothing_and_waits_once)
{
    check_steps("llama", false, 1, 0.0);
    check_steps("qwen3", false, 1, 0.0);
    check_steps("llama", true, 1, 0.0);
    check_steps("qwen3", true, 3, 0.1);
}

/* A longer row comes last here, so the first pass must have made room for it. */
Test(launches, a_step_takes_no_memory_when_rows_become_longer)
{
    struct setup s;
    struct train_options o;
    struct train_result result;
    setup_open(&s, "llama");
    train_defaults(&o);
    o.steps = ROWS;
    o.batch = 1;
    o.shuffle = false;
    o.on_step = expect_few;
    o.user = &s;
    passes = 1;
    ok(train_run(&result, &s.adapter, s.engine, &s.data, &o));
    setup_close(&s);
}
