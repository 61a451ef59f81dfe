/* Filters of texts and numbers, and the table of all filters. */
#include "engine/tokens/jinja_filter.h"

#include "engine/tokens/jinja_string.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- arguments ---- */

const struct jinja_value *jinja_given(const struct jinja_run *r, const struct jinja_call *call,
                                      size_t position, const char *name)
{
    for (size_t i = 0; i < call->count; i++) {
        const struct jinja_argument *a = &call->argument[i];
        if (a->name == JINJA_NO_NAME ? i == position
                                     : name && strcmp(r->program->name[a->name].text, name) == 0)
            return &a->value;
    }
    return NULL;
}

const struct jinja_value *jinja_given_some(const struct jinja_run *r, const struct jinja_call *call,
                                           size_t position, const char *name)
{
    const struct jinja_value *v = jinja_given(r, call, position, name);
    return v && v->kind != JINJA_NONE ? v : NULL;
}

err jinja_flag(bool *out, struct jinja_run *r, const struct jinja_call *call, size_t position,
               const char *name)
{
    const struct jinja_value *v = jinja_given(r, call, position, name);
    *out = false;
    return v ? jinja_truth(out, r, v) : ERR_NONE;
}

err jinja_check(const struct jinja_run *r, const struct jinja_call *call, size_t most,
                const char *const *names)
{
    for (size_t i = 0; i < call->count; i++) {
        uint32_t name = call->argument[i].name;
        if (name == JINJA_NO_NAME) {
            if (i >= most) return jinja_fail(r, "%s: more than %zu argument(s)", call->what, most);
            continue;
        }
        const char *const *known = names;
        while (known && *known && strcmp(*known, r->program->name[name].text) != 0)
            known++;
        if (!known || !*known)
            return jinja_fail(r, "%s: unexpected argument '%.60s'", call->what,
                              r->program->name[name].text);
    }
    return ERR_NONE;
}

/* ---- texts ---- */

static err filter_case(struct jinja_value *out, struct jinja_run *r,
                       const struct jinja_value *value, const struct jinja_call *call)
{
    struct jinja_value text;
    TRY(jinja_check(r, call, 0, NULL));
    TRY(jinja_str(&text, r, value));
    return jinja_string_case(out, r, &text,
                             call->what[0] == 'u'   ? JINJA_UPPER
                             : call->what[0] == 'l' ? JINJA_LOWER
                                                    : JINJA_CAPITALIZE);
}

/* Words are parted by spaces, hyphens and opening brackets, unlike in str.title(). */
static err filter_title(struct jinja_value *out, struct jinja_run *r,
                        const struct jinja_value *value, const struct jinja_call *call)
{
    struct jinja_value text, word;
    TRY(jinja_check(r, call, 0, NULL));
    TRY(jinja_str(&text, r, value));
    size_t mark = jinja_capture(r), at = 0, size = text.text.size;
    const char *data = text.text.data;
    while (at < size) {
        size_t end = at;
        while (end < size && !isspace((unsigned char)data[end]) && !strchr("-({[<", data[end]))
            end++;
        if (end == at) {
            TRY(jinja_say(r, data + at++, 1));
            continue;
        }
        const struct jinja_value part = jinja_text(data + at, end - at);
        TRY(jinja_string_case(&word, r, &part, JINJA_CAPITALIZE));
        TRY(jinja_print(r, &word));
        at = end;
    }
    return jinja_captured(out, r, mark);
}

static err filter_trim(struct jinja_value *out, struct jinja_run *r,
                       const struct jinja_value *value, const struct jinja_call *call)
{
    static const char *const names[] = {"chars", NULL};
    const struct jinja_value *set = jinja_given_some(r, call, 0, "chars");
    struct jinja_value text;
    TRY(jinja_check(r, call, 1, names));
    if (set && set->kind != JINJA_TEXT) return jinja_fail(r, "trim: expected a str");
    TRY(jinja_str(&text, r, value));
    TRY(jinja_step(r, text.text.size / 64));
    *out = jinja_string_strip(&text, set, JINJA_LEFT | JINJA_RIGHT);
    return ERR_NONE;
}

