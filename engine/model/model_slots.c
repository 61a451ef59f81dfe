/* The tensors of an architecture, with their names in both file formats. */
#include "engine/model/model_build.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct module_row {
    const char *hf, *block, *gguf;
} modules[] = {
    [MODULE_Q] = {"q_proj", "self_attn", "attn_q"},
    [MODULE_K] = {"k_proj", "self_attn", "attn_k"},
    [MODULE_V] = {"v_proj", "self_attn", "attn_v"},
    [MODULE_O] = {"o_proj", "self_attn", "attn_output"},
    [MODULE_GATE] = {"gate_proj", "mlp", "ffn_gate"},
    [MODULE_UP] = {"up_proj", "mlp", "ffn_up"},
    [MODULE_DOWN] = {"down_proj", "mlp", "ffn_down"},
    [MODULE_QKV] = {"qkv_proj", "self_attn", "attn_qkv"},
    [MODULE_GATE_UP] = {"gate_up_proj", "mlp", "ffn_up"}, /* llama.cpp has no name for both */
};
_Static_assert(sizeof modules / sizeof *modules == MODULE_KINDS, "a row for each module");

/* Names without the suffix ".weight" and, within a layer, without the prefix of the layer. */
struct tensor_names {
    const char *hf, *gguf;
};
static const struct tensor_names embed_names = {"model.embed_tokens", "token_embd"};
static const struct tensor_names final_norm_names = {"model.norm", "output_norm"};
static const struct tensor_names head_names = {"lm_head", "output"};
static const struct tensor_names q_norm_names = {"self_attn.q_norm", "attn_q_norm"};
static const struct tensor_names k_norm_names = {"self_attn.k_norm", "attn_k_norm"};

/* Norms of the width d_model of a layer. The same Hugging Face name is the norm before the MLP in
 * most families and that of the attention's output in others. */
#define IN(places_) (1u << (places_))
static const struct norm_row {
    unsigned places; /* IN() each of them */
    size_t weight;   /* its offset in struct layer */
    struct tensor_names names;
} norm_rows[] = {
    /* clang-format off */
    {IN(NORMS_BEFORE) | IN(NORMS_AROUND), offsetof(struct layer, attn_norm),
     {"input_layernorm", "attn_norm"}},
    {IN(NORMS_BEFORE), offsetof(struct layer, mlp_norm),
     {"post_attention_layernorm", "ffn_norm"}},
    {IN(NORMS_AROUND), offsetof(struct layer, mlp_norm),
     {"pre_feedforward_layernorm", "ffn_norm"}},
    {IN(NORMS_AROUND) | IN(NORMS_AFTER), offsetof(struct layer, attn_out_norm),
     {"post_attention_layernorm", "post_attention_norm"}},
    {IN(NORMS_AROUND) | IN(NORMS_AFTER), offsetof(struct layer, mlp_out_norm),
     {"post_feedforward_layernorm", "post_ffw_norm"}},
    /* clang-format on */
};

const char *model_module_short(enum module_kind kind)
{
    return modules[kind].hf;
}

const char *model_module_gguf(enum module_kind kind)
{
    return modules[kind].gguf;
}

/* Queries have `heads` heads and keys and values `kv_heads` heads (grouped-query attention); the
 * output projection reads all query heads. */
void model_module_shape(uint32_t *d_out, uint32_t *d_in, const struct arch *a,
                        enum module_kind kind)
{
    uint32_t attention = a->heads * a->head_dim, keys = a->kv_heads * a->head_dim;
    const uint32_t sides[MODULE_KINDS][2] = {
        [MODULE_Q] = {attention, a->d_model},
        [MODULE_K] = {keys, a->d_model},
        [MODULE_V] = {keys, a->d_model},
        [MODULE_O] = {a->d_model, attention},
        [MODULE_GATE] = {a->d_ffn, a->d_model},
        [MODULE_UP] = {a->d_ffn, a->d_model},
        [MODULE_DOWN] = {a->d_model, a->d_ffn},
        [MODULE_QKV] = {attention + 2 * keys, a->d_model},
        [MODULE_GATE_UP] = {2 * a->d_ffn, a->d_model},
    };
    REQUIRE(kind < MODULE_KINDS);
    *d_out = sides[kind][0];
    *d_in = sides[kind][1];
}

