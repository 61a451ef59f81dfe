#include "privacy/account/prv.h"

#include "base/arena.h"
#include "base/limits.h"
#include "privacy/account/fft.h"
#include "privacy/account/pld_pair.h"
#include "privacy/account/rdp.h"

#include <math.h>
#include <string.h>

struct mesh {
    double h;
    size_t n;     /* a power of two; points -n/2 .. n/2 - 1 times h */
    double shift; /* added to the composed losses, so that their mean stays */
};

static double rdp_bound(const struct pld_event *event, size_t count, double delta)
{
    double rdp[RDP_ORDERS] = {0}, order;
    for (size_t i = 0; i < count; i++)
        for (int k = 0; k < RDP_ORDERS; k++)
            rdp[k] += (double)event[i].count *
                      rdp_poisson(event[i].q, event[i].z, rdp_orders()[k], /*exact*/ true);
    return rdp_epsilon(&order, rdp_orders(), rdp, RDP_ORDERS, delta);
}

static err mesh_choose(struct mesh *out, const struct pld_event *event, size_t count, double delta,
                       double epsilon_error)
{
    double steps = 0, delta_error = delta / 1000;
    for (size_t i = 0; i < count; i++)
        steps += (double)event[i].count;
    double reach = fmax(epsilon_error, rdp_bound(event, count, delta_error / 4));
    for (size_t i = 0; i < count; i++) {
        struct pld_event one = event[i];
        one.count = 1;
        reach = fmax(reach, rdp_bound(&one, 1, delta_error / (8 * steps)));
    }
    struct mesh mesh = {.h = epsilon_error / sqrt(steps / 2 * log(12 / delta_error)), .n = 4};
    double points = 2 * (reach + 3) / mesh.h + 2;
    if (!(points <= LIMIT_PRV_CELLS))
        return err_make(ERR_LIMIT,
                        "prv: a mesh of %.3g points is needed, at most %u are allowed; use pld",
                        points, LIMIT_PRV_CELLS);
    while ((double)mesh.n < points)
        mesh.n *= 2;
    if (fft_error(mesh.n) * steps > delta_error)
        return err_make(ERR_LIMIT,
                        "prv: double precision does not resolve delta %g in %.0f steps; use pld",
                        delta, steps);
    *out = mesh;
    return ERR_NONE;
}

/* The mean loss over low < x <= high by the trapezoid rule, whose error falls faster than any power
 * of its step for an integrand that vanishes at both ends. */
static double mean_between(const struct pld_pair *p, double low, double high)
{
    double from = fmax(low, -12 * p->z), to = fmin(high, 1 + 12 * p->z);
    size_t steps = (size_t)ceil((to - from) / p->z * 64) + 1;
    double step = (to - from) / (double)steps, scale = step / (p->z * sqrt(2 * M_PI));
    long double sum = 0;
    for (size_t i = 0; i <= steps; i++) {
        double x = from + (double)i * step, a = x / p->z, b = (x - 1) / p->z;
        double density = (1 - p->up) * exp(-a * a / 2) + p->up * exp(-b * b / 2);
        sum += (i == 0 || i == steps ? 0.5 : 1) * density * pld_pair_loss(p, x);
    }
    return (double)(sum * scale);
}

/* Puts one release on the mesh, folded, and adds its part of the shift. */
static err discretise(struct fft_value *z, struct mesh *mesh, const struct fft *fft,
                      const struct pld_event *event)
{
    struct pld_pair pair = {event->z, event->q, 0};
    int64_t half = (int64_t)(mesh->n / 2);
    double low = pld_pair_inverse(&pair, ((double)-half - 0.5) * mesh->h), x = low;
    double high = pld_pair_inverse(&pair, ((double)half - 0.5) * mesh->h);
    double all = pld_pair_up(&pair, low, high);
    long double mean = 0;
    for (int64_t i = -half; i < half; i++) {
        double above = fmax(x, pld_pair_inverse(&pair, ((double)i + 0.5) * mesh->h));
        double p = pld_pair_up(&pair, x, above) / all;
        x = above;
        mean += (long double)p * (double)i * mesh->h;
        /* a negative index wraps around once, which changes the sign */
        *fft_at(fft, z, (size_t)i & (mesh->n - 1)) = i < 0 ? -p : p;
    }
    double shift = mean_between(&pair, low, high) / all - (double)mean;
    if (!(fabs(shift) < mesh->h / 2))
        return err_make(ERR_LIMIT,
                        "prv: the mesh moves the mean loss by %g, more than half its spacing %g",
                        shift, mesh->h);
    mesh->shift += (double)event->count * shift;
    return ERR_NONE;
}

static inline struct fft_value times(struct fft_value a, struct fft_value b)
{
    return (struct fft_value){a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

static struct fft_value power_of(struct fft_value f, uint64_t count)
{
    struct fft_value power = {1, 0};
    for (; count; count >>= 1) {
        if (count & 1) power = times(power, f);
        f = times(f, f);
    }
    return power;
}

static double epsilon_at(const struct mesh *mesh, const struct fft *fft, struct fft_value *z,
                         double delta)
{
    double a = 0, b = 0, fall = exp(-mesh->h), epsilon = -INFINITY;
    int64_t half = (int64_t)(mesh->n / 2);
    for (int64_t i = half - 1; i >= -half; i--) {
        double p = *fft_at(fft, z, (size_t)i & (mesh->n - 1));
        a += i < 0 ? -p : p;
        b = b * fall + (i < 0 ? -p : p);
        if (a - b > delta) break;
        if (a > delta) epsilon = (double)i * mesh->h + mesh->shift + log((a - delta) / b);
    }
    return epsilon;
}

static err compose(struct prv_result *out, struct mesh *mesh, const struct pld_event *event,
                   size_t count, double delta)
{
    struct arena arena = {0};
    struct fft fft = {0};
    struct fft_value *product, *one;
    err e = ERR_NONE;
    TRY_OUT(e, fft_open(&fft, mesh->n));
    TRY_OUT(e, arena_take(&product, &arena, fft.size, sizeof *product));
    TRY_OUT(e, arena_take(&one, &arena, fft.size, sizeof *one));
    for (size_t i = 0; i < count; i++) {
        TRY_OUT(e, discretise(one, mesh, &fft, &event[i]));
        fft_forward(&fft, one);
        for (size_t j = 0; j < fft.size; j++) {
            struct fft_value power = power_of(one[j], event[i].count);
            product[j] = i ? times(product[j], power) : power;
        }
    }
    fft_inverse(&fft, product);
    out->upper = epsilon_at(mesh, &fft, product, delta - delta / 1000);
    out->lower = epsilon_at(mesh, &fft, product, delta + delta / 1000);
out:
    fft_close(&fft);
    arena_close(&arena);
    return e;
}

err prv_epsilon(struct prv_result *out, const struct pld_event *event, size_t count, double delta,
                double epsilon_error)
{
    struct mesh mesh = {0};
    struct prv_result r = {0};
    REQUIRE(count > 0 && delta > 0 && delta < 1 && epsilon_error > 0);
    TRY(mesh_choose(&mesh, event, count, delta, epsilon_error));
    TRY(compose(&r, &mesh, event, count, delta));
    *out = (struct prv_result){fmax(r.upper + epsilon_error, 0), fmax(r.lower - epsilon_error, 0)};
    return ERR_NONE;
}
