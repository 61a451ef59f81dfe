/* model_digest(), the identity of a base model. model.h defines the hashed text. */
#include "engine/model/model_build.h"

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

/* Reals go through float32 first: a GGUF file stores float32, and config.json the decimal it came
 * from. */
static int rope_text(char *out, size_t bytes, const struct arch *a)
{
    const struct rope *r = &a->rope;
    double theta = (double)(float)r->theta, factor = (double)(float)r->factor;
    char hex[DIGEST_TEXT_BYTES];
    struct digest d;
    switch (r->kind) {
    case ROPE_DEFAULT:
        return snprintf(out, bytes, "rope=default theta=%.9g\n", theta);
    case ROPE_LINEAR:
        return snprintf(out, bytes, "rope=linear theta=%.9g factor=%.9g\n", theta, factor);
    case ROPE_LLAMA3:
        return snprintf(out, bytes,
                        "rope=llama3 theta=%.9g factor=%.9g low=%.9g high=%.9g original=%u\n",
                        theta, factor, (double)(float)r->low_freq_factor,
                        (double)(float)r->high_freq_factor, r->original_positions);
    case ROPE_FACTORS:
        d = digest_of(r->factors, sizeof *r->factors * (a->head_dim / 2));
        digest_text(hex, &d);
        return snprintf(out, bytes, "rope=factors theta=%.9g %s\n", theta, hex);
    }
    REQUIRE(!"rope kind");
    return 0;
}

/* The architecture lines. Windows are listed for each layer, because two models may differ only in
 * the layers that have one. */
static void add_config(struct digest_stream *s, const struct model *m)
{
    const struct arch *a = &m->arch;
    char text[512];
    int n =
        snprintf(text, sizeof text,
                 "fedlora base 1\nlayers=%u d_model=%u heads=%u kv_heads=%u head_dim=%u d_ffn=%u "
                 "vocab=%u\nrms_eps=%.9g\n",
                 a->layers, a->d_model, a->heads, a->kv_heads, a->head_dim, a->d_ffn, a->vocab,
                 (double)a->rms_eps);
    digest_add(s, text, (size_t)n);
    digest_add(s, text, (size_t)rope_text(text, sizeof text, a));
    for (uint32_t i = 0; i < a->layers; i++) {
        n = snprintf(text, sizeof text, "%s%u", i == 0 ? "windows=" : ",", m->layer[i].window);
        digest_add(s, text, (size_t)n);
    }
    digest_add(s, "\n", 1);
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
