#include "privacy/noise/central.h"

#include "base/limits.h"

#include <math.h>
#include <sodium.h>
#include <string.h>

static err check(const struct central_spec *s)
{
    if (s->dim == 0) return err_make(ERR_INPUT, "a private round: no tensor is trained");
    if (!(s->noise > 0 && s->noise <= 0x1p12))
        return err_make(ERR_INPUT, "noise multiplier %g: expected above 0, at most 4096", s->noise);
    if (!(s->denominator > 0 && isfinite(s->denominator)))
        return err_make(ERR_INPUT, "denominator %g: expected a number above 0", s->denominator);
    if (s->adaptive.on && !(s->expected > 0 && s->adaptive.sigma_b > 0))
        return err_make(ERR_INPUT, "adaptive clipping: expected members and sigma_b above 0");
    return ERR_NONE;
}

/* The multiplier is at least the one asked for, up to the rounding of adaptive_joint(). */
static double drawn_multiplier(const struct central *c)
{
    double z = (double)c->sigma / c->bound.norm_int;
    if (c->sigma_bits) z = adaptive_joint(z, ldexp((double)c->sigma_bits, -ADAPTIVE_HALF_LOG2 - 1));
    return z;
}

/* Sets all fields except memory and noise. */
static err prepare(struct central *out, const struct central_spec *spec)
{
    struct central c = {.spec = *spec};
    double z = spec->noise;
    TRY(check(spec));
    TRY(clip_bound_set(&c.bound, spec->clip));
    if (spec->adaptive.on) {
        TRY(adaptive_split(&z, spec->noise, spec->adaptive.sigma_b));
        c.sigma_bits = adaptive_sigma(spec->adaptive.sigma_b);
    }
    if (z > 0x1p15) return err_make(ERR_INPUT, "noise multiplier %g: expected at most 32768", z);
    c.sigma = clip_sigma(&c.bound, z);
    c.noise = drawn_multiplier(&c);
    *out = c;
    return ERR_NONE;
}

err central_begin(struct central *out, const struct central_spec *spec)
{
    struct central c = {0};
    err e = ERR_NONE;
    TRY(prepare(&c, spec));
    /* The noise is drawn first, because that initialises libsodium. */
    TRY_OUT(e, noise_draw(&c.drawn, spec->dim, c.sigma));
    if (c.sigma_bits) TRY_OUT(e, noise_draw(&c.counted, 1, c.sigma_bits));
    c.sum = sodium_allocarray(spec->dim, sizeof *c.sum);
    c.one = sodium_allocarray(spec->dim, sizeof *c.one);
    if (!c.sum || !c.one) {
        e = err_make(ERR_MACHINE, "no memory for a private sum of %zu values", spec->dim);
        goto out;
    }
    memset(c.sum, 0, spec->dim * sizeof *c.sum);
    *out = c;
    return ERR_NONE;
out:
    central_close(&c);
    return e;
}

err central_restore(struct central *out, const struct central_spec *spec, double next_clip)
{
    struct central c = {0};
    TRY(prepare(&c, spec));
    c.next_clip = next_clip;
    c.finished = true;
    *out = c;
    return ERR_NONE;
}

err central_add(struct central *c, const struct clip_tensor *tensor, size_t tensors, double weight)
{
    struct clip_result result;
    size_t count = 0;
    for (size_t i = 0; i < tensors; i++)
        count += tensor[i].count;
    REQUIRE(!c->finished && count == c->spec.dim && c->members < LIMIT_MEMBERS);
    TRY(clip_quantise(c->one, &result, &c->bound, weight, tensor, tensors));
    for (size_t i = 0; i < count; i++) /* at most 2^14 times 2^31 */
        c->sum[i] += c->one[i];
    c->bits +=
        result.unclipped ? INT64_C(1) << ADAPTIVE_HALF_LOG2 : -(INT64_C(1) << ADAPTIVE_HALF_LOG2);
    c->members++;
    return ERR_NONE;
}

void central_finish(double *mean, struct central *c)
{
    REQUIRE(!c->finished);
    noise_add(c->sum, c->spec.dim, &c->drawn);
    for (size_t i = 0; i < c->spec.dim; i++)
        mean[i] = ldexp((double)c->sum[i], -c->bound.scale_log2) / c->spec.denominator;
    c->next_clip = c->spec.clip;
    if (c->sigma_bits) {
        noise_add(&c->bits, 1, &c->counted);
        double fraction = adaptive_fraction(c->bits, c->spec.expected);
        c->next_clip = adaptive_next(c->spec.clip, fraction, &c->spec.adaptive);
    }
    c->finished = true;
}

void central_close(struct central *c)
{
    noise_close(&c->drawn);
    noise_close(&c->counted);
    sodium_free(c->sum);
    sodium_free(c->one);
    *c = (struct central){0};
}
