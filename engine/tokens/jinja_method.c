/* Methods of Python's strings, dicts, lists and tuples. Methods that change a list or a dict are
 * refused by the immutable sandbox of transformers, and so are they here. */
#include "base/limits.h"
#include "engine/tokens/jinja_parts.h"
#include "engine/tokens/jinja_string.h"

#include <string.h>

#define KIND(k) (1u << (k))

/* ---- texts: stripping and cases ---- */

/* str.strip([chars]) and its two halves. */
static err strip(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                 const struct jinja_call *call, int sides)
{
    const struct jinja_value *set = jinja_given_some(r, call, 0, NULL);
    TRY(jinja_check(r, call, 1, NULL));
    if (set && set->kind != JINJA_TEXT)
        return jinja_fail(r, "%s arg must be None or str", call->what);
    TRY(jinja_step(r, self->text.size / 64));
    *out = jinja_string_strip(self, set, sides);
    return ERR_NONE;
}
static err call_strip(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                      const struct jinja_call *call)
{
    return strip(out, r, self, call, JINJA_LEFT | JINJA_RIGHT);
}
static err call_lstrip(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                       const struct jinja_call *call)
{
    return strip(out, r, self, call, JINJA_LEFT);
}
static err call_rstrip(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                       const struct jinja_call *call)
{
    return strip(out, r, self, call, JINJA_RIGHT);
}

static err call_case(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                     const struct jinja_call *call)
{
    TRY(jinja_check(r, call, 0, NULL));
    enum jinja_case how = strcmp(call->what, "upper") == 0        ? JINJA_UPPER
                          : strcmp(call->what, "lower") == 0      ? JINJA_LOWER
                          : strcmp(call->what, "capitalize") == 0 ? JINJA_CAPITALIZE
                                                                  : JINJA_TITLE;
    return jinja_string_case(out, r, self, how);
}

static err call_is(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                   const struct jinja_call *call)
{
    TRY(jinja_check(r, call, 0, NULL));
    bool is;
    TRY(jinja_string_is(&is, r, self, call->what + 2));
    *out = jinja_bool(is);
    return ERR_NONE;
}

/* ---- texts: searching ---- */

/* Python gives these parameters no names, so an argument is found by its place alone. */
static err need_text(const struct jinja_run *r, const struct jinja_call *call, size_t at)
{
    if (call->count <= at)
        return jinja_fail(r, "%s: expected at least %zu argument(s)", call->what, at + 1);
    const struct jinja_value *v = &call->argument[at].value;
    if (v->kind == JINJA_UNDEFINED) return jinja_undefined(r, v);
    if (v->kind != JINJA_TEXT)
        return jinja_fail(r, "%s: expected a str, not %s", call->what, jinja_type(v));
    return ERR_NONE;
}

static bool has_end(const struct jinja_value *self, const struct jinja_value *part, bool end)
{
    if (part->text.size > self->text.size) return false;
    const char *at = self->text.data + (end ? self->text.size - part->text.size : 0);
    return memcmp(at, part->text.data, part->text.size) == 0;
}

/* str.startswith() and endswith() take a text or a tuple of texts. */
static err call_ends(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                     const struct jinja_call *call)
{
    bool end = call->what[0] == 'e', found = false;
    TRY(jinja_check(r, call, 1, NULL));
    const struct jinja_value *part = jinja_given(r, call, 0, NULL);
    if (part && part->kind == JINJA_TUPLE) {
        for (size_t i = 0; i < part->list->count; i++) {
            const struct jinja_value *one = &part->list->item[i];
            if (one->kind != JINJA_TEXT)
                return jinja_fail(r, "%s: tuple must only contain str", call->what);
            found = found || has_end(self, one, end);
        }
    } else {
        TRY(need_text(r, call, 0));
        found = has_end(self, part, end);
    }
    *out = jinja_bool(found);
    return ERR_NONE;
}

/* find, rfind, index, rindex: the number of code points before the part. */
static err call_find(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                     const struct jinja_call *call)
{
    TRY(need_text(r, call, 0));
    TRY(jinja_check(r, call, 1, NULL));
    TRY(jinja_step(r, self->text.size / 16));
    const struct jinja_value *part = &call->argument[0].value;
    bool right = call->what[0] == 'r', index = strstr(call->what, "index") != NULL;
    const char *at;
    TRY(jinja_string_find(&at, r, self, part, right));
    if (!at && index) return jinja_fail(r, "substring not found");
    *out = jinja_int(at ? (int64_t)jinja_characters(self->text.data, (size_t)(at - self->text.data))
                        : -1);
    return ERR_NONE;
}

