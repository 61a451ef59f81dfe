/* The SVG is written by hand: it needs only lines, rectangles and text. */
#include "client/output/chart.h"

#include "base/file.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* The picture and its margins in pixels, and about how many labels an axis gets. */
enum { WIDTH = 720, HEIGHT = 440, LEFT = 76, RIGHT = 24, TOP = 66, BOTTOM = 62, TICKS = 6 };
enum { ROW = 18, ROW_BAR = 12, ROW_LEFT = 150, LEGEND_LETTER = 8, LEGEND_BOX = 26 };

static const char *const colors[CHART_COLORS] = {"#1f5fa8", "#d1722c", "#2f8f4e", "#8a4fb0",
                                                 "#b03a48", "#6b6b2d", "#2a9aa3", "#777777"};

const char *chart_color(size_t n)
{
    return colors[n % CHART_COLORS];
}

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
    double low, high, step; /* in units of the values, not in pixels */
    bool any;               /* has values */
};

static void axis_add(struct axis *a, double value)
{
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
    a->low = floor(a->low / a->step + 1e-9) * a->step;
    a->high = ceil(a->high / a->step - 1e-9) * a->step;
}

static double part_of(const struct axis *a, double value)
{
    return (value - a->low) / (a->high - a->low);
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

/* Names with their colors in one line, as far as they fit. */
static err legend(struct bytes *out, const char *const *name, size_t names, double y)
{
    double x = LEFT;
    for (size_t i = 0; i < names; i++) {
        if (!name[i]) continue;
        double wide = LEGEND_BOX + LEGEND_LETTER * (double)strlen(name[i]);
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

/* The values are computed from i instead of being added up, so that labels have no rounding
 * error. */
static err draw_axes(struct bytes *out, const struct axis *x, const struct axis *y)
{
    int rows = (int)((y->high - y->low) / y->step + 0.5);
    int columns = (int)((x->high - x->low) / x->step + 0.5);
    for (int i = 0; i <= rows; i++) {
        double value = y->low + i * y->step, at = down(y, value);
        TRY(bytes_printf(out,
                         "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"%s\"/>\n"
                         "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.6g</text>\n",
                         LEFT, at, WIDTH - RIGHT, at, i ? "#e4e4e4" : "#222", LEFT - 8, at + 4.5,
                         fabs(value) < 1e-9 * y->step ? 0.0 : value));
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

/* The line, a dot at its end, and the value there. Few points get dots of their own, because a
 * single point has no line. */
static err draw_line(struct bytes *out, const struct chart_line *l, size_t n, const struct axis *x,
                     const struct axis *y)
{
    enum { DOTS = 40 };
    size_t last = l->count;
    TRY(bytes_printf(out,
                     "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" "
                     "stroke-linejoin=\"round\" points=\"",
                     chart_color(n)));
    for (size_t i = 0; i < l->count; i++) {
        if (!isfinite(l->x[i]) || !isfinite(l->y[i])) continue;
        TRY(bytes_printf(out, "%.2f,%.2f ", across(x, l->x[i]), down(y, l->y[i])));
        last = i;
    }
    TRY(bytes_printf(out, "\"/>\n"));
    for (size_t i = 0; i < l->count && last < l->count; i++) {
        if (!isfinite(l->x[i]) || !isfinite(l->y[i]) || (l->count > DOTS && i != last)) continue;
        TRY(bytes_printf(out, "<circle cx=\"%.2f\" cy=\"%.2f\" r=\"%s\" fill=\"%s\"/>\n",
                         across(x, l->x[i]), down(y, l->y[i]), i == last ? "3.5" : "2",
                         chart_color(n)));
    }
    if (last == l->count) return ERR_NONE;
    /* The value is printed on the side of the line that has more room. */
    double at = down(y, l->y[last]) + (part_of(y, l->y[last]) < 0.5 ? -9 : 20);
    return bytes_printf(out,
                        "<text x=\"%.2f\" y=\"%.2f\" text-anchor=\"end\" fill=\"%s\" "
                        "font-weight=\"bold\">%.4g</text>\n",
                        across(x, l->x[last]) - 6, at, chart_color(n), l->y[last]);
}

/* The vertical axis leaves 4 % above the lines for labels. */
err chart_lines(struct bytes *out, const struct chart *c)
{
    struct axis x = {0}, y = {0};
    const char *name[CHART_COLORS] = {NULL};
    for (size_t i = 0; i < c->lines; i++) {
        const struct chart_line *l = &c->line[i];
        if (i < CHART_COLORS) name[i] = l->name;
        for (size_t k = 0; k < l->count; k++) {
            if (!isfinite(l->x[k]) || !isfinite(l->y[k])) continue;
            axis_add(&x, l->x[k]);
            axis_add(&y, l->y[k]);
        }
    }
    axis_add(&x, 0);
    if (c->from_zero) axis_add(&y, 0);
    if (c->limit > 0) axis_add(&y, c->limit);
    y.high += 0.04 * (y.high - y.low);
    axis_round(&x);
    axis_round(&y);
    TRY(begin(out, HEIGHT, c->title, c->subtitle));
    if (!c->subtitle) TRY(legend(out, name, CHART_COLORS, 49));
    TRY(draw_labels(out, c));
    TRY(draw_axes(out, &x, &y));
    TRY(draw_limit(out, c, &y));
    for (size_t i = 0; i < c->lines; i++)
        TRY(draw_line(out, &c->line[i], i, &x, &y));
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
