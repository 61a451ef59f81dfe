#include "engine/model/model.h"

#include "engine/model/model_build.h"
#include "kernels/quant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct module_row {
    const char *hf, *block, *gguf;
} modules[MODULE_KINDS] = {
    [MODULE_Q] = {"q_proj", "self_attn", "attn_q"},
    [MODULE_K] = {"k_proj", "self_attn", "attn_k"},
    [MODULE_V] = {"v_proj", "self_attn", "attn_v"},
    [MODULE_O] = {"o_proj", "self_attn", "attn_output"},
    [MODULE_GATE] = {"gate_proj", "mlp", "ffn_gate"},
    [MODULE_UP] = {"up_proj", "mlp", "ffn_up"},
    [MODULE_DOWN] = {"down_proj", "mlp", "ffn_down"},
};

const char *model_module_short(enum module_kind kind)
{
    return modules[kind].hf;
}

const char *model_module_gguf(enum module_kind kind)
{
    return modules[kind].gguf;
}

const char *model_family_name(enum model_family family)
{
    static const char *const names[FAMILY_COUNT] = {"llama", "mistral", "qwen2", "qwen3"};
    REQUIRE(family < FAMILY_COUNT);
    return names[family];
}

void model_module_shape(uint32_t *d_out, uint32_t *d_in, const struct arch *a,
                        enum module_kind kind)
{
    uint32_t attention = a->heads * a->head_dim, keys = a->kv_heads * a->head_dim;
    const uint32_t out[MODULE_KINDS] = {attention, keys,     keys,      a->d_model,
                                        a->d_ffn,  a->d_ffn, a->d_model};
    const uint32_t in[MODULE_KINDS] = {a->d_model, a->d_model, a->d_model, attention,
                                       a->d_model, a->d_model, a->d_ffn};
    REQUIRE(kind < MODULE_KINDS);
    *d_out = out[kind];
    *d_in = in[kind];
}

void model_module_name(char out[LIMIT_TENSOR_NAME_BYTES], uint32_t layer, enum module_kind kind)
{
    REQUIRE(kind < MODULE_KINDS);
    snprintf(out, LIMIT_TENSOR_NAME_BYTES, "model.layers.%u.%s.%s", layer, modules[kind].block,
             modules[kind].hf);
}

err model_module_parse(uint32_t *layer, enum module_kind *kind, const char *name)
{
    static const char peft[] = "base_model.model.", stem[] = "model.layers.";
    const char *at = name;
    if (strncmp(at, peft, sizeof peft - 1) == 0) at += sizeof peft - 1;
    if (strncmp(at, stem, sizeof stem - 1) != 0 || at[sizeof stem - 1] < '0' ||
        at[sizeof stem - 1] > '9')
        return err_make(ERR_INPUT, "%s: expected a module such as model.layers.0.self_attn.q_proj",
                        name);
    char *end;
    unsigned long number = strtoul(at + sizeof stem - 1, &end, 10);
    for (int k = 0; k < MODULE_KINDS && number < LIMIT_LAYERS; k++) {
        char rest[64], exact[LIMIT_TENSOR_NAME_BYTES];
        snprintf(rest, sizeof rest, ".%s.%s", modules[k].block, modules[k].hf);
        model_module_name(exact, (uint32_t)number, (enum module_kind)k);
        if (strcmp(end, rest) != 0 || strcmp(at, exact) != 0) continue;
        *layer = (uint32_t)number;
        *kind = (enum module_kind)k;
        return ERR_NONE;
    }
    return err_make(ERR_INPUT, "%s: expected a module such as model.layers.0.self_attn.q_proj",
                    name);
}

/* Row r of head h in Hugging Face order is (half, j) = (t / (d/2), t % (d/2)); interleaved files
 * keep the two halves of a pair side by side, at 2 j + half. */
static size_t file_row(const struct weight *w, uint32_t row)
{
    uint32_t d = w->rows / w->rope_heads, half_dim = d / 2;
    uint32_t head = row / d, t = row % d;
    return (size_t)head * d + 2 * (t % half_dim) + t / half_dim;
}

