#include "privacy/account/pld_step.h"

#include <math.h>

/* x beyond this many deviations has a probability below e^-50. */
static const double deviations = 9.8;
static const double loss_large = 300;
enum { MOMENT_BLOCK = 16 };

struct range {
    double first, last;
};

static struct range range_of(const struct pld_pair *p, double interval)
{
    double reach = deviations * p->z;
    return (struct range){floor(pld_pair_loss(p, -reach) / interval),
                          ceil(pld_pair_loss(p, reach + (p->up > 0)) / interval)};
}

double pld_step_cells(const struct pld_pair *pair, double interval)
{
    struct range r = range_of(pair, interval);
    return r.last - r.first + 1;
}

/* Q of a cell times e^below. By logarithms, because for a large loss one of the two factors is no
 * double. */
static double low_scaled(const struct pld_pair *pair, double x, double x_above, double below)
{
    if (below < loss_large) return pld_pair_low(pair, x, x_above) * exp(below);
    return exp(pld_pair_log_low(pair, x, x_above) + below);
}

err pld_step_take(struct pld_step *out, const struct pld_pair *pair, double interval,
                  struct arena *arena)
{
    REQUIRE(pair->up == 0 || pair->low == 0 || pair->up == pair->low);
    struct range r = range_of(pair, interval);
    struct pld_step step = {.interval = interval, .first = (int64_t)r.first};
    step.size = (size_t)(r.last - r.first) + 1;
    TRY(arena_take(&step.mass, arena, step.size, sizeof *step.mass));
    double x = -INFINITY, width = -expm1(-interval);
    for (size_t i = 0; i <= step.size;
         i++) { /* the cell below point i; the last has no upper end */
        double above = (double)(step.first + (int64_t)i) * interval;
        double x_above = i < step.size ? fmax(pld_pair_inverse(pair, above), x) : INFINITY;
        double p = pld_pair_up(pair, x, x_above);
        double scaled = p > 0 && i > 0 ? low_scaled(pair, x, x_above, above - interval) : 0;
        x = x_above;
        if (i == 0) {
            step.mass[0] = p; /* all smaller losses, rounded up to this one */
            continue;
        }
        /* u + v = p and u e^-below + v e^-above = q, as v (1 - e^-interval) = p - q e^below */
        double v = (p - scaled) / (i < step.size ? width : 1);
        v = fmin(fmax(v, 0), p);
        step.mass[i - 1] += p - v;
        if (i < step.size)
            step.mass[i] = v;
        else
            step.infinity = v;
    }
    *out = step;
    return ERR_NONE;
}

double pld_step_log_moment(const struct pld_step *step, double lambda)
{
    double growth = lambda * step->interval, w = exp(growth), sum = 0, scale = -INFINITY;
    REQUIRE(fabs(growth) <= 40);
    for (size_t i = 0; i < step->size; i += MOMENT_BLOCK) {
        size_t end = i + MOMENT_BLOCK < step->size ? i + MOMENT_BLOCK : step->size;
        double block = 0; /* by Horner's rule */
        for (size_t k = end; k-- > i;)
            block = block * w + step->mass[k];
        if (block <= 0) continue;
        double log_block = log(block) + growth * (double)(step->first + (int64_t)i);
        if (log_block > scale) {
            sum = sum * exp(scale - log_block) + 1;
            scale = log_block;
        } else {
            sum += exp(log_block - scale);
        }
    }
    return scale + log(sum);
}
