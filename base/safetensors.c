/* Reading and writing of base/safetensors.h. The reader is the first code that touches bytes from
 * the network, so it checks the header completely before any tensor is used; its tests include a
 * fuzzer. */
#include "base/safetensors.h"

#include "base/file_kind.h"
#include "base/limits.h"
#include "base/safetensors_scan.h"
#include "base/text.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* ---- reading: the checks and their order are the reference reader's ---- */

static err verdict(const char *name, const char *detail)
{
    return err_make(ERR_INPUT, "%s: %s", name, detail);
}

/* jansson has signed 64-bit integers; larger ones are reported by header_parse(). */
static bool get_u64(uint64_t *out, const json_t *value)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0) return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

/* Checks one header entry by itself, without other entries or the data. */
static err entry_read(struct tensor *t, uint64_t range[2], const char *name, const json_t *info)
{
    static const char *const kind = "InvalidHeaderDeserialization";
    const json_t *dtype = json_object_get(info, "dtype"), *shape = json_object_get(info, "shape");
    const json_t *offsets = json_object_get(info, "data_offsets");
    if (!json_is_string(dtype) || !json_is_array(shape) || !json_is_array(offsets) ||
        json_array_size(offsets) != 2)
        return err_make(ERR_INPUT, "%s: tensor %s: expected dtype, shape and data_offsets", kind,
                        name);
    t->dtype = safetensors_dtype(json_string_value(dtype));
    if (t->dtype == DTYPE_NONE)
        return err_make(ERR_INPUT, "%s: tensor %s: unknown dtype %s", kind, name,
                        json_string_value(dtype));
    if (json_array_size(shape) > SAFETENSORS_DIMS_MAX)
        return err_make(ERR_INPUT, "%s: tensor %s: %zu dimensions, expected at most %d", kind, name,
                        json_array_size(shape), SAFETENSORS_DIMS_MAX);
    t->dims = (int)json_array_size(shape);
    for (int i = 0; i < t->dims; i++)
        if (!get_u64(&t->shape[i], json_array_get(shape, (size_t)i)))
            return err_make(ERR_INPUT, "%s: tensor %s: a size is not a whole number", kind, name);
    for (int i = 0; i < 2; i++)
        if (!get_u64(&range[i], json_array_get(offsets, (size_t)i)))
            return err_make(ERR_INPUT, "%s: tensor %s: an offset is not a whole number", kind,
                            name);
    return ERR_NONE;
}

static int entry_by_range(const void *a, const void *b)
{
    const struct safetensors_entry *x = a, *y = b;
    for (int i = 0; i < 2; i++)
        if (x->range[i] != y->range[i]) return x->range[i] < y->range[i] ? -1 : 1;
    return strcmp(x->tensor.name, y->tensor.name);
}

/* Checks the tensors in the order of their bytes: no gap, no overlap, and sizes that match shape
 * and dtype. A gap could hide data that two readers treat differently. *end: the end of the last
 * tensor's bytes. */
static err entries_check(struct safetensors_entry *entry, size_t count, uint64_t *end)
{
    uint64_t start = 0;
    for (size_t i = 0; i < count; i++) {
        struct tensor *t = &entry[i].tensor;
        if (entry[i].range[0] != start || entry[i].range[1] < start)
            return err_make(ERR_INPUT,
                            "InvalidOffset: tensor %s: bytes %" PRIu64 " to %" PRIu64
                            ", expected to start at %" PRIu64,
                            t->name, entry[i].range[0], entry[i].range[1], start);
        start = entry[i].range[1];
        t->count = 1;
        bool fits = true;
        for (int d = 0; d < t->dims; d++)
            fits = fits && size_mul(&t->count, t->count, t->shape[d]);
        size_t bits;
        if (!fits || !size_mul(&bits, t->count, 8))
            return err_make(ERR_INPUT, "ValidationOverflow: tensor %s: its size overflows",
                            t->name);
        if (!dtype_bytes(&t->size, t->dtype, t->count)) {
            size_t one;
            bool aligned = dtype_bytes(&one, t->dtype, t->count % 8 + 8);
            return err_make(ERR_INPUT, "%s: tensor %s: its size %s",
                            aligned ? "ValidationOverflow" : "MisalignedSlice", t->name,
                            aligned ? "overflows" : "is not a whole number of bytes");
        }
        if (entry[i].range[1] - entry[i].range[0] != t->size)
            return err_make(ERR_INPUT,
                            "TensorInvalidInfo: tensor %s: %" PRIu64
                            " bytes of data, expected %zu by its shape and dtype",
                            t->name, entry[i].range[1] - entry[i].range[0], t->size);
    }
    *end = start;
    return ERR_NONE;
}

