/* The time of each operation at the sizes of real trainings, beside the least time that its bytes
 * and products need on this device.
 *
 * The limits are measured first: the bandwidth of a copy, and the rate of a large product in
 * bfloat16. Bytes count each operand once, read or written. FLOPs are 2 for each multiplication
 * with its sum, and causal attention needs half of all pairs. bench/gpu/floors.py counts whole
 * steps in the same way. */
#include "bench/gpu/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RANK = 16, LEARNED = 1024 /* rows of one call of head_loss(), as in the engine */ };
static const struct check_values reals = {1.0f, false};

struct shape { /* of a model, and of a step's rows */
    const char *name;
    size_t d, ffn, layers, heads, kv, hd, vocab, rows, length;
};
static const struct shape shapes[] = {
    {"135m", 576, 1536, 30, 9, 3, 64, 49152, 4, 512},
    {"1b", 2048, 5632, 22, 32, 4, 64, 32000, 8, 2048},
    {"8b", 4096, 14336, 32, 32, 8, 128, 128256, 8, 2048},
};
static const struct shape tiny_shape = {"tiny", 64, 96, 2, 2, 1, 64, 200, 2, 33};

/* ---- Measuring */
struct limits {
    double bytes, flops; /* a second */
};
struct work { /* what one call does */
    void (*call)(void *user);
    void *user;
    size_t times;
};

static void call_times(void *user)
{
    const struct work *w = user;
    for (size_t i = 0; i < w->times; i++)
        w->call(w->user);
}

static double seconds_of(void (*call)(void *user), void *user)
{
    double since = gpu_seconds();
    call(user);
    check_must(gpu->check(gpu_context));
    return gpu_seconds() - since;
}

/* Seconds of one call, by the best of three series of about 20 ms. `recorded`: as a part of a
 * recorded pass, which costs less to launch. */
static double measure(const struct work *work, bool recorded)
{
    static uint64_t key;
    struct work w = *work;
    struct backend_record *record = NULL;
    double best = INFINITY;
    w.times = 1;
    (void)seconds_of(call_times, &w); /* memory of the operation grows now */
    double once = seconds_of(call_times, &w);
    if (!gpu_is_emulated()) w.times = once > 0.01 ? 2 : (size_t)(0.02 / once) + 1;
    if (w.times > 200) w.times = 200;
    key++;
    for (int i = 0; i < (gpu_is_emulated() ? 1 : 4); i++) { /* the first time it is recorded */
        double since = gpu_seconds();
        if (recorded)
            gpu->repeat(gpu_context, &record, key, call_times, &w);
        else
            call_times(&w);
        check_must(gpu->check(gpu_context));
        best = fmin(best, (gpu_seconds() - since) / (double)w.times);
    }
    gpu->record_close(record);
    return best;
}

struct copy { /* of (n, n) */
    struct mat to, from;
    size_t n;
};
static void call_copy(void *user)
{
    const struct copy *c = user;
    gpu->convert(gpu_context, c->to, c->from, c->n, c->n, 1.0f);
}
struct product {
    struct mat y, x;
    struct backend_weight *w;
    size_t rows;
};
static void call_product(void *user)
{
    const struct product *p = user;
    gpu->linear(gpu_context, p->y, p->x, p->w, NULL, NULL, p->rows, false);
}

static double copy_rate(bool tiny)
{
    struct copy c = {.n = tiny ? 100 : 16384};
    c.from = check_empty(DTYPE_F32, c.n, c.n);
    c.to = check_empty(DTYPE_F32, c.n, c.n);
    double took = measure(&(struct work){call_copy, &c, 0}, false);
    check_free();
    return 8.0 * (double)c.n * (double)c.n / took;
}

static double product_rate(enum dtype type, size_t n)
{
    check_must(gpu_reopen(type));
    struct product p = {.rows = n};
    p.w = check_weight(n, n, reals, BACKEND_FORWARD);
    p.x = check_random(type, n, n, reals);
    p.y = check_empty(type, n, n);
    double took = measure(&(struct work){call_product, &p, 0}, false);
    check_free();
    return 2.0 * (double)n * (double)n * (double)n / took;
}

static struct limits measure_limits(bool tiny)
{
    struct limits l = {.bytes = copy_rate(tiny)};
    l.flops = product_rate(DTYPE_BF16, tiny ? 64 : 8192);
    return l;
}

