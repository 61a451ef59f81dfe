#include "base/safetensors_scan.h"

#include "base/limits.h"

#include <string.h>

enum { DIGITS_MAX = 18, DTYPE_BYTES = 8 };

/* The rest of the header, without the spaces at its end. */
struct scan {
    const char *at, *end;
};

enum dtype safetensors_dtype(const char *name)
{
    for (int t = DTYPE_F32; t <= DTYPE_C64; t++)
        if (strcmp(dtype_name((enum dtype)t), name) == 0) return (enum dtype)t;
    return DTYPE_NONE;
}

static bool take(struct scan *s, const char *text)
{
    size_t n = strlen(text);
    if ((size_t)(s->end - s->at) < n || memcmp(s->at, text, n) != 0) return false;
    s->at += n;
    return true;
}

/* A string of printable ASCII without escapes, in place. */
static bool take_text(const char **out, size_t *size, struct scan *s)
{
    if (!take(s, "\"")) return false;
    const char *from = s->at;
    while (s->at < s->end && *s->at != '"') {
        if (*s->at < ' ' || *s->at > '~' || *s->at == '\\') return false;
        s->at++;
    }
    *out = from;
    *size = (size_t)(s->at - from);
    return take(s, "\"");
}

static bool take_number(uint64_t *out, struct scan *s)
{
    const char *from = s->at;
    uint64_t n = 0;
    while (s->at < s->end && *s->at >= '0' && *s->at <= '9' && s->at - from < DIGITS_MAX)
        n = 10 * n + (uint64_t)(*s->at++ - '0');
    *out = n;
    return s->at > from && (*from != '0' || s->at == from + 1);
}

/* A copy of a string of printable ASCII, whose only escapes are those of a quote and a backslash: a
 * state's metadata have JSON in them. */
static bool copy_text(const char **out, struct safetensors *st, struct scan *s)
{
    char *copy = NULL;
    size_t size = 0;
    if (!take(s, "\"")) return false;
    const char *end = s->at;
    for (; end < s->end && *end != '"'; end++, size++) {
        if (*end < ' ' || *end > '~') return false;
        if (*end != '\\') continue;
        if (++end == s->end || (*end != '"' && *end != '\\')) return false;
    }
    if (end == s->end || err_is(arena_take(&copy, &st->arena, size + 1, 1))) return false;
    *out = copy;
    for (; s->at < end; s->at++) {
        s->at += *s->at == '\\';
        *copy++ = *s->at;
    }
    return take(s, "\"");
}

static bool ascends(const char *before, const char *key)
{
    return !before || strcmp(before, key) < 0;
}

static bool take_shape(struct tensor *t, struct scan *s)
{
    if (take(s, "]")) return true;
    do {
        if (t->dims == SAFETENSORS_DIMS_MAX || !take_number(&t->shape[t->dims++], s)) return false;
    } while (take(s, ","));
    return take(s, "]");
}

static bool take_entry(struct safetensors_entry *e, struct scan *s)
{
    const char *text;
    char dtype[DTYPE_BYTES] = {0};
    size_t size;
    if (!take(s, ":{\"dtype\":") || !take_text(&text, &size, s) || size >= sizeof dtype)
        return false;
    memcpy(dtype, text, size);
    e->tensor.dtype = safetensors_dtype(dtype);
    return e->tensor.dtype != DTYPE_NONE && take(s, ",\"shape\":[") && take_shape(&e->tensor, s) &&
           take(s, ",\"data_offsets\":[") && take_number(&e->range[0], s) && take(s, ",") &&
           take_number(&e->range[1], s) && take(s, "]}");
}

static bool take_metadata(struct metadata **out, size_t *count, struct safetensors *st,
                          struct scan *s)
{
    enum { MOST = 64 };
    struct metadata *m = NULL;
    size_t n = 0;
    if (err_is(arena_take(&m, &st->arena, MOST, sizeof *m))) return false;
    do {
        if (n == MOST || !copy_text(&m[n].key, st, s) || !take(s, ":") ||
            !copy_text(&m[n].value, st, s) || !ascends(n ? m[n - 1].key : NULL, m[n].key))
            return false;
        n++;
    } while (take(s, ","));
    *out = m;
    *count = n;
    return take(s, "}");
}

/* Every entry has a brace, so their number bounds that of the entries. */
static size_t braces(const struct scan *s)
{
    size_t n = 0;
    for (const char *p = s->at; p < s->end; p++)
        n += *p == '{';
    return n;
}

bool safetensors_scan(struct safetensors *st, struct safetensors_entry **entry, size_t *count,
                      const char *text, size_t size)
{
    struct scan s = {text, text + size};
    struct safetensors_entry *list = NULL;
    struct metadata *metadata = NULL;
    size_t n = 0, metadata_count = 0, most = braces(&s);
    while (s.end > s.at && s.end[-1] == ' ')
        s.end--;
    if (most > LIMIT_TENSORS || !take(&s, "{")) return false;
    if (err_is(arena_take(&list, &st->arena, most, sizeof *list))) return false;
    bool more = true;
    if (take(&s, "\"__metadata__\":{")) {
        if (!take_metadata(&metadata, &metadata_count, st, &s)) return false;
        more = take(&s, ",");
    }
    for (; more; more = take(&s, ",")) {
        if (n == most || !copy_text(&list[n].tensor.name, st, &s) || !take_entry(&list[n], &s) ||
            !ascends(n ? list[n - 1].tensor.name : "__metadata__", list[n].tensor.name))
            return false;
        n++;
    }
    if (!take(&s, "}") || s.at != s.end) return false;
    st->metadata = metadata;
    st->metadata_count = metadata_count;
    *entry = list;
    *count = n;
    return true;
}

/* An entry has one map, two lists, and commas before it (1), between its keys (2), dimensions and
 * offsets. The map of metadata and the map of all entries are two more. A character of a name takes
 * at most the 6 bytes of \u1234. */
bool safetensors_is_bounded(const char *text, size_t size)
{
    enum { COMMAS = 1 + 2 + SAFETENSORS_DIMS_MAX - 1 + 1, ESCAPE_BYTES = 6 };
    size_t maps = 0, lists = 0, commas = 0, depth = 0, from = 0;
    bool quoted = false;
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (quoted && c == '\\') {
            i++;
        } else if (c == '"') {
            bool long_name =
                quoted && depth == 1 && i - from > ESCAPE_BYTES * LIMIT_TENSOR_NAME_BYTES;
            if (long_name) return false;
            quoted = !quoted;
            from = i;
        } else if (!quoted) {
            maps += c == '{';
            lists += c == '[';
            commas += c == ',';
            depth += c == '{' || c == '[';
            depth -= depth && (c == '}' || c == ']');
        }
    }
    return maps <= LIMIT_TENSORS + 2 && lists <= 2 * LIMIT_TENSORS &&
           commas <= (size_t)COMMAS * LIMIT_TENSORS;
}