static err filter_replace(struct jinja_value *out, struct jinja_run *r,
                          const struct jinja_value *value, const struct jinja_call *call)
{
    static const char *const names[] = {"old", "new", "count", NULL};
    const struct jinja_value *from = jinja_given(r, call, 0, "old");
    const struct jinja_value *to = jinja_given(r, call, 1, "new");
    const struct jinja_value *most = jinja_given_some(r, call, 2, "count");
    struct jinja_value text, old, new;
    TRY(jinja_check(r, call, 3, names));
    if (!from || !to) return jinja_fail(r, "replace: expected two arguments");
    if (most && most->kind != JINJA_INT) return jinja_fail(r, "replace: expected a whole count");
    TRY(jinja_str(&text, r, value));
    TRY(jinja_str(&old, r, from));
    TRY(jinja_str(&new, r, to));
    return jinja_string_replace(out, r, &text, &old, &new, most ? most->whole : -1);
}

static err filter_string(struct jinja_value *out, struct jinja_run *r,
                         const struct jinja_value *value, const struct jinja_call *call)
{
    TRY(jinja_check(r, call, 0, NULL));
    return jinja_str(out, r, value);
}

/* Templates of chats are rendered without autoescape, so the mark changes later filters and joins
 * only. Filters that would have to keep it are refused: see the column `safe` of the table. */
static err filter_safe(struct jinja_value *out, struct jinja_run *r,
                       const struct jinja_value *value, const struct jinja_call *call)
{
    TRY(jinja_check(r, call, 0, NULL));
    TRY(jinja_str(out, r, value));
    out->safe = true;
    return ERR_NONE;
}

static err filter_escape(struct jinja_value *out, struct jinja_run *r,
                         const struct jinja_value *value, const struct jinja_call *call)
{
    struct jinja_value text;
    TRY(jinja_check(r, call, 0, NULL));
    TRY(jinja_str(&text, r, value));
    return jinja_string_escape(out, r, &text);
}

/* The first line is indented with `first`, empty lines with `blank`. */
static err filter_indent(struct jinja_value *out, struct jinja_run *r,
                         const struct jinja_value *value, const struct jinja_call *call)
{
    static const char *const names[] = {"width", "first", "blank", NULL};
    const struct jinja_value *width = jinja_given(r, call, 0, "width");
    bool first = false, blank = false;
    struct jinja_value lines, ended, pad = jinja_word("    ");
    TRY(jinja_check(r, call, 3, names));
    TRY(jinja_flag(&first, r, call, 1, "first"));
    TRY(jinja_flag(&blank, r, call, 2, "blank"));
    if (width && width->kind != JINJA_INT && width->kind != JINJA_TEXT)
        return jinja_fail(r, "indent: expected a width or a str");
    if (width && width->kind == JINJA_TEXT) pad = *width;
    const struct jinja_value one = jinja_word(" "), line = jinja_word("\n");
    if (width && width->kind == JINJA_INT) TRY(jinja_binary(&pad, r, OP_MUL, &one, width));
    TRY(jinja_binary(&ended, r, OP_ADD, value, &line));
    TRY(jinja_string_lines(&lines, r, &ended, false));
    size_t mark = jinja_capture(r);
    for (size_t i = 0; i < lines.list->count; i++) {
        const struct jinja_value *text = &lines.list->item[i];
        if (i) TRY(jinja_say(r, "\n", 1));
        if (i ? blank || text->text.size > 0 : first) TRY(jinja_print(r, &pad));
        TRY(jinja_print(r, text));
    }
    return jinja_captured(out, r, mark);
}

static err filter_wordcount(struct jinja_value *out, struct jinja_run *r,
                            const struct jinja_value *value, const struct jinja_call *call)
{
    struct jinja_value text;
    TRY(jinja_check(r, call, 0, NULL));
    TRY(jinja_str(&text, r, value));
    TRY(jinja_step(r, text.text.size / 16));
    *out = jinja_int((int64_t)jinja_string_words(&text));
    return ERR_NONE;
}