err model_check_module(const struct arch *a, enum module_kind kind)
{
    static const struct {
        const char *has, *instead;
    } text[2][2] = {
        {{"q_proj, k_proj and v_proj", "qkv_proj"}, {"gate_proj and up_proj", "gate_up_proj"}},
        {{"qkv_proj", "q_proj, k_proj and v_proj"}, {"gate_up_proj", "gate_proj and up_proj"}}};
    if (model_has_module(a, kind)) return ERR_NONE;
    bool mlp = kind == MODULE_GATE || kind == MODULE_UP || kind == MODULE_GATE_UP;
    return err_make(ERR_INPUT, "%s: the base has %s in place of %s; name %s", modules[kind].hf,
                    text[!a->fused][mlp].instead, text[!a->fused][mlp].has,
                    text[!a->fused][mlp].instead);
}

void model_module_name(char out[LIMIT_TENSOR_NAME_BYTES], uint32_t layer, enum module_kind kind)
{
    REQUIRE(kind < MODULE_KINDS);
    snprintf(out, LIMIT_TENSOR_NAME_BYTES, "model.layers.%u.%s.%s", layer, modules[kind].block,
             modules[kind].hf);
}

/* "block.name" of a kind, as in a module's name behind the number of its layer. */
static bool is_kind(const char *text, int kind)
{
    size_t block = strlen(modules[kind].block);
    return strncmp(text, modules[kind].block, block) == 0 && text[block] == '.' &&
           strcmp(text + block + 1, modules[kind].hf) == 0;
}

/* "00", "+1" and other spellings that strtoul() accepts are refused: one module has exactly one
 * name, which keys of maps and digests rely on. */
err model_module_parse(uint32_t *layer, enum module_kind *kind, const char *name)
{
    static const char peft[] = "base_model.model.", stem[] = "model.layers.";
    const char *at = name;
    if (strncmp(at, peft, sizeof peft - 1) == 0) at += sizeof peft - 1;
    if (strncmp(at, stem, sizeof stem - 1) != 0 || at[sizeof stem - 1] < '0' ||
        at[sizeof stem - 1] > '9')
        return err_make(ERR_INPUT, "%s: expected a module such as model.layers.0.self_attn.q_proj",
                        name);
    const char *digit = at + sizeof stem - 1;
    char *end;
    unsigned long number = strtoul(digit, &end, 10);
    bool exact = *end == '.' && number < LIMIT_LAYERS && (*digit != '0' || end == digit + 1);
    for (int k = 0; k < MODULE_KINDS && exact; k++) {
        if (!is_kind(end + 1, k)) continue;
        *layer = (uint32_t)number;
        *kind = (enum module_kind)k;
        return ERR_NONE;
    }
    return err_make(ERR_INPUT, "%s: expected a module such as model.layers.0.self_attn.q_proj",
                    name);
}

struct slot_list {
    struct model_slot *slot;
    size_t count, room;
};

/* The list is allocated once for the largest possible number of tensors; running past it is a
 * mistake of this file. */
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

/* Tensors outside of the layers. */
static void add_named(struct slot_list *list, struct weight *weight, uint32_t rows, uint32_t cols,
                      struct tensor_names names)
{
    struct model_slot *s = add_slot(list, weight, rows, cols);
    s->vector = s->norm = cols == 1;
    snprintf(s->name, sizeof s->name, "%s.weight", names.hf);
    snprintf(s->gguf, sizeof s->gguf, "%s.weight", names.gguf);
}

/* The weight and, if the architecture has one, the bias of a module. Both are marked with the
 * number of heads when GGUF files may permute their rows, because the bias of q and k is permuted
 * like the rows of the weight. */
