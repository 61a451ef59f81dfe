#include "privacy/account/pld.h"

#include "base/limits.h"
#include "privacy/account/account_gaussian.h"
#include "privacy/account/fft.h"
#include "privacy/account/pld_step.h"

#include <math.h>
#include <string.h>

static const double interval_default = 1e-4;
static const double outside_log = -31; /* ln of the tilted mass outside the window, per side */

/* All releases in one direction, on one grid. */
struct whole {
    struct arena arena;
    size_t count;
    struct pld_step *step; /* (count) */
    uint64_t *times;       /* (count) */
    double interval;
    double infinity_log_rest; /* ln of the probability that all losses are finite */
    double lambda, moment;    /* the tilt, and K(lambda) */
    int64_t first;            /* of the window */
    size_t size;              /* of the window: a power of two */
    double peak, norm; /* bounds of the transforms' error in the window: e1 and e2 of pld.h */
};

static double log_moment(const struct whole *w, double lambda)
{
    double sum = 0;
    for (size_t i = 0; i < w->count; i++)
        sum += (double)w->times[i] * pld_step_log_moment(&w->step[i], lambda);
    return sum;
}

static void whole_close(struct whole *w)
{
    arena_close(&w->arena);
    *w = (struct whole){0};
}

static err whole_open(struct whole *out, const struct pld_event *event, size_t count,
                      const struct pld_pair *direction, double interval)
{
    struct whole w = {.interval = interval, .count = count};
    err e = ERR_NONE;
    TRY_OUT(e, arena_take(&w.step, &w.arena, count, sizeof *w.step));
    TRY_OUT(e, arena_take(&w.times, &w.arena, count, sizeof *w.times));
    for (size_t i = 0; i < count; i++) {
        struct pld_pair pair = {event[i].z, direction->up * event[i].q,
                                direction->low * event[i].q};
        TRY_OUT(e, pld_step_take(&w.step[i], &pair, interval, &w.arena));
        w.times[i] = event[i].count;
        w.infinity_log_rest += (double)event[i].count * log1p(-w.step[i].infinity);
    }
    *out = w;
    return ERR_NONE;
out:
    whole_close(&w);
    return e;
}

/* Chernoff's bound, of an epsilon for e^log_delta: 1 - e^(eps - t) <= m e^(lambda (t - eps)) for
 * all t, with ln m = lambda ln lambda - (1 + lambda) ln(1 + lambda). */
static double chernoff(const struct whole *w, double lambda, double log_delta)
{
    double log_most = -log1p(lambda) - lambda * log1p(1 / lambda);
    return (log_moment(w, lambda) + log_most - log_delta) / lambda;
}

/* The lambda of the least Chernoff bound, by golden section over its logarithm, because the bound
 * has one minimum. A lambda some per cent off only makes the window a little wider. Returns the
 * bound. */
static double choose_tilt(struct whole *w, double log_delta)
{
    const double ratio = 0.6180339887498949;
    double low = log(1e-6), high = log(3 / w->interval);
    double a = high - ratio * (high - low), b = low + ratio * (high - low);
    double at_a = chernoff(w, exp(a), log_delta), at_b = chernoff(w, exp(b), log_delta);
    while (high - low > 0.05) {
        if (at_a < at_b) {
            high = b;
            b = a;
            at_b = at_a;
            a = high - ratio * (high - low);
            at_a = chernoff(w, exp(a), log_delta);
        } else {
            low = a;
            a = b;
            at_a = at_b;
            b = low + ratio * (high - low);
            at_b = chernoff(w, exp(b), log_delta);
        }
    }
    w->lambda = exp((low + high) / 2);
    w->moment = log_moment(w, w->lambda);
    return chernoff(w, w->lambda, log_delta);
}

/* The edge beyond which the tilted mass is at most e^outside_log: for any s beyond lambda,
 * K(s) - K(lambda) - (s - lambda) edge <= outside_log. */