/* Occurrences that do not overlap. An empty part occurs before every code point and at the end. */
static err call_count(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                      const struct jinja_call *call)
{
    TRY(need_text(r, call, 0));
    TRY(jinja_check(r, call, 1, NULL));
    TRY(jinja_step(r, self->text.size / 16));
    const struct jinja_value *part = &call->argument[0].value;
    int64_t count = 0;
    struct jinja_value rest = *self;
    if (part->text.size == 0)
        count = (int64_t)jinja_characters(self->text.data, self->text.size) + 1;
    for (const char *at; part->text.size > 0; count++) {
        TRY(jinja_string_find(&at, r, &rest, part, false));
        if (!at) break;
        const char *next = at + part->text.size;
        rest = jinja_text(next, (size_t)(rest.text.data + rest.text.size - next));
    }
    *out = jinja_int(count);
    return ERR_NONE;
}

/* ---- texts: taking apart and putting together ---- */

static err call_split(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                      const struct jinja_call *call)
{
    static const char *const names[] = {"sep", "maxsplit", NULL};
    const struct jinja_value *by = jinja_given_some(r, call, 0, "sep");
    const struct jinja_value *most = jinja_given(r, call, 1, "maxsplit");
    TRY(jinja_check(r, call, 2, names));
    if (by && by->kind != JINJA_TEXT) return jinja_fail(r, "split: must be str or None");
    if (by && by->text.size == 0) return jinja_fail(r, "split: empty separator");
    if (most && most->kind != JINJA_INT) return jinja_fail(r, "split: maxsplit must be an integer");
    return jinja_string_split(
        out, r, self, by,
        &(struct jinja_split){.most = most ? most->whole : -1, .right = call->what[0] == 'r'});
}

/* Python knows more line ends than "\n": see is_line_end() in jinja_string.c. */
static err call_splitlines(struct jinja_value *out, struct jinja_run *r,
                           const struct jinja_value *self, const struct jinja_call *call)
{
    static const char *const names[] = {"keepends", NULL};
    bool keeps = false;
    TRY(jinja_check(r, call, 1, names));
    TRY(jinja_flag(&keeps, r, call, 0, "keepends"));
    return jinja_string_lines(out, r, self, keeps);
}

/* Without the separator the whole text is first, or last for rpartition(). */
static err call_partition(struct jinja_value *out, struct jinja_run *r,
                          const struct jinja_value *self, const struct jinja_call *call)
{
    TRY(need_text(r, call, 0));
    TRY(jinja_check(r, call, 1, NULL));
    const struct jinja_value *by = &call->argument[0].value;
    bool right = call->what[0] == 'r';
    if (by->text.size == 0) return jinja_fail(r, "%s: empty separator", call->what);
    const char *at;
    TRY(jinja_string_find(&at, r, self, by, right));
    struct jinja_value part[3] = {*self, jinja_word(""), jinja_word("")};
    if (at) {
        const char *next = at + by->text.size;
        part[0] = jinja_text(self->text.data, (size_t)(at - self->text.data));
        part[1] = *by;
        part[2] = jinja_text(next, (size_t)(self->text.data + self->text.size - next));
    } else if (right) {
        part[0] = part[2], part[2] = *self;
    }
    TRY(jinja_list(out, r, JINJA_TUPLE, 3));
    for (int i = 0; i < 3; i++)
        TRY(jinja_push(r, out, &part[i]));
    return ERR_NONE;
}

static err call_replace(struct jinja_value *out, struct jinja_run *r,
                        const struct jinja_value *self, const struct jinja_call *call)
{
    const struct jinja_value *most = jinja_given(r, call, 2, "count");
    static const char *const names[] = {"count", NULL};
    TRY(need_text(r, call, 0));
    TRY(need_text(r, call, 1));
    TRY(jinja_check(r, call, 3, names));
    if (most && most->kind != JINJA_INT) return jinja_fail(r, "replace: count must be an integer");
    return jinja_string_replace(out, r, self, &call->argument[0].value, &call->argument[1].value,
                                most ? most->whole : -1);
}

static err call_remove(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                       const struct jinja_call *call)
{
    TRY(need_text(r, call, 0));
    TRY(jinja_check(r, call, 1, NULL));
    bool end = call->what[6] == 's'; /* removesuffix */
    const struct jinja_value *part = &call->argument[0].value;
    *out = *self;
    if (!has_end(self, part, end)) return ERR_NONE;
    *out = jinja_text(self->text.data + (end ? 0 : part->text.size),
                      self->text.size - part->text.size);
    return ERR_NONE;
}

