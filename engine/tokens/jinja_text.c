/* Texts of values as Python writes them: str(), repr() and json.dumps(). Code points, because
 * Python counts these and not bytes. */
#include "base/limits.h"
#include "engine/tokens/jinja_parts.h"
#include "engine/tokens/piece.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

size_t jinja_characters(const char *data, size_t size)
{
    size_t n = 0;
    for (size_t i = 0; i < size; i++)
        n += ((uint8_t)data[i] & 0xC0) != 0x80;
    return n;
}

size_t jinja_offset(const char *data, size_t size, size_t at)
{
    size_t i = 0;
    for (; i < size; i++)
        if (((uint8_t)data[i] & 0xC0) != 0x80 && at-- == 0) break;
    return i;
}

/* White_Space of Unicode, and the four separators that Python adds. */
bool jinja_space(uint32_t c)
{
    return piece_space(c) || (c >= 0x1C && c <= 0x1F);
}

err jinja_say(struct jinja_run *r, const char *data, size_t size)
{
    return bytes_append(r->out, data, size);
}

static err say(struct jinja_run *r, const char *text)
{
    return bytes_append(r->out, text, strlen(text));
}

/* Captured text is appended to the output buffer and cut off again, so printing needs no second
 * path. Captures nest, because each keeps the size that the buffer had at its start. */
size_t jinja_capture(struct jinja_run *r)
{
    r->captures++;
    return r->out->size;
}

err jinja_captured(struct jinja_value *out, struct jinja_run *r, size_t begin)
{
    r->captures--;
    err e = jinja_text_copy(out, r, (const char *)r->out->data + begin, r->out->size - begin);
    r->out->size = begin;
    return e;
}

/* The shortest digits that give the same number, with an exponent below 1e-4 and from 1e16. */
void jinja_float_text(char out[40], double value)
{
    char digits[40];
    int precision = 0, exponent;
    if (isnan(value) || isinf(value)) {
        (void)snprintf(out, 40, "%s", isnan(value) ? "nan" : value < 0 ? "-inf" : "inf");
        return;
    }
    do {
        (void)snprintf(digits, sizeof digits, "%.*e", precision, value);
    } while (strtod(digits, NULL) != value && precision++ < 17);
    exponent = (int)strtol(strchr(digits, 'e') + 1, NULL, 10);
    if (exponent < -4 || exponent >= 16) {
        (void)snprintf(out, 40, "%s", digits); /* C writes the exponent as Python does */
        return;
    }
    int decimals = precision - exponent > 1 ? precision - exponent : 1;
    (void)snprintf(out, 40, "%.*f", decimals, value);
}

/* str.isprintable() of Python: everything but "other" and "separator", and the space. */
static bool is_printable(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return false;
    case UTF8PROC_CATEGORY_ZS:
        return c == ' ';
    default:
        return true;
    }
}

/* Python prefers single quotes. It takes double ones only for a text that has single quotes and no
 * double ones. */
static err repr_text(struct jinja_run *r, const char *data, size_t size)
{
    bool one = memchr(data, '\'', size) != NULL, two = memchr(data, '"', size) != NULL;
    char quote = one && !two ? '"' : '\'', out[16];
    TRY(jinja_say(r, &quote, 1));
    for (size_t i = 0; i < size;) {
        uint32_t n, c = piece_char(data + i, &n);
        const char *simple = c == '\n' ? "\\n" : c == '\r' ? "\\r" : c == '\t' ? "\\t" : NULL;
        if (simple) {
            TRY(say(r, simple));
        } else if (c == (uint32_t)quote || c == '\\') {
            (void)snprintf(out, sizeof out, "\\%c", (char)c);
            TRY(say(r, out));
        } else if (!is_printable(c)) {
            (void)snprintf(out, sizeof out,
                           c < 0x100     ? "\\x%02" PRIx32
                           : c < 0x10000 ? "\\u%04" PRIx32
                                         : "\\U%08" PRIx32,
                           c);
            TRY(say(r, out));
        } else {
            TRY(jinja_say(r, data + i, n));
        }
        i += n;
    }
    return jinja_say(r, &quote, 1);
}

static err repr(struct jinja_run *r, const struct jinja_value *v);

static err repr_items(struct jinja_run *r, const struct jinja_value *v)
{
    const struct jinja_list *list = v->list;
    bool tuple = v->kind == JINJA_TUPLE;
    if (v->kind == JINJA_VIEW) TRY(bytes_printf(r->out, "%s(", list->label));
    TRY(say(r, tuple ? "(" : "["));
    for (size_t i = 0; i < list->count; i++) {
        if (i) TRY(say(r, ", "));
        TRY(repr(r, &list->item[i]));
    }
    TRY(say(r, !tuple ? "]" : list->count == 1 ? ",)" : ")"));
    return v->kind == JINJA_VIEW ? say(r, ")") : ERR_NONE;
}

