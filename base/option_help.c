/* Help texts and sample configuration files, generated from the tables of base/option.h. */
#include "base/option.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OPTION_TEXT_BYTES = 16384 };

static err choices_text(struct bytes *out, const struct option_row *row)
{
    for (size_t i = 0; row->choices[i]; i++)
        TRY(bytes_printf(out, "%s%s", i ? "|" : "", row->choices[i]));
    return ERR_NONE;
}

const char *option_prefix(const struct option_row *row)
{
    bool on = row->kind == OPTION_FLAG && row->fallback && strcmp(row->fallback, "yes") == 0;
    return on ? "--no-" : "--";
}

err option_value_name(struct bytes *out, const struct option_row *row)
{
    if (row->value) return bytes_printf(out, "%s", row->value);
    switch (row->kind) {
    case OPTION_FLAG:
        return ERR_NONE;
    case OPTION_CHOICE:
        return choices_text(out, row);
    case OPTION_INT:
    case OPTION_NUM:
        return bytes_printf(out, "N");
    case OPTION_SIZE:
        return bytes_printf(out, "SIZE");
    case OPTION_DURATION:
        return bytes_printf(out, "TIME");
    default:
        return bytes_printf(out, "TEXT");
    }
}

static err left_column(struct bytes *out, const struct option_row *row)
{
    if (row->letter)
        TRY(bytes_printf(out, "  -%c, ", row->letter));
    else
        TRY(bytes_printf(out, "      "));
    TRY(bytes_printf(out, "%s%s", option_prefix(row), row->flag));
    if (row->kind == OPTION_FLAG) return ERR_NONE;
    TRY(bytes_append(out, " ", 1));
    return option_value_name(out, row);
}

err option_help_wrap(struct bytes *out, const char *text, size_t indent, size_t column)
{
    while (*text) {
        size_t word = strcspn(text, " ");
        if (column > indent && column + 1 + word > 100) {
            TRY(bytes_printf(out, "\n%*s", (int)indent, ""));
            column = indent;
        } else if (column > indent) {
            TRY(bytes_append(out, " ", 1));
            column++;
        }
        TRY(bytes_append(out, text, word));
        column += word;
        text += word + strspn(text + word, " ");
    }
    return bytes_append(out, "\n", 1);
}

/* A left column that is too wide gets a line of its own. */
err option_help(struct bytes *out, const struct option_set *set)
{
    enum { INDENT = 32 };
    const struct option_row *row;
    for (size_t i = 0; (row = option_row_at(set, i)); i++) {
        if (!row->flag) continue;
        size_t start = out->size;
        TRY(left_column(out, row));
        size_t column = out->size - start;
        if (column + 2 > INDENT) {
            TRY(bytes_append(out, "\n", 1));
            column = 0;
        }
        TRY(bytes_printf(out, "%*s", (int)(INDENT - column), ""));
        char text[1024];
        bool shown = row->fallback && *row->fallback && row->kind != OPTION_FLAG;
        snprintf(text, sizeof text, "%s%s%s%s%s", row->help ? row->help : "",
                 shown ? " (default " : "", shown ? row->fallback : "", shown ? ")" : "",
                 row->required ? " (required)" : "");
        TRY(option_help_wrap(out, text, INDENT, INDENT));
    }
    return ERR_NONE;
}

static err sample_row(struct bytes *out, const struct option_row *row, const char *name)
{
    TRY(bytes_printf(out, "# "));
    size_t start = out->size;
    TRY(bytes_printf(out, "%s", row->help ? row->help : ""));
    if (row->kind == OPTION_CHOICE) {
        TRY(bytes_printf(out, ": "));
        TRY(choices_text(out, row));
    }
    if (option_has_bounds(row)) TRY(bytes_printf(out, " (%.15g to %.15g)", row->least, row->most));
    for (size_t i = start; i < out->size; i++) /* one comment stays one line */
        if (out->data[i] == '\n') out->data[i] = ' ';
    TRY(bytes_append(out, "\n", 1));
    if (row->fallback) return bytes_printf(out, "%s = %s\n", name, row->fallback);
    if (row->kind == OPTION_FLAG) return bytes_printf(out, "%s = no\n", name);
    return bytes_printf(out, "%s%s = %s\n", row->required ? "" : "# ", name,
                        row->value ? row->value : "");
}

/* ---- written values ---- */

/* Numbers with as many digits as they need to be read again as the same number. */
static void number_text(char *out, size_t bytes, double value)
{
    snprintf(out, bytes, "%.15g", value);
    if (strtod(out, NULL) != value) snprintf(out, bytes, "%.17g", value);
}

static const char *list_item(const struct option_list *list, size_t n)
{
    return n < list->count ? list->item[n] : NULL;
}

static bool item_text(char *out, size_t bytes, const char *text)
{
    if (text) snprintf(out, bytes, "%s", text);
    return text != NULL;
}

