/* Filters of sequences. A filter that is a generator in jinja2 gives a stream, which can be read
 * once. */
#include "base/limits.h"
#include "engine/tokens/jinja_filter.h"
#include "engine/tokens/jinja_string.h"

#include <string.h>

/* ---- attributes: "a.b.0" ---- */

/* A part that is a number is an index. `other` replaces an undefined value after each part and not
 * only after the last one, as in jinja2. */
static err get_attribute(struct jinja_value *out, struct jinja_run *r,
                         const struct jinja_value *item, const struct jinja_value *path,
                         const struct jinja_value *other)
{
    struct jinja_value at = *item;
    if (path->kind == JINJA_INT) return jinja_item(out, r, item, path);
    if (path->kind != JINJA_TEXT)
        return jinja_fail(r, "an attribute must be a str or int, not %s", jinja_type(path));
    const char *name = path->text.data, *end = name + path->text.size;
    for (;;) {
        const char *dot = memchr(name, '.', (size_t)(end - name));
        size_t size = (size_t)((dot ? dot : end) - name), digits = 0;
        int64_t index = 0;
        while (digits < size && digits < 9 && name[digits] >= '0' && name[digits] <= '9')
            index = 10 * index + (name[digits++] - '0');
        const struct jinja_value key =
            digits == size && size > 0 ? jinja_int(index) : jinja_text(name, size);
        struct jinja_value next;
        TRY(jinja_item(&next, r, &at, &key));
        at = next;
        if (other && at.kind == JINJA_UNDEFINED) at = *other;
        if (!dot) break;
        name = dot + 1;
    }
    *out = at;
    return ERR_NONE;
}

/* The key by which sort, unique, min, max and dictsort compare items. Texts are compared in lower
 * case unless `case_sensitive` is set. */
struct ordering {
    const struct jinja_value *attribute; /* NULL: the item itself */
    bool case_sensitive;
};

static err order_key(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *item,
                     const struct ordering *how)
{
    struct jinja_value key = *item;
    if (how->attribute) TRY(get_attribute(&key, r, item, how->attribute, NULL));
    *out = key;
    if (how->case_sensitive || key.kind != JINJA_TEXT) return ERR_NONE;
    return jinja_string_case(out, r, &key, JINJA_LOWER);
}

static err read_ordering(struct ordering *out, struct jinja_run *r, const struct jinja_call *call,
                         size_t position)
{
    const struct jinja_value *attribute = jinja_given_some(r, call, position + 1, "attribute");
    if (attribute && attribute->kind == JINJA_TEXT &&
        memchr(attribute->text.data, ',', attribute->text.size))
        return jinja_fail(r, "%s: several attributes are not supported", call->what);
    out->attribute = attribute;
    return jinja_flag(&out->case_sensitive, r, call, position, "case_sensitive");
}

/* Sorts items by keys with a stable merge: equal items keep their order, also in reverse. */
static err sort_by(struct jinja_value *item, struct jinja_value *key, struct jinja_run *r,
                   size_t count, bool reverse)
{
    struct jinja_value *other;
    TRY(jinja_take(&other, r, 2 * count + 1, sizeof *other));
    for (size_t width = 1; width < count; width *= 2) {
        for (size_t begin = 0; begin < count; begin += 2 * width) {
            size_t middle = begin + width < count ? begin + width : count;
            size_t end = begin + 2 * width < count ? begin + 2 * width : count;
            for (size_t i = begin, k = middle, n = begin; n < end; n++) {
                int order = k < end ? 1 : -1;
                if (i < middle && k < end) {
                    TRY(jinja_order(&order, r, &key[i], &key[k]));
                    if (reverse) order = -order;
                }
                size_t from = order <= 0 ? i++ : k++;
                other[2 * n] = item[from];
                other[2 * n + 1] = key[from];
            }
            for (size_t n = begin; n < end; n++) {
                item[n] = other[2 * n];
                key[n] = other[2 * n + 1];
            }
        }
    }
    return ERR_NONE;
}

static err sorted(struct jinja_value *out, struct jinja_run *r, const struct jinja_list *items,
                  const struct ordering *how, bool reverse)
{
    struct jinja_value *key;
    TRY(jinja_list(out, r, JINJA_LIST, items->count));
    TRY(jinja_take(&key, r, items->count, sizeof *key));
    for (size_t i = 0; i < items->count; i++) {
        TRY(order_key(&key[i], r, &items->item[i], how));
        TRY(jinja_push(r, out, &items->item[i]));
    }
    return sort_by(out->list->item, key, r, items->count, reverse);
}

