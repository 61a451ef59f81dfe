#include "client/output/table.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* A longer cell is cut: the table is for people, and --json has the whole value. */
enum { TABLE_BYTES = 64 << 20, TABLE_CELL = 1024 };

void table_begin(struct table *t, const char *align)
{
    REQUIRE(*align);
    *t = (struct table){.align = align};
}

/* The cells are kept until the end, because the width of a column is known only then. The list
 * grows by doubling inside the arena; the old list is wasted, which the arena frees with the
 * rest. */
err table_cell(struct table *t, const char *format, ...)
{
    char text[TABLE_CELL];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (t->count == t->capacity) {
        size_t capacity = t->capacity ? t->capacity * 2 : 64;
        const char **cell = NULL;
        TRY(arena_take(&cell, &t->arena, capacity, sizeof *cell));
        if (t->count) memcpy(cell, t->cell, t->count * sizeof *cell);
        t->cell = cell;
        t->capacity = capacity;
    }
    TRY(arena_text(&t->cell[t->count], &t->arena, text, strlen(text)));
    t->count++;
    return ERR_NONE;
}

err table_row(struct table *t, const char *const *text)
{
    for (size_t i = 0; t->align[i]; i++)
        TRY(table_cell(t, "%s", text[i]));
    return ERR_NONE;
}

/* Code points, which equal columns for the scripts that occur in names here; wide characters of
 * East Asian scripts would need a table. */
static size_t text_width(const char *text)
{
    size_t n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

/* The last column is not padded, so that lines have no trailing spaces. */
err table_write(struct bytes *out, const struct table *t)
{
    size_t columns = strlen(t->align), width[64] = {0};
    REQUIRE(columns <= 64 && t->count % columns == 0);
    for (size_t i = 0; i < t->count; i++) {
        size_t w = text_width(t->cell[i]);
        if (w > width[i % columns]) width[i % columns] = w;
    }
    for (size_t i = 0; i < t->count; i++) {
        size_t column = i % columns, pad = width[column] - text_width(t->cell[i]);
        bool last = column + 1 == columns, right = t->align[column] == 'r';
        TRY(bytes_printf(out, "%*s%s%*s%s", right ? (int)pad : 0, "", t->cell[i],
                         right || last ? 0 : (int)pad, "", last ? "\n" : "  "));
    }
    return ERR_NONE;
}

err table_print(const struct table *t)
{
    struct bytes text = {.max = TABLE_BYTES};
    err e = table_write(&text, t);
    if (!err_is(e) && text.size) fwrite(text.data, 1, text.size, stdout);
    bytes_close(&text);
    return e;
}

void table_close(struct table *t)
{
    arena_close(&t->arena);
    *t = (struct table){0};
}