static err repr_dict(struct jinja_run *r, const struct jinja_dict *dict)
{
    TRY(say(r, "{"));
    for (size_t i = 0; i < dict->count; i++) {
        if (i) TRY(say(r, ", "));
        TRY(repr(r, &dict->entry[i].key));
        TRY(say(r, ": "));
        TRY(repr(r, &dict->entry[i].value));
    }
    return say(r, "}");
}

/* A list keeps the start and the step only, and the end of a range with a step is not known from
 * them: range(0, 3, 2) and range(0, 4, 2) have the same items. */
static err repr_range(struct jinja_run *r, const struct jinja_list *list)
{
    int64_t end = list->from + (int64_t)list->count * list->by;
    if (list->by != 1) return jinja_fail(r, "printing a range with a step is not supported");
    return bytes_printf(r->out, "range(%" PRId64 ", %" PRId64 ")", list->from, end);
}

static err repr_number(struct jinja_run *r, const struct jinja_value *v)
{
    char text[40];
    if (v->kind == JINJA_BOOL) return say(r, v->truth ? "True" : "False");
    if (v->kind == JINJA_INT) return bytes_printf(r->out, "%" PRId64, v->whole);
    jinja_float_text(text, v->real);
    return say(r, text);
}

/* Objects whose text holds an address in Python are refused. */
static err repr(struct jinja_run *r, const struct jinja_value *v)
{
    TRY(jinja_step(r, 1));
    switch ((enum jinja_kind)v->kind) {
    case JINJA_UNDEFINED:
        return say(r, "Undefined");
    case JINJA_NONE:
        return say(r, "None");
    case JINJA_BOOL:
    case JINJA_INT:
    case JINJA_FLOAT:
        return repr_number(r, v);
    case JINJA_TEXT:
        if (v->safe) return jinja_fail(r, "text marked by safe in a list is not supported");
        return repr_text(r, v->text.data, v->text.size);
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_VIEW:
        return repr_items(r, v);
    case JINJA_RANGE:
        return repr_range(r, v->list);
    case JINJA_DICT:
        return repr_dict(r, v->dict);
    default:
        return jinja_fail(r, "printing a %s is not supported%s", jinja_type(v),
                          v->kind == JINJA_STREAM ? "; use | list" : "");
    }
}

err jinja_print(struct jinja_run *r, const struct jinja_value *v)
{
    if (v->kind == JINJA_TEXT) return jinja_say(r, v->text.data, v->text.size);
    if (v->kind == JINJA_UNDEFINED) return ERR_NONE;
    return repr(r, v);
}

err jinja_str(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v)
{
    if (v->kind == JINJA_TEXT) {
        *out = *v;
        return ERR_NONE;
    }
    size_t begin = jinja_capture(r);
    TRY(jinja_print(r, v));
    return jinja_captured(out, r, begin);
}

/* ---- JSON ---- */

/* JSON writes a code point above U+FFFF as two UTF-16 surrogates, with 10 bits of
 * c - 0x10000 in each. */
static err json_escape(struct jinja_run *r, uint32_t c)
{
    char out[16];
    if (c >= 0x10000) {
        c -= 0x10000;
        (void)snprintf(out, sizeof out, "\\u%04" PRIx32 "\\u%04" PRIx32, 0xD800 + (c >> 10),
                       0xDC00 + (c & 0x3FF));
    } else {
        (void)snprintf(out, sizeof out, "\\u%04" PRIx32, c);
    }
    return say(r, out);
}

static err json_text(struct jinja_run *r, const struct jinja_value *v, bool ascii)
{
    static const char special[] = "\"\\\n\r\t\f\b", letters[] = "\"\\nrtfb";
    const char *data = v->text.data;
    TRY(say(r, "\""));
    for (size_t i = 0, plain = 0; i <= v->text.size;) {
        uint32_t n = 1, c = i < v->text.size ? piece_char(data + i, &n) : '"';
        bool keep = c >= 0x20 && c != '"' && c != '\\' && !(ascii && c >= 0x7F + 1);
        if (keep) {
            i += n;
            continue;
        }
        TRY(jinja_say(r, data + plain, i - plain));
        if (i < v->text.size) {
            const char *short_form = c && c < 0x80 ? strchr(special, (int)c) : NULL;
            char pair[2] = {'\\', short_form ? letters[short_form - special] : 0};
            TRY(short_form ? jinja_say(r, pair, 2) : json_escape(r, c));
        }
        i += n;
        plain = i;
    }
    return say(r, "\"");
}