/* Gives a list, unlike most filters of sequences. */
JINJA_FILTER(sort)
{
    static const char *const names[] = {"reverse", "case_sensitive", "attribute", NULL};
    struct jinja_list *items;
    struct ordering how;
    bool reverse;
    TRY(jinja_check(r, call, 3, names));
    TRY(jinja_flag(&reverse, r, call, 0, "reverse"));
    TRY(read_ordering(&how, r, call, 1));
    TRY(jinja_items(&items, r, value));
    return sorted(out, r, items, &how, reverse);
}

/* Pairs of a dict, by key or by value. */
JINJA_FILTER(dictsort)
{
    static const char *const names[] = {"case_sensitive", "by", "reverse", NULL};
    const struct jinja_value *by = jinja_given(r, call, 1, "by");
    struct jinja_value pairs, position = jinja_int(0), value_word = jinja_word("value");
    struct ordering how = {.attribute = &position};
    bool reverse, by_value = false;
    TRY(jinja_check(r, call, 3, names));
    TRY(jinja_flag(&how.case_sensitive, r, call, 0, "case_sensitive"));
    TRY(jinja_flag(&reverse, r, call, 2, "reverse"));
    if (by) TRY(jinja_equal(&by_value, r, by, &value_word));
    if (by_value) position = jinja_int(1);
    if (value->kind != JINJA_DICT)
        return jinja_fail(r, "dictsort: expected a dict, not %s", jinja_type(value));
    TRY(jinja_filter_items(&pairs, r, value, &(struct jinja_call){.what = call->what}));
    return sorted(out, r, pairs.list, &how, reverse);
}

/* The first of equal items is kept. */
JINJA_FILTER(unique)
{
    static const char *const names[] = {"case_sensitive", "attribute", NULL};
    struct jinja_list *items;
    struct jinja_value seen, key;
    struct ordering how;
    TRY(jinja_check(r, call, 2, names));
    TRY(read_ordering(&how, r, call, 0));
    TRY(jinja_items(&items, r, value));
    TRY(jinja_list(out, r, JINJA_STREAM, items->count));
    TRY(jinja_list(&seen, r, JINJA_LIST, items->count));
    for (size_t i = 0; i < items->count; i++) {
        TRY(order_key(&key, r, &items->item[i], &how));
        bool again = false;
        for (size_t k = 0; k < seen.list->count && !again; k++)
            TRY(jinja_equal(&again, r, &seen.list->item[k], &key));
        if (again) continue;
        TRY(jinja_push(r, &seen, &key));
        TRY(jinja_push(r, out, &items->item[i]));
    }
    return ERR_NONE;
}

static struct jinja_value nothing(void)
{
    return (struct jinja_value){.kind = JINJA_UNDEFINED};
}

/* max and min; the first of equal items. */
JINJA_FILTER(minmax)
{
    static const char *const names[] = {"case_sensitive", "attribute", NULL};
    struct jinja_list *items;
    struct jinja_value key, best = nothing();
    struct ordering how;
    TRY(jinja_check(r, call, 2, names));
    TRY(read_ordering(&how, r, call, 0));
    TRY(jinja_items(&items, r, value));
    *out = nothing();
    for (size_t i = 0; i < items->count; i++) {
        int order = 1;
        TRY(order_key(&key, r, &items->item[i], &how));
        if (i > 0) TRY(jinja_order(&order, r, &key, &best));
        if (i > 0 && (call->what[1] == 'a' ? order <= 0 : order >= 0)) continue;
        best = key;
        *out = items->item[i];
    }
    return ERR_NONE;
}

/* ---- parts of a sequence ---- */

JINJA_FILTER(first)
{
    struct jinja_list *items;
    TRY(jinja_check(r, call, 0, NULL));
    *out = nothing();
    if (value->kind == JINJA_STREAM) { /* takes one item and leaves the rest */
        if (value->list->next < value->list->count) *out = value->list->item[value->list->next++];
        return ERR_NONE;
    }
    TRY(jinja_items(&items, r, value));
    if (items->count > 0) *out = items->item[0];
    return ERR_NONE;
}

/* Reads from the end, which a generator does not allow. */
JINJA_FILTER(last)
{
    struct jinja_list *items;
    TRY(jinja_check(r, call, 0, NULL));
    if (value->kind == JINJA_STREAM) return jinja_fail(r, "'generator' object is not reversible");
    TRY(jinja_items(&items, r, value));
    *out = items->count > 0 ? items->item[items->count - 1] : nothing();
    return ERR_NONE;
}

static err copy_items(struct jinja_value *out, struct jinja_run *r, enum jinja_kind kind,
                      const struct jinja_list *items)
{
    TRY(jinja_list(out, r, kind, items->count));
    for (size_t i = 0; i < items->count; i++)
        TRY(jinja_push(r, out, &items->item[i]));
    return ERR_NONE;
}