static void warn(void)
{
    if (gpu_is_emulated()) printf("emulated on the CPU: these times mean nothing\n");
}

int check_ceilings(const struct check_arguments *a)
{
    bool tiny = check_has(a, "tiny");
    warn();
    struct limits l = measure_limits(tiny);
    printf("copy         %8.3f TB/s, read and written\n", l.bytes / 1e12);
    printf("product bf16 %8.1f TFLOP/s\n", l.flops / 1e12);
    printf("product f32  %8.1f TFLOP/s\n", product_rate(DTYPE_F32, tiny ? 64 : 4096) / 1e12);
    return 0;
}

/* ---- The operations of a layer */
struct timed_site { /* of a linear operation and its adapter */
    size_t n, k, modules;
    const struct backend_batch *batch;
    struct backend_weight *w;
    struct backend_low_rank *l;
    struct low_rank_use use;
    struct low_rank_site site;
    struct mat x, y, dy, dx;
    bool add;
};
enum { QKV, O, GATE_UP, DOWN, SITES_OF_LAYER };
struct timed {
    const struct shape *s;
    size_t tokens, q, kv, wide; /* columns of q, of k and v, of all three */
    struct backend_batch *batch;
    struct timed_site site[SITES_OF_LAYER];
    struct mat resid, normed, copy, dresid, dnormed; /* (tokens, d) */
    struct mat qkv, dqkv, att, datt, gate_up, dgate_up, h;
    float *inv, *lse, *weight, *table, *block[4];
    struct backend_weight *head;
    struct mat hidden, dhidden;
    size_t values; /* of the adapter of a layer */
};

static void site_open(struct timed *l, int which, size_t n, size_t k, size_t modules)
{
    struct timed_site *s = &l->site[which];
    struct low_rank_module m[3];
    size_t width = RANK * modules, room = gpu->low_rank_room(gpu_context, width), at = 0;
    *s = (struct timed_site){
        .n = n, .k = k, .modules = modules, .batch = l->batch, .add = which == O || which == DOWN};
    s->w = check_weight(n, k, reals, BACKEND_FORWARD | BACKEND_BACKWARD);
    for (size_t i = 0; i < modules; i++) {
        uint32_t first = (uint32_t)(n / modules * i), rows = (uint32_t)(n / modules);
        if (which == QKV) { /* q, k, v have other sizes */
            first = (uint32_t)(i == 0 ? 0 : l->q + (i - 1) * l->kv);
            rows = (uint32_t)(i == 0 ? l->q : l->kv);
        }
        m[i] = (struct low_rank_module){.row = first,
                                        .rows = rows,
                                        .col = (uint32_t)(RANK * i),
                                        .rank = RANK,
                                        .width = RANK,
                                        .scale = 2.0f,
                                        .trains = LOW_RANK_A | LOW_RANK_B,
                                        .a_at = at,
                                        .b_at = at + RANK * k,
                                        .place = (uint32_t)i};
        at += RANK * (k + rows);
    }
    check_must(gpu->low_rank_open(&s->l, gpu_context, s->w, m, modules));
    s->use = (struct low_rank_use){s->l, 0, l->tokens, check_take(at * sizeof(float)), 0, 0, 0};
    s->site = (struct low_rank_site){.use = &s->use, .uses = 1};
    s->site.h = check_empty(DTYPE_BF16, l->tokens, width);
    s->site.g = check_empty(DTYPE_BF16, l->tokens, width);
    s->site.p = check_empty(DTYPE_BF16, l->tokens, width);
    s->x = check_random(DTYPE_BF16, l->tokens, k + room, reals);
    s->dy = check_random(DTYPE_BF16, l->tokens, n + room, reals);
    s->y = check_empty(s->add ? DTYPE_F32 : DTYPE_BF16, l->tokens, n);
    s->dx = check_empty(DTYPE_BF16, l->tokens, k);
    l->values += at;
}

