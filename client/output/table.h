/* Aligned columns of text for people: cells are added in reading order, then everything is
 * printed. */
#ifndef CLIENT_TABLE_H
#define CLIENT_TABLE_H

#include "base/arena.h"
#include "base/bytes.h"

#include <stddef.h>

/* Zeroed is closed; table_begin() needs no table_close() before it. The number of columns is fixed
 * by `align`, so a forgotten cell is noticed by table_write(). */
struct table {
    struct arena arena;
    const char *align; /* 'l' or 'r' a column; its length is the number of columns */
    const char **cell;
    size_t count, capacity;
};

/* `align` has one letter per column, 'l' or 'r', and must outlive the table. */
void table_begin(struct table *t, const char *align);
err table_cell(struct table *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Adds all cells of a row; texts are copied. */
err table_row(struct table *t, const char *const *text);
/* Appends the lines to *out: two spaces between columns and none at the end of a line. The number
 * of cells must be a multiple of the columns. */
err table_write(struct bytes *out, const struct table *t);
err table_print(const struct table *t); /* to standard output */
void table_close(struct table *t);

#endif