static void add_module(struct slot_list *list, struct model *m, uint32_t layer, enum module_kind k)
{
    const struct arch *a = &m->arch;
    uint32_t d_out, d_in, heads = k == MODULE_Q ? a->heads : k == MODULE_K ? a->kv_heads : 0;
    model_module_shape(&d_out, &d_in, a, k);
    bool qkv = k <= MODULE_V || k == MODULE_QKV;
    bool biased = qkv ? a->qkv_bias : k == MODULE_O ? a->o_bias : a->mlp_bias;
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

/* Norms of a layer. None of the supported families has a bias in its norms. */
static void add_norm(struct slot_list *list, struct weight *w, uint32_t layer, uint32_t n,
                     struct tensor_names names)
{
    struct model_slot *s = add_slot(list, w, n, 1);
    s->vector = s->norm = true;
    snprintf(s->name, sizeof s->name, "model.layers.%u.%s.weight", layer, names.hf);
    snprintf(s->gguf, sizeof s->gguf, "blk.%u.%s.weight", layer, names.gguf);
}

static void add_layer(struct slot_list *list, struct model *m, uint32_t i)
{
    const struct arch *a = &m->arch;
    struct layer *l = &m->layer[i];
    for (int k = 0; k < MODULE_KINDS; k++)
        if (model_has_module(a, (enum module_kind)k)) add_module(list, m, i, (enum module_kind)k);
    for (size_t n = 0; n < sizeof norm_rows / sizeof *norm_rows; n++)
        if (norm_rows[n].places & IN(a->norms))
            add_norm(list, (struct weight *)((char *)l + norm_rows[n].weight), i, a->d_model,
                     norm_rows[n].names);
    if (a->qk_norm == QK_NORM_NONE) return;
    bool whole = a->qk_norm == QK_NORM_WHOLE;
    add_norm(list, &l->q_norm, i, a->head_dim * (whole ? a->heads : 1), q_norm_names);
    add_norm(list, &l->k_norm, i, a->head_dim * (whole ? a->kv_heads : 1), k_norm_names);
}

/* strcmp() order is part of the identity of a base (model_digest() of model.h), and
 * model_slot_find() searches the slots by it. */
static int compare_slots(const void *a, const void *b)
{
    return strcmp(((const struct model_slot *)a)->name, ((const struct model_slot *)b)->name);
}

/* 3 tensors outside of layers; in each layer a weight and a bias for each module and 6 norms. */
static err make_slots(struct model_slot **out, size_t *count, struct model *m, struct arena *arena,
                      bool head)
{
    const struct arch *a = &m->arch;
    struct slot_list list = {.room = 3 + (size_t)a->layers * (2 * MODULE_KINDS + 6)};
    TRY(arena_take(&list.slot, arena, list.room, sizeof *list.slot));
    add_named(&list, &m->embed, a->vocab, a->d_model, embed_names);
    add_named(&list, &m->final_norm, a->d_model, 1, final_norm_names);
    if (head) add_named(&list, &m->head, a->vocab, a->d_model, head_names);
    for (uint32_t i = 0; i < a->layers; i++)
        add_layer(&list, m, i);
    qsort(list.slot, list.count, sizeof *list.slot, compare_slots);
    *out = list.slot;
    *count = list.count;
    return ERR_NONE;
}

/* A tied head is a view of the embedding, so no file needs to have it. */
err model_slots(struct model_slot **out, size_t *count, struct model *m, struct arena *arena)
{
    return make_slots(out, count, m, arena, !m->arch.tied);
}

err model_slots_with_head(struct model_slot **out, size_t *count, struct model *m,
                          struct arena *arena)
{
    return make_slots(out, count, m, arena, true);
}

struct model_slot *model_slot_find(struct model_slot *slot, size_t count, const char *module,
                                   const char *ending)
{
    struct model_slot key;
    int size = snprintf(key.name, sizeof key.name, "%s%s", module, ending);
    if (size < 0 || (size_t)size >= sizeof key.name) return NULL;
    return bsearch(&key, slot, count, sizeof *slot, compare_slots);
}

/* The slots point into the model so that they can be filled; here they are only read. */
err model_each_weight(const struct model *m,
                      void (*each)(void *user, const char *name, const struct weight *w),
                      void *user)
{
    struct arena arena = {0};
    struct model_slot *slot;
    size_t count = 0;
    err e = model_slots(&slot, &count, (struct model *)(uintptr_t)m, &arena);
    for (size_t i = 0; i < count; i++)
        each(user, slot[i].name, slot[i].weight);
    arena_close(&arena);
    return e;
}