JINJA_FILTER(list)
{
    struct jinja_list *items;
    TRY(jinja_check(r, call, 0, NULL));
    TRY(jinja_items(&items, r, value));
    return copy_items(out, r, JINJA_LIST, items);
}

JINJA_FILTER(items)
{
    struct jinja_value view;
    TRY(jinja_check(r, call, 0, NULL));
    if (value->kind == JINJA_UNDEFINED) return jinja_list(out, r, JINJA_STREAM, 0);
    if (value->kind != JINJA_DICT)
        return jinja_fail(r, "items: can only get item pairs from a mapping, not %s",
                          jinja_type(value));
    TRY(jinja_method_find("items", 5, JINJA_DICT)
            ->call(&view, r, value, &(struct jinja_call){.what = "items"}));
    return copy_items(out, r, JINJA_STREAM, view.list);
}

JINJA_FILTER(reverse)
{
    struct jinja_list *items;
    TRY(jinja_check(r, call, 0, NULL));
    TRY(jinja_items(&items, r, value));
    /* reversed() refuses a generator, and jinja2 then makes a list. */
    TRY(jinja_list(out, r, value->kind == JINJA_STREAM ? JINJA_LIST : JINJA_STREAM, items->count));
    for (size_t i = items->count; i-- > 0;)
        TRY(jinja_push(r, out, &items->item[i]));
    if (value->kind != JINJA_TEXT) return ERR_NONE;
    struct jinja_value letters = *out;
    size_t mark = jinja_capture(r);
    for (size_t i = 0; i < letters.list->count; i++)
        TRY(jinja_print(r, &letters.list->item[i]));
    return jinja_captured(out, r, mark);
}

static err whole_argument(size_t *out, struct jinja_run *r, const struct jinja_call *call,
                          const char *name)
{
    const struct jinja_value *v = jinja_given(r, call, 0, name);
    if (!v || v->kind != JINJA_INT || v->whole < 1 || v->whole > 1000000)
        return jinja_fail(r, "%s: expected a number from 1 to 1000000", call->what);
    *out = (size_t)v->whole;
    return ERR_NONE;
}

/* Lists of `linecount` items. */
JINJA_FILTER(batch)
{
    static const char *const names[] = {"linecount", "fill_with", NULL};
    const struct jinja_value *fill = jinja_given_some(r, call, 1, "fill_with");
    struct jinja_list *items;
    struct jinja_value line;
    size_t n = 0;
    TRY(jinja_check(r, call, 2, names));
    TRY(whole_argument(&n, r, call, "linecount"));
    TRY(jinja_items(&items, r, value));
    TRY(jinja_list(out, r, JINJA_STREAM, items->count / n + 1));
    for (size_t i = 0; i < items->count; i += n) {
        TRY(jinja_list(&line, r, JINJA_LIST, 4));
        for (size_t k = i; k < i + n; k++) {
            if (k >= items->count && !fill) break;
            TRY(jinja_push(r, &line, k < items->count ? &items->item[k] : fill));
        }
        TRY(jinja_push(r, out, &line));
    }
    return ERR_NONE;
}

/* `slices` lists of nearly the same length. */
JINJA_FILTER(slice)
{
    static const char *const names[] = {"slices", "fill_with", NULL};
    const struct jinja_value *fill = jinja_given_some(r, call, 1, "fill_with");
    struct jinja_list *items;
    struct jinja_value part;
    size_t n = 0, at = 0;
    TRY(jinja_check(r, call, 2, names));
    TRY(whole_argument(&n, r, call, "slices"));
    TRY(jinja_items(&items, r, value));
    TRY(jinja_step(r, n));
    TRY(jinja_list(out, r, JINJA_STREAM, n));
    for (size_t i = 0; i < n; i++) {
        size_t length = items->count / n + (i < items->count % n);
        TRY(jinja_list(&part, r, JINJA_LIST, length));
        for (size_t k = 0; k < length; k++)
            TRY(jinja_push(r, &part, &items->item[at++]));
        if (fill && i >= items->count % n) TRY(jinja_push(r, &part, fill));
        TRY(jinja_push(r, out, &part));
    }
    return ERR_NONE;
}

/* ---- every item ---- */

/* An undefined item or value gives an empty text. */
JINJA_FILTER(join)
{
    static const char *const names[] = {"d", "attribute", NULL};
    const struct jinja_value *by = jinja_given(r, call, 0, "d");
    const struct jinja_value *attribute = jinja_given_some(r, call, 1, "attribute");
    struct jinja_list *items;
    TRY(jinja_check(r, call, 2, names));
    TRY(jinja_items(&items, r, value));
    size_t mark = jinja_capture(r);
    for (size_t i = 0; i < items->count; i++) {
        struct jinja_value item = items->item[i];
        if (attribute) TRY(get_attribute(&item, r, &items->item[i], attribute, NULL));
        if (item.safe) return jinja_fail(r, "join of text marked by safe is not supported");
        if (i && by) TRY(jinja_print(r, by));
        TRY(jinja_print(r, &item));
    }
    return jinja_captured(out, r, mark);
}

