/* The SVG is written by hand: it needs only lines, rectangles and text. */
#include "client/output/chart.h"

#include "base/file.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* The picture and its margins in pixels, and about how many labels an axis gets. */
enum { WIDTH = 720, HEIGHT = 440, LEFT = 76, RIGHT = 24, TOP = 66, BOTTOM = 62, TICKS = 6 };
enum {
    ROW = 18,
    ROW_BAR = 12,
    ROW_LEFT = 150,
    LEGEND_LETTER = 8,
    LEGEND_BOX = 26,
    LEGEND_ROW = 20
};

static const char *const colors[CHART_COLORS] = {"#1f5fa8", "#d1722c", "#2f8f4e", "#8a4fb0",
                                                 "#b03a48", "#6b6b2d", "#2a9aa3", "#777777"};

const char *chart_color(size_t n)
{
    return colors[n % CHART_COLORS];
}

/* Names of members and runs come from other machines, and the picture is opened in a browser, so no
 * character may end an attribute or start a tag. */
err chart_text(struct bytes *out, const char *text)
{
    for (; *text; text++) {
        const char *other = *text == '<'    ? "&lt;"
                            : *text == '>'  ? "&gt;"
                            : *text == '&'  ? "&amp;"
                            : *text == '"'  ? "&quot;"
                            : *text == '\'' ? "&#39;"
                                            : NULL;
        TRY(other ? bytes_printf(out, "%s", other) : bytes_printf(out, "%c", *text));
    }
    return ERR_NONE;
}

/* An axis from `low` to `high`, with a label at every `step`. */
struct axis {
    double low, high, step; /* in units of the values, not in pixels; of their logarithms if log */
    bool any;               /* has values */
    bool log;
};

static double place_of(const struct axis *a, double value)
{
    return a->log ? log10(value) : value;
}

/* A value without a place is left out: NaN, infinity, and on a logarithmic axis 0 and below. */
static void axis_add(struct axis *a, double value)
{
    value = place_of(a, value);
    if (!isfinite(value)) return;
    if (!a->any || value < a->low) a->low = value;
    if (!a->any || value > a->high) a->high = value;
    a->any = true;
}

/* Widens the axis to steps of 1, 2 or 5 times a power of ten, so that labels are round numbers.
 * 1e-9 keeps an end that is itself round from getting another step. */
static void axis_round(struct axis *a)
{
    if (!a->any) a->high = 1;
    if (a->high - a->low <= 1e-9 * fabs(a->high))
        a->high = a->low + (a->low != 0 ? fabs(a->low) : 1);
    double span = (a->high - a->low) / TICKS, power = pow(10, floor(log10(span)));
    double ratio = span / power;
    a->step = power * (ratio <= 1 ? 1 : ratio <= 2 ? 2 : ratio <= 5 ? 5 : 10);
    if (a->log) a->step = fmax(1, ceil(span)); /* whole powers of ten */
    a->low = floor(a->low / a->step + 1e-9) * a->step;
    a->high = ceil(a->high / a->step - 1e-9) * a->step;
}

static double part_of(const struct axis *a, double value)
{
    return (place_of(a, value) - a->low) / (a->high - a->low);
}

/* Pixels from a value; y grows downwards in SVG. */
static double across(const struct axis *x, double value)
{
    return LEFT + part_of(x, value) * (WIDTH - LEFT - RIGHT);
}
static double down(const struct axis *y, double value)
{
    return HEIGHT - BOTTOM - part_of(y, value) * (HEIGHT - TOP - BOTTOM);
}

/* ---- parts of both kinds ---- */

static err put_text(struct bytes *out, double x, double y, const char *style, const char *text)
{
    TRY(bytes_printf(out, "<text x=\"%.1f\" y=\"%.1f\"%s>", x, y, style));
    TRY(chart_text(out, text));
    return bytes_printf(out, "</text>\n");
}

/* A white background, for viewers with a dark one. */
static err begin(struct bytes *out, int height, const char *title, const char *subtitle)
{
    TRY(bytes_printf(out,
                     "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
                     "width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"13\" "
                     "fill=\"#222\" role=\"img\">\n<title>",
                     WIDTH, height, WIDTH, height));
    TRY(chart_text(out, title));
    TRY(bytes_printf(out, "</title>\n<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n", WIDTH,
                     height));
    TRY(put_text(out, LEFT, 28, " font-size=\"17\" font-weight=\"bold\"", title));
    return subtitle ? put_text(out, LEFT, 49, " fill=\"#555\"", subtitle) : ERR_NONE;
}