static double choose_window(struct whole *w)
{
    const double away[] = {0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 4.5, 7, 10};
    double low = -INFINITY, high = INFINITY, least = 0, most = 0;
    for (size_t i = 0; i < w->count; i++) { /* the range of possible losses */
        least += (double)w->times[i] * (double)w->step[i].first;
        most += (double)w->times[i] * (double)(w->step[i].first + (int64_t)w->step[i].size - 1);
    }
    for (size_t i = 0; i < sizeof away / sizeof *away; i++) {
        double shift = away[i] * w->lambda;
        double up = log_moment(w, w->lambda + shift) - w->moment - outside_log;
        double down = log_moment(w, w->lambda - shift) - w->moment - outside_log;
        high = fmin(high, up / shift);
        low = fmax(low, -down / shift);
    }
    double first = fmax(floor(low / w->interval), least);
    double last = fmin(ceil(high / w->interval), most);
    w->first = (int64_t)first;
    return last - first + 1;
}

/* One release, tilted, and folded into the length of the window. e^(lambda t - K) is computed by
 * multiplication within short runs, because exp() of each cell would dominate the time. */
static void fold(const struct fft *fft, struct fft_value *z, const struct pld_step *step,
                 double lambda)
{
    enum { RUN = 32 };
    double moment = pld_step_log_moment(step, lambda), w = exp(lambda * step->interval), tilt = 0;
    size_t n = 2 * fft->size;
    memset(z, 0, fft->size * sizeof *z);
    for (size_t i = 0; i < step->size; i++) {
        int64_t k = step->first + (int64_t)i;
        if (i % RUN == 0 || tilt == 0) tilt = exp(lambda * (double)k * step->interval - moment);
        size_t place = (size_t)k & (n - 1); /* modulo X^n + 1: the sign changes at each wrap */
        bool turned = ((uint64_t)k / n) & 1;
        *fft_at(fft, z, place) += turned ? -step->mass[i] * tilt : step->mass[i] * tilt;
        tilt *= w;
    }
}

