/* The page of a sweep or of several simulations, and what it shares with the page of one. */
#ifndef SIM_PAGE_MANY_H
#define SIM_PAGE_MANY_H

#include "base/bytes.h"
#include "client/output/chart.h"
#include "sim/outcome.h"

/* The head of a page, up to its title. */
err page_begin(struct bytes *out, const char *title);
/* <tag>text</tag>, escaped. */
err page_cell(struct bytes *out, const char *tag, const char *text);
/* In percent; smaller errors of a round come from rounding, and would fill a logarithmic axis. */
#define PAGE_ERROR_LEAST 1e-3
/* The unit of virtual times that suits the longest one, and its milliseconds. */
const char *page_time_unit(double *ms, double longest_ms);
/* Singular values of the last states. */
err page_spectrum(struct bytes *out, const struct outcomes *o);
/* The reference lines of a picture; returns their number. */
size_t page_levels(struct chart_level level[REFERENCE_KINDS], const struct outcomes *o,
                   bool accuracy);
/* The fairness of one simulation, if its members have held out rows (sim/page_members.c). */
err page_members(struct bytes *out, const char *dir);
/* Charts of all settings (sim/page_curves.c). */
err page_curves(struct bytes *out, const struct outcomes *o);
err page_many(struct bytes *out, const struct outcomes *o);

#endif