/* json.dumps(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False), as transformers
 * defines the filter: without the HTML escapes of jinja2's own. */
static err filter_tojson(struct jinja_value *out, struct jinja_run *r,
                         const struct jinja_value *value, const struct jinja_call *call)
{
    static const char *const names[] = {"ensure_ascii", "indent", "separators", "sort_keys", NULL};
    const struct jinja_value *indent = jinja_given_some(r, call, 1, "indent");
    const struct jinja_value *separators = jinja_given_some(r, call, 2, "separators");
    struct jinja_json how = {.item_separator = jinja_word(", "), .key_separator = jinja_word(": ")};
    TRY(jinja_check(r, call, 4, names));
    TRY(jinja_flag(&how.ascii, r, call, 0, "ensure_ascii"));
    TRY(jinja_flag(&how.sort, r, call, 3, "sort_keys"));
    if (indent) {
        struct jinja_value pad = *indent, one = jinja_word(" ");
        if (indent->kind == JINJA_INT) TRY(jinja_binary(&pad, r, OP_MUL, &one, indent));
        if (pad.kind != JINJA_TEXT)
            return jinja_fail(r, "tojson: expected a whole indent or a str");
        TRY(jinja_text_copy(&pad, r, pad.text.data, pad.text.size));
        how.indent = pad.text.data;
        how.item_separator = jinja_word(",");
    }
    if (separators) {
        const struct jinja_list *pair = jinja_is_list(separators) ? separators->list : NULL;
        if (!pair || pair->count != 2 || pair->item[0].kind != JINJA_TEXT ||
            pair->item[1].kind != JINJA_TEXT)
            return jinja_fail(r, "tojson: separators: expected two strings");
        how.item_separator = pair->item[0];
        how.key_separator = pair->item[1];
    }
    size_t mark = jinja_capture(r);
    TRY(jinja_print_json(r, value, &how, 0));
    return jinja_captured(out, r, mark);
}

/* ---- any value ---- */

/* Undefined values only, unless `boolean` is true: an empty text or none stays as it is. */
static err filter_default(struct jinja_value *out, struct jinja_run *r,
                          const struct jinja_value *value, const struct jinja_call *call)
{
    static const char *const names[] = {"default_value", "boolean", NULL};
    const struct jinja_value *other = jinja_given(r, call, 0, "default_value");
    bool boolean = false, truth = true;
    TRY(jinja_check(r, call, 2, names));
    TRY(jinja_flag(&boolean, r, call, 1, "boolean"));
    if (boolean) TRY(jinja_truth(&truth, r, value));
    bool replace = value->kind == JINJA_UNDEFINED || !truth;
    *out = !replace ? *value : other ? *other : jinja_word("");
    return ERR_NONE;
}

static err filter_length(struct jinja_value *out, struct jinja_run *r,
                         const struct jinja_value *value, const struct jinja_call *call)
{
    size_t length;
    TRY(jinja_check(r, call, 0, NULL));
    TRY(jinja_length(&length, r, value));
    *out = jinja_int((int64_t)length);
    return ERR_NONE;
}

/* ---- numbers ---- */

/* A number in the form of Python's int() or float(): white space around it, and single underscores
 * between digits. Returns false if `v` is no such text. */
static bool read_number(double *out, int64_t *whole, bool *is_whole, const struct jinja_value *v)
{
    char text[64], *end;
    struct jinja_value plain = jinja_string_strip(v, NULL, JINJA_LEFT | JINJA_RIGHT);
    size_t n = 0;
    if (plain.text.size == 0 || plain.text.size >= sizeof text) return false;
    for (size_t i = 0; i < plain.text.size; i++) {
        char c = plain.text.data[i];
        if (c == '_') {
            if (i == 0 || i + 1 == plain.text.size || !isdigit((unsigned char)text[n - 1]) ||
                !isdigit((unsigned char)plain.text.data[i + 1]))
                return false;
            continue;
        }
        if (!strchr("0123456789+-.eE", c) || c == 0) return false;
        text[n++] = c;
    }
    text[n] = 0;
    *is_whole =
        strspn(text + strspn(text, "+-"), "0123456789") == strlen(text + strspn(text, "+-"));
    errno = 0;
    *whole = *is_whole ? strtoll(text, &end, 10) : 0;
    if (*is_whole && errno) *is_whole = false;
    *out = strtod(text, &end);
    return *end == 0 && end > text;
}