static inline struct fft_value times(struct fft_value a, struct fft_value b)
{
    return (struct fft_value){a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

/* The effect of a small change of a release's values f on their power: sums of |f^(count - 1)|, of
 * their squares, and of the squares of f. */
struct sensitivity {
    double first, second, norm;
};

/* out *= f^count */
static void multiply_power(struct fft_value *out, struct sensitivity *sum, struct fft_value f,
                           uint64_t count)
{
    struct fft_value power = {1, 0}, square = f;
    for (uint64_t n = count - 1; n; n >>= 1) {
        if (n & 1) power = times(power, square);
        square = times(square, square);
    }
    double size = power.re * power.re + power.im * power.im;
    sum->first += sqrt(size);
    sum->second += size;
    sum->norm += f.re * f.re + f.im * f.im;
    *out = times(*out, times(power, f));
}

/* The tilted composition in the window. */
static err convolve(struct fft_value **out, struct fft *fft, struct whole *w)
{
    struct fft_value *product, *one;
    double eta = fft_error(w->size) + 2 * 0x1p-53;
    TRY(fft_open(fft, w->size));
    TRY(arena_take(&product, &w->arena, fft->size, sizeof *product));
    TRY(arena_take(&one, &w->arena, fft->size, sizeof *one));
    for (size_t j = 0; j < fft->size; j++)
        product[j] = (struct fft_value){1, 0};
    for (size_t i = 0; i < w->count; i++) {
        struct sensitivity sum = {0};
        fold(fft, one, &w->step[i], w->lambda);
        fft_forward(fft, one);
        for (size_t j = 0; j < fft->size; j++)
            multiply_power(&product[j], &sum, one[j], w->times[i]);
        double m = (double)fft->size, amplified = eta * (double)w->times[i];
        w->peak += amplified * fmin(sum.first / m, sqrt(sum.second / m) * sqrt(sum.norm / m));
        w->norm += amplified * sqrt(sum.second / m);
    }
    double norm = 0;
    for (size_t j = 0; j < fft->size; j++)
        norm += product[j].re * product[j].re + product[j].im * product[j].im;
    w->peak += eta * sqrt(norm / (double)fft->size);
    w->norm += eta * sqrt(norm / (double)fft->size);
    fft_inverse(fft, product);
    *out = product;
    return ERR_NONE;
}

/* The most that errors can add to A - B below. For epsilon within one cell below t, an error at the
 * k-th loss from t on has the weight g_k = e^(-lambda k h) (1 - e^(-(k + 1) h)), where h is the
 * interval. */
static double margin_of(const struct whole *w)
{
    double h = w->interval, lambda = w->lambda, fall = exp(-h);
    double sum = 1 / -expm1(-lambda * h) - fall / -expm1(-(lambda + 1) * h);
    double squares = 1 / -expm1(-2 * lambda * h) - 2 * fall / -expm1(-(2 * lambda + 1) * h) +
                     fall * fall / -expm1(-2 * (lambda + 1) * h);
    return 2 * exp(outside_log) + fmin(w->peak * sum, w->norm * sqrt(fmax(squares, 0)));
}

/* Goes down from the largest loss until more than delta lies above. For the loss t, let A = sum p
 * e^(-lambda (s - t)) over the losses s above t, and B the same with lambda + 1. Then delta is c +
 * e^(K - lambda t) (A - B + margin), where c is the probability of infinite losses. */
static double read_epsilon(const struct whole *w, const struct fft *fft, struct fft_value *z,
                           double delta)
{
    double c = -expm1(w->infinity_log_rest), a = 0, b = 0, t = 0;
    double fall_a = exp(-w->lambda * w->interval), fall_b = exp(-(w->lambda + 1) * w->interval);
    double margin = margin_of(w);
    for (int64_t k = w->first + (int64_t)w->size - 1;; k--) { /* also below the window, down to 0 */
        double below = (double)k * w->interval;
        double log_left = log(delta - c) - w->moment; /* the largest allowed value of A - B */
        double excess = a * fall_a - b * fall_b + margin;
        if (excess > 0 && log(excess) > log_left + w->lambda * below) {
            /* between this loss and t above it: solve a - e^(eps - t) b = allowed */
            double left = exp(log_left + w->lambda * t) - margin;
            double epsilon = left < a ? t + log((a - left) / b) : below;
            return fmax(fmax(epsilon, below), 0);
        }
        if (k < 0) return 0;
        double p = k < w->first ? 0 : *fft_at(fft, z, (size_t)k & (w->size - 1));
        p = ((uint64_t)k / w->size) & 1 ? -p : p;
        a = a * fall_a + fmax(p, 0);
        b = b * fall_b + fmax(p, 0);
        t = below;
    }
}

/* Epsilon in one direction; *fits is false if the window is too long for this interval. */
static err epsilon_of(double *out, bool *fits, const struct pld_event *event, size_t count,
                      double delta, const struct pld_pair *direction, const struct pld_options *how)
{
    struct whole w = {0};
    struct fft fft = {0};
    struct fft_value *z;
    err e = ERR_NONE;
    TRY(whole_open(&w, event, count, direction, how->interval));
    double infinite = -expm1(w.infinity_log_rest);
    *fits = true;
    *out = infinite < delta ? 0 : INFINITY;
    if (infinite >= delta || choose_tilt(&w, log(delta - infinite)) <= 0) goto out;
    double size = choose_window(&w);
    *fits = size <= how->cells;
    if (!*fits) goto out;
    for (w.size = 4; (double)w.size < size;)
        w.size *= 2;
    TRY_OUT(e, convolve(&z, &fft, &w));
    *out = read_epsilon(&w, &fft, z, delta);
out:
    fft_close(&fft);
    whole_close(&w);
    return e;
}

/* ---- one release alone ---- */

/* ln of P(L > eps) - e^eps Q(L > eps). */
static double one_log_delta(const struct pld_pair *pair, double epsilon)
{
    double x = pld_pair_inverse(pair, epsilon);
    double p = pld_pair_up(pair, x, INFINITY);
    double log_q = epsilon + pld_pair_log_low(pair, x, INFINITY), log_p = log(p);
    return log_p <= log_q ? -INFINITY : log_p + log(-expm1(log_q - log_p));
}

static double one_epsilon(const struct pld_pair *pair, double delta)
{
    double low = 0, high = 1, target = log(delta);
    if (one_log_delta(pair, 0) <= target) return 0;
    while (one_log_delta(pair, high) > target)
        high *= 2;
    while (high - low > 1e-12 * high)
        if (one_log_delta(pair, (low + high) / 2) > target)
            low = (low + high) / 2;
        else
            high = (low + high) / 2;
    return high;
}

/* ---- all ---- */

/* The default spacing, made finer if the losses are so small that rounding them to the grid would
 * add much to their variance q^2 (e^(1/z^2) - 1). Rounding adds at most the variance of one
 * interval, or of the few losses that differ at all. It depends on each release alone, so that more
 * noise never costs more. */
static double interval_choose(const struct pld_event *event, size_t count)
{
    double interval = interval_default;
    for (;;) {
        double variance = 0, added = 0;
        for (size_t i = 0; i < count; i++) {
            double n = (double)event[i].count, q = event[i].q, z = event[i].z;
            double differ = q * account_gaussian_between(-0.5 / z, 0.5 / z);
            variance += n * q * q * expm1(fmin(1 / (z * z), 30));
            added += n * fmin(interval * interval / 6, 2 * interval * differ);
        }
        if (added <= variance / 20) return interval;
        interval /= 2;
    }
}

static double longest(const struct pld_event *event, size_t count, double interval)
{
    double most = 0;
    for (size_t i = 0; i < count; i++) {
        struct pld_pair up = {event[i].z, event[i].q, 0}, low = {event[i].z, 0, event[i].q};
        most = fmax(most, pld_step_cells(&up, interval) + pld_step_cells(&low, interval));
    }
    return most;
}

static const struct pld_pair add_remove[2] = {{0, 1, 0}, {0, 0, 1}}, replace_one = {0, 1, 1};

/* Both directions on the same grid. */
static err on_grid(struct pld_result *out, const struct pld_event *event, size_t count,
                   double delta, struct pld_options *how)
{
    const struct pld_pair *direction = how->replace_one ? &replace_one : add_remove;
    double epsilon[2] = {0};
    while (longest(event, count, how->interval) > 2.0 * how->cells)
        how->interval *= 2;
    for (int i = 0; i < (how->replace_one ? 1 : 2);) {
        bool fits;
        TRY(epsilon_of(&epsilon[i], &fits, event, count, delta, &direction[i], how));
        if (fits) {
            i++;
        } else {
            how->interval *= 2;
            i = 0;
        }
    }
    *out = (struct pld_result){fmax(epsilon[0], epsilon[1]), how->interval};
    return ERR_NONE;
}

/* The exact curve of a single release, for which the usual grid is too coarse. */
static double one_exact(const struct pld_event *event, double delta, bool both)
{
    struct pld_pair up = {event->z, event->q, 0}, low = {event->z, 0, event->q},
                    mixed = {event->z, event->q, event->q};
    if (both) return one_epsilon(&mixed, delta);
    return fmax(one_epsilon(&up, delta), one_epsilon(&low, delta));
}

err pld_epsilon(struct pld_result *out, const struct pld_event *event, size_t count, double delta,
                const struct pld_options *options)
{
    struct pld_options how = *options;
    REQUIRE(count > 0 && delta > 0 && delta < 1);
    if (how.cells == 0) how.cells = LIMIT_PLD_CELLS;
    if (how.interval == 0) how.interval = interval_choose(event, count);
    if (count == 1 && event->count == 1 && how.interval < interval_default) {
        double epsilon = one_exact(event, delta, how.replace_one);
        *out = (struct pld_result){.epsilon = epsilon * (1 + 1e-12)};
        return ERR_NONE;
    }
    return on_grid(out, event, count, delta, &how);
}
