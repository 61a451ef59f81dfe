#include "privacy/account/rdp.h"

#include "privacy/account/account_gaussian.h"

#include <math.h>

enum { SERIES_TERMS = 1000, FIXED_EXACT_ORDER = 256 };
static const double hardly = 1e-7, series_rounding = 2e-15;

static const double default_order[RDP_ORDERS] = {
    1.1,  1.2,  1.3,  1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0,  2.1,  2.2,  2.3,  2.4,  2.5,  2.6,
    2.7,  2.8,  2.9,  3.0, 3.1, 3.2, 3.3, 3.4, 3.5, 3.6,  3.7,  3.8,  3.9,  4.0,  4.1,  4.2,
    4.3,  4.4,  4.5,  4.6, 4.7, 4.8, 4.9, 5.0, 5.1, 5.2,  5.3,  5.4,  5.5,  5.6,  5.7,  5.8,
    5.9,  6.0,  6.1,  6.2, 6.3, 6.4, 6.5, 6.6, 6.7, 6.8,  6.9,  7.0,  7.1,  7.2,  7.3,  7.4,
    7.5,  7.6,  7.7,  7.8, 7.9, 8.0, 8.1, 8.2, 8.3, 8.4,  8.5,  8.6,  8.7,  8.8,  8.9,  9.0,
    9.1,  9.2,  9.3,  9.4, 9.5, 9.6, 9.7, 9.8, 9.9, 10.0, 10.1, 10.2, 10.3, 10.4, 10.5, 10.6,
    10.7, 10.8, 10.9, 11,  12,  13,  14,  15,  16,  17,   18,   19,   20,   21,   22,   23,
    24,   25,   26,   27,  28,  29,  30,  31,  32,  33,   34,   35,   36,   37,   38,   39,
    40,   41,   42,   43,  44,  45,  46,  47,  48,  49,   50,   51,   52,   53,   54,   55,
    56,   57,   58,   59,  60,  61,  62,  63,  128, 256,  512,  1024};

const double *rdp_orders(void)
{
    return default_order;
}

double rdp_gaussian(double z, double order)
{
    return order / (2 * z * z);
}

/* ln(e^a + e^b) */
static double log_add(double a, double b)
{
    double high = fmax(a, b), low = fmin(a, b);
    return low == -INFINITY ? high : high + log1p(exp(low - high));
}

/* ln(e^x - 1), x > 0 */
static double log_less_one(double x)
{
    return x > 40 ? x : log(expm1(x));
}

/* ln(e^x + 1) */
static double log_plus_one(double x)
{
    return x > 40 ? x : log1p(exp(x));
}

/* ln A of a whole order: A is the sum over i of C(n,i) q^i (1 - q)^(n - i) e^((i^2 - i) / (2 z^2)).
 * Without the exponential the terms add up to 1, and the exponential is 1 for i < 2. So A - 1 is
 * the sum of the terms i >= 2 with the exponential less one, which is exact also if A is close to
 * 1. */
static double poisson_whole(double q, double z, int order)
{
    double log_q = log(q), log_rest = log1p(-q), log_binomial = 0, sum = -INFINITY;
    for (int i = 0; i <= order; i++) {
        double power = (double)i * (i - 1) / (2 * z * z);
        if (i > 1)
            sum = log_add(sum,
                          log_binomial + i * log_q + (order - i) * log_rest + log_less_one(power));
        log_binomial += log((double)(order - i) / (i + 1));
    }
    return log_plus_one(sum);
}

/* A sum of signed numbers given by logarithms, relative to its largest term so far. */
struct signed_sum {
    long double value, all; /* sum with signs, and sum of absolute values */
    double scale;
};

static void signed_sum_add(struct signed_sum *s, double log_term, int sign)
{
    if (log_term > s->scale) {
        long double shrink = expl((long double)s->scale - log_term);
        s->value *= shrink;
        s->all *= shrink;
        s->scale = log_term;
    }
    long double term = expl((long double)log_term - s->scale);
    s->value += sign * term;
    s->all += term;
}

/* ln of the sum with signs if `exact` and at most 12 digits have cancelled, else ln of the sum of
 * absolute values. */
static double signed_sum_log(const struct signed_sum *s, bool exact)
{
    bool trusted = exact && s->value > s->all * 1e-12L;
    return s->scale + (double)logl(trusted ? s->value : s->all);
}