/* An estimate from the number of bytes, because an SVG does not know the reader's font. */
static double legend_width(const char *name)
{
    return name ? LEGEND_BOX + LEGEND_LETTER * (double)strlen(name) : 0;
}

/* Names with their colors in one line, as far as they fit. */
static err legend(struct bytes *out, const char *const *name, size_t names, double y)
{
    double x = LEFT;
    for (size_t i = 0; i < names; i++) {
        if (!name[i]) continue;
        double wide = legend_width(name[i]);
        if (x + wide > WIDTH - RIGHT) break;
        TRY(bytes_printf(out,
                         "<rect x=\"%.1f\" y=\"%.1f\" width=\"10\" height=\"10\" fill=\"%s\"/>\n",
                         x, y - 9, chart_color(i)));
        TRY(put_text(out, x + 14, y, " fill=\"#555\"", name[i]));
        x += wide;
    }
    return ERR_NONE;
}

/* ---- lines ---- */

/* The value at a label of the vertical axis. */
static double value_at(const struct axis *a, int i)
{
    double at = a->low + i * a->step;
    if (a->log) return pow(10, at);
    return fabs(at) < 1e-9 * a->step ? 0.0 : at;
}

/* The values are computed from i instead of being added up, so that labels have no rounding
 * error. */
static err draw_axes(struct bytes *out, const struct axis *x, const struct axis *y)
{
    int rows = (int)((y->high - y->low) / y->step + 0.5);
    int columns = (int)((x->high - x->low) / x->step + 0.5);
    for (int i = 0; i <= rows; i++) {
        double value = value_at(y, i), at = down(y, value);
        TRY(bytes_printf(out,
                         "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"%s\"/>\n"
                         "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.6g</text>\n",
                         LEFT, at, WIDTH - RIGHT, at, i ? "#e4e4e4" : "#222", LEFT - 8, at + 4.5,
                         value));
    }
    for (int i = 0; i <= columns; i++) {
        double value = x->low + i * x->step, at = across(x, value);
        TRY(bytes_printf(out,
                         "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"#222\"/>\n"
                         "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.10g</text>\n",
                         at, HEIGHT - BOTTOM, at, HEIGHT - BOTTOM + 5, at, HEIGHT - BOTTOM + 21,
                         value));
    }
    return ERR_NONE;
}

static err draw_labels(struct bytes *out, const struct chart *c)
{
    char turned[96];
    TRY(put_text(out, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 14, " text-anchor=\"middle\"",
                 c->x_label));
    snprintf(turned, sizeof turned,
             " transform=\"translate(20 %d) rotate(-90)\" text-anchor=\"middle\"",
             (TOP + HEIGHT - BOTTOM) / 2);
    return put_text(out, 0, 0, turned, c->y_label);
}

static err draw_limit(struct bytes *out, const struct chart *c, const struct axis *y)
{
    char name[64];
    if (!(c->limit > 0)) return ERR_NONE;
    TRY(bytes_printf(out,
                     "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#c0392b\" "
                     "stroke-width=\"1.5\" stroke-dasharray=\"6 4\"/>\n",
                     LEFT, down(y, c->limit), WIDTH - RIGHT, down(y, c->limit)));
    snprintf(name, sizeof name, "budget %g", c->limit);
    return put_text(out, WIDTH - RIGHT - 4, down(y, c->limit) - 6,
                    " fill=\"#c0392b\" text-anchor=\"end\"", name);
}

/* Names of levels stand at the left end in turn, a little apart, so that near ones can be read. */
static err draw_levels(struct bytes *out, const struct chart *c, const struct axis *y)
{
    for (size_t i = 0; i < c->levels; i++) {
        const struct chart_level *l = &c->level[i];
        if (!isfinite(place_of(y, l->y))) continue;
        double at = down(y, l->y);
        TRY(bytes_printf(out,
                         "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#555\" "
                         "stroke-dasharray=\"2 4\"/>\n",
                         LEFT, at, WIDTH - RIGHT, at));
        TRY(put_text(out, LEFT + 6 + 150 * (double)(i % 4), at - 4,
                     " fill=\"#555\" font-size=\"11\"", l->name));
    }
    return ERR_NONE;
}

/* A point that can be drawn; of a band, `low` and `high` too. */
static bool has_point(const struct chart_line *l, size_t i, const struct axis *y)
{
    return isfinite(l->x[i]) && isfinite(place_of(y, l->y[i]));
}
static bool has_band(const struct chart_line *l, size_t i, const struct axis *y)
{
    return has_point(l, i, y) && isfinite(place_of(y, l->low[i])) &&
           isfinite(place_of(y, l->high[i]));
}

