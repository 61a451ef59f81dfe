#include "engine/engine_plan.h"

#include "base/text.h"

#include <stdio.h>
#include <string.h>

/* Scratch of the CPU kernels for each thread: kept exponentials of the head, and panels. */
enum { THREAD_BYTES = 40 << 20, OTHER_BYTES = 64 << 20 };

static uint64_t file_bytes(const struct weight *w)
{
    size_t bytes = 0;
    return w->data && dtype_bytes(&bytes, w->dtype, (size_t)w->rows * w->cols) ? bytes : 0;
}

static uint64_t packed_bytes(const struct weight *w, enum dtype precision)
{
    return (uint64_t)w->rows * w->cols * (precision == DTYPE_F32 ? 4 : 2);
}

void engine_plan_weights(struct engine_plan_weights *out, const struct model *m,
                         enum dtype precision)
{
    struct engine_plan_weights sum = {.packed = packed_bytes(&m->head, precision),
                                      .file = file_bytes(&m->head)};
    if (m->head.data != m->embed.data) sum.file += file_bytes(&m->embed);
    for (uint32_t i = 0; i < m->arch.layers; i++)
        for (int k = 0; k < MODULE_KINDS; k++) {
            sum.packed += packed_bytes(&m->layer[i].linear[k], precision);
            sum.file += file_bytes(&m->layer[i].linear[k]);
        }
    *out = sum;
}

/* The operands that all weights share. The largest weight is gate and up together. */
static uint64_t scratch_bytes(const struct engine *e)
{
    const struct arch *a = &e->model->arch;
    uint64_t size = engine_precision(e) == DTYPE_F32 ? 4 : 2;
    return 2 * size * a->d_ffn * a->d_model + (uint64_t)THREAD_BYTES * (uint64_t)e->threads +
           OTHER_BYTES;
}

struct need {
    uint64_t weights, activations, adapter, scratch;
};
static uint64_t total(const struct need *n)
{
    return n->weights + n->activations + n->adapter + n->scratch;
}

/* An adapter has its values, two moments, a gradient, the host's copy and packed factors. */
static void count(struct need *out, const struct engine *e, const struct pass_size *s,
                  const struct engine_plan_adapter *adapter, enum base_memory memory)
{
    struct engine_plan_weights w;
    uint64_t gradients = adapter->each_row ? s->rows : 0;
    engine_plan_weights(&w, e->model, engine_precision(e));
    *out = (struct need){.weights = memory == BASE_FILE ? w.file : w.packed,
                         .activations = pass_bytes(e, s),
                         .adapter = (24 + 4 * gradients) * (uint64_t)adapter->values,
                         .scratch = scratch_bytes(e)};
}

err engine_plan_choose(enum base_memory *out, const struct engine *e, enum base_memory asked,
                       const struct pass_size *s, uint64_t available)
{
    struct need n;
    count(&n, e, s, &(struct engine_plan_adapter){0}, BASE_PACKED);
    enum base_memory chosen = asked;
    if (asked == BASE_AUTO) chosen = total(&n) > available ? BASE_FILE : BASE_PACKED;
    if (asked == BASE_PACKED && n.weights > available) {
        char need[32], have[32];
        text_size(need, sizeof need, n.weights);
        text_size(have, sizeof have, available);
        return err_make(ERR_MACHINE,
                        "--base-memory packed: the weights need %s, %s are free: use file or auto",
                        need, have);
    }
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

static void halve(struct pass_size *s, size_t *part)
{
    size_t before = *part;
    *part = (before + 1) / 2;
    s->tokens = s->tokens * *part / before;
    s->learned = s->learned * *part / before;
}

static bool find_variant(struct variant *v, const struct engine *e,
                         const struct engine_plan_adapter *adapter, uint64_t available)
{
    const struct variant first = *v;
    struct engine_plan_weights w;
    engine_plan_weights(&w, e->model, engine_precision(e));
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

/* Packed weights are not in the free memory any more, so they are added to it. */
err engine_plan_check(const struct engine *e, const struct pass_size *s,
                      const struct engine_plan_adapter *adapter, uint64_t available)
{
    struct variant from = {e->base_memory, *s}, v = from;
    struct engine_plan_weights w;
    struct need n;
    engine_plan_weights(&w, e->model, engine_precision(e));
    if (available == UINT64_MAX) return ERR_NONE;
    if (e->base_memory == BASE_PACKED) available += w.packed;
    count(&n, e, s, adapter, e->base_memory);
    if (total(&n) <= available) return ERR_NONE;
    char all[32], weights[32], activations[32], rest[32], have[32], advice[128];
    text_size(all, sizeof all, total(&n));
    text_size(weights, sizeof weights, n.weights);
    text_size(activations, sizeof activations, n.activations);
    text_size(rest, sizeof rest, n.adapter + n.scratch);
    text_size(have, sizeof have, available);
    if (find_variant(&v, e, adapter, available))
        describe(advice, sizeof advice, &v, &from);
    else
        snprintf(advice, sizeof advice, "no smaller batch fits");
    return err_make(ERR_MACHINE,
                    "%zu x %zu tokens need %s of memory (weights %s, activations %s, adapter and "
                    "scratch %s), %s are free: %s",
                    s->rows, s->positions, all, weights, activations, rest, have, advice);
}
