/* The checks that all formats share, and the formats PEFT and GGUF: client/export/export.h. */
#include "client/export/export.h"

#include "agg/adapter/adapter_file.h"
#include "base/file.h"
#include "engine/adapter_gguf.h"
#include "engine/model/gguf_write.h"

#include <stdio.h>
#include <string.h>

/* A module of another model often has the right name but another shape; without this check the
 * loader of the other program would fail, with a less useful error, or worse, accept it. */
static err check_module(const struct adapter_file_module *m, const struct arch *a)
{
    uint32_t layer, d_out, d_in;
    enum module_kind kind;
    TRY(model_module_parse(&layer, &kind, m->name));
    if (layer >= a->layers)
        return err_make(ERR_INPUT, "module %s: not in the base, which has %u layers", m->name,
                        a->layers);
    TRY(model_check_module(a, kind));
    model_module_shape(&d_out, &d_in, a, kind);
    if (m->d_out != d_out || m->d_in != d_in)
        return err_make(ERR_INPUT, "module %s: shape (%u, %u), expected (%u, %u) as in the base",
                        m->name, m->d_out, m->d_in, d_out, d_in);
    return ERR_NONE;
}

/* Shapes first: they cost nothing, while the digest reads all weights. */
err export_check_base(const struct flatten *delta, const struct model *base, const char *digest)
{
    struct digest wanted, found;
    for (size_t i = 0; i < delta->count; i++)
        TRY(check_module(&delta->module[i], &base->arch));
    if (digest == NULL || *digest == 0) return ERR_NONE;
    TRY(digest_parse(&wanted, digest));
    TRY(model_digest(&found, base));
    if (digest_equal(&wanted, &found)) return ERR_NONE;
    char hex[DIGEST_TEXT_BYTES];
    digest_text(hex, &found);
    return err_make(ERR_INPUT,
                    "%s: digest %.16s..., expected %.16s..., the base that this was trained on",
                    base->path, hex, digest);
}

err export_peft(const char *dir, const struct flatten *delta, const char *base_path, bool replace)
{
    struct adapter_file_meta meta = {
        .kind = ADAPTER_FILE_PEFT, .base_path = base_path, .root = delta->root};
    return adapter_file_write_peft(dir, &meta, delta->module, delta->count, replace);
}

/* Copies as float32, which the writer expects. */
static err saved_f32(struct adapter_file_saved *out, const struct adapter_file *file,
                     struct arena *arena)
{
    for (size_t i = 0; i < file->saved_count; i++) {
        struct tensor *t;
        float *values;
        TRY(arena_take(&t, arena, 1, sizeof *t));
        *t = *file->saved[i].tensor;
        TRY(arena_take(&values, arena, t->count, sizeof *values));
        TRY(dtype_to_f32(values, t->data, t->dtype, t->count));
        t->dtype = DTYPE_F32;
        t->size = t->count * sizeof *values;
        t->data = values;
        out[i] = (struct adapter_file_saved){file->saved[i].name, t};
    }
    return ERR_NONE;
}

err export_peft_whole(const char *dir, const struct adapter_file *file, const char *base_path,
                      bool replace)
{
    struct arena arena = {0};
    struct adapter_file_saved *saved;
    struct adapter_file_meta meta = file->meta;
    err e;
    if (base_path) meta.base_path = base_path;
    TRY_OUT(e, arena_take(&saved, &arena, file->saved_count, sizeof *saved));
    TRY_OUT(e, saved_f32(saved, file, &arena));
    e = adapter_file_save_peft(dir, &(struct adapter_file_peft){.meta = &meta,
                                                                .module = file->module,
                                                                .count = file->count,
                                                                .saved = saved,
                                                                .saved_count = file->saved_count,
                                                                .replace = replace});
out:
    arena_close(&arena);
    return e;
}

/* B in the file's row order (head_dim 0: unchanged) times `scale`. The flattened factors are shared
 * with other formats, so the result is a copy. */