/* A text that is no number gives the default and not an error. "42.9" counts as a number and is cut
 * to 42. */
static err filter_int(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *value,
                      const struct jinja_call *call)
{
    static const char *const names[] = {"default", "base", NULL};
    const struct jinja_value *other = jinja_given(r, call, 0, "default");
    double real = 0;
    int64_t whole = 0;
    bool is_whole = false;
    TRY(jinja_check(r, call, 2, names));
    if (jinja_given(r, call, 1, "base")) return jinja_fail(r, "int: a base is not supported");
    if (value->kind == JINJA_UNDEFINED) return jinja_undefined(r, value);
    *out = other ? *other : jinja_int(0);
    if (value->kind == JINJA_TEXT) {
        if (!read_number(&real, &whole, &is_whole, value)) return ERR_NONE;
    } else if (value->kind == JINJA_INT || value->kind == JINJA_BOOL) {
        is_whole = true;
        whole = jinja_whole(value);
    } else if (value->kind == JINJA_FLOAT) {
        real = value->real;
        if (isnan(real) || isinf(real)) return ERR_NONE;
    } else {
        return ERR_NONE;
    }
    if (!is_whole && !(real > -9.2e18 && real < 9.2e18))
        return jinja_fail(r, "int: a whole number needs more than 64 bits");
    *out = jinja_int(is_whole ? whole : (int64_t)real);
    return ERR_NONE;
}

static err filter_float(struct jinja_value *out, struct jinja_run *r,
                        const struct jinja_value *value, const struct jinja_call *call)
{
    static const char *const names[] = {"default", NULL};
    const struct jinja_value *other = jinja_given(r, call, 0, "default");
    double real = 0;
    int64_t whole;
    bool is_whole;
    TRY(jinja_check(r, call, 1, names));
    if (value->kind == JINJA_UNDEFINED) return jinja_undefined(r, value);
    *out = other ? *other : jinja_float(0);
    if (jinja_is_number(value))
        *out = jinja_float(jinja_real(value));
    else if (value->kind == JINJA_TEXT && read_number(&real, &whole, &is_whole, value))
        *out = jinja_float(real);
    return ERR_NONE;
}

/* Adding 0 turns true into 1 and -0.0 into 0.0, as Python's abs() does. */
static err filter_abs(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *value,
                      const struct jinja_call *call)
{
    const struct jinja_value zero = jinja_int(0);
    int order = 0;
    TRY(jinja_check(r, call, 0, NULL));
    TRY(jinja_order(&order, r, value, &zero));
    if (order < 0) return jinja_binary(out, r, OP_SUB, &zero, value);
    return jinja_binary(out, r, OP_ADD, &zero, value);
}