static err json_break(struct jinja_run *r, const struct jinja_json *how, size_t level)
{
    if (!how->indent) return ERR_NONE;
    TRY(say(r, "\n"));
    for (size_t i = 0; i < level; i++)
        TRY(say(r, how->indent));
    return ERR_NONE;
}

static err json_key(struct jinja_run *r, const struct jinja_value *key,
                    const struct jinja_json *how)
{
    struct jinja_value text = *key;
    if (key->kind == JINJA_NONE)
        text = jinja_word("null");
    else if (key->kind == JINJA_BOOL)
        text = jinja_word(key->truth ? "true" : "false");
    else if (key->kind == JINJA_INT || key->kind == JINJA_FLOAT)
        TRY(jinja_str(&text, r, key));
    else if (key->kind != JINJA_TEXT)
        return jinja_fail(r, "tojson: keys must be str, int, float, bool or None, not %s",
                          jinja_type(key));
    return json_text(r, &text, how->ascii);
}

/* Bytes of UTF-8 sort like code points. Keys are unique, so the unstable qsort() is enough. */
static int compare_entries(const void *a, const void *b)
{
    const struct jinja_value *x = &((const struct jinja_entry *)a)->key;
    const struct jinja_value *y = &((const struct jinja_entry *)b)->key;
    size_t n = x->text.size < y->text.size ? x->text.size : y->text.size;
    int order = memcmp(x->text.data, y->text.data, n);
    return order ? order : (x->text.size > y->text.size) - (x->text.size < y->text.size);
}

static err sorted_entries(struct jinja_entry **out, struct jinja_run *r,
                          const struct jinja_dict *dict)
{
    struct jinja_entry *entry;
    for (size_t i = 0; i < dict->count; i++)
        if (dict->entry[i].key.kind != JINJA_TEXT)
            return jinja_fail(r, "tojson: sort_keys needs keys that are strings");
    TRY(jinja_take(&entry, r, dict->count + 1, sizeof *entry));
    memcpy(entry, dict->entry, dict->count * sizeof *entry);
    qsort(entry, dict->count, sizeof *entry, compare_entries);
    *out = entry;
    return ERR_NONE;
}

static err json_dict(struct jinja_run *r, const struct jinja_dict *dict,
                     const struct jinja_json *how, size_t level)
{
    struct jinja_entry *entry = dict->entry;
    if (dict->count == 0) return say(r, "{}");
    if (how->sort) TRY(sorted_entries(&entry, r, dict));
    TRY(say(r, "{"));
    for (size_t i = 0; i < dict->count; i++) {
        if (i) TRY(jinja_print(r, &how->item_separator));
        TRY(json_break(r, how, level + 1));
        TRY(json_key(r, &entry[i].key, how));
        TRY(jinja_print(r, &how->key_separator));
        TRY(jinja_print_json(r, &entry[i].value, how, level + 1));
    }
    TRY(json_break(r, how, level));
    return say(r, "}");
}

static err json_list(struct jinja_run *r, const struct jinja_list *list,
                     const struct jinja_json *how, size_t level)
{
    if (list->count == 0) return say(r, "[]");
    TRY(say(r, "["));
    for (size_t i = 0; i < list->count; i++) {
        if (i) TRY(jinja_print(r, &how->item_separator));
        TRY(json_break(r, how, level + 1));
        TRY(jinja_print_json(r, &list->item[i], how, level + 1));
    }
    TRY(json_break(r, how, level));
    return say(r, "]");
}

static err json_float(struct jinja_run *r, double value)
{
    char text[40];
    jinja_float_text(text, value);
    return say(r, isnan(value)    ? "NaN"
                  : !isinf(value) ? text
                  : value < 0     ? "-Infinity"
                                  : "Infinity");
}

/* Values from JSON and from templates have a bounded depth, so the recursion ends. */
err jinja_print_json(struct jinja_run *r, const struct jinja_value *v, const struct jinja_json *how,
                     size_t level)
{
    TRY(jinja_step(r, 1));
    switch ((enum jinja_kind)v->kind) {
    case JINJA_NONE:
        return say(r, "null");
    case JINJA_BOOL:
        return say(r, v->truth ? "true" : "false");
    case JINJA_INT:
        return repr_number(r, v);
    case JINJA_FLOAT:
        return json_float(r, v->real);
    case JINJA_TEXT:
        return json_text(r, v, how->ascii);
    case JINJA_LIST:
    case JINJA_TUPLE:
        return json_list(r, v->list, how, level);
    case JINJA_DICT:
        return json_dict(r, v->dict, how, level);
    default:
        return jinja_fail(r, "tojson: object of type %s is not JSON serializable", jinja_type(v));
    }
}
