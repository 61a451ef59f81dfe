#include "engine/adapter_gguf.h"

#include "base/file_kind.h"
#include "base/text.h"
#include "engine/model/gguf.h"
#include "engine/model/model_build.h"
#include "kernels/quant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct reading {
    struct adapter_file *file;
    const struct model *base;
    struct model_slot *slot; /* (slots) */
    size_t slots;
    double alpha;
    struct arena arena; /* of the slots */
};

bool adapter_gguf_is(const char *path)
{
    struct file_map map = {0};
    if (file_is_dir(path)) return false;
    err e = file_map_open(&map, path);
    bool found = !err_is(e) && file_kind_of(map.data, map.size) == FILE_KIND_GGUF;
    file_map_close(&map);
    return found;
}

/* "blk.0.attn_q.weight.lora_a": the slot of the base, and which of the two factors. */
static err find_slot(const struct model_slot **out, bool *is_b, const struct reading *r,
                     const char *name)
{
    static const char *const ending[] = {".lora_a", ".lora_b"};
    size_t n = strlen(name), k = sizeof ".lora_a" - 1;
    for (int b = 0; b < 2 && n > k; b++) {
        if (strcmp(name + n - k, ending[b]) != 0) continue;
        *is_b = b == 1;
        for (size_t i = 0; i < r->slots; i++) {
            const struct model_slot *s = &r->slot[i];
            if (strlen(s->gguf) != n - k || strncmp(s->gguf, name, n - k) != 0) continue;
            *out = s;
            return s->vector ? err_make(ERR_INPUT, "tensor %s: adapts a vector", name) : ERR_NONE;
        }
        return err_make(ERR_INPUT, "tensor %s: the base has no tensor %.*s", name, (int)(n - k),
                        name);
    }
    return err_make(ERR_INPUT, "tensor %s: expected the name of a weight with .lora_a or .lora_b",
                    name);
}

uint32_t adapter_gguf_row(uint32_t file_row, uint32_t head_dim)
{
    uint32_t head = file_row / head_dim, t = file_row % head_dim;
    return head * head_dim + t % 2 * (head_dim / 2) + t / 2;
}

/* As stored, or in the order of rows of Hugging Face, or transposed. */
static err read_values(struct adapter_file_factor *out, struct reading *r, const struct weight *w,
                       uint32_t head_dim, bool turned)
{
    float *values, *row = NULL;
    size_t count = (size_t)w->rows * w->cols;
    struct tensor *t;
    TRY(arena_take(&values, &r->file->arena, count, sizeof *values));
    TRY(arena_take(&t, &r->file->arena, 1, sizeof *t));
    TRY(arena_take(&row, &r->arena, w->cols, sizeof *row));
    for (uint32_t i = 0; i < w->rows; i++) {
        weight_rows_f32(row, w, i, 1);
        uint32_t to = head_dim ? adapter_gguf_row(i, head_dim) : i;
        for (uint32_t j = 0; j < w->cols; j++)
            values[turned ? (size_t)j * w->rows + i : (size_t)to * w->cols + j] = row[j];
    }
    *out = (struct adapter_file_factor){.f32 = values,
                                        .rows = turned ? w->cols : w->rows,
                                        .cols = turned ? w->rows : w->cols,
                                        .tensor = t};
    *t = (struct tensor){.dtype = DTYPE_F32,
                         .dims = 2,
                         .shape = {out->rows, out->cols},
                         .count = count,
                         .size = count * sizeof *values,
                         .data = values};
    return ERR_NONE;
}

static struct adapter_file_module *module_of(struct adapter_file *f, const char *name)
{
    for (size_t i = 0; i < f->count; i++)
        if (strcmp(f->module[i].name, name) == 0) return &f->module[i];
    struct adapter_file_module *m = &f->module[f->count++];
    m->name = name;
    return m;
}

/* llama.cpp reads rows of the factor A of an embedding, so it is stored as (vocabulary, r). */
static err read_tensor(struct reading *r, const struct gguf_tensor *t)
{
    const struct arch *a = &r->base->arch;
    const struct model_slot *s = NULL;
    bool is_b = false;
    const char *name;
    TRY(find_slot(&s, &is_b, r, t->name));
    if (t->dims != 2 || t->ne[0] > LIMIT_DIMENSION || t->ne[1] > LIMIT_DIMENSION || !t->ne[0] ||
        !t->ne[1] || !t->data || !quant_known(t->dtype))
        return err_make(
            ERR_INPUT, "tensor %s: expected a matrix of F32, F16 or a known quantisation", t->name);
    const struct weight w = {
        .data = t->data, .dtype = t->dtype, .rows = (uint32_t)t->ne[1], .cols = (uint32_t)t->ne[0]};
    TRY(arena_text(&name, &r->file->arena, s->name, strlen(s->name) - strlen(".weight")));
    struct adapter_file_module *m = module_of(r->file, name);
    m->embedding = s->weight == &r->base->embed;
    bool permuted = is_b && s->rope_heads && a->family->gguf_permutes;
    if (permuted && w.rows != s->rows)
        return err_make(ERR_INPUT, "tensor %s: %u rows, expected %u as in the base", t->name,
                        w.rows, s->rows);
    struct adapter_file_factor *x = &m->factor[is_b ? ADAPTER_FILE_B : ADAPTER_FILE_A];
    TRY(read_values(x, r, &w, permuted ? a->head_dim : 0, m->embedding && !is_b));
    struct tensor *named = (struct tensor *)(uintptr_t)x->tensor;
    TRY(arena_text(&named->name, &r->file->arena, t->name, strlen(t->name)));
    return adapter_file_finite(x->f32, x->tensor->count, t->name, 0);
}

