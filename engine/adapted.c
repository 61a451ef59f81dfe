#include "engine/adapted.h"

#include "engine/adapter_gguf.h"
#include "engine/model/model_build.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char embed_name[] = "model.embed_tokens.weight", head_name[] = "lm_head.weight";

struct fold {
    struct model *model;
    struct adapter_file *file;
    struct model_slot *slot; /* (slots) */
    size_t slots;
    struct arena arena;
};

static bool is_vocabulary(const struct model_slot *s)
{
    return strcmp(s->name, embed_name) == 0 || strcmp(s->name, head_name) == 0;
}

/* ---- tensors saved whole ---- */

static err check_finite(const struct fold *f, const struct tensor *t)
{
    enum { BLOCK = 256 };
    float x[BLOCK];
    size_t each = t->size / t->count;
    for (size_t at = 0; at < t->count; at += BLOCK) {
        size_t n = t->count - at < BLOCK ? t->count - at : BLOCK;
        TRY(dtype_to_f32(x, (const char *)t->data + at * each, t->dtype, n));
        err e = adapter_file_finite(x, n, t->name, at);
        if (err_is(e)) return err_in(e, "%s", f->file->path);
    }
    return ERR_NONE;
}

static err saved_shape(const struct fold *f, const struct model_slot *s, const struct tensor *t)
{
    bool same = s->vector ? t->dims == 1 && t->shape[0] == s->rows
                          : t->dims == 2 && t->shape[1] == s->cols &&
                                (t->shape[0] == s->rows ||
                                 (is_vocabulary(s) && t->shape[0] <= LIMIT_VOCAB));
    if (same) return ERR_NONE;
    return err_make(ERR_INPUT, "%s: tensor %s: its shape does not fit the base, which has (%u, %u)",
                    f->file->path, t->name, s->rows, s->cols);
}

/* The norms of Gemma are stored less 1 by Hugging Face, also where the base is a GGUF, which stores
 * them whole. */
static err fold_saved(struct fold *f, const struct adapter_file_saved *saved)
{
    const struct tensor *t = saved->tensor;
    struct model_slot *s = model_slot_find(f->slot, f->slots, saved->name, "");
    char *copy;
    if (!s)
        return err_make(ERR_INPUT, "%s: tensor %s: the base has no tensor %s", f->file->path,
                        t->name, saved->name);
    TRY(saved_shape(f, s, t));
    TRY(check_finite(f, t));
    TRY(arena_take(&copy, &f->model->arena, t->size, 1));
    memcpy(copy, t->data, t->size);
    *s->weight = (struct weight){.data = copy,
                                 .dtype = t->dtype,
                                 .rows = (uint32_t)t->shape[0],
                                 .cols = s->cols,
                                 .plus = s->norm ? f->model->arch.family->norm_plus : 0};
    return ERR_NONE;
}

/* A resized vocabulary needs both matrices. In a tied model one of them stands for both. */
static err set_vocabulary(struct fold *f, const struct weight *base_embed)
{
    struct model *m = f->model;
    bool embed = m->embed.data != base_embed->data, head = m->head.data != base_embed->data;
    if (m->arch.tied && embed && !head && m->embed.rows != base_embed->rows) m->head = m->embed;
    if (m->embed.rows != m->head.rows)
        return err_make(ERR_INPUT,
                        "%s: the embedding has %u rows and the head %u; expected both to be saved "
                        "for one size of the vocabulary",
                        f->file->path, m->embed.rows, m->head.rows);
    m->arch.vocab = m->embed.rows;
    if (!m->arch.tied || m->embed.data == m->head.data) return ERR_NONE;
    /* PEFT saves a tied matrix under both names. */
    size_t bytes = 0;
    REQUIRE(dtype_bytes(&bytes, m->embed.dtype, (size_t)m->embed.rows * m->embed.cols));
    if (m->embed.dtype == m->head.dtype && memcmp(m->embed.data, m->head.data, bytes) == 0)
        m->head = m->embed;
    else
        m->arch.tied = false;
    return ERR_NONE;
}

/* ---- LoRA of embedding and head, DoRA ---- */

/* A copy of the weight as float32, in the order of rows of Hugging Face. */
static err own_weight(float **out, struct fold *f, const struct weight *w)
{
    size_t count;
    if (!size_mul(&count, w->rows, w->cols))
        return err_make(ERR_INPUT, "%s: the base's weights are too large", f->file->path);
    TRY(arena_take(out, &f->model->arena, count, sizeof **out));
#pragma omp parallel for
    for (uint32_t row = 0; row < w->rows; row++)
        weight_rows_f32(*out + (size_t)row * w->cols, w, row, 1);
    model_drop_weight(f->model, w);
    return ERR_NONE;
}

/* row (d_in) += scale B[row] A in float64. */
static void add_row(double *sum, const struct adapter_file_module *m, uint32_t row)
{
    const float *a = m->factor[ADAPTER_FILE_A].f32, *b = m->factor[ADAPTER_FILE_B].f32;
    for (uint32_t l = 0; l < m->rank; l++) {
        double c = m->scale * (double)b[(size_t)row * m->rank + l];
        for (uint32_t j = 0; j < m->d_in; j++)
            sum[j] += c * (double)a[(size_t)l * m->d_in + j];
    }
}

/* The same of an embedding, whose change is (B A)^T: A (r, vocabulary), B (d_model, r). */
static void add_embedding_row(double *sum, const struct adapter_file_module *m, uint32_t row)
{
    const float *a = m->factor[ADAPTER_FILE_A].f32, *b = m->factor[ADAPTER_FILE_B].f32;
    for (uint32_t j = 0; j < m->d_out; j++)
        for (uint32_t l = 0; l < m->rank; l++)
            sum[j] += m->scale * (double)a[(size_t)l * m->d_in + row] *
                      (double)b[(size_t)j * m->rank + l];
}

