/* Trainings in lockstep, whose passes hold several of them, give the bits that each has alone. */
#include "engine/train/train.h"
#include "kernels/cpu/cpu.h"
#include "tests/support/engine_fixture.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

enum { CLIENTS = 9, CLIENT_ROWS = 3, LONGEST = 70 };

struct client {
    struct adapter adapter;
    struct dataset data;
    struct data_row row[CLIENT_ROWS];
    int32_t id[CLIENT_ROWS][LONGEST], label[CLIENT_ROWS][LONGEST];
    struct train_options options;
    uint64_t stop_after; /* steps; 0: never */
};

static bool may_stop(void *user, const struct train_step *step)
{
    const struct client *c = user;
    return !c->stop_after || step->step + 1 < c->stop_after;
}

/* Of client 1 only the highest layer trains; client 2 has a matrix R, and all odd ones have a
 * carry at some modules. */
static void client_adapter(struct client *c, const struct setup *s, size_t number, struct rng *rng)
{
    const struct arch *arch = &s->model.arch;
    struct adapter_spec spec[LIMIT_MODULES];
    uint32_t rank = 1 + rng_below(rng, 12);
    size_t count = 0;
    for (uint32_t layer = number == 1 ? arch->layers - 1 : 0; layer < arch->layers; layer++)
        for (int kind = 0; kind < MODULE_UNFUSED; kind++)
            if (number == 0 || rng_below(rng, 4) || kind == MODULE_UP)
                spec[count++] = (struct adapter_spec){.layer = layer,
                                                      .kind = (enum module_kind)kind,
                                                      .rank = rank,
                                                      .carry_rank = number % 2 && kind % 2 ? 3 : 0,
                                                      .small_matrix = number == 2,
                                                      .scale = 0.7};
    unsigned trains = ADAPTER_A | ADAPTER_B | (number == 2 ? ADAPTER_R : 0);
    ok(adapter_open(&c->adapter, arch, spec, count, trains));
    for (size_t i = 0; i < c->adapter.count; i++) {
        struct adapter_module *m = &c->adapter.module[i];
        rng_fill_uniform(rng, m->a, (size_t)m->rank * m->d_in, 0.2);
        rng_fill_uniform(rng, m->b, (size_t)m->d_out * m->rank, 0.2);
        if (m->r) rng_fill_uniform(rng, m->r, (size_t)m->rank * m->rank, 0.7);
        if (!m->carry_rank) continue;
        rng_fill_uniform(rng, m->carry_a, (size_t)m->carry_rank * m->d_in, 0.1);
        rng_fill_uniform(rng, m->carry_b, (size_t)m->d_out * m->carry_rank, 0.1);
    }
}

static void client_options(struct client *c, size_t number, struct rng *rng)
{
    struct train_options *o = &c->options;
    train_defaults(o);
    o->steps = 1 + rng_below(rng, 4);
    o->batch = 1 + (number % 3 == 2);
    o->lr = 1e-2 * (double)(1 + number);
    o->seed = number;
    o->schedule = number % 2 ? TRAIN_COSINE : TRAIN_CONSTANT;
    o->prox = number == 3 ? 0.1 : 0.0;
    o->prune_gamma = number == 4 ? 0.5 : 0.0;
    o->prune_lambda = number == 4 ? 0.01 : 0.0;
    o->checkpoint = number >= 6;
    o->dropout = number == 5 ? 0.1 : 0.0;
    o->on_step = may_stop;
    o->user = c;
}

/* The same bytes for the same number. Client 7 has as many tokens as fill passes alone. */
static void client_open(struct client *c, const struct setup *s, size_t number)
{
    struct rng rng;
    memset(c, 0, sizeof *c);
    rng_init(&rng, "test", 3, s->model.arch.qk_norm ? "norms" : "plain", number);
    client_adapter(c, s, number, &rng);
    client_options(c, number, &rng);
    c->data.row = c->row;
    c->data.count = CLIENT_ROWS;
    for (size_t i = 0; i < CLIENT_ROWS; i++) {
        uint32_t count = number == 7 ? LONGEST : 3 + rng_below(&rng, number == 8 ? 3 : 28);
        for (uint32_t t = 0; t < count; t++) {
            c->id[i][t] = (int32_t)rng_below(&rng, s->model.arch.vocab);
            c->label[i][t] = t % 5 == 4 ? DATA_IGNORE : c->id[i][t];
        }
        c->row[i] = (struct data_row){.id = c->id[i], .label = c->label[i], .count = count};
        c->data.tokens += count;
        c->data.learned += engine_learned(c->label[i], count);
    }
}

