/* export_merged() of client/export/export.h: the base model with the change added to its weights.
 *
 * A weight is read, changed, rounded and written a block of rows at a time, so the memory needed
 * does not depend on the size of the model. */
#include "client/export/export.h"

#include "agg/algebra/lowrank.h"
#include "base/file.h"
#include "base/safetensors.h"
#include "client/export/export_parts.h"
#include "engine/model/model_build.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Values of a weight in memory at a time: at least one row, because products are made by rows. */
enum { CHUNK_VALUES = LIMIT_DIMENSION };

/* Open file and buffers of one merge. */
struct merge {
    const struct flatten *delta;
    const struct model *base;
    enum dtype type; /* of the written weights */
    struct file_out file;
    float *rows;   /* (CHUNK_VALUES) */
    double *sum;   /* (CHUNK_VALUES) */
    uint16_t *low; /* (CHUNK_VALUES), BF16 */
};

/* The module that changes this weight, or NULL. Most weights (norms, embeddings) have none. */
static const struct adapter_file_module *find_module(const struct flatten *delta,
                                                     const char *weight)
{
    size_t size = strlen(weight), ending = strlen(".weight");
    for (size_t i = 0; i < delta->count && size > ending; i++) {
        const char *name = delta->module[i].name;
        if (strlen(name) == size - ending && memcmp(name, weight, size - ending) == 0)
            return &delta->module[i];
    }
    return NULL;
}

/* rows (n, cols) += B[row .. row + n) A, summed in float64 and rounded once: rounding the product
 * before adding it would lose a digit more. */
static err add_delta(struct merge *m, const struct adapter_file_module *module, uint32_t row,
                     uint32_t n)
{
    size_t count = (size_t)n * module->d_in;
    const struct lowrank_term term = {.c = 1,
                                      .B = module->factor[ADAPTER_FILE_B].f32 +
                                           (size_t)row * module->rank,
                                      .A = module->factor[ADAPTER_FILE_A].f32,
                                      .r = module->rank};
    const struct lowrank_stack stack = {.m = n, .n = module->d_in, .term = &term, .count = 1};
    for (size_t i = 0; i < count; i++)
        m->sum[i] = (double)m->rows[i];
    TRY(lowrank_add_dense(m->sum, &stack));
    for (size_t i = 0; i < count; i++)
        m->rows[i] = (float)m->sum[i];
    return ERR_NONE;
}

/* Rounds to the type of the file. */
static err append_rows(struct merge *m, size_t count)
{
    if (m->type == DTYPE_F32) return file_out_append(&m->file, m->rows, count * sizeof *m->rows);
    for (size_t i = 0; i < count; i++)
        m->low[i] = bf16_from_f32(m->rows[i]);
    return file_out_append(&m->file, m->low, count * sizeof *m->low);
}

/* Norms of Gemma are written as their distance from 1, as its Hugging Face files have them. The
 * values of such a file are copied, because 1 + w is rounded. */
static float read_rows(float *out, const struct merge *m, const struct model_slot *slot,
                       uint32_t row, uint32_t n)
{
    struct weight w = *slot->weight;
    w.plus = 0;
    weight_rows_f32(out, &w, row, n);
    return slot->norm ? m->base->arch.family->norm_plus - slot->weight->plus : 0;
}

/* The pages of the base are dropped after each weight, or a large model would fill the page cache
 * of the process. */
static err append_weight(struct merge *m, const struct model_slot *slot)
{
    const struct weight *w = slot->weight;
    const struct adapter_file_module *module = find_module(m->delta, slot->name);
    uint32_t step = CHUNK_VALUES / w->cols;
    for (uint32_t row = 0; row < w->rows; row += step) {
        uint32_t n = w->rows - row < step ? w->rows - row : step;
        float plus = read_rows(m->rows, m, slot, row, n);
        for (size_t i = 0; i < (size_t)n * w->cols && plus != 0; i++)
            m->rows[i] -= plus;
        if (module != NULL) TRY(add_delta(m, module, row, n));
        TRY(append_rows(m, (size_t)n * w->cols));
    }
    model_drop_weight(m->base, w);
    return ERR_NONE;
}

