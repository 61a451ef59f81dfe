#include "engine/engine_plan.h"

#include "base/text.h"

#include <stdio.h>
#include <string.h>

/* A weight of the engine, as engine_open() packs it. */
static struct weight_source source_of(const struct weight *part, const struct weight *bias,
                                      size_t parts, unsigned products)
{
    static const float any[1]; /* weight_bytes() does not read it */
    struct weight_source s = {.k = part->cols, .parts = parts, .products = products};
    for (size_t i = 0; i < parts; i++) {
        s.part[i] = weight_part(&part[i]);
        s.n += part[i].rows;
        if (bias && bias[i].data) s.bias = any;
    }
    return s;
}

static void add_weight(struct backend_weight_bytes *sum, const struct engine *e,
                       const struct weight_source *s)
{
    struct backend_weight_bytes one = {0};
    e->be->weight_bytes(&one, e->ctx, s);
    sum->held += one.held;
    if (one.scratch > sum->scratch) sum->scratch = one.scratch;
}

/* Modules that are one weight: the first, and how many. */
static const struct stacked {
    enum module_kind first;
    size_t parts;
} stacked[2][SITES] = {
    {{MODULE_Q, 3}, {MODULE_O, 1}, {MODULE_GATE, 2}, {MODULE_DOWN, 1}},
    {{MODULE_QKV, 1}, {MODULE_O, 1}, {MODULE_GATE_UP, 1}, {MODULE_DOWN, 1}}, /* fused */
};

static struct backend_weight_bytes weights(const struct engine *e, enum base_memory memory)
{
    const struct model *m = e->model;
    struct backend_weight_bytes sum = {0};
    unsigned products = BACKEND_FORWARD | (e->inference ? 0 : BACKEND_BACKWARD);
    bool tied = m->head.data == m->embed.data;
    if (memory == BASE_FILE) products |= BACKEND_KEEP;
    for (uint32_t i = 0; i < m->arch.layers; i++)
        for (size_t site = 0; site < SITES; site++) {
            const struct stacked *k = &stacked[m->arch.fused][site];
            struct weight_source s = source_of(&m->layer[i].linear[k->first],
                                               &m->layer[i].bias[k->first], k->parts, products);
            add_weight(&sum, e, &s);
        }
    struct weight_source head =
        source_of(&m->head, NULL, 1, products | BACKEND_HEAD | (tied ? BACKEND_EMBED : 0));
    struct weight_source embed = source_of(&m->embed, NULL, 1, BACKEND_EMBED);
    add_weight(&sum, e, &head);
    if (!tied) add_weight(&sum, e, &embed);
    return sum;
}

void engine_plan_weights(struct engine_plan_weights *out, const struct engine *e)
{
    out->packed = weights(e, BASE_PACKED).held;
    out->file = weights(e, BASE_FILE).held;
}

/* Norm weights and the tables of rotation angles. */
static uint64_t table_bytes(const struct engine *e, const struct pass_size *s)
{
    return engine_norm_bytes(e->model) + engine_angle_bytes(e, s);
}

static uint64_t scratch_bytes(const struct engine *e, const struct pass_size *s, bool each_row)
{
    const struct arch *a = &e->model->arch;
    struct pass_size filled = *s;
    struct backend_need need = {.head_rows = pass_filled(&filled, e), .vocab = a->vocab};
    need.tokens = filled.tokens;
    need.rows = filled.rows;
    need.learned = filled.learned;
    need.widest = a->d_ffn > a->d_model ? a->d_ffn : a->d_model;
    need.heads = a->heads;
    need.each_row = each_row;
    for (int i = 0; i < SITES; i++)
        if (s->site_width[i] > need.width) need.width = s->site_width[i];
    return e->be->scratch_bytes(e->ctx, &need);
}

struct need {
    uint64_t weights, activations, adapter, scratch;
};
static uint64_t total(const struct need *n)
{
    return n->weights + n->activations + n->adapter + n->scratch;
}

/* An adapter of unknown size has its values, two moments, a gradient, the host's copy and packed
 * factors. */
static void count(struct need *out, const struct engine *e, const struct pass_size *s,
                  const struct engine_plan_adapter *adapter, enum base_memory memory)
{
    uint64_t values = adapter->values, gradients = adapter->each_row ? s->rows : 0;
    struct backend_weight_bytes w = weights(e, memory);
    *out = (struct need){
        .weights = w.held,
        .activations = pass_bytes(e, s),
        .adapter = (adapter->taken ? adapter->taken : 24 * values) + 4 * gradients * values,
        .scratch = w.scratch + scratch_bytes(e, s, adapter->each_row) + table_bytes(e, s)};
}

uint64_t engine_plan_bytes(const struct engine *e, const struct pass_size *s,
                           const struct engine_plan_adapter *adapter)
{
    struct need n;
    count(&n, e, s, adapter, e->base_memory);
    return total(&n);
}