/* Along the upper side, and back along the lower one. */
static err draw_band(struct bytes *out, const struct chart_line *l, size_t n, const struct axis *x,
                     const struct axis *y)
{
    TRY(bytes_printf(out, "<polygon fill=\"%s\" fill-opacity=\"0.15\" points=\"", chart_color(n)));
    for (size_t i = 0; i < l->count; i++)
        if (has_band(l, i, y))
            TRY(bytes_printf(out, "%.2f,%.2f ", across(x, l->x[i]), down(y, l->high[i])));
    for (size_t i = l->count; i-- > 0;)
        if (has_band(l, i, y))
            TRY(bytes_printf(out, "%.2f,%.2f ", across(x, l->x[i]), down(y, l->low[i])));
    return bytes_printf(out, "\"/>\n");
}

static err draw_dots(struct bytes *out, const struct chart_line *l, size_t n, const struct axis *x,
                     const struct axis *y)
{
    enum { DOTS = 40 };
    size_t last = l->count;
    for (size_t i = 0; i < l->count; i++)
        if (has_point(l, i, y)) last = i;
    for (size_t i = 0; i < l->count && last < l->count; i++) {
        if (!has_point(l, i, y) || (l->count > DOTS && i != last)) continue;
        TRY(bytes_printf(out, "<circle cx=\"%.2f\" cy=\"%.2f\" r=\"%s\" fill=\"%s\"/>\n",
                         across(x, l->x[i]), down(y, l->y[i]), i == last ? "3.5" : "2",
                         chart_color(n)));
    }
    return ERR_NONE;
}

/* The value at the end of a line stands below a falling line and above a rising one, so that the
 * line does not cross it, unless there is no room. Its white edge keeps it legible even then. */
static err draw_end(struct bytes *out, const struct chart_line *l, size_t n, const struct axis *x,
                    const struct axis *y)
{
    size_t last = l->count, before = l->count;
    for (size_t i = 0; i < l->count; i++) {
        if (!has_point(l, i, y)) continue;
        before = last;
        last = i;
    }
    if (last == l->count) return ERR_NONE;
    double part = part_of(y, l->y[last]);
    bool falls = before < l->count && l->y[last] < l->y[before];
    double at = down(y, l->y[last]) + (part < 0.1 || (part < 0.9 && !falls) ? -9 : 20);
    return bytes_printf(out,
                        "<text x=\"%.2f\" y=\"%.2f\" text-anchor=\"end\" fill=\"%s\" "
                        "font-weight=\"bold\" stroke=\"#fff\" stroke-width=\"4\" "
                        "paint-order=\"stroke\">%.4g</text>\n",
                        across(x, l->x[last]) - 6, at, chart_color(n), l->y[last]);
}

/* The line and its dots. Few points get dots of their own, because a single point has no line. The
 * second line of a color is dashed. */
static err draw_line(struct bytes *out, const struct chart_line *l, size_t n, const struct axis *x,
                     const struct axis *y)
{
    TRY(bytes_printf(out,
                     "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\"%s "
                     "stroke-linejoin=\"round\" points=\"",
                     chart_color(n), n / CHART_COLORS % 2 ? " stroke-dasharray=\"7 4\"" : ""));
    for (size_t i = 0; i < l->count; i++)
        if (has_point(l, i, y))
            TRY(bytes_printf(out, "%.2f,%.2f ", across(x, l->x[i]), down(y, l->y[i])));
    TRY(bytes_printf(out, "\"/>\n"));
    return draw_dots(out, l, n, x, y);
}

static void find_axes(struct axis *x, struct axis *y, const struct chart *c)
{
    for (size_t i = 0; i < c->lines; i++) {
        const struct chart_line *l = &c->line[i];
        for (size_t k = 0; k < l->count; k++) {
            if (!has_point(l, k, y)) continue;
            axis_add(x, l->x[k]);
            axis_add(y, l->y[k]);
            if (!l->low || !has_band(l, k, y)) continue;
            axis_add(y, l->low[k]);
            axis_add(y, l->high[k]);
        }
    }
    for (size_t i = 0; i < c->levels; i++)
        axis_add(y, c->level[i].y);
    axis_add(x, 0);
    if (c->from_zero && !c->log) axis_add(y, 0);
    if (c->limit > 0) axis_add(y, c->limit);
    if (!c->log) y->high += 0.04 * (y->high - y->low); /* room for labels above the lines */
    axis_round(x);
    axis_round(y);
}