/* safetensors needs all sizes before the first value, so the header is computed from the shapes and
 * the values follow in the same order. The metadata format=pt is what transformers checks for. */
static err write_weights(struct merge *m, const char *path, struct arena *arena)
{
    struct model_slot *slot;
    struct tensor *tensor;
    size_t count;
    /* model_slots() gives places to fill; here they are only read. */
    TRY(model_slots(&slot, &count, (struct model *)m->base, arena));
    TRY(arena_take(&tensor, arena, count, sizeof *tensor));
    for (size_t i = 0; i < count; i++) {
        tensor[i] = (struct tensor){.name = slot[i].name,
                                    .dtype = m->type,
                                    .dims = slot[i].vector ? 1 : 2,
                                    .shape = {slot[i].rows, slot[i].cols}};
        tensor[i].count = (size_t)slot[i].rows * slot[i].cols;
        tensor[i].size = tensor[i].count * (m->type == DTYPE_F32 ? 4 : 2);
    }
    TRY(file_out_open(&m->file, path, false));
    TRY(safetensors_write_header(&m->file, tensor, count, &(struct metadata){"format", "pt"}, 1));
    for (size_t i = 0; i < count; i++) { /* both are in order of name */
        REQUIRE(tensor[i].name == slot[i].name);
        TRY(append_weight(m, &slot[i]));
    }
    return file_out_commit(&m->file);
}

/* lowrank_begin() makes the BLAS library single-threaded, and with it the sums reproducible. */
static err merge_weights(const char *dir, const struct flatten *delta, const struct model *base,
                         enum dtype type)
{
    char path[LIMIT_PATH_BYTES];
    struct merge m = {.delta = delta, .base = base, .type = type};
    struct arena arena = {0};
    err e;
    TRY(file_join(path, sizeof path, dir, "model.safetensors"));
    int before = lowrank_begin();
    TRY_OUT(e, arena_take(&m.rows, &arena, CHUNK_VALUES, sizeof *m.rows));
    TRY_OUT(e, arena_take(&m.sum, &arena, CHUNK_VALUES, sizeof *m.sum));
    TRY_OUT(e, arena_take(&m.low, &arena, CHUNK_VALUES, sizeof *m.low));
    e = write_weights(&m, path, &arena);
out:
    lowrank_end(before);
    file_out_close(&m.file);
    arena_close(&arena);
    return e;
}

/* Notes are joined with "; " and cut at the size of the buffer. */
static void note_add(const struct export_merged_options *o, const char *text)
{
    if (o->note == NULL || o->note_bytes == 0) return;
    size_t used = strlen(o->note);
    (void)snprintf(o->note + used, o->note_bytes - used, "%s%s", used ? "; " : "", text);
}

/* A tokenizer that cannot be converted is a note and not an error: the weights are complete, and
 * the user can copy the tokenizer from the original model. */
static err fill(const char *dir, const struct flatten *delta, const struct model *base,
                const struct export_merged_options *o)
{
    TRY(merge_weights(dir, delta, base, o->type));
    TRY(export_config(dir, base, o->type));
    if (o->tokenizer != NULL) return export_copy_tokenizer(dir, o->tokenizer);
    if (!model_is_gguf(base)) return export_copy_tokenizer(dir, base->path);
    err e = export_tokenizer(dir, &base->gguf);
    if (e.kind != ERR_INPUT) return e;
    note_add(o, e.text);
    return ERR_NONE;
}

/* The checks come first, so that nothing is written for a wrong base. */
err export_merged(const char *dir, const struct flatten *delta, const struct model *base,
                  const struct export_merged_options *options)
{
    char part[LIMIT_PATH_BYTES];
    REQUIRE(options->type == DTYPE_F32 || options->type == DTYPE_BF16);
    if (options->note != NULL && options->note_bytes > 0) options->note[0] = 0;
    TRY(export_check_base(delta, base, NULL));
    TRY(export_dir_begin(part, dir, options->replace));
    err e = fill(part, delta, base, options);
    if (!err_is(e)) e = export_dir_commit(part, dir);
    if (err_is(e)) export_dir_abandon(part);
    return e;
}
