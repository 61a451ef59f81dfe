/* Python's rules of truth, equality and order. */
#include "engine/tokens/jinja_parts.h"

#include <math.h>
#include <string.h>

const char *jinja_type(const struct jinja_value *v)
{
    static const char *const names[] = {
        [JINJA_UNDEFINED] = "Undefined", [JINJA_NONE] = "NoneType",
        [JINJA_BOOL] = "bool",           [JINJA_INT] = "int",
        [JINJA_FLOAT] = "float",         [JINJA_TEXT] = "str",
        [JINJA_LIST] = "list",           [JINJA_TUPLE] = "tuple",
        [JINJA_RANGE] = "range",         [JINJA_VIEW] = "dict view",
        [JINJA_STREAM] = "generator",    [JINJA_DICT] = "dict",
        [JINJA_NAMESPACE] = "Namespace", [JINJA_LOOP] = "loop",
        [JINJA_MACRO] = "macro",         [JINJA_FUNCTION] = "function",
        [JINJA_METHOD] = "method",
    };
    return names[v->kind];
}

/* The message of jinja2: a lookup in an object names the object's type, a bare name only itself. An
 * index that is out of range has no name. */
err jinja_undefined(const struct jinja_run *r, const struct jinja_value *v)
{
    const struct jinja_value owner = {.kind = v->of};
    if (!v->text.data) return jinja_fail(r, "the value is undefined");
    int size = v->text.size < 80 ? (int)v->text.size : 80;
    if (v->of == JINJA_UNDEFINED) return jinja_fail(r, "'%.*s' is undefined", size, v->text.data);
    return jinja_fail(r, "'%s object' has no attribute '%.*s'", jinja_type(&owner), size,
                      v->text.data);
}

/* Relies on the order of enum jinja_kind: all kinds that use `list` stand next to each other. */
bool jinja_is_list(const struct jinja_value *v)
{
    return v->kind >= JINJA_LIST && v->kind <= JINJA_STREAM;
}

bool jinja_is_number(const struct jinja_value *v)
{
    return v->kind == JINJA_INT || v->kind == JINJA_FLOAT || v->kind == JINJA_BOOL;
}

/* A Python bool is a whole number: true + true is 2. */
int64_t jinja_whole(const struct jinja_value *v)
{
    return v->kind == JINJA_BOOL ? v->truth : v->whole;
}

double jinja_real(const struct jinja_value *v)
{
    return v->kind == JINJA_FLOAT ? v->real : (double)jinja_whole(v);
}

/* The depth of lists is bounded where they are made, so the recursion ends. */
static err equal_lists(bool *out, struct jinja_run *r, const struct jinja_list *a,
                       const struct jinja_list *b)
{
    *out = a->count == b->count;
    for (size_t i = 0; i < a->count && *out; i++)
        TRY(jinja_equal(out, r, &a->item[i], &b->item[i]));
    return ERR_NONE;
}

/* The order of the keys does not matter. */
static err equal_dicts(bool *out, struct jinja_run *r, const struct jinja_dict *a,
                       const struct jinja_dict *b)
{
    *out = a->count == b->count;
    for (size_t i = 0; i < a->count && *out; i++) {
        bool same = false;
        size_t k = 0;
        for (; k < b->count && !same; k++)
            TRY(jinja_equal(&same, r, &a->entry[i].key, &b->entry[k].key));
        *out = same;
        if (same) TRY(jinja_equal(out, r, &a->entry[i].value, &b->entry[k - 1].value));
    }
    return ERR_NONE;
}

static bool equal_single(const struct jinja_value *a, const struct jinja_value *b)
{
    if (jinja_is_number(a) && jinja_is_number(b)) {
        if (a->kind != JINJA_FLOAT && b->kind != JINJA_FLOAT)
            return jinja_whole(a) == jinja_whole(b);
        return jinja_real(a) == jinja_real(b);
    }
    if (a->kind != b->kind) return false;
    switch ((enum jinja_kind)a->kind) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return true;
    case JINJA_TEXT:
        return a->text.size == b->text.size &&
               memcmp(a->text.data, b->text.data, a->text.size) == 0;
    default:
        return a->list == b->list;
    }
}

