/* The SVG is written by hand: it needs only lines, text and one polyline, and any browser shows
 * it. */
#include "client/output/budget_plot.h"

#include "base/bytes.h"
#include "base/file.h"

#include <math.h>

/* The picture and its margins in pixels, and about how many labels an axis gets. */
enum { WIDTH = 720, HEIGHT = 440, LEFT = 76, RIGHT = 24, TOP = 66, BOTTOM = 62, TICKS = 6 };

/* An axis from 0 to `end`, with a label at every `step`. */
struct axis {
    double end, step; /* in units of the values, not in pixels */
};

/* The end of an axis that holds `most`, in steps of 1, 2 or 5 times a power of ten, so that labels
 * are round numbers. 1e-9 keeps a maximum that is itself round from getting another step. */
static struct axis axis_choose(double most)
{
    double power = pow(10, floor(log10(most / TICKS))), ratio = most / TICKS / power;
    double step = power * (ratio <= 1 ? 1 : ratio <= 2 ? 2 : ratio <= 5 ? 5 : 10);
    return (struct axis){ceil(most / step - 1e-9) * step, step};
}

/* Pixels from a value; y grows downwards in SVG. */
static double across(const struct axis *x, double value)
{
    return LEFT + value / x->end * (WIDTH - LEFT - RIGHT);
}

static double down(const struct axis *y, double value)
{
    return HEIGHT - BOTTOM - value / y->end * (HEIGHT - TOP - BOTTOM);
}

/* Title, subtitle and the names of the axes. A white background, for viewers with a dark one. */
static err draw_frame(struct bytes *out, const struct budget_plot *p)
{
    TRY(bytes_printf(out,
                     "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
                     "width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"13\" "
                     "fill=\"#222\">\n<title>%s</title>\n"
                     "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n",
                     WIDTH, HEIGHT, WIDTH, HEIGHT, p->title, WIDTH, HEIGHT));
    TRY(bytes_printf(out,
                     "<text x=\"%d\" y=\"28\" font-size=\"17\" font-weight=\"bold\">%s</text>\n"
                     "<text x=\"%d\" y=\"49\" fill=\"#555\">%s</text>\n",
                     LEFT, p->title, LEFT, p->subtitle));
    return bytes_printf(out,
                        "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">rounds (noisy releases)"
                        "</text>\n<text transform=\"translate(20 %d) rotate(-90)\" "
                        "text-anchor=\"middle\">epsilon spent</text>\n",
                        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, (TOP + HEIGHT - BOTTOM) / 2);
}

/* The multiples are computed from i instead of being added up, so that labels have no rounding
 * error. */
static err draw_axes(struct bytes *out, const struct axis *x, const struct axis *y)
{
    for (int i = 0; i * y->step <= y->end * (1 + 1e-9); i++) {
        double at = down(y, i * y->step);
        TRY(bytes_printf(out,
                         "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"%s\"/>\n"
                         "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
                         LEFT, at, WIDTH - RIGHT, at, i ? "#e4e4e4" : "#222", LEFT - 8, at + 4.5,
                         i * y->step));
    }
    for (int i = 0; i * x->step <= x->end * (1 + 1e-9); i++) {
        double at = across(x, i * x->step);
        TRY(bytes_printf(out,
                         "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"#222\"/>\n"
                         "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.10g</text>\n",
                         at, HEIGHT - BOTTOM, at, HEIGHT - BOTTOM + 5, at, HEIGHT - BOTTOM + 21,
                         i * x->step));
    }
    return ERR_NONE;
}

/* The budget as a dashed line if there is one, the curve, and the value at its end. */
static err draw_curve(struct bytes *out, const struct budget_plot *p, const struct axis *x,
                      const struct axis *y)
{
    if (p->budget > 0)
        TRY(bytes_printf(out,
                         "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#c0392b\" "
                         "stroke-width=\"1.5\" stroke-dasharray=\"6 4\"/>\n<text x=\"%d\" "
                         "y=\"%.1f\" fill=\"#c0392b\" text-anchor=\"end\">budget %g</text>\n",
                         LEFT, down(y, p->budget), WIDTH - RIGHT, down(y, p->budget),
                         WIDTH - RIGHT - 4, down(y, p->budget) - 6, p->budget));
    TRY(bytes_printf(out, "<polyline fill=\"none\" stroke=\"#1f5fa8\" stroke-width=\"2\" "
                          "stroke-linejoin=\"round\" points=\""));
    for (size_t i = 0; i < p->count; i++)
        TRY(bytes_printf(out, "%s%.2f,%.2f", i ? " " : "", across(x, p->rounds[i]),
                         down(y, p->epsilon[i])));
    size_t last = p->count - 1;
    return bytes_printf(out,
                        "\"/>\n<circle cx=\"%.2f\" cy=\"%.2f\" r=\"3.5\" fill=\"#1f5fa8\"/>\n"
                        "<text x=\"%.2f\" y=\"%.2f\" text-anchor=\"end\" fill=\"#1f5fa8\" "
                        "font-weight=\"bold\">%.4g</text>\n</svg>\n",
                        across(x, p->rounds[last]), down(y, p->epsilon[last]),
                        across(x, p->rounds[last]) - 6, down(y, p->epsilon[last]) + 20,
                        p->epsilon[last]);
}

/* The vertical axis leaves 4 % above the curve for the label. */
err budget_plot_write(const char *path, const struct budget_plot *plot, bool replace)
{
    struct bytes out = {.max = 1 << 20};
    err e = ERR_NONE;
    REQUIRE(plot->count >= 2);
    double top = fmax(plot->epsilon[plot->count - 1], plot->budget);
    struct axis x = axis_choose(plot->rounds[plot->count - 1]);
    struct axis y = axis_choose(top > 0 ? top * 1.04 : 1);
    TRY_OUT(e, draw_frame(&out, plot));
    TRY_OUT(e, draw_axes(&out, &x, &y));
    TRY_OUT(e, draw_curve(&out, plot, &x, &y));
    TRY_OUT(e, file_write(path, out.data, out.size, replace));
out:
    bytes_close(&out);
    return e;
}