bool option_text(char *out, size_t bytes, const void *options, const struct option_row *row)
{
    const void *at = (const uint8_t *)options + row->at;
    const struct option_list *list = at;
    switch (row->kind) {
    case OPTION_FLAG:
        return item_text(out, bytes, *(const bool *)at ? "yes" : "no");
    case OPTION_INT:
        snprintf(out, bytes, "%" PRId64, *(const int64_t *)at);
        return true;
    case OPTION_NUM:
        number_text(out, bytes, *(const double *)at);
        return true;
    case OPTION_SIZE:
        snprintf(out, bytes, "%" PRIu64, *(const uint64_t *)at);
        return true;
    case OPTION_DURATION:
        snprintf(out, bytes, "%" PRIu64 "ms", *(const uint64_t *)at);
        return true;
    case OPTION_TEXT:
        return item_text(out, bytes, *(const char *const *)at);
    case OPTION_CHOICE:
        return item_text(out, bytes, row->choices[*(const int *)at]);
    case OPTION_LIST:
        return item_text(out, bytes, list_item(list, list->count - 1));
    }
    REQUIRE(!"an option of unknown kind");
    return false;
}

/* Without a copy, because a list of members is as long as a federation is large. */
static err write_text(struct bytes *out, const struct option_row *row, const char *name,
                      const struct option_write *w)
{
    const char *now = *(const char *const *)(const void *)((const uint8_t *)w->options + row->at);
    const char *was = *(const char *const *)(const void *)((const uint8_t *)w->defaults + row->at);
    if (!now || (was && !strcmp(now, was))) return ERR_NONE;
    return bytes_printf(out, "%s = %s\n", name, now);
}

/* A list has one line for each item. */
static err write_row(struct bytes *out, const struct option_row *row, const char *name,
                     const struct option_write *w)
{
    char now[OPTION_TEXT_BYTES], before[OPTION_TEXT_BYTES];
    if (row->kind == OPTION_LIST) {
        const struct option_list *list = (const void *)((const uint8_t *)w->options + row->at);
        for (size_t i = 0; i < list->count; i++)
            TRY(bytes_printf(out, "%s = %s\n", name, list->item[i]));
        return ERR_NONE;
    }
    if (row->kind == OPTION_TEXT) return write_text(out, row, name, w);
    if (!option_text(now, sizeof now, w->options, row)) return ERR_NONE;
    bool had = option_text(before, sizeof before, w->defaults, row);
    if (had && !strcmp(now, before)) return ERR_NONE;
    return bytes_printf(out, "%s = %s\n", name, now);
}

/* ---- sections ---- */

size_t option_section_size(const char *key)
{
    const char *dot = strrchr(key, '.');
    return dot ? (size_t)(dot - key) : 0;
}

static bool same_section(const struct option_row *a, const struct option_row *b)
{
    size_t size = option_section_size(a->key);
    return option_section_size(b->key) == size && memcmp(a->key, b->key, size) == 0;
}

/* A section is written completely at the place of its first row. Keys without a section come before
 * all sections, because after the heading of a section they would be read as part of it. A sample
 * has no values to write. */
static err write_sections(struct bytes *out, const struct option_set *set, bool named,
                          const struct option_write *values)
{
    const struct option_row *row, *other;
    for (size_t i = 0; (row = option_row_at(set, i)); i++) {
        if (!row->key || (option_section_size(row->key) > 0) != named) continue;
        bool first = true;
        for (size_t j = 0; j < i; j++) {
            other = option_row_at(set, j);
            if (other->key && same_section(row, other)) first = false;
        }
        if (!first) continue;
        size_t size = option_section_size(row->key);
        if (named) TRY(bytes_printf(out, "%s[%.*s]\n", out->size ? "\n" : "", (int)size, row->key));
        for (size_t j = i; (other = option_row_at(set, j)); j++) {
            if (!other->key || !same_section(row, other)) continue;
            const char *name = other->key + size + named;
            TRY(values ? write_row(out, other, name, values) : sample_row(out, other, name));
        }
    }
    return ERR_NONE;
}

err option_sample(struct bytes *out, const struct option_set *set)
{
    TRY(write_sections(out, set, false, NULL));
    return write_sections(out, set, true, NULL);
}

err option_write(struct bytes *out, const struct option_write *write)
{
    TRY(write_sections(out, write->set, false, write));
    return write_sections(out, write->set, true, write);
}

void option_copy(void *to, const void *from, const struct option_row *row)
{
    static const size_t size[] = {
        [OPTION_FLAG] = sizeof(bool),         [OPTION_INT] = sizeof(int64_t),
        [OPTION_NUM] = sizeof(double),        [OPTION_SIZE] = sizeof(uint64_t),
        [OPTION_DURATION] = sizeof(uint64_t), [OPTION_CHOICE] = sizeof(int),
    };
    REQUIRE(row->kind != OPTION_TEXT && row->kind != OPTION_LIST);
    memcpy((char *)to + row->at, (const char *)from + row->at, size[row->kind]);
}