/* Values cannot contain themselves, since lists and dicts are immutable and a namespace is compared
 * by its address. But lists that hold one list twice, level by level, have exponentially many
 * items, so each comparison of two items counts as a step. */
err jinja_equal(bool *out, struct jinja_run *r, const struct jinja_value *a,
                const struct jinja_value *b)
{
    TRY(jinja_step(r, 1));
    if (a->kind == b->kind && a->kind == JINJA_DICT) return equal_dicts(out, r, a->dict, b->dict);
    if (a->kind == b->kind &&
        (a->kind == JINJA_LIST || a->kind == JINJA_TUPLE || a->kind == JINJA_RANGE))
        return equal_lists(out, r, a->list, b->list);
    *out = equal_single(a, b);
    return ERR_NONE;
}

static int order_numbers(const struct jinja_value *a, const struct jinja_value *b)
{
    if (a->kind != JINJA_FLOAT && b->kind != JINJA_FLOAT)
        return (jinja_whole(a) > jinja_whole(b)) - (jinja_whole(a) < jinja_whole(b));
    double x = jinja_real(a), y = jinja_real(b);
    return (x > y) - (x < y);
}

/* Bytes of UTF-8 have the order of the code points. */
static int order_texts(const struct jinja_value *a, const struct jinja_value *b)
{
    size_t n = a->text.size < b->text.size ? a->text.size : b->text.size;
    int order = memcmp(a->text.data, b->text.data, n);
    return order ? order : (a->text.size > b->text.size) - (a->text.size < b->text.size);
}

/* Lists are ordered by their first pair of items that differ. Equal pairs before it may be of a
 * kind without an order, such as none. NaN is refused, because the result of a sort would then
 * depend on the algorithm. */
err jinja_order(int *out, struct jinja_run *r, const struct jinja_value *a,
                const struct jinja_value *b)
{
    TRY(jinja_step(r, 1));
    if (a->kind == JINJA_UNDEFINED) return jinja_undefined(r, a);
    if (b->kind == JINJA_UNDEFINED) return jinja_undefined(r, b);
    if (jinja_is_number(a) && jinja_is_number(b)) {
        if (isnan(jinja_real(a)) || isnan(jinja_real(b)))
            return jinja_fail(r, "a comparison with NaN is not supported");
        *out = order_numbers(a, b);
    } else if (a->kind == JINJA_TEXT && b->kind == JINJA_TEXT) {
        *out = order_texts(a, b);
    } else if (a->kind == b->kind && (a->kind == JINJA_LIST || a->kind == JINJA_TUPLE)) {
        const struct jinja_list *x = a->list, *y = b->list;
        for (size_t i = 0; i < x->count && i < y->count; i++) {
            bool same;
            TRY(jinja_equal(&same, r, &x->item[i], &y->item[i]));
            if (same) continue;
            return jinja_order(out, r, &x->item[i], &y->item[i]);
        }
        *out = (x->count > y->count) - (x->count < y->count);
    } else {
        return jinja_fail(r, "'<' and '>' are not supported between '%s' and '%s'", jinja_type(a),
                          jinja_type(b));
    }
    return ERR_NONE;
}

err jinja_truth(bool *out, struct jinja_run *r, const struct jinja_value *v)
{
    (void)r;
    switch ((enum jinja_kind)v->kind) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        *out = false;
        break;
    case JINJA_BOOL:
        *out = v->truth;
        break;
    case JINJA_INT:
        *out = v->whole != 0;
        break;
    case JINJA_FLOAT:
        *out = v->real != 0;
        break;
    case JINJA_TEXT:
        *out = v->text.size > 0;
        break;
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_RANGE:
    case JINJA_VIEW:
        *out = v->list->count > 0;
        break;
    case JINJA_DICT:
        *out = v->dict->count > 0;
        break;
    default:
        *out = true; /* a generator, too, is true in Python, even an empty one */
    }
    return ERR_NONE;
}

