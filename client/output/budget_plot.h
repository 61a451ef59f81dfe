/* A curve of epsilon over steps as an SVG file, with labelled axes and the budget as a line. */
#ifndef CLIENT_BUDGET_PLOT_H
#define CLIENT_BUDGET_PLOT_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>

struct budget_plot {
    const double *rounds, *epsilon; /* (count), rising */
    size_t count;                   /* at least 2 */
    double budget;                  /* 0: none */
    const char *title, *subtitle;   /* plain text; of letters that XML leaves alone */
};

/* ERR_INPUT when the file exists and `replace` is false. */
err budget_plot_write(const char *path, const struct budget_plot *plot, bool replace);

#endif