static err metadata_read(struct safetensors *st, const json_t *object)
{
    if (json_is_null(object)) return ERR_NONE;
    if (!json_is_object(object))
        return verdict("InvalidHeaderDeserialization", "__metadata__ is not a map of strings");
    size_t n = json_object_size(object), i = 0;
    if (n > LIMIT_TENSORS) return verdict("InvalidHeaderDeserialization", "too much metadata");
    TRY(arena_take(&st->metadata, &st->arena, n, sizeof *st->metadata));
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        if (!json_is_string(value))
            return err_make(ERR_INPUT, "InvalidHeaderDeserialization: metadata %s is not a string",
                            key);
        struct metadata *m = &st->metadata[i++];
        TRY(arena_text(&m->key, &st->arena, key, strlen(key)));
        TRY(arena_text(&m->value, &st->arena, json_string_value(value), json_string_length(value)));
    }
    st->metadata_count = i;
    return ERR_NONE;
}

static int tensor_by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

static int metadata_by_key(const void *a, const void *b)
{
    return strcmp(((const struct metadata *)a)->key, ((const struct metadata *)b)->key);
}

/* The entries and the metadata of a parsed header. */
static err header_read(struct safetensors *st, struct safetensors_entry **out, size_t *count,
                       const json_t *header)
{
    if (!json_is_object(header)) return verdict("InvalidHeaderDeserialization", "expected a map");
    struct safetensors_entry *entry = NULL;
    size_t n = 0;
    const char *key;
    json_t *info;
    if (json_object_size(header) > LIMIT_TENSORS + 1)
        return err_make(ERR_INPUT, "InvalidHeaderDeserialization: %zu tensors, expected at most %d",
                        json_object_size(header), LIMIT_TENSORS);
    TRY(arena_take(&entry, &st->arena, json_object_size(header), sizeof *entry));
    json_object_foreach((json_t *)(uintptr_t)header, key, info)
    {
        if (strcmp(key, "__metadata__") == 0) {
            TRY(metadata_read(st, info));
            continue;
        }
        struct safetensors_entry *e = &entry[n++];
        TRY(entry_read(&e->tensor, e->range, key, info));
        TRY(arena_text(&e->tensor.name, &st->arena, key, strlen(key)));
    }
    *out = entry;
    *count = n;
    return ERR_NONE;
}

/* Fills the tensors of *st from the entries; `data` are the bytes behind the header. */
static err entries_place(struct safetensors *st, struct safetensors_entry *entry, size_t count,
                         const uint8_t *data, size_t size)
{
    uint64_t end = 0;
    for (size_t i = 0; i < count; i++)
        if (strlen(entry[i].tensor.name) >= LIMIT_TENSOR_NAME_BYTES)
            return err_make(ERR_INPUT,
                            "InvalidHeaderDeserialization: tensor %.80s...: the name is longer "
                            "than %d bytes",
                            entry[i].tensor.name, LIMIT_TENSOR_NAME_BYTES - 1);
    if (count) qsort(entry, count, sizeof *entry, entry_by_range);
    TRY(entries_check(entry, count, &end));
    if (end != size)
        return err_make(ERR_INPUT,
                        "MetadataIncompleteBuffer: %zu bytes of data, expected %" PRIu64 "%s", size,
                        end, size < end ? "; the file was cut short" : "");
    TRY(arena_take(&st->tensor, &st->arena, count, sizeof *st->tensor));
    for (size_t i = 0; i < count; i++) {
        st->tensor[i] = entry[i].tensor;
        if (entry[i].tensor.size) st->tensor[i].data = data + entry[i].range[0];
    }
    st->count = count;
    if (count) qsort(st->tensor, count, sizeof *st->tensor, tensor_by_name);
    if (st->metadata_count)
        qsort(st->metadata, st->metadata_count, sizeof *st->metadata, metadata_by_key);
    return ERR_NONE;
}