static err finish_modules(struct reading *r)
{
    for (size_t i = 0; i < r->file->count; i++) {
        struct adapter_file_module *m = &r->file->module[i];
        const struct adapter_file_factor *a = &m->factor[ADAPTER_FILE_A],
                                         *b = &m->factor[ADAPTER_FILE_B];
        if (!a->tensor || !b->tensor || a->rows != b->cols || a->rows > LIMIT_RANK)
            return err_make(ERR_INPUT, "module %s: expected lora_a and lora_b of one rank",
                            m->name);
        m->rank = a->rows;
        m->d_in = a->cols;
        m->d_out = b->rows;
        m->alpha = r->alpha > 0 ? r->alpha : m->rank;
        m->scale = m->alpha / m->rank;
    }
    if (!r->file->count) return err_make(ERR_INPUT, "has no adapted module");
    /* The name is the first field of a module. */
    qsort(r->file->module, r->file->count, sizeof *r->file->module, text_order);
    return ERR_NONE;
}

static err check_keys(struct reading *r, const struct gguf *g)
{
    struct gguf_str type = {0}, kind = {0};
    float alpha = 0;
    TRY(gguf_opt_str(&type, g, "general.type"));
    if (!gguf_str_is(type, "adapter"))
        return err_make(ERR_INPUT, "is a GGUF model, expected an adapter (general.type)");
    TRY(gguf_get_str(&kind, g, "adapter.type"));
    if (!gguf_str_is(kind, "lora"))
        return err_make(ERR_INPUT, "adapter.type %.*s is not supported; expected lora",
                        (int)(kind.size < 40 ? kind.size : 40), kind.data);
    TRY(gguf_get_str(&type, g, "general.architecture"));
    if (!gguf_str_is(type, r->base->arch.family->gguf))
        return err_make(ERR_INPUT, "is an adapter of a %.*s model, but the base is %s",
                        (int)(type.size < 40 ? type.size : 40), type.data,
                        r->base->arch.family->gguf);
    TRY(gguf_opt_f32(&alpha, g, "adapter.lora.alpha"));
    if (!(alpha >= 0) || !isfinite(alpha))
        return err_make(ERR_INPUT, "adapter.lora.alpha is %g, expected a number of at least 0",
                        (double)alpha);
    r->alpha = (double)alpha;
    return ERR_NONE;
}

static err read_all(struct reading *r, const struct gguf *g)
{
    struct adapter_file_meta *meta = &r->file->meta;
    TRY(check_keys(r, g));
    /* The slots are places to fill; here they are only read. */
    TRY(model_slots_with_head(&r->slot, &r->slots, (struct model *)(uintptr_t)r->base, &r->arena));
    *meta =
        (struct adapter_file_meta){.kind = ADAPTER_FILE_PEFT, .run = "", .method = "", .base = ""};
    meta->frozen = meta->member = meta->alpha_pattern = meta->target_modules = "";
    meta->base_path = meta->modules_to_save = meta->modules = meta->dropped = "";
    meta->options = meta->memory = "";
    meta->task_type = "CAUSAL_LM";
    meta->bias = "none";
    TRY(arena_take(&r->file->module, &r->file->arena, g->tensor_count, sizeof *r->file->module));
    for (size_t i = 0; i < g->tensor_count; i++)
        TRY(read_tensor(r, &g->tensor[i]));
    return finish_modules(r);
}

err adapter_gguf_open(struct adapter_file *out, const char *path, const struct model *base)
{
    struct gguf g = {0};
    struct adapter_file f = {0};
    struct reading r = {.file = &f, .base = base};
    if (strlen(path) >= sizeof f.path)
        return err_make(ERR_INPUT, "%.80s...: the path is too long", path);
    snprintf(f.path, sizeof f.path, "%s", path);
    TRY(gguf_open(&g, path, GGUF_WITH_DATA));
    err e = read_all(&r, &g);
    gguf_close(&g);
    arena_close(&r.arena);
    if (err_is(e)) {
        adapter_file_close(&f);
        return err_in(e, "%s", path);
    }
    *out = f;
    return ERR_NONE;
}
