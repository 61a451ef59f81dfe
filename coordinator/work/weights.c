#include "coordinator/work/weights.h"

#include <math.h>

/* Newton's iteration for t from above. While the same k weights are above t, sum_j min(w_j, t) is
 * rest + k t, so t = cap rest / (1 - k cap). k never falls, so it ends after at most 1 / cap
 * steps. */
static double limit_of(const double *weight, size_t count, double cap)
{
    double t = INFINITY;
    for (size_t k = 0, above = 0;; k = above) {
        double rest = 0;
        above = 0;
        for (size_t i = 0; i < count; i++)
            if (weight[i] > t)
                above++;
            else
                rest += weight[i];
        if (isfinite(t) && above == k) return t;
        t = cap * rest / (1 - (double)above * cap);
    }
}

void weights_cap(double *weight, size_t count, double cap)
{
    size_t positive = 0;
    for (size_t i = 0; i < count; i++)
        positive += weight[i] > 0;
    if (cap <= 0 || positive == 0) return;
    double t = (double)positive * cap > 1 ? limit_of(weight, count, cap) : 0;
    for (size_t i = 0; i < count; i++)
        if (t == 0)
            weight[i] = weight[i] > 0 ? 1 : 0;
        else if (weight[i] > t)
            weight[i] = t;
}