/* Integers above 63 bits are an error of jansson; the reference reader accepts 64 bits and fails at
 * their product, so the same name is reported. */
static err header_parse(json_t **out, const uint8_t *text, size_t size)
{
    json_error_t cause;
    if (!safetensors_is_bounded((const char *)text, size))
        return err_make(ERR_INPUT,
                        "InvalidHeaderDeserialization: more values or longer names than %d tensors "
                        "with names of at most %d bytes can have",
                        LIMIT_TENSORS, LIMIT_TENSOR_NAME_BYTES - 1);
    json_t *header = json_loadb((const char *)text, size, JSON_REJECT_DUPLICATES, &cause);
    if (header) {
        *out = header;
        return ERR_NONE;
    }
    if (json_error_code(&cause) == json_error_numeric_overflow)
        return verdict("ValidationOverflow", "a size or offset overflows");
    return err_make(ERR_INPUT, "InvalidHeaderDeserialization: at byte %d: %s", cause.position,
                    cause.text);
}

/* From the first 8 bytes. */
static err header_length(uint64_t *out, const uint8_t *p, uint64_t most)
{
    uint64_t length = 0;
    for (int i = 0; i < 8; i++)
        length |= (uint64_t)p[i] << (8 * i);
    if (length > most)
        return err_make(ERR_INPUT,
                        "HeaderTooLarge: %" PRIu64 " bytes, expected at most %" PRIu64
                        "; not a safetensors file, or a damaged one",
                        length, most);
    *out = length;
    return ERR_NONE;
}

err safetensors_check_header(const char *path, uint64_t most)
{
    struct file_map map = {0};
    uint64_t length;
    TRY(file_map_open(&map, path));
    err e = map.size < 8 ? verdict("HeaderTooSmall", "expected at least 8 bytes")
                         : header_length(&length, map.data, most);
    file_map_close(&map);
    return err_is(e) ? err_in(e, "%s", path) : e;
}

err safetensors_parse(struct safetensors *out, const void *data, size_t size)
{
    const uint8_t *p = data;
    uint64_t length = 0;
    if (size < 8) return verdict("HeaderTooSmall", size ? "expected 8 bytes" : "the file is empty");
    TRY(header_length(&length, p, LIMIT_SAFETENSORS_HEADER));
    if (length > size - 8)
        return err_make(ERR_INPUT,
                        "InvalidHeaderLength: the header should have %" PRIu64
                        " bytes, but the file has only %zu; it is damaged or was cut short",
                        length, size);
    if (!text_is_utf8(p + 8, length)) return verdict("InvalidHeader", "the header is not UTF-8");
    json_t *header = NULL;
    struct safetensors st = {0};
    struct safetensors_entry *entry = NULL;
    size_t count = 0;
    err e = ERR_NONE;
    if (!safetensors_scan(&st, &entry, &count, (const char *)p + 8, length)) {
        arena_close(&st.arena);
        e = header_parse(&header, p + 8, length);
        if (!err_is(e)) e = header_read(&st, &entry, &count, header);
        json_decref(header);
    }
    if (!err_is(e)) e = entries_place(&st, entry, count, p + 8 + length, size - 8 - length);
    if (err_is(e)) {
        safetensors_close(&st);
        return e;
    }
    *out = st;
    return ERR_NONE;
}

/* The kind is looked at only after an error, because the first bytes of a good file are a length,
 * which can be equal to the first bytes of any other format. */
err safetensors_open(struct safetensors *out, const char *path)
{
    struct file_map map = {0};
    TRY(file_map_open(&map, path));
    struct safetensors st = {0};
    err e = safetensors_parse(&st, map.data, map.size);
    if (err_is(e)) {
        err kind = file_kind_refuse(FILE_KIND_SAFETENSORS, map.data, map.size);
        if (map.size && err_is(kind)) e = kind;
        file_map_close(&map);
        return err_in(e, "%s", path);
    }
    st.map = map;
    *out = st;
    return ERR_NONE;
}

void safetensors_close(struct safetensors *st)
{
    arena_close(&st->arena);
    file_map_close(&st->map);
    *st = (struct safetensors){0};
}

