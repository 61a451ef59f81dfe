/* Measures training on a GPU: LoRA of rank 16 on all seven projections, B rows of L tokens in one
 * step.
 *
 *   bench_gpu MODEL BxL [VARIANT...] [--device NAME] [--precision bf16|f32] [--steps N] [--json]
 *
 * Prints one row for each variant, or one plain row without variants. A variant is "plain", or a
 * list of these, joined by "+":
 *
 *   recompute   activations are computed again in the backward pass
 *   q8_0        the weights are random blocks of Q8_0, kept as they are
 *   private     R of fed-sb (64 x 64) is trained with example-level privacy
 *
 * Steps after the first two count. The peak of the device's memory is read after each step; the
 * count beside it is the plan of the engine. bench/peft_train.py makes the same tokens. */
#include "bench/gpu/gpu.h"
#include "engine/engine_plan.h"
#include "engine/train/train_private.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WARM_UP = 2, STEPS_MAX = 1000, RANK = 16, RANK_PRIVATE = 64 };

struct variant {
    const char *name;
    bool recompute, quantised, hidden; /* hidden: with privacy */
};
struct measurement { /* of one variant */
    double seconds[STEPS_MAX];
    size_t steps;
    double first_loss, last_loss;
    uint64_t used_before, used_most; /* bytes of the device */
    uint64_t counted;
};
struct options {
    const char *model, *device;
    size_t rows, length;
    uint64_t steps;
    enum dtype precision;
    bool json;
};

static void must(err e)
{
    if (!err_is(e)) return;
    fprintf(stderr, "bench_gpu: %s\n", e.text);
    exit(1);
}

static bool keep(void *user, const struct train_step *s)
{
    struct measurement *m = user;
    uint64_t used = gpu_memory_used();
    m->seconds[m->steps++] = s->seconds;
    if (s->step == 0) m->first_loss = s->loss;
    m->last_loss = s->loss;
    if (used > m->used_most) m->used_most = used;
    return m->steps < STEPS_MAX;
}

/* Tokens from a linear congruential generator, which bench/peft_train.py computes as well. */
static void open_rows(struct dataset *data, const struct options *o, uint32_t vocab)
{
    uint32_t x = 1;
    int32_t *id = malloc(o->rows * o->length * sizeof *id);
    struct data_row *row = calloc(o->rows, sizeof *row);
    if (!id || !row) must(err_make(ERR_MACHINE, "no memory for the rows"));
    for (size_t i = 0; i < o->rows * o->length; i++) {
        x = x * 1664525u + 1013904223u;
        id[i] = (int32_t)(3 + (x >> 8) % (vocab - 3));
    }
    for (size_t i = 0; i < o->rows; i++) {
        int32_t *at = id + i * o->length;
        row[i] = (struct data_row){.id = at, .label = at, .count = (uint32_t)o->length};
    }
    *data = (struct dataset){.row = row, .count = o->rows};
    data->tokens = o->rows * o->length;
    data->learned = o->rows * (o->length - 1);
}

static void open_adapter(struct adapter *ad, const struct arch *a, bool hidden)
{
    if (!hidden) {
        struct adapter_fresh fresh = {
            .targets = "q,k,v,o,gate,up,down", .rank = RANK, .alpha = 2 * RANK};
        must(adapter_open_fresh(ad, a, &fresh));
        return;
    }
    static struct adapter_spec spec[LIMIT_MODULES];
    size_t count = 0;
    for (uint32_t i = 0; i < a->layers * MODULE_UNFUSED; i++)
        spec[count++] = (struct adapter_spec){.layer = i / MODULE_UNFUSED,
                                              .kind = (enum module_kind)(i % MODULE_UNFUSED),
                                              .rank = RANK_PRIVATE,
                                              .small_matrix = true,
                                              .scale = 1.0};
    must(adapter_open(ad, a, spec, count, ADAPTER_R));
    for (size_t i = 0; i < ad->count; i++) {
        const struct adapter_module *m = &ad->module[i];
        gpu_fill(m->a, (size_t)m->rank * m->d_in, 0.1f);
        gpu_fill(m->b, (size_t)m->d_out * m->rank, 0.1f);
    }
}

/* Lets all matrices share one pool of random blocks: 32 signed bytes and a scale in half precision
 * near 0.0002. */
static void *quantise(struct model *m)
{
    enum { BLOCK = 34 };
    size_t most = 0;
    for (uint32_t i = 0; i < m->arch.layers * MODULE_UNFUSED; i++) {
        const struct weight *w = &m->layer[i / MODULE_UNFUSED].linear[i % MODULE_UNFUSED];
        if ((size_t)w->rows * w->cols > most) most = (size_t)w->rows * w->cols;
        if (w->cols % 32) must(err_make(ERR_INPUT, "q8_0: %u columns", w->cols));
    }
    uint8_t *pool = malloc(most / 32 * BLOCK);
    if (!pool) must(err_make(ERR_MACHINE, "no memory for the blocks"));
    uint32_t x = 7;
    for (size_t i = 0; i < most / 32 * BLOCK; i++) {
        x = x * 1664525u + 1013904223u;
        pool[i] = i % BLOCK == 0 ? 0x8e : i % BLOCK == 1 ? 0x0a : (uint8_t)(x >> 24);
    }
    for (uint32_t i = 0; i < m->arch.layers * MODULE_UNFUSED; i++) {
        struct weight *w = &m->layer[i / MODULE_UNFUSED].linear[i % MODULE_UNFUSED];
        w->data = pool;
        w->dtype = DTYPE_Q8_0;
        w->rope_heads = 0;
    }
    return pool;
}