/* Unlike the filter, the method takes only strings. */
static err call_join(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                     const struct jinja_call *call)
{
    struct jinja_list *items;
    TRY(jinja_check(r, call, 1, NULL));
    if (call->count != 1) return jinja_fail(r, "join: expected one argument");
    if (call->argument[0].value.kind == JINJA_UNDEFINED) /* not a list in Python */
        return jinja_undefined(r, &call->argument[0].value);
    TRY(jinja_items(&items, r, &call->argument[0].value));
    size_t mark = jinja_capture(r);
    for (size_t i = 0; i < items->count; i++) {
        if (items->item[i].kind != JINJA_TEXT)
            return jinja_fail(r, "join: sequence item %zu: expected str instance, %s found", i,
                              jinja_type(&items->item[i]));
        if (i) TRY(jinja_print(r, self));
        TRY(jinja_print(r, &items->item[i]));
    }
    return jinja_captured(out, r, mark);
}

/* ljust, rjust and zfill. */
static err call_just(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                     const struct jinja_call *call)
{
    const struct jinja_value *width = jinja_given(r, call, 0, NULL);
    const struct jinja_value *fill = jinja_given(r, call, 1, NULL);
    bool zeros = call->what[0] == 'z';
    struct jinja_value blank = jinja_word(zeros ? "0" : " ");
    TRY(jinja_check(r, call, zeros ? 1 : 2, NULL));
    if (!width || width->kind != JINJA_INT)
        return jinja_fail(r, "%s: expected a width", call->what);
    if (!fill) fill = &blank;
    if (fill->kind != JINJA_TEXT || jinja_characters(fill->text.data, fill->text.size) != 1)
        return jinja_fail(r, "%s: expected one character to fill with", call->what);
    int64_t have = (int64_t)jinja_characters(self->text.data, self->text.size);
    size_t pad = width->whole > have ? (size_t)(width->whole - have) : 0, mark = jinja_capture(r);
    bool left = call->what[0] == 'l',
         sign = zeros && self->text.size > 0 && strchr("+-", self->text.data[0]) != NULL;
    if (left) TRY(jinja_print(r, self));
    if (sign) TRY(jinja_say(r, self->text.data, 1));
    TRY(jinja_step(r, pad));
    for (size_t i = 0; i < pad; i++)
        TRY(jinja_print(r, fill));
    if (!left) TRY(jinja_say(r, self->text.data + sign, self->text.size - sign));
    return jinja_captured(out, r, mark);
}

/* ---- dicts, lists, loops ---- */

/* A view is a copy here, which is the same because dicts are immutable. */
static err call_view(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                     const struct jinja_call *call)
{
    TRY(jinja_check(r, call, 0, NULL));
    bool keys = call->what[0] == 'k', values = call->what[0] == 'v';
    TRY(jinja_step(r, self->dict->count));
    TRY(jinja_list(out, r, JINJA_VIEW, self->dict->count));
    out->list->label = keys ? "dict_keys" : values ? "dict_values" : "dict_items";
    for (size_t i = 0; i < self->dict->count; i++) {
        const struct jinja_entry *e = &self->dict->entry[i];
        struct jinja_value pair;
        if (keys || values) {
            TRY(jinja_push(r, out, keys ? &e->key : &e->value));
            continue;
        }
        TRY(jinja_list(&pair, r, JINJA_TUPLE, 2));
        TRY(jinja_push(r, &pair, &e->key));
        TRY(jinja_push(r, &pair, &e->value));
        TRY(jinja_push(r, out, &pair));
    }
    return ERR_NONE;
}

static err call_get(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                    const struct jinja_call *call)
{
    const struct jinja_value *key = jinja_given(r, call, 0, NULL);
    const struct jinja_value *other = jinja_given(r, call, 1, NULL);
    struct jinja_value *found;
    TRY(jinja_check(r, call, 2, NULL));
    if (!key) return jinja_fail(r, "get: expected at least 1 argument, got 0");
    TRY(jinja_get(&found, r, self, key));
    *out = found ? *found : other ? *other : (struct jinja_value){.kind = JINJA_NONE};
    return ERR_NONE;
}

static err call_copy(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                     const struct jinja_call *call)
{
    TRY(jinja_check(r, call, 0, NULL));
    *out = *self; /* both are immutable */
    return ERR_NONE;
}

static err call_list_find(struct jinja_value *out, struct jinja_run *r,
                          const struct jinja_value *self, const struct jinja_call *call)
{
    TRY(jinja_check(r, call, 1, NULL));
    if (call->count != 1) return jinja_fail(r, "%s: expected one argument", call->what);
    bool count = call->what[0] == 'c';
    int64_t found = 0;
    for (size_t i = 0; i < self->list->count; i++) {
        bool same;
        TRY(jinja_equal(&same, r, &self->list->item[i], &call->argument[0].value));
        if (!same) continue;
        found++;
        if (count) continue;
        *out = jinja_int((int64_t)i);
        return ERR_NONE;
    }
    if (!count) return jinja_fail(r, "index: the value is not in the list");
    *out = jinja_int(found);
    return ERR_NONE;
}