const struct tensor *safetensors_find(const struct safetensors *st, const char *name)
{
    struct tensor key = {.name = name};
    if (!st->count) return NULL;
    return bsearch(&key, st->tensor, st->count, sizeof *st->tensor, tensor_by_name);
}

const char *safetensors_metadata(const struct safetensors *st, const char *key)
{
    struct metadata wanted = {.key = key};
    if (!st->metadata_count) return NULL;
    const struct metadata *found =
        bsearch(&wanted, st->metadata, st->metadata_count, sizeof *st->metadata, metadata_by_key);
    return found ? found->value : NULL;
}

/* ---- writing ---- */

/* Text that JSON writes as it is. */
static bool is_plain(char c)
{
    return c >= ' ' && c <= '~' && c != '"' && c != '\\';
}

static err append_plain(struct bytes *out, const char *text, size_t size)
{
    TRY(bytes_append(out, "\"", 1));
    TRY(bytes_append(out, text, size));
    return bytes_append(out, "\"", 1);
}

/* jansson quotes and escapes, and refuses text that is not UTF-8. */
static err append_text(struct bytes *out, const char *text)
{
    size_t plain = 0;
    while (is_plain(text[plain]))
        plain++;
    if (!text[plain]) return append_plain(out, text, plain);
    json_t *value = json_string(text);
    if (!value) return err_make(ERR_INPUT, "a tensor name or metadata text is not valid UTF-8");
    char *quoted = json_dumps(value, JSON_ENCODE_ANY);
    json_decref(value);
    if (!quoted) return err_make(ERR_MACHINE, "no memory for a safetensors header");
    err e = bytes_append(out, quoted, strlen(quoted));
    free(quoted);
    return e;
}