/* On the CPU weights of the file are mapped, so they need not fit. */
static err refuse_weights(const struct need *n, enum base_memory memory, uint64_t available)
{
    char need[32], have[32];
    text_size(need, sizeof need, n->weights);
    text_size(have, sizeof have, available);
    return err_make(ERR_MACHINE, "--base-memory %s: the weights need %s, %s are free%s",
                    base_memories[memory], need, have,
                    memory == BASE_PACKED ? ": use file or auto" : "");
}

err engine_plan_choose(enum base_memory *out, const struct engine *e, enum base_memory asked,
                       const struct pass_size *s, uint64_t available)
{
    struct need n, file;
    bool own = e->be != &backend_cpu; /* the device has memory of its own */
    count(&n, e, s, &(struct engine_plan_adapter){0}, BASE_PACKED);
    count(&file, e, s, &(struct engine_plan_adapter){0}, BASE_FILE);
    uint64_t spare = own ? total(&n) / 10 : 0, held = e->be->memory_held(e->ctx);
    uint64_t need =
        total(&n) > held ? total(&n) - held : 0; /* of it the context has its own part */
    enum base_memory chosen = asked;
    if (asked == BASE_AUTO)
        chosen = need + spare > available && (!own || file.weights < n.weights) ? BASE_FILE
                                                                                : BASE_PACKED;
    const struct need *needed = chosen == BASE_FILE ? &file : &n;
    if (needed->weights > available && (own || asked == BASE_PACKED))
        return refuse_weights(needed, chosen, available);
    *out = chosen;
    return ERR_NONE;
}

/* A way to need less memory. Fewer rows and shorter rows come last, because they change the
 * result. */
struct variant {
    enum base_memory memory;
    struct pass_size size;
};

static bool fits(const struct engine *e, const struct variant *v,
                 const struct engine_plan_adapter *adapter, uint64_t available)
{
    struct need n;
    count(&n, e, &v->size, adapter, v->memory);
    return total(&n) <= available;
}

/* Halves the rows or the positions. The rows that remain may be the longest ones. */
static void halve(struct pass_size *s, size_t *part)
{
    *part = (*part + 1) / 2;
    size_t most = s->rows * s->positions;
    if (s->tokens > most) s->tokens = most;
    if (s->learned > most) s->learned = most;
}

static bool find_variant(struct variant *v, const struct engine *e,
                         const struct engine_plan_adapter *adapter, uint64_t available)
{
    const struct variant first = *v;
    struct engine_plan_weights w;
    engine_plan_weights(&w, e);
    bool smaller = w.file < w.packed;
    for (int i = 0; i < 4; i++) {
        *v = first;
        if (i & 1) v->size.checkpoint = true;
        if (i & 2 && smaller) v->memory = BASE_FILE;
        if (fits(e, v, adapter, available)) return true;
    }
    while (v->size.rows > 1) {
        halve(&v->size, &v->size.rows);
        if (fits(e, v, adapter, available)) return true;
    }
    while (v->size.positions > 64) {
        halve(&v->size, &v->size.positions);
        if (fits(e, v, adapter, available)) return true;
    }
    return false;
}

static void describe(char *out, size_t bytes, const struct variant *v, const struct variant *from)
{
    size_t at = 0;
    const char *word[3] = {v->memory != from->memory ? " --base-memory file" : "",
                           v->size.checkpoint != from->size.checkpoint ? " --checkpoint" : "", ""};
    at = (size_t)snprintf(out, bytes, "it fits with%s%s", word[0], word[1]);
    if (v->size.rows != from->size.rows && at < bytes)
        at += (size_t)snprintf(out + at, bytes - at, " --batch %zu", v->size.rows);
    if (v->size.positions != from->size.positions && at < bytes)
        snprintf(out + at, bytes - at, " --seq %zu", v->size.positions);
}

err engine_plan_check(const struct engine *e, const struct pass_size *s,
                      const struct engine_plan_adapter *adapter, uint64_t capacity)
{
    struct variant from = {e->base_memory, *s}, v = from;
    struct need n;
    bool own = e->be != &backend_cpu;
    if (capacity == UINT64_MAX) return ERR_NONE;
    count(&n, e, s, adapter, e->base_memory);
    if (total(&n) <= capacity) return ERR_NONE;
    char all[32], weight[32], activations[32], rest[32], have[32], advice[128];
    text_size(all, sizeof all, total(&n));
    text_size(weight, sizeof weight, n.weights);
    text_size(activations, sizeof activations, n.activations);
    text_size(rest, sizeof rest, n.adapter + n.scratch);
    text_size(have, sizeof have, capacity);
    if (find_variant(&v, e, adapter, capacity))
        describe(advice, sizeof advice, &v, &from);
    else
        snprintf(advice, sizeof advice, "no smaller batch fits");
    return err_make(
        ERR_MACHINE,
        "%s%s%zu x %zu tokens need %s of memory (weights %s, activations %s, adapter and "
        "scratch %s), %s are free: %s",
        own ? engine_device(e) : "", own ? ": " : "", s->rows, s->positions, all, weight,
        activations, rest, have, advice);
}