/* m / ||row||. PEFT divides by the norm as it is; a row of zeros would give infinities there. */
static double magnitude_scale(const double *sum, uint32_t n, double magnitude)
{
    double square = 0;
    for (uint32_t j = 0; j < n; j++)
        square += sum[j] * sum[j];
    return square > 0 ? magnitude / sqrt(square) : 0;
}

static err fold_rows(float *x, const struct weight *w, const struct adapter_file_module *m)
{
    bool short_of_memory = false;
#pragma omp parallel
    {
        double *sum = malloc(w->cols * sizeof *sum);
        if (!sum) {
#pragma omp atomic write
            short_of_memory = true;
        }
#pragma omp for
        for (uint32_t row = 0; row < w->rows; row++) {
            float *to = x + (size_t)row * w->cols;
            if (!sum) continue;
            for (uint32_t j = 0; j < w->cols; j++)
                sum[j] = (double)to[j];
            if (m->embedding)
                add_embedding_row(sum, m, row);
            else
                add_row(sum, m, row);
            double scale = 1;
            if (m->magnitude.f32)
                scale = magnitude_scale(sum, w->cols, (double)m->magnitude.f32[row]);
            for (uint32_t j = 0; j < w->cols; j++)
                to[j] = (float)(scale * sum[j]);
        }
        free(sum);
    }
    return short_of_memory ? err_make(ERR_MACHINE, "no memory for module %s", m->name) : ERR_NONE;
}

static err fold_module(struct fold *f, const struct adapter_file_module *m)
{
    struct model_slot *s = model_slot_find(f->slot, f->slots, m->name, ".weight");
    float *x;
    if (!s)
        return err_make(ERR_INPUT, "%s: module %s: the base has no such module", f->file->path,
                        m->name);
    const struct weight w = *s->weight;
    uint32_t rows = m->embedding ? m->d_in : m->d_out, cols = m->embedding ? m->d_out : m->d_in;
    if (rows != w.rows || cols != w.cols)
        return err_make(ERR_INPUT,
                        "%s: module %s: shape (%u, %u), expected (%u, %u) as in the base",
                        f->file->path, m->name, rows, cols, w.rows, w.cols);
    TRY(own_weight(&x, f, &w));
    TRY(fold_rows(x, &w, m));
    *s->weight = (struct weight){.data = x, .dtype = DTYPE_F32, .rows = w.rows, .cols = w.cols};
    return ERR_NONE;
}

static bool must_fold(const struct adapter_file_module *m)
{
    return m->embedding || m->magnitude.f32 || strcmp(m->name, "lm_head") == 0;
}

static err fold_all(struct fold *f)
{
    const struct weight embed = f->model->embed;
    size_t kept = 0;
    TRY(model_slots_with_head(&f->slot, &f->slots, f->model, &f->arena));
    for (size_t i = 0; i < f->file->saved_count; i++)
        TRY(fold_saved(f, &f->file->saved[i]));
    TRY(set_vocabulary(f, &embed));
    for (size_t i = 0; i < f->file->count; i++) {
        const struct adapter_file_module *m = &f->file->module[i];
        if (must_fold(m))
            TRY(fold_module(f, m));
        else
            f->file->module[kept++] = *m;
    }
    f->file->count = kept;
    f->file->saved_count = 0;
    if (f->model->embed.data != f->model->head.data) f->model->arch.tied = false;
    return ERR_NONE;
}

const char *adapted_part(const struct adapter_file *file)
{
    if (file->saved_count) return file->saved[0].name;
    for (size_t i = 0; i < file->count; i++)
        if (must_fold(&file->module[i])) return file->module[i].name;
    return NULL;
}

err adapted_fold(struct model *model, struct adapter_file *file)
{
    struct fold f = {.model = model, .file = file};
    if (!adapted_part(file)) return ERR_NONE;
    err e = fold_all(&f);
    arena_close(&f.arena);
    return e;
}

/* A GGUF adapter goes with a GGUF base, as in llama.cpp. With a directory it is probably a mistake,
 * so it is converted only by the command for that. */
static err open_file(struct adapter_file *out, const struct model *model, const char *path)
{
    if (!adapter_gguf_is(path)) return adapter_file_open_whole(out, path);
    if (model_is_gguf(model)) return adapter_gguf_open(out, path, model);
    return err_make(
        ERR_INPUT,
        "%s: is a GGUF adapter, which goes with a GGUF base; for %s convert it: fedlora "
        "export %s --as peft --base %s -o DIR",
        path, model->path, path, model->path);
}

/* struct adapter_file is several kilobytes large, so it is not on the stack. */
err adapted_open(struct adapter *out, bool *left, struct model *model, const char *path)
{
    struct adapter_file *file = calloc(1, sizeof *file);
    if (!file) return err_sys(ENOMEM, "%s", path);
    err e = open_file(file, model, path);
    if (!err_is(e) && adapter_file_needs_frozen(file))
        e = err_make(ERR_INPUT, "%s: needs its file of frozen factors (%s)", path,
                     file->meta.frozen);
    bool before = !err_is(e) && file->count > 0;
    if (!err_is(e)) e = adapted_fold(model, file);
    bool some = !err_is(e) && (file->count > 0 || !before);
    if (some) e = adapter_open_file(out, &model->arch, file, 0);
    if (!err_is(e)) *left = some;
    adapter_file_close(file);
    free(file);
    return e;
}
