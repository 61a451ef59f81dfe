/* The three ways to measure a module; contract in method_measure.h. */
#ifndef AGG_METHOD_MEASURE_PARTS_H
#define AGG_METHOD_MEASURE_PARTS_H

#include "agg/round/method_measure.h"

enum { MEASURE_CHANGE, MEASURE_ERROR, MEASURE_STATE, MEASURE_NORMS }; /* places in norm[] */

/* One factor trains. */
err measure_factor(double *norm, const struct method_measure *x, enum adapter_file_role role);
/* R trains. */
err measure_core(double *norm, const struct method_measure *x);
/* A and B train and are averaged, all of one rank and scale, with no carry; other rounds take the
 * way of method_measure.c. */
bool measure_is_mean(const struct method_measure *x);
err measure_mean(double *norm, const struct method_measure *x);

#endif
