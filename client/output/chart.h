/* Charts as SVG, which any browser shows and which can stand inside a page: lines over two axes,
 * and rows of bars. All texts are escaped. */
#ifndef CLIENT_CHART_H
#define CLIENT_CHART_H

#include "base/bytes.h"
#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>

enum { CHART_COLORS = 8 };
const char *chart_color(size_t n); /* "#1f5fa8"; starts again after CHART_COLORS */
/* Appends a text with the letters replaced that XML and HTML would read as markup. */
err chart_text(struct bytes *out, const char *text);

struct chart_line {
    const char *name;    /* in the legend; NULL: none */
    const double *x, *y; /* (count); points with a NaN are left out */
    size_t count;
    const double *low, *high; /* (count) a band around the line; NULL: none; NaN: a gap of it */
};
struct chart_level { /* a dashed line across, with its name */
    const char *name;
    double y;
};
struct chart {
    const char *title, *subtitle, *x_label, *y_label; /* subtitle: NULL for none */
    const struct chart_line *line;
    size_t lines;
    bool from_zero; /* the vertical axis starts at 0 */
    bool log;       /* the vertical axis has powers of ten; values up to 0 are left out */
    const struct chart_level *level;
    size_t levels;
    double limit; /* a budget: a dashed line at this height; 0: none */
};
/* Appends an <svg> element. A chart without points is drawn with empty axes. A legend that does not
 * fit in one line stands below the chart. */
err chart_lines(struct bytes *out, const struct chart *c);
/* The same as a file. ERR_INPUT when it exists and `replace` is false. */
err chart_write(const char *path, const struct chart *c, bool replace);

/* A bar from one place of the horizontal axis to another, in a row. */
struct chart_bar {
    size_t row; /* its index in chart_rows */
    double from, to;
    size_t color; /* of chart_color() */
};
/* A row for each name, such as the members of a round, with any number of bars. */
struct chart_rows {
    const char *title, *subtitle, *x_label;
    const char *const *row; /* (rows) names */
    size_t rows;
    const struct chart_bar *bar;
    size_t bars;
    const char *const *color_name; /* (colors) the legend */
    size_t colors;
};
/* Appends an <svg> element, which is as high as its rows need. */
err chart_bars(struct bytes *out, const struct chart_rows *c);

#endif