/* Starts from 0, so lists need `start=[]`, as in Python. */
JINJA_FILTER(sum)
{
    static const char *const names[] = {"attribute", "start", NULL};
    const struct jinja_value *attribute = jinja_given_some(r, call, 0, "attribute");
    const struct jinja_value *start = jinja_given(r, call, 1, "start");
    struct jinja_list *items;
    struct jinja_value total = start ? *start : jinja_int(0);
    TRY(jinja_check(r, call, 2, names));
    if (total.kind == JINJA_TEXT) return jinja_fail(r, "sum() can't sum strings");
    TRY(jinja_items(&items, r, value));
    for (size_t i = 0; i < items->count; i++) {
        struct jinja_value item = items->item[i], next;
        if (attribute) TRY(get_attribute(&item, r, &items->item[i], attribute, NULL));
        TRY(jinja_binary(&next, r, OP_ADD, &total, &item));
        total = next;
    }
    *out = total;
    return ERR_NONE;
}

/* The arguments of a filter or test whose name is argument `skip - 1`. */
static struct jinja_call rest_of(const struct jinja_call *call, size_t skip, const char *what)
{
    struct jinja_call rest = {.what = what};
    for (size_t i = skip; i < call->count; i++)
        rest.argument[rest.count++] = call->argument[i];
    return rest;
}

/* map(attribute="a") reads a member of each item; map("name", ...) applies a filter to it. */
JINJA_FILTER(map)
{
    const struct jinja_value *attribute = jinja_given(r, call, JINJA_ARGUMENTS, "attribute");
    const struct jinja_value *other = jinja_given_some(r, call, JINJA_ARGUMENTS, "default");
    const struct jinja_value *name = jinja_given(r, call, 0, NULL);
    static const char *const names[] = {"attribute", "default", NULL};
    const struct jinja_filter_row *row = NULL;
    struct jinja_list *items;
    struct jinja_value item;
    if (name) {
        struct jinja_value word;
        if (name->kind != JINJA_TEXT) return jinja_fail(r, "map: expected the name of a filter");
        TRY(jinja_text_copy(&word, r, name->text.data, name->text.size));
        row = jinja_filter_find(word.text.data);
        if (!row) return jinja_fail(r, "map: there is no filter \"%.60s\"", word.text.data);
    } else {
        TRY(jinja_check(r, call, 0, names));
        if (!attribute) return jinja_fail(r, "map requires a filter argument");
    }
    const struct jinja_call rest = rest_of(call, 1, row ? row->name : "map");
    TRY(jinja_items(&items, r, value));
    TRY(jinja_list(out, r, JINJA_STREAM, items->count));
    for (size_t i = 0; i < items->count; i++) {
        if (row)
            TRY(jinja_filter_call(&item, r, row, &items->item[i], &rest));
        else
            TRY(get_attribute(&item, r, &items->item[i], attribute, other));
        TRY(jinja_push(r, out, &item));
    }
    return ERR_NONE;
}

/* select, reject, selectattr and rejectattr. Without a test, the truth of the value decides. */
JINJA_FILTER(select)
{
    size_t skip = strstr(call->what, "attr") ? 1 : 0;
    const struct jinja_value *name = jinja_given(r, call, skip, NULL);
    const struct jinja_test_row *row = NULL;
    bool reject = call->what[0] == 'r', is;
    struct jinja_list *items;
    if (skip && !jinja_given(r, call, 0, NULL))
        return jinja_fail(r, "%s: missing parameter for attribute name", call->what);
    if (name) {
        struct jinja_value word;
        if (name->kind != JINJA_TEXT)
            return jinja_fail(r, "%s: expected the name of a test", call->what);
        TRY(jinja_text_copy(&word, r, name->text.data, name->text.size));
        row = jinja_test_find(word.text.data);
        if (!row)
            return jinja_fail(r, "%s: there is no test \"%.60s\"", call->what, word.text.data);
    }
    const struct jinja_call rest = rest_of(call, skip + 1, row ? row->name : call->what);
    TRY(jinja_items(&items, r, value));
    TRY(jinja_list(out, r, JINJA_STREAM, items->count));
    for (size_t i = 0; i < items->count; i++) {
        struct jinja_value item = items->item[i];
        if (skip) TRY(get_attribute(&item, r, &items->item[i], &call->argument[0].value, NULL));
        TRY(row ? row->call(&is, r, &item, &rest) : jinja_truth(&is, r, &item));
        if (is != reject) TRY(jinja_push(r, out, &items->item[i]));
    }
    return ERR_NONE;
}