static err scaled_b(const float **out, const struct adapter_file_module *m, uint32_t head_dim,
                    float scale, struct arena *arena)
{
    const float *b = m->factor[ADAPTER_FILE_B].f32; /* (d_out, rank) */
    float *to;
    TRY(arena_take(&to, arena, (size_t)m->d_out * m->rank, sizeof *to));
    for (uint32_t row = 0; row < m->d_out; row++) {
        const float *from =
            b + (size_t)(head_dim > 0 ? adapter_gguf_row(row, head_dim) : row) * m->rank;
        for (uint32_t i = 0; i < m->rank; i++)
            to[(size_t)row * m->rank + i] = from[i] * scale;
    }
    *out = to;
    return ERR_NONE;
}

/* GGUF lists dimensions in the opposite order; rows and cols here are those of the matrix. */
static err gguf_pair(struct gguf_write_tensor out[2], const struct adapter_file_module *m,
                     const struct arch *a, uint32_t rank_most, struct arena *arena)
{
    uint32_t layer;
    enum module_kind kind;
    char name[64];
    TRY(model_module_parse(&layer, &kind, m->name));
    bool permuted = a->family->gguf_permutes && (kind == MODULE_Q || kind == MODULE_K);
    out[0] = (struct gguf_write_tensor){
        .rows = m->rank, .cols = m->d_in, .data = m->factor[ADAPTER_FILE_A].f32};
    out[1] = (struct gguf_write_tensor){.rows = m->d_out, .cols = m->rank};
    TRY(scaled_b(&out[1].data, m, permuted ? a->head_dim : 0, (float)m->rank / (float)rank_most,
                 arena));
    for (int i = 0; i < 2; i++) {
        int size = snprintf(name, sizeof name, "blk.%u.%s.weight.lora_%c", layer,
                            model_module_gguf(kind), i ? 'b' : 'a');
        TRY(arena_text(&out[i].name, arena, name, (size_t)size));
    }
    return ERR_NONE;
}

/* Two tensors per module: A, then B. */
static err gguf_tensors(struct gguf_write_tensor **out, const struct flatten *delta,
                        const struct arch *a, uint32_t rank_most, struct arena *arena)
{
    struct gguf_write_tensor *tensor;
    TRY(arena_take(&tensor, arena, 2 * delta->count, sizeof *tensor));
    for (size_t i = 0; i < delta->count; i++)
        TRY(gguf_pair(tensor + 2 * i, &delta->module[i], a, rank_most, arena));
    *out = tensor;
    return ERR_NONE;
}

/* llama.cpp accepts an adapter only if its general.architecture is that of the base. */
err export_gguf(const char *path, const struct flatten *delta, const struct model *base,
                bool replace)
{
    struct arena arena = {0};
    struct file_out file = {0};
    struct gguf_write_tensor *tensor;
    uint32_t rank_most = 0;
    err e;
    TRY(export_check_base(delta, base, NULL));
    if (delta->count == 0)
        return err_make(ERR_INPUT, "%s: the adapter has no module to write", path);
    for (size_t i = 0; i < delta->count; i++)
        if (delta->module[i].rank > rank_most) rank_most = delta->module[i].rank;
    const struct gguf_write_kv kv[] = {
        {.key = "general.architecture", .text = base->arch.family->gguf},
        {.key = "general.type", .text = "adapter"},
        {.key = "general.name", .text = "fedlora adapter"},
        {.key = "adapter.type", .text = "lora"},
        {.key = "adapter.lora.alpha", .kind = GGUF_WRITE_F32, .f32 = (float)rank_most},
    };
    TRY_OUT(e, gguf_tensors(&tensor, delta, &base->arch, rank_most, &arena));
    TRY_OUT(e, file_out_open(&file, path, replace));
    TRY_OUT(e, gguf_write_file(&file, kv, sizeof kv / sizeof kv[0], tensor, 2 * delta->count));
    TRY_OUT(e, file_out_commit(&file));
out:
    file_out_close(&file);
    arena_close(&arena);
    return e;
}