/* One text for each code point. They borrow from `v`, so only the list costs memory. */
static err text_items(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v)
{
    TRY(jinja_list(out, r, JINJA_LIST, jinja_characters(v->text.data, v->text.size)));
    for (size_t at = 0; at < v->text.size;) {
        size_t n = jinja_offset(v->text.data + at, v->text.size - at, 1);
        struct jinja_value one = jinja_text(v->text.data + at, n);
        TRY(jinja_push(r, out, &one));
        at += n;
    }
    return ERR_NONE;
}

/* A stream hands over its unread items and is left empty, like a Python generator. Lists, tuples,
 * ranges and views are returned as they are, so callers must not change the items. */
err jinja_items(struct jinja_list **out, struct jinja_run *r, const struct jinja_value *v)
{
    struct jinja_value made;
    if (v->kind == JINJA_STREAM) {
        struct jinja_list *list = v->list;
        TRY(jinja_list(&made, r, JINJA_LIST, 0));
        made.list->item = list->item + list->next;
        made.list->count = made.list->capacity = list->count - list->next;
        list->next = list->count;
    } else if (jinja_is_list(v)) {
        made = *v;
    } else if (v->kind == JINJA_TEXT) {
        TRY(text_items(&made, r, v));
    } else if (v->kind == JINJA_DICT) {
        TRY(jinja_list(&made, r, JINJA_LIST, v->dict->count));
        for (size_t i = 0; i < v->dict->count; i++)
            TRY(jinja_push(r, &made, &v->dict->entry[i].key));
    } else if (v->kind == JINJA_UNDEFINED) {
        TRY(jinja_list(&made, r, JINJA_LIST, 0));
    } else {
        return jinja_fail(r, "'%s' object is not iterable", jinja_type(v));
    }
    TRY(jinja_step(r, made.list->count));
    *out = made.list;
    return ERR_NONE;
}

/* The length of a text is in code points. */
err jinja_length(size_t *out, struct jinja_run *r, const struct jinja_value *v)
{
    if (v->kind == JINJA_TEXT)
        *out = jinja_characters(v->text.data, v->text.size);
    else if (v->kind == JINJA_DICT)
        *out = v->dict->count;
    else if (jinja_is_list(v) && v->kind != JINJA_STREAM)
        *out = v->list->count;
    else if (v->kind == JINJA_UNDEFINED)
        *out = 0;
    else
        return jinja_fail(r, "object of type '%s' has no len()", jinja_type(v));
    return v->kind == JINJA_TEXT ? jinja_step(r, v->text.size / 64) : ERR_NONE;
}

/* For a text, "in" looks for a part; for a dict, for a key. */
err jinja_contains(bool *out, struct jinja_run *r, const struct jinja_value *container,
                   const struct jinja_value *item)
{
    if (container->kind == JINJA_TEXT) {
        if (item->kind == JINJA_UNDEFINED) return jinja_undefined(r, item);
        if (item->kind != JINJA_TEXT)
            return jinja_fail(r, "'in <string>' requires string as left operand, not %s",
                              jinja_type(item));
        TRY(jinja_step(r, container->text.size / 64));
        *out = memmem(container->text.data, container->text.size, item->text.data,
                      item->text.size) != NULL;
        return ERR_NONE;
    }
    if (container->kind == JINJA_DICT) {
        struct jinja_value *found;
        TRY(jinja_get(&found, r, container, item));
        *out = found != NULL;
        return ERR_NONE;
    }
    if (container->kind == JINJA_STREAM) /* Python would read it up to the item */
        return jinja_fail(r, "'in' of a generator is not supported; use | list");
    struct jinja_list *list;
    TRY(jinja_items(&list, r, container));
    bool found = false;
    for (size_t i = 0; i < list->count && !found; i++)
        TRY(jinja_equal(&found, r, &list->item[i], item));
    *out = found;
    return ERR_NONE;
}