static void layer_open(struct timed *l, const struct shape *s)
{
    *l = (struct timed){.s = s, .tokens = s->rows * s->length, .q = s->heads * s->hd};
    l->kv = s->kv * s->hd;
    l->wide = l->q + 2 * l->kv;
    check_must(gpu_reopen(DTYPE_BF16));
    l->batch = check_batch(s->rows, s->length, (uint32_t)s->vocab, 0.0f);
    site_open(l, QKV, l->wide, s->d, 3);
    site_open(l, O, s->d, l->q, 1);
    site_open(l, GATE_UP, 2 * s->ffn, s->d, 2);
    site_open(l, DOWN, s->d, s->ffn, 1);
    size_t tokens = l->tokens, learned = tokens < LEARNED ? tokens : LEARNED;
    l->resid = check_random(DTYPE_F32, tokens, s->d, reals);
    l->dresid = check_random(DTYPE_F32, tokens, s->d, reals);
    l->normed = check_empty(DTYPE_BF16, tokens, s->d);
    l->copy = check_random(DTYPE_BF16, tokens, s->d, reals);
    l->dnormed = check_random(DTYPE_BF16, tokens, s->d, reals);
    l->qkv = check_random(DTYPE_BF16, tokens, l->wide, reals);
    l->dqkv = check_empty(DTYPE_BF16, tokens, l->wide);
    l->att = check_empty(DTYPE_BF16, tokens, l->q);
    l->datt = check_random(DTYPE_BF16, tokens, l->q, reals);
    l->gate_up = check_random(DTYPE_BF16, tokens, 2 * s->ffn, reals);
    l->dgate_up = check_empty(DTYPE_BF16, tokens, 2 * s->ffn);
    l->h = check_random(DTYPE_BF16, tokens, s->ffn, reals);
    l->inv = check_floats_device(tokens, reals);
    l->lse = check_take(tokens * s->heads * sizeof(float));
    l->weight = check_floats_device(s->d, reals);
    l->table = check_floats_device(s->length * s->hd, reals);
    for (int i = 0; i < 4; i++)
        l->block[i] = check_take(l->values * s->layers * sizeof(float));
    l->head = check_weight(s->vocab, s->d, reals,
                           BACKEND_FORWARD | BACKEND_BACKWARD | BACKEND_HEAD | BACKEND_EMBED);
    l->hidden = check_random(DTYPE_BF16, learned, s->d, reals);
    l->dhidden = check_empty(DTYPE_F32, learned, s->d);
}

static void layer_close(struct timed *l)
{
    check_must(gpu->check(gpu_context));
    for (int i = 0; i < SITES_OF_LAYER; i++)
        gpu->low_rank_close(l->site[i].l);
    check_free();
}