/* In lines below the chart, one name each, in two columns. */
static err legend_below(struct bytes *out, const struct chart *c)
{
    for (size_t i = 0; i < c->lines; i++) {
        double x = i % 2 ? WIDTH / 2.0 + 10 : LEFT, y = HEIGHT + 6 + LEGEND_ROW * (double)(i / 2);
        TRY(bytes_printf(out,
                         "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" "
                         "stroke-width=\"3\"%s/>\n",
                         x, y - 4, x + 20, y - 4, chart_color(i),
                         i / CHART_COLORS % 2 ? " stroke-dasharray=\"7 4\"" : ""));
        TRY(put_text(out, x + 26, y, " fill=\"#555\"", c->line[i].name ? c->line[i].name : ""));
    }
    return ERR_NONE;
}

enum { END_VALUES = 3 }; /* of more lines they would lie on each other */

err chart_lines(struct bytes *out, const struct chart *c)
{
    struct axis x = {0}, y = {.log = c->log};
    const char *name[CHART_COLORS] = {NULL};
    double wide = 0;
    for (size_t i = 0; i < c->lines; i++) {
        if (i < CHART_COLORS) name[i] = c->line[i].name;
        wide += legend_width(c->line[i].name);
    }
    bool below = c->lines > CHART_COLORS || LEFT + wide > WIDTH - RIGHT;
    int rows = below ? ((int)c->lines + 1) / 2 : 0;
    find_axes(&x, &y, c);
    TRY(begin(out, HEIGHT + LEGEND_ROW * rows, c->title, c->subtitle));
    if (below)
        TRY(legend_below(out, c));
    else if (!c->subtitle)
        TRY(legend(out, name, CHART_COLORS, 49));
    TRY(draw_labels(out, c));
    TRY(draw_axes(out, &x, &y));
    TRY(draw_limit(out, c, &y));
    TRY(draw_levels(out, c, &y));
    for (size_t i = 0; i < c->lines; i++)
        if (c->line[i].low) TRY(draw_band(out, &c->line[i], i, &x, &y));
    for (size_t i = 0; i < c->lines; i++)
        TRY(draw_line(out, &c->line[i], i, &x, &y));
    for (size_t i = 0; i < c->lines && c->lines <= END_VALUES; i++)
        TRY(draw_end(out, &c->line[i], i, &x, &y));
    return bytes_printf(out, "</svg>\n");
}

err chart_write(const char *path, const struct chart *c, bool replace)
{
    struct bytes svg = {.max = 1 << 20};
    err e = chart_lines(&svg, c);
    if (!err_is(e)) e = file_write(path, svg.data, svg.size, replace);
    bytes_close(&svg);
    return e;
}

/* ---- bars ---- */

err chart_bars(struct bytes *out, const struct chart_rows *c)
{
    struct axis x = {0};
    int bottom = TOP + 14 + ROW * (int)c->rows, height = bottom + 46;
    for (size_t i = 0; i < c->bars; i++)
        axis_add(&x, c->bar[i].to);
    axis_add(&x, 0);
    axis_round(&x);
    TRY(begin(out, height, c->title, c->subtitle));
    TRY(legend(out, c->color_name, c->colors, c->subtitle ? 66 : 49));
    double scale = (WIDTH - ROW_LEFT - RIGHT) / (x.high - x.low);
    for (int i = 0; i <= (int)(x.high / x.step + 0.5); i++) {
        double at = ROW_LEFT + i * x.step * scale;
        TRY(bytes_printf(out,
                         "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"#e4e4e4\"/>\n"
                         "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.10g</text>\n",
                         at, TOP + 10, at, bottom, at, bottom + 16, i * x.step));
    }
    for (size_t i = 0; i < c->rows; i++)
        TRY(put_text(out, ROW_LEFT - 8, TOP + 14 + ROW * (double)i + 10, " text-anchor=\"end\"",
                     c->row[i]));
    for (size_t i = 0; i < c->bars; i++) {
        const struct chart_bar *b = &c->bar[i];
        double from = ROW_LEFT + b->from * scale, wide = fmax((b->to - b->from) * scale, 1);
        TRY(bytes_printf(out,
                         "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n",
                         from, TOP + 14 + ROW * (int)b->row, wide, ROW_BAR, chart_color(b->color)));
    }
    TRY(put_text(out, (ROW_LEFT + WIDTH - RIGHT) / 2.0, height - 10, " text-anchor=\"middle\"",
                 c->x_label));
    return bytes_printf(out, "</svg>\n");
}
