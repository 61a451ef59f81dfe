/* Printing of client/output/report.h. A report is built as JSON by the command, and the form for
 * people is derived from it by rules: keys become names, lists of objects become tables. */
#include "client/output/report.h"

#include "base/json.h"
#include "base/limits.h"
#include "client/output/table.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* "kv_heads" is printed as "kv heads". */
static void shown_name(char *out, size_t bytes, const char *key)
{
    snprintf(out, bytes, "%s", key);
    for (char *p = out; *p; p++)
        if (*p == '_') *p = ' ';
}

/* A list of objects; its first element decides, because all of them are built by the same code. */
static bool is_table(const json_t *value)
{
    return json_is_array(value) && json_is_object(json_array_get(value, 0));
}

/* Lists of single values are printed on one line; a nested object only by its size, because it is
 * printed separately. */
static void shown_value(char *out, size_t bytes, const json_t *value)
{
    *out = 0;
    switch (json_typeof(value)) {
    case JSON_STRING:
        snprintf(out, bytes, "%s", json_string_value(value));
        return;
    case JSON_INTEGER:
        snprintf(out, bytes, "%lld", (long long)json_integer_value(value));
        return;
    case JSON_REAL:
        snprintf(out, bytes, "%.6g", json_real_value(value));
        return;
    case JSON_TRUE:
        snprintf(out, bytes, "yes");
        return;
    case JSON_FALSE:
        snprintf(out, bytes, "no");
        return;
    case JSON_NULL:
        snprintf(out, bytes, "none");
        return;
    case JSON_ARRAY:
        break;
    case JSON_OBJECT:
        snprintf(out, bytes, "%zu entries", json_object_size(value));
        return;
    }
    /* A list of single values; what does not fit is left out, as --json has all of it. */
    size_t used = 0, i;
    json_t *item;
    json_array_foreach((json_t *)(uintptr_t)value, i, item)
    {
        char text[64];
        shown_value(text, sizeof text, item);
        int n = snprintf(out + used, bytes - used, "%s%s", i ? " " : "", text);
        if (n < 0 || (size_t)n >= bytes - used) return;
        used += (size_t)n;
    }
}

/* Single values, indented by depth. Tables follow after all of them. */
static err add_values(struct table *t, const json_t *object, int indent)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        char name[256], text[900];
        if (is_table(value)) continue;
        shown_name(name, sizeof name, key);
        TRY(table_cell(t, "%*s%s", indent, "", name));
        if (json_is_object(value)) {
            TRY(table_cell(t, "%s", ""));
            TRY(add_values(t, value, indent + 2));
            continue;
        }
        shown_value(text, sizeof text, value);
        TRY(table_cell(t, "%s", text));
    }
    return ERR_NONE;
}

/* The keys of the first object are the columns, and its types decide the alignment. A row that
 * lacks a key has an empty cell. */
static err print_list(const char *name, const json_t *list, size_t rows_max)
{
    /* More than any report has; further columns are not printed. */
    enum { COLUMNS_MAX = 24 };
    const char *column[COLUMNS_MAX], *key;
    char align[COLUMNS_MAX + 1] = "", text[900];
    size_t columns = 0, shown = json_array_size(list);
    json_t *value;
    json_object_foreach(json_array_get(list, 0), key, value)
    {
        if (columns == COLUMNS_MAX) break;
        align[columns] = json_is_number(value) ? 'r' : 'l';
        column[columns++] = key;
    }
    if (rows_max && shown > rows_max) shown = rows_max;
    struct table t;
    table_begin(&t, align);
    err e = ERR_NONE;
    for (size_t c = 0; c < columns; c++) {
        shown_name(text, sizeof text, column[c]);
        TRY_OUT(e, table_cell(&t, "%s", text));
    }
    for (size_t i = 0; i < shown; i++)
        for (size_t c = 0; c < columns; c++) {
            value = json_object_get(json_array_get(list, i), column[c]);
            if (value) shown_value(text, sizeof text, value);
            TRY_OUT(e, table_cell(&t, "%s", value ? text : ""));
        }
    shown_name(text, sizeof text, name);
    printf("\n%s (%zu)\n", text, json_array_size(list));
    e = table_print(&t);
    if (shown < json_array_size(list))
        printf("... %zu more; --verbose shows all\n", json_array_size(list) - shown);
out:
    table_close(&t);
    return e;
}

/* All single values first, then the tables: values after a long table would be overlooked. */
static err print_people(const json_t *document, size_t rows_max)
{
    struct table t;
    table_begin(&t, "ll");
    err e = add_values(&t, document, 0);
    if (!err_is(e)) e = table_print(&t);
    table_close(&t);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)document, key,
                        value) if (!err_is(e) && is_table(value)) e =
        print_list(key, value, rows_max);
    return e;
}

/* Canonical JSON: the same result is always the same bytes, so that scripts and tests can compare
 * it. */
err report_json(const json_t *value)
{
    struct bytes text = {.max = LIMIT_JSON_BYTES};
    err e = json_write(&text, value);
    if (!err_is(e)) printf("%s\n", (const char *)text.data);
    bytes_close(&text);
    return e;
}

/* Consumes the document, so that the callers' last line can be `return report_print(...)`. */
err report_print(json_t *document, const struct report_options *options)
{
    if (!document) return err_make(ERR_MACHINE, "no memory for the report");
    REQUIRE(json_is_object(document));
    err e = options->json ? report_json(document) : print_people(document, options->rows_max);
    json_decref(document);
    return e;
}