/* ---- One call of each */
static void call_embed(void *user)
{
    const struct timed *l = user;
    gpu->embed(gpu_context, l->resid, l->head, l->batch);
}
static void call_norm(void *user)
{
    const struct timed *l = user;
    struct norm_shape s = {l->tokens, 1, l->s->d, 1e-5f};
    gpu->norm(gpu_context, l->normed, l->inv, l->copy, l->resid, l->weight, &s);
}
static void call_norm_back(void *user)
{
    const struct timed *l = user;
    struct norm_shape s = {l->tokens, 1, l->s->d, 1e-5f};
    gpu->norm_back(gpu_context, l->dresid, l->normed, l->dnormed, l->copy, l->inv, l->weight, &s,
                   false);
}
static void call_rope(void *user)
{
    const struct timed *l = user;
    struct rope_shape s = {l->tokens, l->s->heads + l->s->kv,
                           l->s->hd,  0,
                           l->table,  l->table + l->s->length * l->s->hd / 2,
                           false};
    gpu->rope(gpu_context, l->qkv, l->qkv, &s, l->batch);
}
static struct attention_tensors views(const struct timed *l, struct mat qkv, struct mat out)
{
    return (struct attention_tensors){.q = qkv,
                                      .k = mat_at(qkv, 0, l->q),
                                      .v = mat_at(qkv, 0, l->q + l->kv),
                                      .out = out,
                                      .lse = l->lse};
}
static void attend(const struct timed *l, bool back, float cap)
{
    struct attention_tensors t = views(l, l->site[QKV].dy, l->att), g = views(l, l->dqkv, l->datt);
    struct attention_shape s = {
        (uint32_t)l->s->heads, (uint32_t)l->s->kv, (uint32_t)l->s->hd, 0, 0, cap};
    g.lse = NULL;
    if (back)
        gpu->attention_back(gpu_context, &g, &t, &s, l->batch);
    else
        gpu->attention(gpu_context, &t, &s, l->batch);
}
static void call_attention(void *user)
{
    attend(user, false, 0.0f);
}
static void call_attention_back(void *user)
{
    attend(user, true, 0.0f);
}
static void call_attention_cap(void *user)
{
    attend(user, false, 50.0f);
}
static void call_attention_cap_back(void *user)
{
    attend(user, true, 50.0f);
}
static void call_gate(void *user)
{
    const struct timed *l = user;
    struct gate_shape s = {l->tokens, l->s->ffn, ACTIVATION_SILU};
    gpu->gate(gpu_context, l->h, l->gate_up, mat_at(l->gate_up, 0, l->s->ffn), &s);
}
static void gate_back(const struct timed *l, enum activation activation)
{
    struct gate_shape s = {l->tokens, l->s->ffn, activation};
    gpu->gate_back(gpu_context, l->dgate_up, mat_at(l->dgate_up, 0, l->s->ffn), l->h, l->gate_up,
                   mat_at(l->gate_up, 0, l->s->ffn), &s);
}
static void call_gate_back(void *user)
{
    gate_back(user, ACTIVATION_SILU);
}
static void call_gelu_back(void *user)
{
    gate_back(user, ACTIVATION_GELU_TANH);
}
static void call_head(void *user)
{
    const struct timed *l = user;
    size_t learned = l->tokens < LEARNED ? l->tokens : LEARNED;
    gpu->head_loss(gpu_context, l->dhidden, l->hidden, l->head, l->batch, 0, learned);
}
static void call_learned_take(void *user)
{
    const struct timed *l = user;
    gpu->learned_take(gpu_context, l->dresid, l->resid, l->batch, 0, l->tokens, l->s->d);
}
static void call_learned_add(void *user)
{
    const struct timed *l = user;
    gpu->learned_add(gpu_context, l->dresid, l->resid, l->batch, 0, l->tokens, l->s->d);
}
static void call_adamw(void *user)
{
    static double norm2[2];
    const struct timed *l = user;
    struct optimizer o = {
        l->block[0], l->block[1], l->block[2], l->block[3], l->values * l->s->layers, NULL, 0.0};
    struct adamw a = {1e-4, 0.9, 0.999, 1e-8, 0.0, 1, 1.0};
    gpu->adamw(gpu_context, norm2, &o, &a);
}
static void call_set(void *user)
{
    const struct timed *l = user;
    struct backend_low_rank *all[SITES_OF_LAYER];
    for (int i = 0; i < SITES_OF_LAYER; i++)
        all[i] = l->site[i].l;
    gpu->low_rank_set(gpu_context, all, SITES_OF_LAYER, l->block[0]);
}
static void call_linear(void *user)
{
    const struct timed_site *s = user;
    gpu->linear(gpu_context, s->y, s->x, s->w, &s->site, s->batch, s->use.tokens, s->add);
}
static void call_linear_back(void *user)
{
    const struct timed_site *s = user;
    gpu->linear_back(gpu_context, s->dx, s->dy, s->w, &s->site, s->batch, s->use.tokens);
}
static void call_gradient(void *user)
{
    const struct timed_site *s = user;
    gpu->low_rank_gradient(gpu_context, &s->site, s->dy, s->x, s->batch);
}

/* ---- The table */
struct counted { /* of one call */
    double flops, bytes;
    size_t calls; /* in one step */
};
struct sums {
    double seconds, recorded, floor;
};

static void row(struct sums *sum, const struct limits *l, const char *name, const struct work *w,
                const struct counted *c)
{
    double took = measure(w, false), recorded = measure(w, true);
    double least = fmax(c->flops / l->flops, c->bytes / l->bytes), calls = (double)c->calls;
    printf("%-18s %9.4f %9.4f %6zu %9.3f %9.4f %9.4f %9.4f %6.1f %%\n", name, took * 1e3,
           recorded * 1e3, c->calls, recorded * calls * 1e3, c->flops / 1e12, c->bytes / 1e9,
           least * 1e3, 100.0 * least / recorded);
    sum->seconds += took * calls;
    sum->recorded += recorded * calls;
    sum->floor += least * calls;
}

