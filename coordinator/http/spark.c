#include "coordinator/http/spark.h"

#include <math.h>

enum { WIDTH = 160, HEIGHT = 32, MARGIN = 2 };

struct scale {
    double least, most;
    size_t count; /* of values on the x axis */
};

/* One scale for both lines, so that the gap between training and evaluation can be seen. */
static void widen(struct scale *s, const double *value, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(value[i])) continue;
        s->least = fmin(s->least, value[i]);
        s->most = fmax(s->most, value[i]);
    }
}

/* Points without a value are left out, so the line goes straight over them. Tenths of a pixel are
 * enough. */
static err line(struct bytes *out, const double *value, const struct scale *s, const char *class)
{
    double range = s->most - s->least, steps = s->count > 1 ? (double)s->count - 1 : 1;
    TRY(bytes_printf(out, "<polyline class=%s points=\"", class));
    for (size_t i = 0; i < s->count; i++) {
        if (!isfinite(value[i])) continue;
        double y = range > 0 ? (s->most - value[i]) / range : 0.5;
        TRY(bytes_printf(out, "%.1f,%.1f ", MARGIN + (double)i / steps * (WIDTH - 2 * MARGIN),
                         MARGIN + y * (HEIGHT - 2 * MARGIN)));
    }
    return bytes_printf(out, "\"/>");
}

/* The newest finite value; NaN: there is none. */
static double newest(const double *value, size_t count)
{
    while (count && !isfinite(value[count - 1]))
        count--;
    return count ? value[count - 1] : NAN;
}

/* The words beside the picture are the newest values; the label has the range, for those who cannot
 * see it. */
err spark_write(struct bytes *out, const struct spark *k)
{
    struct scale s = {.least = INFINITY, .most = -INFINITY, .count = k->count};
    widen(&s, k->train, k->count);
    widen(&s, k->eval, k->count);
    if (!isfinite(s.least)) return ERR_NONE;
    double train = newest(k->train, k->count), eval = newest(k->eval, k->count);
    TRY(bytes_printf(out,
                     "<svg width=%d height=%d role=img aria-label=\"losses of %zu rounds, from "
                     "%.3g to %.3g\">",
                     WIDTH, HEIGHT, k->count, s.least, s.most));
    TRY(line(out, k->train, &s, "t"));
    if (!isnan(eval)) TRY(line(out, k->eval, &s, "e"));
    TRY(bytes_printf(out, "</svg>training loss %.4g", train));
    return isnan(eval) ? ERR_NONE : bytes_printf(out, ", evaluation loss %.4g (dashed)", eval);
}