void weight_rows_f32(float *out, const struct weight *w, uint32_t row, uint32_t n)
{
    REQUIRE(w->data != NULL && row <= w->rows && n <= w->rows - row);
    size_t stride = 0;
    REQUIRE(dtype_bytes(&stride, w->dtype, w->cols));
    const uint8_t *data = w->data;
    if (w->rope_heads == 0) {
        quant_to_f32(out, data + row * stride, w->dtype, (size_t)n * w->cols);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        quant_to_f32(out + (size_t)i * w->cols, data + file_row(w, row + i) * stride, w->dtype,
                     w->cols);
}

/* As transformers: all in float32, the power rounded once. */
void model_rope_frequencies(float *out, const struct arch *a)
{
    const struct rope *r = &a->rope;
    for (uint32_t i = 0; i < a->head_dim / 2; i++) {
        float exponent = (float)(2 * i) / (float)a->head_dim;
        float f = 1.0f / (float)pow(r->theta, (double)exponent);
        if (r->kind == ROPE_LINEAR) f /= (float)r->factor;
        if (r->kind == ROPE_FACTORS) f /= r->factors[i];
        if (r->kind == ROPE_LLAMA3) {
            float original = (float)r->original_positions;
            float wavelength = (float)(2 * M_PI) / f;
            bool longer = wavelength > (float)(r->original_positions / r->low_freq_factor);
            bool shorter = wavelength < (float)(r->original_positions / r->high_freq_factor);
            float smooth = (original / wavelength - (float)r->low_freq_factor) /
                           (float)(r->high_freq_factor - r->low_freq_factor);
            if (longer)
                f = f / (float)r->factor;
            else if (!shorter)
                f = (1.0f - smooth) * f / (float)r->factor + smooth * f;
        }
        out[i] = f;
    }
}

static err check_side(const char *name, uint64_t value, uint64_t most)
{
    if (value >= 1 && value <= most) return ERR_NONE;
    return err_make(ERR_INPUT, "%s is %llu, expected 1 to %llu", name, (unsigned long long)value,
                    (unsigned long long)most);
}

static err check_rope(const struct rope *r)
{
    if (!(isfinite(r->theta) && r->theta > 0))
        return err_make(ERR_INPUT, "rope_theta is %g, expected a positive number", r->theta);
    bool scaled = r->kind == ROPE_LINEAR || r->kind == ROPE_LLAMA3;
    if (scaled && !(isfinite(r->factor) && r->factor > 0))
        return err_make(ERR_INPUT, "rope scaling factor is %g, expected a positive number",
                        r->factor);
    if (r->kind == ROPE_LLAMA3 &&
        !(r->low_freq_factor > 0 && r->high_freq_factor > r->low_freq_factor &&
          isfinite(r->high_freq_factor) && r->original_positions > 0))
        return err_make(ERR_INPUT,
                        "llama3 rope scaling: expected 0 < low_freq_factor (%g) < "
                        "high_freq_factor (%g), and positions of the original (%u)",
                        r->low_freq_factor, r->high_freq_factor, r->original_positions);
    return ERR_NONE;
}

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
    if (a->head_dim % 2 != 0)
        return err_make(ERR_INPUT, "head dimension %u is odd, it cannot be rotated", a->head_dim);
    if (!(isfinite(a->rms_eps) && a->rms_eps > 0 && a->rms_eps < 1))
        return err_make(ERR_INPUT, "rms_norm_eps is %g, expected a small positive number",
                        (double)a->rms_eps);
    return check_rope(&a->rope);
}

err model_take_layers(struct model *m)
{
    return arena_take(&m->layer, &m->arena, m->arch.layers, sizeof *m->layer);
}

struct slot_list {
    struct model_slot *slot;
    size_t count, room;
};

static struct model_slot *add_slot(struct slot_list *list, struct weight *weight, uint32_t rows,
                                   uint32_t cols)
{
    REQUIRE(list->count < list->room);
    struct model_slot *s = &list->slot[list->count++];
    s->weight = weight;
    s->rows = rows;
    s->cols = cols;
    return s;
}

static void add_named(struct slot_list *list, struct weight *weight, uint32_t rows, uint32_t cols,
                      const char *const names[2])
{
    struct model_slot *s = add_slot(list, weight, rows, cols);
    s->vector = cols == 1;
    snprintf(s->name, sizeof s->name, "%s", names[0]);
    snprintf(s->gguf, sizeof s->gguf, "%s", names[1]);
}