static double poisson_fractional(double q, double z, double order, bool exact)
{
    double log_q = log(q), log_rest = log1p(-q), split = z * z * (log_rest - log_q) + 0.5;
    double log_binomial = 0, width = 1 / (M_SQRT2 * z), s0_before = INFINITY, s1_before = INFINITY;
    struct signed_sum sum = {.scale = -1e300};
    int sign = 1;
    for (int i = 0; i < SERIES_TERMS; i++) {
        double j = order - i;
        double s0 = log_binomial + i * log_q + j * log_rest + (double)i * (i - 1) / (2 * z * z) -
                    log(2) + account_gaussian_log_erfc((i - split) * width);
        double s1 = log_binomial + j * log_q + i * log_rest + j * (j - 1) / (2 * z * z) - log(2) +
                    account_gaussian_log_erfc((split - j) * width);
        signed_sum_add(&sum, s0, sign);
        signed_sum_add(&sum, s1, sign);
        double log_sum = signed_sum_log(&sum, exact);
        if (s0 < s0_before && s1 < s1_before && fmax(s0, s1) < log_sum - 30)
            return fmax(log_sum, 0);
        s0_before = s0;
        s1_before = s1;
        if (j < 0) sign = -sign; /* C(order, i + 1) = C(order, i) (order - i) / (i + 1) */
        log_binomial += log(fabs(j) / (i + 1));
    }
    return INFINITY;
}

/* If A is close to 1, the rounding of the series may be larger than ln A. It is then added to ln A,
 * or ln A is bounded by convexity, from ln A(1) = 0 and the whole orders around. */
static double poisson_between(double q, double z, double order, bool exact)
{
    double log_a = poisson_fractional(q, z, order, exact);
    if (log_a > hardly) return log_a;
    int low = (int)floor(order);
    double part = order - low, below = low > 1 ? poisson_whole(q, z, low) : 0;
    double convex = (1 - part) * below + part * poisson_whole(q, z, low + 1);
    return fmin(log_a + series_rounding, convex);
}

double rdp_poisson(double q, double z, double order, bool exact)
{
    REQUIRE(q > 0 && q <= 1 && z > 0 && order > 1);
    if (q == 1) return rdp_gaussian(z, order);
    double log_a = order == floor(order) ? poisson_whole(q, z, (int)order)
                                         : poisson_between(q, z, order, exact);
    return log_a / (order - 1);
}

/* ln E[(P/Q - 1)^j] under Q, for even j: P = N(1/z, 1), Q = N(0, 1), P/Q = e^(u/z - 1/(2 z^2)). It
 * is the j-th forward difference of theorem 27. The integrand is positive and smooth, so the
 * trapezoid rule is exact up to rounding, whereas differences of e^(j(j-1)/(2z^2)) would cancel. */
static double log_moment(double z, int j)
{
    const double step = 0.0625;
    double peak = j / z, sum = -INFINITY;
    for (double u = peak > 40 ? peak - 16 : -16; u <= peak + 16; u += step) {
        double loss = u / z - 1 / (2 * z * z);
        double size = loss > 0 ? loss + log1p(-exp(-loss)) : log(-expm1(loss));
        if (loss != 0) sum = log_add(sum, j * size - u * u / 2);
    }
    return sum + log(step) - 0.5 * log(2 * M_PI);
}

static double fixed_whole(double q, double z, int order)
{
    double f = 1 / (z * z), sum = 0, log_binomial = log(order);
    double moment_before = log_moment(z, 2);
    for (int i = 2; i <= order; i++) {
        double term = log(2) + (double)i * (i - 1) / (2 * z * z);
        log_binomial += log((double)(order - i + 1) / i);
        if (i == 2) {
            term = fmin(log(4) + f + log1p(-exp(-f)), f + log(2));
        } else if (order <= FIXED_EXACT_ORDER) {
            double moment = i % 2 == 1 ? log_moment(z, i + 1) : moment_before;
            term = fmin(term, log(4) + 0.5 * (moment_before + moment));
            moment_before = moment;
        }
        sum = log_add(sum, i * log(q) + log_binomial + term);
    }
    return sum;
}

double rdp_fixed_size(double q, double z, double order)
{
    REQUIRE(q > 0 && q <= 1 && z > 0 && order > 1);
    if (q == 1) return rdp_gaussian(z, order);
    int low = (int)floor(order);
    double part = order - low;
    double log_a = low == 1 ? 0 : fixed_whole(q, z, low);
    if (part > 0) log_a = (1 - part) * log_a + part * fixed_whole(q, z, low + 1);
    return log_a / (order - 1);
}

double rdp_epsilon(double *order_out, const double *order, const double *rdp, size_t count,
                   double delta)
{
    double best = INFINITY, best_order = 0;
    for (size_t i = 0; i < count; i++) {
        double a = order[i], e;
        if (delta * delta + expm1(-rdp[i]) > 0)
            e = 0; /* total variation is below delta already */
        else if (a > 1.01)
            e = rdp[i] + log1p(-1 / a) - log(delta * a) / (a - 1);
        else
            continue;
        if (e < best) {
            best = e;
            best_order = a;
        }
    }
    *order_out = best_order;
    return fmax(best, 0);
}
