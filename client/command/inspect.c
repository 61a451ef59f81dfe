#include "client/command/inspect.h"

#include "agg/adapter/adapter_file.h"
#include "base/digest.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- GGUF ---- */

/* GGUF strings need not be UTF-8 (tokens of byte-level vocabularies are not), but JSON strings
 * must. */
static json_t *text_or_bytes(const char *data, size_t size)
{
    json_t *text = json_stringn(data, size);
    return text ? text : json_sprintf("%zu bytes that are not UTF-8", size);
}

/* GGUF is little-endian and its values are not aligned. */
static uint64_t number_at(const uint8_t *p, size_t size)
{
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++)
        value |= (uint64_t)p[i] << (8 * i);
    return value;
}

/* JSON has no infinity or NaN, so such values are shown as null. */
static json_t *scalar_json(const struct gguf_kv *kv)
{
    float f;
    double d;
    switch (kv->type) {
    case GGUF_U8:
        return json_integer((json_int_t)number_at(kv->data, 1));
    case GGUF_I8:
        return json_integer((int8_t)number_at(kv->data, 1));
    case GGUF_U16:
        return json_integer((json_int_t)number_at(kv->data, 2));
    case GGUF_I16:
        return json_integer((int16_t)number_at(kv->data, 2));
    case GGUF_U32:
        return json_integer((json_int_t)number_at(kv->data, 4));
    case GGUF_I32:
        return json_integer((int32_t)number_at(kv->data, 4));
    case GGUF_U64:
    case GGUF_I64:
        return json_integer((json_int_t)number_at(kv->data, 8));
    case GGUF_BOOL:
        return json_boolean(kv->data[0] != 0);
    case GGUF_F32:
        memcpy(&f, kv->data, 4);
        return isfinite(f) ? json_real((double)f) : json_null();
    case GGUF_F64:
        memcpy(&d, kv->data, 8);
        return isfinite(d) ? json_real(d) : json_null();
    case GGUF_STRING:
        return text_or_bytes((const char *)kv->data + 8, kv->size - 8);
    case GGUF_ARRAY:
    case GGUF_TYPE_COUNT:
        break;
    }
    return json_null();
}

/* Shapes as Hugging Face writes them, rows first; GGUF stores them in the opposite order. */
static void tensors_add(json_t *out, const struct gguf *g)
{
    json_t *list = json_array();
    for (size_t i = 0; i < g->tensor_count; i++) {
        const struct gguf_tensor *t = &g->tensor[i];
        json_t *shape = json_array();
        for (int d = t->dims - 1; d >= 0; d--)
            json_array_append_new(shape, json_integer((json_int_t)t->ne[d]));
        const char *type = gguf_type_name(t->type_id);
        json_array_append_new(list, json_pack("{s:s, s:s, s:o}", "name", t->name, "dtype",
                                              type ? type : "unknown", "shape", shape));
    }
    json_object_set_new(out, "tensors", list);
}

/* Arrays are not printed, because a vocabulary has hundreds of thousands of entries. */
void inspect_gguf_add(json_t *out, const struct gguf *g, bool tensors)
{
    json_t *values = json_object();
    for (size_t i = 0; i < g->kv_count; i++) {
        const struct gguf_kv *kv = &g->kv[i];
        json_t *value = kv->is_array ? json_sprintf("%llu elements", (unsigned long long)kv->count)
                                     : scalar_json(kv);
        json_object_set_new(values, kv->key, value);
    }
    json_object_set_new(out, "metadata", values);
    if (tensors) tensors_add(out, g);
}

/* ---- adapters ---- */

/* For an adapter directory, the digest of its weights file. */
err inspect_digest_add(json_t *out, const char *path)
{
    struct digest d;
    char text[DIGEST_TEXT_BYTES];
    TRY(digest_of_file(&d, path));
    digest_text(text, &d);
    json_object_set_new(out, "digest", json_string(text));
    return ERR_NONE;
}

/* Frobenius norm, summed in double. */
static double norm_of(const struct adapter_file_factor *f)
{
    double sum = 0;
    for (size_t i = 0; i < (size_t)f->rows * f->cols; i++)
        sum += (double)f->f32[i] * f->f32[i];
    return sqrt(sum);
}

/* gram (n, n) += M^T M for M (rows, n). The norm of a product of factors needs only these small
 * matrices, never the product itself, which has the size of a weight. */
static void gram_columns(double *gram, const float *m, size_t rows, size_t n)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < n; j++)
                gram[i * n + j] += (double)m[r * n + i] * m[r * n + j];
}