/* Trains each client alone, and copies of them together, and expects the same bytes and errors. */
struct both {
    size_t count; /* of the clients */
    struct client alone[CLIENTS], together[CLIENTS];
    struct train_result result[CLIENTS];
    err error[CLIENTS];
    struct train_job job[CLIENTS];
};

/* Kernels of CUDA are slow on the CPU, and no passes are shared there. */
static bool on_cpu(void)
{
    return !strcmp(support_device(), "cpu");
}

static void both_open(struct both *b, const struct setup *s)
{
    b->count = on_cpu() ? CLIENTS : CLIENTS - 4;
    for (size_t i = 0; i < b->count; i++) {
        client_open(&b->alone[i], s, i);
        client_open(&b->together[i], s, i);
        memset(&b->result[i], 0, sizeof b->result[i]);
    }
}

static void both_train(struct both *b, const struct setup *s)
{
    for (size_t i = 0; i < b->count; i++) {
        struct client *a = &b->alone[i], *t = &b->together[i];
        b->error[i] = train_run(&b->result[i], &a->adapter, s->engine, &a->data, &a->options);
        b->job[i] = (struct train_job){&t->adapter, &t->data, &t->options, {0}, ERR_NONE, 0};
    }
    train_many(b->job, b->count, s->engine);
    for (size_t i = 0; i < b->count; i++) {
        const struct adapter *x = &b->alone[i].adapter, *y = &b->together[i].adapter;
        struct train_result one = b->result[i], other = b->job[i].result;
        one.seconds = other.seconds = 0.0;
        cr_expect_eq(b->error[i].kind, b->job[i].error.kind, "client %zu: %s", i,
                     b->job[i].error.text);
        cr_expect(!memcmp(x->value, y->value, x->value_count * sizeof(float)),
                  "client %zu: values differ", i);
        cr_expect(!memcmp(&one, &other, sizeof one), "client %zu: losses %.9g and %.9g", i,
                  one.mean_loss, other.mean_loss);
    }
}

static void both_close(struct both *b)
{
    for (size_t i = 0; i < b->count; i++) {
        adapter_close(&b->alone[i].adapter);
        adapter_close(&b->together[i].adapter);
    }
}

static void check_model(const char *name, enum dtype precision)
{
    static struct both b;
    struct setup s;
    setup_model(&s, name);
    setup_engine(&s, precision, 2);
    both_open(&b, &s);
    both_train(&b, &s);
    for (size_t i = 0; i < b.count; i++) {
        bool fills = train_fills(s.engine, &b.together[i].options);
        cr_expect(!err_is(b.error[i]), "%s, client %zu: %s", name, i, b.error[i].text);
        cr_expect_eq(b.job[i].shared > 0, fills && i != 7, "%s, client %zu: %llu shared steps",
                     name, i, (unsigned long long)b.job[i].shared);
    }
    both_close(&b);
    setup_close(&s);
}

Test(train_many, gives_the_bits_of_each_training_alone)
{
    check_model("llama", DTYPE_F32);
    if (!on_cpu()) return;
    check_model("llama-bias", DTYPE_F32);
    check_model("qwen3", DTYPE_F32);
}

Test(train_many, gives_them_in_bfloat16)
{
    if (!on_cpu() || !cpu_can_bf16()) cr_skip_test("bfloat16 needs AVX-512");
    check_model("llama", DTYPE_BF16);
    check_model("qwen3", DTYPE_BF16);
}

/* Client 0 starts with a value that is no number, client 2 has nothing to learn, client 3 has an
 * option out of range, and client 4 is stopped. */
Test(train_many, keeps_an_error_to_its_training)
{
    static struct both b;
    struct setup s;
    setup_model(&s, "llama");
    setup_engine(&s, DTYPE_F32, 1);
    both_open(&b, &s);
    for (int k = 0; k < 2; k++) {
        struct client *c = k ? b.together : b.alone;
        c[0].adapter.value[c[0].adapter.value_count / 2] = NAN;
        c[2].data.learned = 0;
        c[3].options.batch = 0;
        c[4].options.steps = 3;
        c[4].stop_after = 2;
    }
    both_train(&b, &s);
    static const enum err_kind want[CLIENTS] = {
        [0] = ERR_STATE, [2] = ERR_INPUT, [3] = ERR_INPUT, [4] = ERR_STOPPED};
    for (size_t i = 0; i < b.count; i++) {
        cr_expect_eq(b.job[i].error.kind, want[i], "client %zu: %s", i, b.job[i].error.text);
        cr_expect_str_eq(b.job[i].error.text, b.error[i].text);
    }
    both_close(&b);
    setup_close(&s);
}
