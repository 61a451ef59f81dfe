#include "base/json.h"

#include "base/file.h"
#include "base/file_kind.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Appends ".0" to whole numbers of 19 and more digits, which may not fit into 64 bits. transformers
 * writes 10^30 for a length without a limit. Such a number becomes a real, and a key that needs a
 * whole number still refuses it. NULL without memory. */
static char *with_reals(const char *text, size_t size, size_t *out_size)
{
    char *copy = malloc(size + size / 19 * 2 + 3);
    size_t used = 0, digits = 0;
    bool quoted = false, whole = false;
    for (size_t i = 0; copy && i <= size; i++) {
        char c = i < size ? text[i] : 0;
        bool digit = !quoted && c >= '0' && c <= '9';
        if (digit && digits++ == 0) whole = i == 0 || !strchr(".eE+", text[i - 1]);
        if (!digit) {
            if (digits >= 19 && whole && c != '.' && c != 'e' && c != 'E') {
                memcpy(copy + used, ".0", 2);
                used += 2;
            }
            digits = 0;
        }
        if (i == size) break;
        copy[used++] = c;
        if (quoted && c == '\\' && i + 1 < size)
            copy[used++] = text[++i];
        else if (c == '"')
            quoted = !quoted;
    }
    *out_size = used;
    return copy;
}

/* Duplicate keys are refused, because two readers could take different values from the same
 * file. */
err json_parse(json_t **out, const char *text, size_t size, const char *what)
{
    json_error_t cause;
    if (size == 0) return err_make(ERR_INPUT, "%s: not JSON: it is empty", what);
    json_t *value = json_loadb(text, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &cause);
    if (!value && json_error_code(&cause) == json_error_numeric_overflow) {
        char *copy = with_reals(text, size, &size);
        if (copy) value = json_loadb(copy, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &cause);
        free(copy);
    }
    if (!value)
        return err_make(ERR_INPUT, "%s:%d:%d: not JSON: %s", what, cause.line, cause.column,
                        cause.text);
    *out = value;
    return ERR_NONE;
}

err json_open(json_t **out, const char *path, size_t size_max)
{
    char *text = NULL;
    size_t size;
    TRY(file_read_all(&text, &size, path, size_max));
    err e = json_parse(out, text, size, path);
    err kind = err_is(e) ? file_kind_refuse(FILE_KIND_JSON, text, size) : ERR_NONE;
    free(text);
    if (err_is(kind)) return err_in(kind, "%s", path);
    return e;
}

/* NULL when absent or null: Hugging Face writes null for "not set". */
static const json_t *find(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

static err expected(const char *where, const char *key, const char *kind)
{
    return err_make(ERR_INPUT, "%s%s%s: expected %s", where, *where ? ": " : "", key, kind);
}

static err missing(const char *where, const char *key)
{
    return err_make(ERR_INPUT, "%s%s%s is missing", where, *where ? ": " : "", key);
}

/* Some writers turn 4 into 4.0, so a real without a fraction is accepted. Above 2^53 a double
 * cannot tell neighbouring integers apart. */
err json_opt_int(int64_t *out, const json_t *object, const char *key, int64_t least, int64_t most,
                 const char *where)
{
    const json_t *value = find(object, key);
    if (!value) return ERR_NONE;
    double real = json_number_value(value);
    bool whole = json_is_integer(value) ||
                 (json_is_real(value) && real == floor(real) && fabs(real) < 0x1p53);
    if (!whole) return expected(where, key, "a whole number");
    int64_t n = json_is_integer(value) ? json_integer_value(value) : (int64_t)real;
    if (n < least || n > most)
        return err_make(ERR_INPUT, "%s%s%s: %lld is out of range: expected %lld to %lld", where,
                        *where ? ": " : "", key, (long long)n, (long long)least, (long long)most);
    *out = n;
    return ERR_NONE;
}

err json_opt_num(double *out, const json_t *object, const char *key, const char *where)
{
    const json_t *value = find(object, key);
    if (!value) return ERR_NONE;
    if (!json_is_number(value)) return expected(where, key, "a number");
    *out = json_number_value(value);
    return ERR_NONE;
}

err json_opt_str(const char **out, const json_t *object, const char *key, const char *where)
{
    const json_t *value = find(object, key);
    if (!value) return ERR_NONE;
    if (!json_is_string(value)) return expected(where, key, "a string");
    *out = json_string_value(value);
    return ERR_NONE;
}

err json_opt_bool(bool *out, const json_t *object, const char *key, const char *where)
{
    const json_t *value = find(object, key);
    if (!value) return ERR_NONE;
    if (!json_is_boolean(value)) return expected(where, key, "true or false");
    *out = json_is_true(value);
    return ERR_NONE;
}

err json_get_int(int64_t *out, const json_t *object, const char *key, int64_t least, int64_t most,
                 const char *where)
{
    if (!find(object, key)) return missing(where, key);
    return json_opt_int(out, object, key, least, most, where);
}

err json_get_num(double *out, const json_t *object, const char *key, const char *where)
{
    if (!find(object, key)) return missing(where, key);
    return json_opt_num(out, object, key, where);
}

err json_get_str(const char **out, const json_t *object, const char *key, const char *where)
{
    if (!find(object, key)) return missing(where, key);
    return json_opt_str(out, object, key, where);
}

struct writing {
    struct bytes *out;
    err e;
};

static int write_part(const char *text, size_t size, void *context)
{
    struct writing *w = context;
    w->e = bytes_append(w->out, text, size);
    return err_is(w->e) ? -1 : 0;
}

/* On failure *out is cut back to its previous size, so that no part of a document stays in it. */
err json_write(struct bytes *out, const json_t *value)
{
    struct writing w = {.out = out};
    size_t before = out->size;
    size_t flags = JSON_SORT_KEYS | JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17);
    if (json_dump_callback(value, write_part, &w, flags) == 0) return ERR_NONE;
    out->size = before;
    if (out->data) out->data[before] = 0;
    return err_is(w.e) ? w.e : err_make(ERR_INPUT, "a JSON value cannot be written");
}