/* loop.cycle() gives its arguments in turn. */
static err call_cycle(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                      const struct jinja_call *call)
{
    if (call->count == 0) return jinja_fail(r, "cycle: no items for cycling given");
    *out = call->argument[self->loop->index % call->count].value;
    return ERR_NONE;
}

/* ---- the table ---- */

enum {
    TEXT = KIND(JINJA_TEXT),
    DICT = KIND(JINJA_DICT),
    LIST = KIND(JINJA_LIST),
    LISTS = KIND(JINJA_LIST) | KIND(JINJA_TUPLE),
    INT = KIND(JINJA_INT) | KIND(JINJA_BOOL),
    NUMBER = KIND(JINJA_INT) | KIND(JINJA_BOOL) | KIND(JINJA_FLOAT),
};

/* All public attributes of these Python types. */
static const struct jinja_method_row rows[] = {
    {"capitalize", TEXT, call_case},
    {"casefold", TEXT, NULL},
    {"center", TEXT, NULL},
    {"count", TEXT, call_count},
    {"encode", TEXT, NULL},
    {"endswith", TEXT, call_ends},
    {"expandtabs", TEXT, NULL},
    {"find", TEXT, call_find},
    {"format", TEXT, NULL},
    {"format_map", TEXT, NULL},
    {"index", TEXT, call_find},
    {"isalnum", TEXT, call_is},
    {"isalpha", TEXT, call_is},
    {"isascii", TEXT, call_is},
    {"isdecimal", TEXT, call_is},
    {"isdigit", TEXT, call_is},
    {"isidentifier", TEXT, NULL},
    {"islower", TEXT, call_is},
    {"isnumeric", TEXT, NULL},
    {"isprintable", TEXT, NULL},
    {"isspace", TEXT, call_is},
    {"istitle", TEXT, NULL},
    {"isupper", TEXT, call_is},
    {"join", TEXT, call_join},
    {"ljust", TEXT, call_just},
    {"lower", TEXT, call_case},
    {"lstrip", TEXT, call_lstrip},
    {"maketrans", TEXT, NULL},
    {"partition", TEXT, call_partition},
    {"removeprefix", TEXT, call_remove},
    {"removesuffix", TEXT, call_remove},
    {"replace", TEXT, call_replace},
    {"rfind", TEXT, call_find},
    {"rindex", TEXT, call_find},
    {"rjust", TEXT, call_just},
    {"rpartition", TEXT, call_partition},
    {"rsplit", TEXT, call_split},
    {"rstrip", TEXT, call_rstrip},
    {"split", TEXT, call_split},
    {"splitlines", TEXT, call_splitlines},
    {"startswith", TEXT, call_ends},
    {"strip", TEXT, call_strip},
    {"swapcase", TEXT, NULL},
    {"title", TEXT, call_case},
    {"translate", TEXT, NULL},
    {"upper", TEXT, call_case},
    {"zfill", TEXT, call_just},
    {"clear", DICT | LIST, NULL},
    {"copy", DICT | LIST, call_copy},
    {"fromkeys", DICT, NULL},
    {"get", DICT, call_get},
    {"items", DICT, call_view},
    {"keys", DICT, call_view},
    {"pop", DICT | LIST, NULL},
    {"popitem", DICT, NULL},
    {"setdefault", DICT, NULL},
    {"update", DICT, NULL},
    {"values", DICT, call_view},
    {"append", LIST, NULL},
    {"count", LISTS, call_list_find},
    {"extend", LIST, NULL},
    {"index", LISTS, call_list_find},
    {"insert", LIST, NULL},
    {"remove", LIST, NULL},
    {"reverse", LIST, NULL},
    {"sort", LIST, NULL},
    {"as_integer_ratio", NUMBER, NULL},
    {"bit_count", INT, NULL},
    {"bit_length", INT, NULL},
    {"conjugate", NUMBER, NULL},
    {"denominator", INT, NULL},
    {"from_bytes", INT, NULL},
    {"fromhex", KIND(JINJA_FLOAT), NULL},
    {"hex", KIND(JINJA_FLOAT), NULL},
    {"imag", NUMBER, NULL},
    {"is_integer", NUMBER, NULL},
    {"numerator", INT, NULL},
    {"real", NUMBER, NULL},
    {"to_bytes", INT, NULL},
    {"isdisjoint", KIND(JINJA_VIEW), NULL},
    {"mapping", KIND(JINJA_VIEW), NULL},
    {"cycle", KIND(JINJA_LOOP), call_cycle},
    {"changed", KIND(JINJA_LOOP), NULL},
};

const struct jinja_method_row *jinja_method_find(const char *name, size_t size, uint8_t kind)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].kinds & KIND(kind) && strlen(rows[i].name) == size &&
            memcmp(rows[i].name, name, size) == 0)
            return &rows[i];
    return NULL;
}
