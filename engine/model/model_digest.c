/* model_digest(), the identity of a base model. model.h defines the hashed text. */
#include "engine/model/model_build.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLICE_VALUES = LIMIT_DIMENSION }; /* float32 values converted at once, at least a row */

/* Values are hashed as float32 and not as stored, so a file in F16 and its F32 copy have one
 * identity, and a quantised file has the identity of the values that it stands for. */
static void hash_weight(struct digest *out, const struct weight *w, float *slice)
{
    struct digest_stream s;
    digest_begin(&s);
    uint32_t step = SLICE_VALUES / w->cols;
    for (uint32_t row = 0; row < w->rows; row += step) {
        uint32_t n = w->rows - row < step ? w->rows - row : step;
        weight_rows_f32(slice, w, row, n);
        digest_add(&s, slice, (size_t)n * w->cols * sizeof *slice);
    }
    *out = digest_end(&s);
}

/* One digest per tensor, several tensors at once. Each digest goes to its own place, so the order
 * of the threads does not matter. Pages are dropped after use, because otherwise the whole mapped
 * model would count as memory of this process. A thread without memory does nothing, and the call
 * fails afterwards: an error cannot leave a parallel region. */
static err hash_slots(struct digest *out /* (count) */, const struct model *m,
                      const struct model_slot *slot, size_t count)
{
    bool memory = true;
#pragma omp parallel
    {
        float *slice = malloc(sizeof *slice * SLICE_VALUES);
        if (slice == NULL) {
#pragma omp atomic write
            memory = false;
        }
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < count; i++)
            if (slice != NULL) {
                hash_weight(&out[i], slot[i].weight, slice);
                model_drop_weight(m, slot[i].weight);
            }
        free(slice);
    }
    return memory ? ERR_NONE : err_make(ERR_MACHINE, "no memory to hash the base model");
}

/* One line of the hashed text: vectors have one side, matrices two. */
static void add_line(struct digest_stream *s, const struct model_slot *slot, const struct digest *d)
{
    char line[LIMIT_TENSOR_NAME_BYTES + 128], hex[DIGEST_TEXT_BYTES];
    digest_text(hex, d);
    int n = slot->vector ? snprintf(line, sizeof line, "%s %u %s\n", slot->name, slot->rows, hex)
                         : snprintf(line, sizeof line, "%s %u,%u %s\n", slot->name, slot->rows,
                                    slot->cols, hex);
    digest_add(s, line, (size_t)n);
}

__attribute__((format(printf, 2, 3))) static void add_text(struct digest_stream *s,
                                                           const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    REQUIRE(n >= 0 && (size_t)n < sizeof text);
    digest_add(s, text, (size_t)n);
}

static void factors_text(char out[DIGEST_TEXT_BYTES], const float *factor, uint32_t n)
{
    struct digest d = digest_of(factor, sizeof *factor * n);
    digest_text(out, &d);
}

/* Reals go through float32 first: a GGUF file stores float32, and config.json the decimal it came
 * from. */
static void add_rope(struct digest_stream *s, const char *name, const struct rope *r,
                     uint32_t rotated)
{
    static const char *const kinds[] = {
        [ROPE_DEFAULT] = "default", [ROPE_LINEAR] = "linear", [ROPE_LLAMA3] = "llama3",
        [ROPE_FACTORS] = "factors", [ROPE_YARN] = "yarn",     [ROPE_LONGROPE] = "longrope",
        [ROPE_DYNAMIC] = "dynamic",
    };
    double factor = (double)(float)r->factor;
    double attention = r->attention_factor > 0 ? (double)r->attention_factor : 1;
    char hex[DIGEST_TEXT_BYTES], other[DIGEST_TEXT_BYTES];
    add_text(s, "%s=%s theta=%.9g", name, kinds[r->kind], (double)(float)r->theta);
    if (r->kind == ROPE_LINEAR) add_text(s, " factor=%.9g", factor);
    if (r->kind == ROPE_LLAMA3)
        add_text(s, " factor=%.9g low=%.9g high=%.9g original=%u", factor,
                 (double)(float)r->low_freq_factor, (double)(float)r->high_freq_factor,
                 r->original_positions);
    if (r->kind == ROPE_FACTORS) {
        factors_text(hex, r->factors, rotated / 2);
        add_text(s, " %s", hex);
    }
    if (r->kind == ROPE_YARN)
        add_text(s, " factor=%.9g fast=%.9g slow=%.9g truncate=%d attention=%.9g original=%u",
                 factor, (double)(float)r->beta_fast, (double)(float)r->beta_slow, !r->untruncated,
                 attention, r->original_positions);
    if (r->kind == ROPE_LONGROPE) {
        factors_text(hex, r->factors, rotated / 2);
        factors_text(other, r->long_factors, rotated / 2);
        add_text(s, " attention=%.9g original=%u %s %s", attention, r->original_positions, hex,
                 other);
    }
    if (r->kind == ROPE_DYNAMIC)
        add_text(s, " factor=%.9g original=%u", factor, r->original_positions);
    add_text(s, "\n");
}

