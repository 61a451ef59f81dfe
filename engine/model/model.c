#include "engine/model/model.h"

#include "engine/model/model_build.h"
#include "kernels/quant.h"
#include "kernels/weight.h"

#include <math.h>
#include <string.h>

void weight_rows_f32(float *out, const struct weight *w, uint32_t row, uint32_t n)
{
    struct weight_part part = weight_part(w);
    weight_part_rows(out, &part, w->cols, row, n);
    if (w->plus == 0) return;
    for (size_t i = 0; i < (size_t)n * w->cols; i++)
        out[i] += w->plus;
}

static err check_side(const char *name, uint64_t value, uint64_t most)
{
    if (value >= 1 && value <= most) return ERR_NONE;
    return err_make(ERR_INPUT, "%s is %llu, expected 1 to %llu", name, (unsigned long long)value,
                    (unsigned long long)most);
}

/* A factor of 0 would stand for the usual value, and a negative one turns a function around. */
static err check_factors(const struct arch *a)
{
    const struct {
        const char *name;
        float value;
    } factor[] = {
        {"factor of the embedded tokens", a->embed_scale},
        {"factor of a block's output", a->residual_scale},
        {"factor of attention scores", a->attention_scale},
        {"cap of attention scores", a->attention_cap},
        {"factor of logits", a->logit_scale},
        {"cap of logits", a->logit_cap},
    };
    for (size_t i = 0; i < sizeof factor / sizeof *factor; i++)
        if (!(isfinite(factor[i].value) && factor[i].value >= 0))
            return err_make(ERR_INPUT, "%s is %g, expected a positive number", factor[i].name,
                            (double)factor[i].value);
    return ERR_NONE;
}

/* Every later size computation (weights, activations, caches) multiplies these numbers, so each one
 * is bounded here, as is heads * head_dim, which may be larger than d_model. */
err model_check_arch(const struct arch *a)
{
    TRY(check_side("number of layers", a->layers, LIMIT_LAYERS));
    TRY(check_side("hidden size", a->d_model, LIMIT_DIMENSION));
    TRY(check_side("intermediate size", a->d_ffn, LIMIT_DIMENSION));
    TRY(check_side("vocabulary size", a->vocab, LIMIT_VOCAB));
    TRY(check_side("number of heads", a->heads, LIMIT_DIMENSION));
    TRY(check_side("number of key/value heads", a->kv_heads, a->heads));
    TRY(check_side("head dimension", a->head_dim, LIMIT_DIMENSION));
    TRY(check_side("heads times head dimension", (uint64_t)a->heads * a->head_dim,
                   LIMIT_DIMENSION));
    if (a->heads % a->kv_heads != 0)
        return err_make(ERR_INPUT, "%u heads over %u key/value heads: expected a multiple",
                        a->heads, a->kv_heads);
    if (model_rotated(a) == a->head_dim && a->head_dim % 2 != 0)
        return err_make(ERR_INPUT, "head dimension %u is odd, so it cannot be rotated",
                        a->head_dim);
    if (model_rotated(a) % 2 != 0 || model_rotated(a) > a->head_dim)
        return err_make(ERR_INPUT, "%u values of a head of %u rotate: expected an even number",
                        model_rotated(a), a->head_dim);
    if (!(isfinite(a->rms_eps) && a->rms_eps > 0 && a->rms_eps < 1))
        return err_make(ERR_INPUT, "rms_norm_eps is %g, expected a small positive number",
                        (double)a->rms_eps);
    TRY(check_factors(a));
    TRY(model_check_rope(&a->rope, model_rotated(a)));
    return model_check_rope(&a->window_rope, model_rotated(a));
}

err model_take_layers(struct model *m)
{
    return arena_take(&m->layer, &m->arena, m->arch.layers, sizeof *m->layer);
}

/* Norms and biases must be plain numbers: no file format quantises them, and a quantised vector
 * would not hold a whole block. A matrix may have any type that quant.h can convert. */
err model_fill(const struct model_slot *slot, const void *data, enum dtype dtype,
               const char *type_name)
{
    bool plain = dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_BF16;
    if (!quant_known(dtype) || (slot->vector && !plain))
        return err_make(ERR_INPUT, "type %s, expected %s", type_name,
                        slot->vector
                            ? "F32, F16 or BF16"
                            : "F32, F16, BF16, Q2_K to Q8_0, IQ4_NL, IQ4_XS or MXFP4; take "
                              "another file of the model");
    *slot->weight =
        (struct weight){.data = data, .dtype = dtype, .rows = slot->rows, .cols = slot->cols};
    return ERR_NONE;
}

void model_close(struct model *m)
{
    for (size_t i = 0; i < m->file_count; i++)
        safetensors_close(&m->file[i].tensors);
    gguf_close(&m->gguf);
    arena_close(&m->arena);
    *m = (struct model){0};
}

void model_drop_pages(const struct model *m)
{
    for (size_t i = 0; i < m->file_count; i++) {
        const struct file_map *map = &m->file[i].tensors.map;
        file_map_drop(map, 0, map->size);
    }
    for (size_t i = 0; model_is_gguf(m) && i <= m->gguf.parts; i++)
        file_map_drop(gguf_map(&m->gguf, i), 0, gguf_map(&m->gguf, i)->size);
}

/* The weight does not say which file it came from, so the maps are searched for its address. */
void model_drop_weight(const struct model *m, const struct weight *w)
{
    size_t bytes = 0;
    const uint8_t *data = w->data;
    if (data == NULL) return;
    REQUIRE(dtype_bytes(&bytes, w->dtype, (size_t)w->rows * w->cols));
    for (size_t i = 0; i <= m->file_count + m->gguf.parts; i++) {
        const struct file_map *map =
            i < m->file_count ? &m->file[i].tensors.map : gguf_map(&m->gguf, i - m->file_count);
        if (map->data != NULL && data >= map->data && data < map->data + map->size)
            file_map_drop(map, (size_t)(data - map->data), bytes);
    }
}