static void rows_of_sites(struct sums *sum, const struct limits *limits, struct timed *l)
{
    static const char *const name[] = {"qkv", "o", "gate_up", "down"};
    double T = (double)l->tokens;
    size_t calls = l->s->layers;
    for (int i = 0; i < SITES_OF_LAYER; i++) {
        struct timed_site *s = &l->site[i];
        double n = (double)s->n, k = (double)s->k, width = RANK * (double)s->modules;
        double low = 2 * T * (k * width + n * RANK);
        struct counted forward = {2 * T * n * k + low,
                                  T * (2 * k + (s->add ? 8 : 2) * n) + 2 * n * k, calls};
        struct counted back = {2 * T * n * k + low, T * (2 * n + 2 * k) + 2 * n * k, calls};
        struct counted gradient = {low, T * (2 * n + 2 * k + 4 * width), calls};
        char text[32];
        snprintf(text, sizeof text, "linear.%s", name[i]);
        row(sum, limits, text, &(struct work){call_linear, s, 0}, &forward);
        snprintf(text, sizeof text, "back.%s", name[i]);
        row(sum, limits, text, &(struct work){call_linear_back, s, 0}, &back);
        snprintf(text, sizeof text, "gradient.%s", name[i]);
        row(sum, limits, text, &(struct work){call_gradient, s, 0}, &gradient);
    }
}

static void time_shape(const struct shape *s, const struct limits *limits)
{
    static struct timed l;
    layer_open(&l, s);
    double T = (double)l.tokens, d = (double)s->d, f = (double)s->ffn, L = (double)s->length;
    double q = (double)l.q, kv = (double)l.kv, w = (double)l.wide, V = (double)s->vocab;
    double learned = T < LEARNED ? T : LEARNED, n = (double)(l.values * s->layers);
    size_t each = s->layers, blocks = (l.tokens + LEARNED - 1) / LEARNED;
    struct {
        const char *name;
        void (*call)(void *user);
        struct counted c;
    } all[] = {
        {"embed", call_embed, {0, T * 6 * d, 1}},
        {"norm", call_norm, {0, T * 8 * d, 2 * each}},
        {"norm_back", call_norm_back, {0, T * 14 * d, 2 * each}},
        {"rope", call_rope, {0, T * 4 * (q + kv), 2 * each}},
        {"attention", call_attention, {2 * T * L * q, T * 2 * (w + q), each}},
        {"attention_back", call_attention_back, {5 * T * L * q, T * 2 * (2 * w + 2 * q), each}},
        {"gate", call_gate, {0, T * 6 * f, each}},
        {"gate_back", call_gate_back, {0, T * 12 * f, each}},
        {"head_loss", call_head, {4 * learned * V * d, learned * 6 * d + 4 * V * d, blocks}},
        {"learned_take", call_learned_take, {0, T * 8 * d, 1}},
        {"learned_add", call_learned_add, {0, T * 12 * d, 1}},
        {"adamw", call_adamw, {0, n * 32, 1}},
        {"low_rank_set", call_set, {0, (double)l.values * 6, each}},
        /* of Gemma 2: not a part of the step, beside the same operation without a cap and GELU */
        {"attention+cap", call_attention_cap, {2 * T * L * q, T * 2 * (w + q), 0}},
        {"back+cap", call_attention_cap_back, {5 * T * L * q, T * 2 * (2 * w + 2 * q), 0}},
        {"gate_back+gelu", call_gelu_back, {0, T * 12 * f, 0}},
    };
    struct sums sum = {0};
    printf("\n%s, %zu x %zu tokens; milliseconds, TFLOP and GB of one call\n", s->name, s->rows,
           s->length);
    printf("%-18s %9s %9s %6s %9s %9s %9s %9s %8s\n", "operation", "launched", "recorded", "calls",
           "step ms", "TFLOP", "GB", "limit ms", "of limit");
    rows_of_sites(&sum, limits, &l);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        row(&sum, limits, all[i].name, &(struct work){all[i].call, &l, 0}, &all[i].c);
    printf("%-18s launched %.2f ms, recorded %.2f ms = %.0f tokens/s, limit %.2f ms\n", "one step",
           sum.seconds * 1e3, sum.recorded * 1e3, T / sum.recorded, sum.floor * 1e3);
    layer_close(&l);
}

int check_time(const struct check_arguments *a)
{
    bool tiny = check_has(a, "tiny");
    size_t timed = 0;
    warn();
    struct limits limits = measure_limits(tiny);
    printf("limits: %.3f TB/s, %.1f TFLOP/s\n", limits.bytes / 1e12, limits.flops / 1e12);
    if (tiny) {
        time_shape(&tiny_shape, &limits);
        return 0;
    }
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        if (!a->count || check_has(a, shapes[i].name)) {
            time_shape(&shapes[i], &limits);
            timed++;
        }
    return timed ? 0 : -1;
}