/* gram (n, n) += M M^T for M (n, cols). */
static void gram_rows(double *gram, const float *m, size_t n, size_t cols)
{
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++)
            for (size_t c = 0; c < cols; c++)
                gram[i * n + j] += (double)m[i * cols + c] * m[j * cols + c];
}

/* gram (n, n) = R^T gram R for R (n, n); `spare` (n, n) is scratch. */
static void gram_turn(double *gram, double *spare, const float *r, size_t n)
{
    memset(spare, 0, n * n * sizeof *spare);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < n; k++)
            for (size_t j = 0; j < n; j++)
                spare[i * n + j] += gram[i * n + k] * r[k * n + j];
    memset(gram, 0, n * n * sizeof *gram);
    for (size_t k = 0; k < n; k++)
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < n; j++)
                gram[i * n + j] += r[k * n + i] * spare[k * n + j];
}

/* Frobenius norm of B A or B R A: the square root of trace((B^T B)(A A^T)), with R folded into the
 * first factor. Below 0: no memory. Rounding can make the trace of a zero product slightly
 * negative. */
static double product_norm(const struct adapter_file_factor *b, const struct adapter_file_factor *r,
                           const struct adapter_file_factor *a)
{
    size_t n = a->rows;
    double *left = calloc(n * n * 3, sizeof *left), *right = left + n * n, sum = 0;
    if (!left) return -1;
    gram_columns(left, b->f32, b->rows, n);
    gram_rows(right, a->f32, n, a->cols);
    if (r) gram_turn(left, right + n * n, r->f32, n);
    for (size_t i = 0; i < n * n; i++)
        sum += left[i] * right[i];
    free(left);
    return sqrt(sum > 0 ? sum : 0);
}

/* Norms of the factors, of the trained change and of the carry, as far as the file has them. */
static json_t *module_json(const struct adapter_file_module *m)
{
    static const char *const norm_name[] = {"norm_A", "norm_B", "norm_R", "norm_carry_A",
                                            "norm_carry_B"};
    const struct adapter_file_factor *f = m->factor;
    json_t *o = json_pack("{s:s, s:i, s:i, s:i, s:i, s:f}", "name", m->name, "d_out", (int)m->d_out,
                          "d_in", (int)m->d_in, "rank", (int)m->rank, "carry_rank",
                          (int)m->carry_rank, "scale", m->scale);
    for (int role = 0; role < ADAPTER_FILE_ROLES; role++)
        if (f[role].f32 && role < ADAPTER_FILE_CARRY_A)
            json_object_set_new(o, norm_name[role], json_real(norm_of(&f[role])));
    if (f[ADAPTER_FILE_A].f32 && f[ADAPTER_FILE_B].f32) {
        const struct adapter_file_factor *r = f[ADAPTER_FILE_R].f32 ? &f[ADAPTER_FILE_R] : NULL;
        double norm = product_norm(&f[ADAPTER_FILE_B], r, &f[ADAPTER_FILE_A]);
        json_object_set_new(o, "norm_change", json_real(fabs(m->scale) * norm));
    }
    if (f[ADAPTER_FILE_CARRY_A].f32 && f[ADAPTER_FILE_CARRY_B].f32)
        json_object_set_new(
            o, "norm_carry",
            json_real(product_norm(&f[ADAPTER_FILE_CARRY_B], NULL, &f[ADAPTER_FILE_CARRY_A])));
    return o;
}

/* Metadata of the safetensors file. A PEFT directory keeps its own in adapter_config.json, from
 * which the important fields are added. */
static void words_add(json_t *out, const struct adapter_file *file)
{
    json_t *words = json_object();
    for (size_t i = 0; i < file->tensors.metadata_count; i++)
        json_object_set_new(words, file->tensors.metadata[i].key,
                            json_string(file->tensors.metadata[i].value));
    if (file->meta.kind == ADAPTER_FILE_PEFT) {
        json_object_set_new(words, "target_modules", json_string(file->meta.target_modules));
        json_object_set_new(words, "alpha_pattern", json_string(file->meta.alpha_pattern));
        json_object_set_new(words, "use_rslora", json_boolean(file->meta.rslora));
        json_object_set_new(words, "lora_alpha", json_real(file->meta.alpha));
        json_object_set_new(words, "r", json_integer(file->meta.rank));
    }
    json_object_set_new(out, "metadata", words);
}