static void add_module(struct slot_list *list, struct model *m, uint32_t layer, enum module_kind k)
{
    const struct arch *a = &m->arch;
    uint32_t d_out, d_in, heads = k == MODULE_Q ? a->heads : k == MODULE_K ? a->kv_heads : 0;
    model_module_shape(&d_out, &d_in, a, k);
    bool biased = k <= MODULE_V ? a->qkv_bias : k == MODULE_O ? a->o_bias : a->mlp_bias;
    for (int b = 0; b <= biased; b++) {
        struct weight *w = b ? &m->layer[layer].bias[k] : &m->layer[layer].linear[k];
        const char *ending = b ? "bias" : "weight";
        struct model_slot *s = add_slot(list, w, d_out, b ? 1 : d_in);
        snprintf(s->name, sizeof s->name, "model.layers.%u.%s.%s.%s", layer, modules[k].block,
                 modules[k].hf, ending);
        snprintf(s->gguf, sizeof s->gguf, "blk.%u.%s.%s", layer, modules[k].gguf, ending);
        s->vector = b == 1;
        s->rope_heads = heads;
    }
}

static void add_norm(struct slot_list *list, struct weight *w, uint32_t layer, uint32_t n,
                     const char *const names[2])
{
    struct model_slot *s = add_slot(list, w, n, 1);
    s->vector = true;
    snprintf(s->name, sizeof s->name, "model.layers.%u.%s.weight", layer, names[0]);
    snprintf(s->gguf, sizeof s->gguf, "blk.%u.%s.weight", layer, names[1]);
}

static void add_layer(struct slot_list *list, struct model *m, uint32_t i)
{
    const struct arch *a = &m->arch;
    struct layer *l = &m->layer[i];
    for (int k = 0; k < MODULE_KINDS; k++)
        add_module(list, m, i, (enum module_kind)k);
    add_norm(list, &l->attn_norm, i, a->d_model, (const char *[]){"input_layernorm", "attn_norm"});
    add_norm(list, &l->mlp_norm, i, a->d_model,
             (const char *[]){"post_attention_layernorm", "ffn_norm"});
    if (!a->qk_norm) return;
    add_norm(list, &l->q_norm, i, a->head_dim, (const char *[]){"self_attn.q_norm", "attn_q_norm"});
    add_norm(list, &l->k_norm, i, a->head_dim, (const char *[]){"self_attn.k_norm", "attn_k_norm"});
}

static int compare_slots(const void *a, const void *b)
{
    return strcmp(((const struct model_slot *)a)->name, ((const struct model_slot *)b)->name);
}

err model_slots(struct model_slot **out, size_t *count, struct model *m, struct arena *arena)
{
    const struct arch *a = &m->arch;
    struct slot_list list = {.room = 3 + (size_t)a->layers * (2 * MODULE_KINDS + 4)};
    TRY(arena_take(&list.slot, arena, list.room, sizeof *list.slot));
    add_named(&list, &m->embed, a->vocab, a->d_model,
              (const char *[]){"model.embed_tokens.weight", "token_embd.weight"});
    add_named(&list, &m->final_norm, a->d_model, 1,
              (const char *[]){"model.norm.weight", "output_norm.weight"});
    if (!a->tied)
        add_named(&list, &m->head, a->vocab, a->d_model,
                  (const char *[]){"lm_head.weight", "output.weight"});
    for (uint32_t i = 0; i < a->layers; i++)
        add_layer(&list, m, i);
    qsort(list.slot, list.count, sizeof *list.slot, compare_slots);
    *out = list.slot;
    *count = list.count;
    return ERR_NONE;
}

err model_fill(const struct model_slot *slot, const void *data, enum dtype dtype,
               const char *type_name)
{
    bool plain = dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_BF16;
    if (!quant_known(dtype) || (slot->vector && !plain))
        return err_make(ERR_INPUT, "type %s, expected %s", type_name,
                        slot->vector ? "F32, F16 or BF16"
                                     : "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K or Q6_K");
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
    if (model_is_gguf(m)) file_map_drop(&m->gguf.map, 0, m->gguf.map.size);
}

void model_drop_weight(const struct model *m, const struct weight *w)
{
    size_t bytes = 0;
    const uint8_t *data = w->data;
    if (data == NULL) return;
    REQUIRE(dtype_bytes(&bytes, w->dtype, (size_t)w->rows * w->cols));
    for (size_t i = 0; i <= m->file_count; i++) {
        const struct file_map *map = i < m->file_count ? &m->file[i].tensors.map : &m->gguf.map;
        if (map->data != NULL && data >= map->data && data < map->data + map->size)
            file_map_drop(map, (size_t)(data - map->data), bytes);
    }
}
