/* The memory of a running template, and making values in it. */
#include "base/limits.h"
#include "engine/tokens/jinja_parts.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory ---- */

enum { BLOCK_BYTES = 32 * 1024 };
struct jinja_block {
    struct jinja_block *previous;
    size_t used, size;
    _Alignas(16) uint8_t data[];
};

/* The memory is not zeroed. A rendering frees it all at its end. */
err jinja_take(void *out, struct jinja_run *r, size_t count, size_t size)
{
    size_t need;
    if (!size_mul(&need, count, size) || need > LIMIT_TEMPLATE_MEMORY ||
        r->memory + need > LIMIT_TEMPLATE_MEMORY)
        return err_make(ERR_LIMIT, "line %u: the template's values need more than %u bytes",
                        r->line, LIMIT_TEMPLATE_MEMORY);
    need = (need + 15) & ~(size_t)15;
    if (!r->block || r->block->size - r->block->used < need) {
        size_t room = need > BLOCK_BYTES ? need : BLOCK_BYTES;
        struct jinja_block *block = malloc(sizeof *block + room);
        if (!block) return err_sys(ENOMEM, "chat template");
        block->used = 0;
        block->size = room;
        block->previous = r->block;
        r->block = block;
    }
    void *taken = r->block->data + r->block->used;
    r->block->used += need;
    r->memory += need;
    memcpy(out, &taken, sizeof taken);
    return ERR_NONE;
}

void jinja_free(struct jinja_run *r)
{
    while (r->block) {
        struct jinja_block *previous = r->block->previous;
        free(r->block);
        r->block = previous;
    }
}

/* Work that depends on the size of a value counts as several steps. */
err jinja_step(struct jinja_run *r, uint64_t steps)
{
    if (*r->steps < steps)
        return err_make(ERR_LIMIT, "line %u: the template needs more than %u steps", r->line,
                        LIMIT_TEMPLATE_STEPS);
    *r->steps -= steps;
    return ERR_NONE;
}

err jinja_fail(const struct jinja_run *r, const char *format, ...)
{
    char text[400];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return err_make(ERR_INPUT, "line %u: %s", r->line, text);
}

/* ---- making values ---- */

struct jinja_value jinja_bool(bool truth)
{
    return (struct jinja_value){.kind = JINJA_BOOL, .truth = truth};
}
struct jinja_value jinja_int(int64_t whole)
{
    return (struct jinja_value){.kind = JINJA_INT, .whole = whole};
}
struct jinja_value jinja_float(double real)
{
    return (struct jinja_value){.kind = JINJA_FLOAT, .real = real};
}
struct jinja_value jinja_text(const char *data, size_t size)
{
    return (struct jinja_value){.kind = JINJA_TEXT, .text = {data, size}};
}
struct jinja_value jinja_word(const char *text)
{
    return jinja_text(text, strlen(text));
}

/* Copies end with a zero byte, so that C functions can read them. Other texts may not. */
err jinja_text_copy(struct jinja_value *out, struct jinja_run *r, const char *data, size_t size)
{
    char *text = NULL;
    TRY(jinja_take(&text, r, size + 1, 1));
    if (size) memcpy(text, data, size);
    text[size] = 0;
    *out = jinja_text(text, size);
    return ERR_NONE;
}

/* `room` is an estimate: jinja_push() grows the list. Outgrown memory is not given back before the
 * rendering ends, so it counts against LIMIT_TEMPLATE_MEMORY too. */
err jinja_list(struct jinja_value *out, struct jinja_run *r, enum jinja_kind kind, size_t room)
{
    struct jinja_list *list = NULL;
    TRY(jinja_take(&list, r, 1, sizeof *list));
    *list = (struct jinja_list){.capacity = room};
    TRY(jinja_take(&list->item, r, room, sizeof *list->item));
    *out = (struct jinja_value){.kind = (uint8_t)kind, .list = list};
    return ERR_NONE;
}

/* Makes room for one more item of a full list. */
static err grow(void *items /* T ** */, struct jinja_run *r, size_t *capacity, size_t count,
                size_t size)
{
    void *grown = NULL, *old;
    if (count < *capacity) return ERR_NONE;
    size_t more = *capacity ? 2 * *capacity : 4;
    TRY(jinja_take(&grown, r, more, size));
    memcpy(&old, items, sizeof old);
    if (count) memcpy(grown, old, count * size);
    memcpy(items, &grown, sizeof grown);
    *capacity = more;
    return ERR_NONE;
}

/* Raises *depth above the depth of `item`. */
static err put_over(size_t *depth, struct jinja_run *r, const struct jinja_value *item)
{
    size_t inside = jinja_is_list(item)        ? item->list->depth + 1
                    : item->kind == JINJA_DICT ? item->dict->depth + 1
                                               : 0;
    if (inside > LIMIT_TEMPLATE_DEPTH)
        return jinja_fail(r, "lists and dicts are nested deeper than %d", LIMIT_TEMPLATE_DEPTH);
    if (inside > *depth) *depth = inside;
    return ERR_NONE;
}