static void run(struct measurement *out, const struct options *o, const struct variant *v)
{
    struct model model;
    struct engine *e;
    struct adapter ad;
    struct dataset data;
    struct train_options t;
    struct train_result result;
    struct engine_options open = {.device = o->device,
                                  .precision = o->precision,
                                  .base_memory = v->quantised ? BASE_FILE : BASE_PACKED};
    *out = (struct measurement){.used_before = gpu_memory_used()};
    must(model_open(&model, o->model));
    void *pool = v->quantised ? quantise(&model) : NULL;
    must(engine_open(&e, &model, &open));
    open_adapter(&ad, &model.arch, v->hidden);
    open_rows(&data, o, model.arch.vocab);
    train_defaults(&t);
    t.steps = o->steps + WARM_UP;
    t.batch = (uint32_t)o->rows;
    t.lr = 1e-4;
    t.schedule = TRAIN_CONSTANT;
    t.shuffle = false;
    t.checkpoint = v->recompute;
    t.on_step = keep;
    t.user = out;
    struct train_private_options p = {.train = &t, .sampling = 1.0, .noise = 1.0, .clip = 0.1};
    must(v->hidden ? train_private_run(&result, &ad, e, &data, &p)
                   : train_run(&result, &ad, e, &data, &t));
    const struct engine_plan_adapter values = {.values = ad.value_count, .each_row = v->hidden};
    out->counted = engine_plan_bytes(e, &e->pass.size, &values);
    free((void *)data.row[0].id);
    free(data.row);
    adapter_close(&ad);
    engine_close(e);
    model_close(&model);
    free(pool);
}

static void print_row(struct measurement *m, const struct options *o, const struct variant *v)
{
    double took = gpu_median(m->seconds + WARM_UP, m->steps - WARM_UP);
    double rate = (double)(o->rows * o->length) / took;
    char losses[64] = "-"; /* private steps report none */
    if (!v->hidden) snprintf(losses, sizeof losses, "%.4f -> %.4f", m->first_loss, m->last_loss);
    double used = (double)(m->used_most - m->used_before) / 1e9, counted = (double)m->counted / 1e9;
    const char *name = strrchr(o->model, '/') ? strrchr(o->model, '/') + 1 : o->model;
    char shape[32];
    snprintf(shape, sizeof shape, "%zux%zu", o->rows, o->length);
    if (o->json)
        printf("{\"program\":\"fedlora\",\"model\":\"%s\",\"shape\":\"%s\",\"variant\":\"%s\","
               "\"precision\":\"%s\",\"tokens_per_second\":%.1f,\"ms\":%.3f,\"gb_peak\":%.3f,"
               "\"gb_counted\":%.3f,\"losses\":\"%s\"}\n",
               name, shape, v->name, o->precision == DTYPE_F32 ? "f32" : "bf16", rate, took * 1e3,
               used, counted, losses);
    else
        printf("fedlora  %-6s %-7s %-16s %9.0f tokens/s %9.2f ms  %6.2f GB, counted %6.2f  "
               "loss %s\n",
               name, shape, v->name, rate, took * 1e3, used, counted, losses);
    fflush(stdout);
}

/* False for an unknown part. */
static bool read_variant(struct variant *out, const char *text)
{
    char copy[64], *rest = NULL;
    *out = (struct variant){.name = text};
    if (strlen(text) >= sizeof copy) return false;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *part = strtok_r(copy, "+", &rest); part; part = strtok_r(NULL, "+", &rest)) {
        bool none, *flag = !strcmp(part, "plain")       ? &none
                           : !strcmp(part, "recompute") ? &out->recompute
                           : !strcmp(part, "q8_0")      ? &out->quantised
                           : !strcmp(part, "private")   ? &out->hidden
                                                        : NULL;
        if (!flag) return false;
        *flag = true;
    }
    return true;
}

static int usage(void)
{
    fprintf(stderr, "usage: bench_gpu MODEL BxL [recompute|q8_0|private, joined by +]... "
                    "[--device NAME] [--precision bf16|f32] [--steps N] [--json]\n");
    return 2;
}

int main(int argc, char **argv)
{
    enum { VARIANTS_MAX = 16 };
    static struct measurement m;
    struct options o = {.device = "cuda", .steps = 8, .precision = DTYPE_BF16};
    struct variant variant[VARIANTS_MAX] = {{.name = "plain"}};
    size_t variants = 0;
    if (argc < 3 || sscanf(argv[2], "%zux%zu", &o.rows, &o.length) != 2) return usage();
    o.model = argv[1];
    for (int i = 3; i < argc; i++) {
        bool more = i + 1 < argc;
        if (!strcmp(argv[i], "--json"))
            o.json = true;
        else if (!strcmp(argv[i], "--device") && more)
            o.device = argv[++i];
        else if (!strcmp(argv[i], "--precision") && more)
            o.precision = !strcmp(argv[++i], "f32") ? DTYPE_F32 : DTYPE_BF16;
        else if (!strcmp(argv[i], "--steps") && more)
            o.steps = strtoull(argv[++i], NULL, 10);
        else if (variants == VARIANTS_MAX || !read_variant(&variant[variants++], argv[i]))
            return usage();
    }
    if (!o.rows || o.length < 2 || !o.steps || o.steps + WARM_UP > STEPS_MAX) return usage();
    /* An open context, so that CUDA's own memory is not counted; of a list of devices the first. */
    char first[32];
    snprintf(first, sizeof first, "%.*s", (int)strcspn(o.device, ","), o.device);
    must(gpu_open(strcmp(first, "cuda:all") != 0 ? first : "cuda"));
    for (size_t i = 0; i < (variants ? variants : 1); i++) {
        run(&m, &o, &variant[i]);
        print_row(&m, &o, &variant[i]);
    }
    return 0;
}
