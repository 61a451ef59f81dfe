#include "privacy/account/pld_pair.h"

#include "privacy/account/account_gaussian.h"

#include <math.h>

/* ln(1 - a + a e^t) */
static double log_mix(double a, double t)
{
    if (a == 0 || a == 1) return a * t;
    return t > 30 ? t + log(a + (1 - a) * exp(-t)) : log1p(a * expm1(t));
}

double pld_pair_loss(const struct pld_pair *p, double x)
{
    double square = p->z * p->z;
    return log_mix(p->up, (x - 0.5) / square) - log_mix(p->low, (-x - 0.5) / square);
}

/* The x whose log_mix(a, (x - 1/2) / z^2) is `loss`; -infinity below ln(1 - a). */
static double mix_inverse(double z, double a, double loss)
{
    if (a == 1) return 0.5 + z * z * loss;
    if (loss > 0) return 0.5 + z * z * (loss + log1p((1 - a) * -expm1(-loss) / a));
    double part = expm1(loss) / a;
    return part <= -1 ? -INFINITY : 0.5 + z * z * log1p(part);
}

/* Both mixed at the same rate: a quadratic equation in y = e^(x / z^2), whose positive root is
 * y = e^(loss/2 + asinh(h)), h = (1 - q)/q e^(1/(2 z^2)) sinh(loss / 2). */
static double both_inverse(double z, double q, double loss)
{
    double half = fabs(loss) / 2, root;
    double log_sinh = half > 20 ? half - log(2) : log(sinh(half));
    double log_h = log1p(-q) - log(q) + 0.5 / (z * z) + log_sinh;
    root = log_h > 30 ? log_h + log(2) : asinh(exp(log_h));
    return z * z * (loss / 2 + copysign(root, loss));
}

double pld_pair_inverse(const struct pld_pair *p, double loss)
{
    if (p->low == 0) return mix_inverse(p->z, p->up, loss);
    if (p->up == 0) return -mix_inverse(p->z, p->low, -loss);
    return both_inverse(p->z, p->up, loss);
}

static double mix_between(double z, double part, double center, double low, double high)
{
    double mass = part < 1 ? (1 - part) * account_gaussian_between(low / z, high / z) : 0;
    if (part > 0) mass += part * account_gaussian_between((low - center) / z, (high - center) / z);
    return mass;
}

double pld_pair_up(const struct pld_pair *p, double low, double high)
{
    return mix_between(p->z, p->up, 1, low, high);
}

double pld_pair_low(const struct pld_pair *p, double low, double high)
{
    return mix_between(p->z, p->low, -1, low, high);
}

double pld_pair_log_low(const struct pld_pair *p, double low, double high)
{
    double z = p->z, part = p->low, rest = -INFINITY, moved = -INFINITY;
    if (part < 1) rest = log1p(-part) + account_gaussian_log_between(low / z, high / z);
    if (part > 0) moved = log(part) + account_gaussian_log_between((low + 1) / z, (high + 1) / z);
    double most = fmax(rest, moved);
    return most == -INFINITY ? most : most + log1p(exp(fmin(rest, moved) - most));
}