/* Python rounds a float by its exact decimal value, ties to even, as printf() does. */
static err filter_round(struct jinja_value *out, struct jinja_run *r,
                        const struct jinja_value *value, const struct jinja_call *call)
{
    static const char *const names[] = {"precision", "method", NULL};
    const struct jinja_value *precision = jinja_given(r, call, 0, "precision");
    const struct jinja_value *method = jinja_given(r, call, 1, "method");
    char text[400];
    int64_t digits = 0;
    TRY(jinja_check(r, call, 2, names));
    if (value->kind == JINJA_UNDEFINED) return jinja_undefined(r, value);
    if (!jinja_is_number(value)) return jinja_fail(r, "round: expected a number");
    if (precision && precision->kind != JINJA_INT)
        return jinja_fail(r, "round: expected a whole precision");
    if (precision) digits = precision->whole;
    if (digits < 0 || digits > 17) return jinja_fail(r, "round: expected a precision of 0 to 17");
    static const char *const methods[] = {"common", "ceil", "floor"};
    size_t how = 0;
    if (method && method->kind != JINJA_TEXT) how = 3;
    while (method && how < 3 &&
           (strlen(methods[how]) != method->text.size ||
            memcmp(methods[how], method->text.data, method->text.size) != 0))
        how++;
    if (how == 3) return jinja_fail(r, "round: method must be common, ceil or floor");
    double scale = pow(10, (double)digits), real = jinja_real(value);
    if (how == 1) {
        *out = jinja_float(ceil(real * scale) / scale);
    } else if (how == 2) {
        *out = jinja_float(floor(real * scale) / scale);
    } else if (value->kind != JINJA_FLOAT) {
        *out = jinja_int(jinja_whole(value));
    } else {
        (void)snprintf(text, sizeof text, "%.*f", (int)digits, real);
        *out = jinja_float(strtod(text, NULL));
    }
    return ERR_NONE;
}

/* ---- the table ---- */

/* All filters of jinja2, in its order. */
static const struct jinja_filter_row rows[] = {
    {"abs", filter_abs, false},
    {"attr", NULL, false},
    {"batch", jinja_filter_batch, false},
    {"capitalize", filter_case, false},
    {"center", NULL, false},
    {"count", filter_length, true},
    {"d", filter_default, true},
    {"default", filter_default, true},
    {"dictsort", jinja_filter_dictsort, false},
    {"e", filter_escape, true},
    {"escape", filter_escape, true},
    {"filesizeformat", NULL, false},
    {"first", jinja_filter_first, false},
    {"float", filter_float, false},
    {"forceescape", NULL, false},
    {"format", NULL, false},
    {"groupby", NULL, false},
    {"indent", filter_indent, false},
    {"int", filter_int, false},
    {"join", jinja_filter_join, false},
    {"last", jinja_filter_last, false},
    {"length", filter_length, true},
    {"list", jinja_filter_list, false},
    {"lower", filter_case, false},
    {"items", jinja_filter_items, false},
    {"map", jinja_filter_map, false},
    {"max", jinja_filter_minmax, false},
    {"min", jinja_filter_minmax, false},
    {"pprint", NULL, false},
    {"random", NULL, false},
    {"reject", jinja_filter_select, false},
    {"rejectattr", jinja_filter_select, false},
    {"replace", filter_replace, false},
    {"reverse", jinja_filter_reverse, false},
    {"round", filter_round, false},
    {"safe", filter_safe, true},
    {"select", jinja_filter_select, false},
    {"selectattr", jinja_filter_select, false},
    {"slice", jinja_filter_slice, false},
    {"sort", jinja_filter_sort, false},
    {"string", filter_string, true},
    {"striptags", NULL, false},
    {"sum", jinja_filter_sum, false},
    {"title", filter_title, false},
    {"tojson", filter_tojson, true},
    {"trim", filter_trim, false},
    {"truncate", NULL, false},
    {"unique", jinja_filter_unique, false},
    {"upper", filter_case, false},
    {"urlencode", NULL, false},
    {"urlize", NULL, false},
    {"wordcount", filter_wordcount, false},
    {"wordwrap", NULL, false},
    {"xmlattr", NULL, false},
};

const struct jinja_filter_row *jinja_filter_find(const char *name)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (strcmp(rows[i].name, name) == 0) return &rows[i];
    return NULL;
}

err jinja_filter_call(struct jinja_value *out, struct jinja_run *r,
                      const struct jinja_filter_row *row, const struct jinja_value *value,
                      const struct jinja_call *call)
{
    if (!row->call) return jinja_fail(r, "the filter \"%s\" is not supported", row->name);
    if (value->safe && !row->safe)
        return jinja_fail(r, "the filter \"%s\" of text marked by safe or escape is not supported",
                          row->name);
    TRY(jinja_step(r, 1));
    return row->call(out, r, value, call);
}