/* A module may have rank 0 if it has a carry only; it does not count for the smallest rank. */
static void ranks_add(json_t *out, const struct adapter_file *file)
{
    uint32_t least = UINT32_MAX, most = 0, carry = 0;
    uint64_t values = 0;
    for (size_t i = 0; i < file->count; i++) {
        const struct adapter_file_module *m = &file->module[i];
        if (m->rank && m->rank < least) least = m->rank;
        if (m->rank > most) most = m->rank;
        if (m->carry_rank > carry) carry = m->carry_rank;
        for (int role = 0; role < ADAPTER_FILE_ROLES; role++)
            values += (uint64_t)m->factor[role].rows * m->factor[role].cols;
    }
    json_object_set_new(out, "rank_least", json_integer(most ? least : 0));
    json_object_set_new(out, "rank_most", json_integer(most));
    json_object_set_new(out, "carry_rank_most", json_integer(carry));
    json_object_set_new(out, "parameters", json_integer((json_int_t)values));
}

/* Parts that few adapters have, so the keys are absent without them. */
static void parts_add(json_t *out, const struct adapter_file *file)
{
    json_t *saved = json_array();
    if (adapter_file_is_dora(file)) json_object_set_new(out, "dora", json_true());
    for (size_t i = 0; i < file->saved_count; i++)
        json_array_append_new(saved, json_string(file->saved[i].name));
    if (file->saved_count) json_object_set(out, "saved", saved);
    json_decref(saved);
}

/* Only states and updates belong to a run, so only they have its fields. The list of modules comes
 * last, because it is the longest part. */
err inspect_adapter(json_t *out, const char *path, bool digest)
{
    static const char *const kind[] = {"adapter", "state", "update", "frozen"};
    struct adapter_file file = {0};
    TRY(adapter_file_open_whole(&file, path));
    json_object_set_new(out, "kind", json_string(kind[file.meta.kind]));
    json_object_set_new(out, "path", json_string(path));
    if (file.meta.kind == ADAPTER_FILE_STATE || file.meta.kind == ADAPTER_FILE_UPDATE) {
        json_object_set_new(out, "run", json_string(file.meta.run));
        json_object_set_new(out, "method", json_string(file.meta.method));
        json_object_set_new(out, "round", json_integer(file.meta.round));
        json_object_set_new(out, "base", json_string(file.meta.base));
    }
    json_object_set_new(out, "module_count", json_integer((json_int_t)file.count));
    ranks_add(out, &file);
    words_add(out, &file);
    parts_add(out, &file);
    json_t *modules = json_array();
    for (size_t i = 0; i < file.count; i++)
        json_array_append_new(modules, module_json(&file.module[i]));
    json_object_set_new(out, "modules", modules);
    adapter_file_close(&file);
    if (!digest) return ERR_NONE;
    char weights[LIMIT_PATH_BYTES];
    if (!file_is_dir(path)) return inspect_digest_add(out, path);
    TRY(file_join(weights, sizeof weights, path, "adapter_model.safetensors"));
    return inspect_digest_add(out, weights);
}

/* ---- any other safetensors file ---- */

/* By metadata for Fedlora's files, by tensor names for PEFT's. */
static bool has_factors(const struct safetensors *st)
{
    if (safetensors_metadata(st, "fedlora.kind")) return true;
    for (size_t i = 0; i < st->count; i++)
        if (strstr(st->tensor[i].name, ".lora_") || strstr(st->tensor[i].name, ".carry_"))
            return true;
    return false;
}

/* Name, type and shape; values are never shown. */
static json_t *tensor_json(const struct tensor *t)
{
    json_t *shape = json_array();
    for (int d = 0; d < t->dims; d++)
        json_array_append_new(shape, json_integer((json_int_t)t->shape[d]));
    return json_pack("{s:s, s:s, s:o}", "name", t->name, "dtype", dtype_name(t->dtype), "shape",
                     shape);
}

/* The file is opened as an adapter only if it looks like one, so that any other safetensors file is
 * listed instead of refused. */
err inspect_safetensors(json_t *out, const char *path, bool digest)
{
    struct safetensors st = {0};
    TRY(safetensors_open(&st, path));
    if (has_factors(&st)) {
        safetensors_close(&st);
        return inspect_adapter(out, path, digest);
    }
    uint64_t values = 0;
    json_t *words = json_object(), *list = json_array();
    for (size_t i = 0; i < st.metadata_count; i++)
        json_object_set_new(words, st.metadata[i].key, json_string(st.metadata[i].value));
    for (size_t i = 0; i < st.count; i++) {
        json_array_append_new(list, tensor_json(&st.tensor[i]));
        values += st.tensor[i].count;
    }
    json_object_set_new(out, "kind", json_string("safetensors"));
    json_object_set_new(out, "path", json_string(path));
    json_object_set_new(out, "parameters", json_integer((json_int_t)values));
    json_object_set_new(out, "metadata", words);
    json_object_set_new(out, "tensors", list);
    safetensors_close(&st);
    return digest ? inspect_digest_add(out, path) : ERR_NONE;
}