err jinja_push(struct jinja_run *r, const struct jinja_value *v, const struct jinja_value *item)
{
    struct jinja_list *list = v->list;
    TRY(put_over(&list->depth, r, item));
    TRY(grow(&list->item, r, &list->capacity, list->count, sizeof *list->item));
    list->item[list->count++] = *item;
    return ERR_NONE;
}

err jinja_dict(struct jinja_value *out, struct jinja_run *r, size_t room)
{
    struct jinja_dict *dict = NULL;
    TRY(jinja_take(&dict, r, 1, sizeof *dict));
    *dict = (struct jinja_dict){.capacity = room};
    TRY(jinja_take(&dict->entry, r, room, sizeof *dict->entry));
    *out = (struct jinja_value){.kind = JINJA_DICT, .dict = dict};
    return ERR_NONE;
}

/* A linear search, because dicts of messages have few keys. jinja_get() counts steps for larger
 * ones. */
struct jinja_value *jinja_find(const struct jinja_dict *dict, const char *key, size_t size)
{
    for (size_t i = 0; i < dict->count; i++) {
        const struct jinja_value *k = &dict->entry[i].key;
        if (k->kind == JINJA_TEXT && k->text.size == size && memcmp(k->text.data, key, size) == 0)
            return &dict->entry[i].value;
    }
    return NULL;
}

/* Lists and dicts have no hash in Python. */
err jinja_get(struct jinja_value **out, struct jinja_run *r, const struct jinja_value *dict,
              const struct jinja_value *key)
{
    struct jinja_dict *d = dict->dict;
    TRY(jinja_step(r, d->count / 16));
    *out = NULL;
    if (key->kind == JINJA_TEXT) {
        *out = jinja_find(d, key->text.data, key->text.size);
        return ERR_NONE;
    }
    if (key->kind == JINJA_LIST || key->kind == JINJA_DICT)
        return jinja_fail(r, "unhashable type: '%s'", key->kind == JINJA_LIST ? "list" : "dict");
    for (size_t i = 0; i < d->count; i++) {
        bool same;
        TRY(jinja_equal(&same, r, &d->entry[i].key, key));
        if (same) *out = &d->entry[i].value;
    }
    return ERR_NONE;
}

err jinja_put(struct jinja_run *r, const struct jinja_value *dict, const struct jinja_value *key,
              const struct jinja_value *value)
{
    struct jinja_dict *d = dict->dict;
    struct jinja_value *old;
    TRY(put_over(&d->depth, r, key));
    TRY(put_over(&d->depth, r, value));
    TRY(jinja_get(&old, r, dict, key));
    if (old) {
        *old = *value;
        return ERR_NONE;
    }
    TRY(grow(&d->entry, r, &d->capacity, d->count, sizeof *d->entry));
    d->entry[d->count++] = (struct jinja_entry){*key, *value};
    return ERR_NONE;
}

/* Texts are borrowed from the JSON value, which outlives the rendering. Keys of a JSON object are
 * unique, so they are not looked up. */
static err import_object(struct jinja_value *out, struct jinja_run *r, const json_t *json)
{
    TRY(jinja_dict(out, r, json_object_size(json)));
    for (void *it = json_object_iter((json_t *)json); it;
         it = json_object_iter_next((json_t *)json, it)) {
        struct jinja_entry *entry = &out->dict->entry[out->dict->count];
        entry->key = jinja_text(json_object_iter_key(it), json_object_iter_key_len(it));
        TRY(jinja_import(&entry->value, r, json_object_iter_value(it)));
        TRY(put_over(&out->dict->depth, r, &entry->value));
        out->dict->count++;
    }
    return ERR_NONE;
}

err jinja_import(struct jinja_value *out, struct jinja_run *r, const json_t *json)
{
    switch (json_typeof(json)) {
    case JSON_NULL:
        *out = (struct jinja_value){.kind = JINJA_NONE};
        break;
    case JSON_TRUE:
        *out = jinja_bool(true);
        break;
    case JSON_FALSE:
        *out = jinja_bool(false);
        break;
    case JSON_INTEGER:
        *out = jinja_int(json_integer_value(json));
        break;
    case JSON_REAL:
        *out = jinja_float(json_real_value(json));
        break;
    case JSON_STRING:
        *out = jinja_text(json_string_value(json), json_string_length(json));
        break;
    case JSON_OBJECT:
        return import_object(out, r, json);
    case JSON_ARRAY: {
        size_t n = json_array_size(json);
        TRY(jinja_list(out, r, JINJA_LIST, n));
        for (size_t i = 0; i < n; i++) {
            struct jinja_value item;
            TRY(jinja_import(&item, r, json_array_get(json, i)));
            TRY(jinja_push(r, out, &item));
        }
        break;
    }
    }
    return ERR_NONE;
}