/* The lines of switches that are not the usual ones. The models that had an identity before there
 * were such switches have none of them. */
static void add_switches(struct digest_stream *s, const struct model *m)
{
    const struct arch *a = &m->arch;
    const struct {
        const char *name;
        float value;
    } factor[] = {{"embed_scale", a->embed_scale},         {"residual_scale", a->residual_scale},
                  {"attention_scale", a->attention_scale}, {"logit_scale", a->logit_scale},
                  {"attention_cap", a->attention_cap},     {"logit_cap", a->logit_cap}};
    bool unrotated = false;
    if (model_rotates_apart(m)) add_rope(s, "window_rope", &a->window_rope, model_rotated(a));
    for (uint32_t i = 0; i < a->layers; i++)
        unrotated = unrotated || m->layer[i].unrotated;
    for (uint32_t i = 0; i < a->layers && unrotated; i++)
        add_text(s, "%s%d%s", i == 0 ? "unrotated=" : ",", m->layer[i].unrotated,
                 i + 1 == a->layers ? "\n" : "");
    if (model_rotated(a) != a->head_dim) add_text(s, "rotated=%u\n", a->rotary_dim);
    if (a->norms == NORMS_AFTER) add_text(s, "norms=after\n");
    if (a->norms == NORMS_AROUND) add_text(s, "norms=around\n");
    if (a->qk_norm == QK_NORM_WHOLE) add_text(s, "qk_norm=whole\n");
    if (a->activation == ACTIVATION_GELU_TANH) add_text(s, "activation=gelu_tanh\n");
    for (size_t i = 0; i < sizeof factor / sizeof *factor; i++)
        if (factor[i].value != 0) add_text(s, "%s=%.9g\n", factor[i].name, (double)factor[i].value);
}

/* The architecture lines. Windows are listed for each layer, because two models may differ only in
 * the layers that have one. */
static void add_config(struct digest_stream *s, const struct model *m)
{
    const struct arch *a = &m->arch;
    add_text(s,
             "fedlora base 1\nlayers=%u d_model=%u heads=%u kv_heads=%u head_dim=%u d_ffn=%u "
             "vocab=%u\nrms_eps=%.9g\n",
             a->layers, a->d_model, a->heads, a->kv_heads, a->head_dim, a->d_ffn, a->vocab,
             (double)a->rms_eps);
    add_rope(s, "rope", &a->rope, model_rotated(a));
    for (uint32_t i = 0; i < a->layers; i++)
        add_text(s, "%s%u", i == 0 ? "windows=" : ",", m->layer[i].window);
    add_text(s, "\n");
    add_switches(s, m);
}

/* The list of slots is sorted by name, which gives the order of the lines. */
err model_digest(struct digest *out, const struct model *m)
{
    struct arena arena = {0};
    struct model_slot *slot;
    struct digest *hash;
    size_t count;
    struct digest_stream s;
    err e;
    /* The slots point into the model so that they can be filled; here they are only read. */
    TRY_OUT(e, model_slots(&slot, &count, (struct model *)m, &arena));
    TRY_OUT(e, arena_take(&hash, &arena, count, sizeof *hash));
    TRY_OUT(e, hash_slots(hash, m, slot, count));
    digest_begin(&s);
    add_config(&s, m);
    if (m->arch.tied) { /* "lm_head" sorts before "model.", so its line comes first */
        struct model_slot head = {.rows = m->head.rows, .cols = m->head.cols};
        memcpy(head.name, "lm_head.weight", sizeof "lm_head.weight");
        for (size_t i = 0; i < count; i++)
            if (slot[i].weight == &m->embed) add_line(&s, &head, &hash[i]);
    }
    for (size_t i = 0; i < count; i++)
        add_line(&s, &slot[i], &hash[i]);
    *out = digest_end(&s);
out:
    arena_close(&arena);
    return e;
}