/* Never writes a header that the reader would refuse. */
static err append_entry(struct bytes *out, const struct tensor *t, uint64_t start)
{
    size_t count = 1, size;
    if (t->dims < 0 || t->dims > SAFETENSORS_DIMS_MAX || t->dtype < DTYPE_F32 ||
        t->dtype > DTYPE_C64)
        return err_make(ERR_INPUT, "tensor %s: dtype %s with %d dimensions cannot be written",
                        t->name, dtype_name(t->dtype), t->dims);
    for (int d = 0; d < t->dims; d++)
        if (!size_mul(&count, count, t->shape[d])) count = SIZE_MAX;
    if (!dtype_bytes(&size, t->dtype, count) || size != t->size)
        return err_make(ERR_INPUT, "tensor %s: %zu bytes do not match its shape and dtype", t->name,
                        t->size);
    TRY(append_text(out, t->name));
    TRY(bytes_printf(out, ":{\"dtype\":\"%s\",\"shape\":[", dtype_name(t->dtype)));
    for (int d = 0; d < t->dims; d++)
        TRY(bytes_printf(out, "%s%" PRIu64, d ? "," : "", t->shape[d]));
    return bytes_printf(out, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", start, start + size);
}

static err append_metadata(struct bytes *out, const struct metadata *metadata, size_t count)
{
    TRY(bytes_printf(out, "\"__metadata__\":{"));
    for (size_t i = 0; i < count; i++) {
        if (i && strcmp(metadata[i - 1].key, metadata[i].key) == 0)
            return err_make(ERR_INPUT, "metadata %s is given twice", metadata[i].key);
        if (i) TRY(bytes_append(out, ",", 1));
        TRY(append_text(out, metadata[i].key));
        TRY(bytes_append(out, ":", 1));
        TRY(append_text(out, metadata[i].value));
    }
    return bytes_append(out, "}", 1);
}

/* Length, header and padding for sorted inputs. The length is filled in at the end, when it is
 * known. */
static err header_write(struct bytes *out, const struct tensor *tensor, size_t count,
                        const struct metadata *metadata, size_t metadata_count)
{
    static const uint8_t length_unknown[8];
    uint64_t start = 0;
    TRY(bytes_append(out, length_unknown, 8));
    TRY(bytes_append(out, "{", 1));
    if (metadata_count) TRY(append_metadata(out, metadata, metadata_count));
    for (size_t i = 0; i < count; i++) {
        if (i && strcmp(tensor[i - 1].name, tensor[i].name) == 0)
            return err_make(ERR_INPUT, "tensor %s is given twice", tensor[i].name);
        if (i || metadata_count) TRY(bytes_append(out, ",", 1));
        TRY(append_entry(out, &tensor[i], start));
        start += tensor[i].size;
    }
    TRY(bytes_append(out, "}", 1));
    while (out->size % 8)
        TRY(bytes_append(out, " ", 1));
    uint64_t length = out->size - 8;
    for (int i = 0; i < 8; i++)
        out->data[i] = (uint8_t)(length >> (8 * i));
    return ERR_NONE;
}

/* The header, and the tensors in the order in which their bytes follow it. */
struct plan {
    struct arena arena;
    struct bytes header;
    struct tensor *tensor;
};

static void plan_close(struct plan *plan)
{
    arena_close(&plan->arena);
    bytes_close(&plan->header);
}

static err plan_make(struct plan *plan, const struct tensor *tensor, size_t count,
                     const struct metadata *metadata, size_t metadata_count)
{
    struct metadata *sorted;
    plan->header.max = LIMIT_SAFETENSORS_HEADER + 8;
    TRY(arena_take(&plan->tensor, &plan->arena, count, sizeof *tensor));
    TRY(arena_take(&sorted, &plan->arena, metadata_count, sizeof *metadata));
    if (count) memcpy(plan->tensor, tensor, count * sizeof *tensor);
    if (metadata_count) memcpy(sorted, metadata, metadata_count * sizeof *metadata);
    if (count) qsort(plan->tensor, count, sizeof *tensor, tensor_by_name);
    if (metadata_count) qsort(sorted, metadata_count, sizeof *metadata, metadata_by_key);
    return header_write(&plan->header, plan->tensor, count, sorted, metadata_count);
}

static err check_data(const struct tensor *tensor, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (tensor[i].size && !tensor[i].data)
            return err_make(ERR_INPUT, "tensor %s: expected %zu bytes of data, but there are none",
                            tensor[i].name, tensor[i].size);
    return ERR_NONE;
}

/* On failure *out is cut back to its previous size. */
err safetensors_write(struct bytes *out, const struct tensor *tensor, size_t count,
                      const struct metadata *metadata, size_t metadata_count)
{
    struct plan plan = {0};
    size_t before = out->size;
    err e = check_data(tensor, count);
    if (err_is(e)) return e;
    TRY_OUT(e, plan_make(&plan, tensor, count, metadata, metadata_count));
    TRY_OUT(e, bytes_append(out, plan.header.data, plan.header.size));
    for (size_t i = 0; i < count; i++)
        TRY_OUT(e, bytes_append(out, plan.tensor[i].data, plan.tensor[i].size));
out:
    if (err_is(e) && out->data) {
        out->size = before;
        out->data[before] = 0;
    }
    plan_close(&plan);
    return e;
}

err safetensors_write_file(struct file_out *out, const struct tensor *tensor, size_t count,
                           const struct metadata *metadata, size_t metadata_count)
{
    struct plan plan = {0};
    err e = check_data(tensor, count);
    if (err_is(e)) return e;
    TRY_OUT(e, plan_make(&plan, tensor, count, metadata, metadata_count));
    TRY_OUT(e, file_out_append(out, plan.header.data, plan.header.size));
    for (size_t i = 0; i < count; i++)
        TRY_OUT(e, file_out_append(out, plan.tensor[i].data, plan.tensor[i].size));
out:
    plan_close(&plan);
    return e;
}

err safetensors_write_header(struct file_out *out, struct tensor *tensor, size_t count,
                             const struct metadata *metadata, size_t metadata_count)
{
    struct plan plan = {0};
    err e = plan_make(&plan, tensor, count, metadata, metadata_count);
    if (!err_is(e)) e = file_out_append(out, plan.header.data, plan.header.size);
    if (!err_is(e) && count > 0) memcpy(tensor, plan.tensor, count * sizeof *tensor);
    plan_close(&plan);
    return e;
}

err safetensors_header_bytes(uint64_t *out, const struct tensor *tensor, size_t count,
                             const struct metadata *metadata, size_t metadata_count)
{
    struct plan plan = {0};
    err e = plan_make(&plan, tensor, count, metadata, metadata_count);
    if (!err_is(e)) *out = plan.header.size;
    plan_close(&plan);
    return e;
}
