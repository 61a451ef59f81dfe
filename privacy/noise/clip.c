#include "privacy/noise/clip.h"

#include <math.h>

enum { CLIP_BITS = 31, BLOCK = 1024, SHRINKS = 24 };

err clip_bound_set(struct clip_bound *out, double norm)
{
    int exponent;
    if (!(norm >= CLIP_NORM_LEAST && norm <= CLIP_NORM_MOST))
        return err_make(ERR_INPUT, "clip norm %g: expected a number from %g to %g", norm,
                        CLIP_NORM_LEAST, CLIP_NORM_MOST);
    frexp(norm, &exponent); /* norm = m 2^exponent, m in [1/2, 1) */
    struct clip_bound b = {.norm = norm, .scale_log2 = CLIP_BITS - exponent};
    b.norm_int = (uint32_t)ldexp(norm, b.scale_log2);
    *out = b;
    return ERR_NONE;
}

uint64_t clip_sigma(const struct clip_bound *bound, double multiplier)
{
    REQUIRE(multiplier > 0 && multiplier <= 0x1p16);
    double product = multiplier * bound->norm_int, up = ceil(product);
    /* The rounded product is a whole number. If its exact error is positive, the exact product is
     * larger, so the next whole number is needed. */
    if (up == product && fma(multiplier, bound->norm_int, -product) > 0) up += 1;
    return up < 1 ? 1 : (uint64_t)up;
}

static double difference(const struct clip_tensor *t, size_t i)
{
    return t->start ? (double)t->now[i] - (double)t->start[i] : (double)t->now[i];
}

err clip_norm(double *out, const struct clip_tensor *tensor, size_t tensors)
{
    double sum = 0;
    for (size_t k = 0; k < tensors; k++) {
        const struct clip_tensor *t = &tensor[k];
        for (size_t at = 0; at < t->count; at += BLOCK) {
            size_t end = at + BLOCK < t->count ? at + BLOCK : t->count;
            double part = 0;
            for (size_t i = at; i < end; i++) {
                double d = difference(t, i);
                part += d * d;
            }
            sum += part;
        }
    }
    if (!isfinite(sum)) /* float32 values cannot overflow the sum */
        return err_make(ERR_INPUT, "the change's norm: a value is NaN or infinite");
    *out = sqrt(sum);
    return ERR_NONE;
}

static unsigned __int128 quantise(int32_t *out, double factor, const struct clip_tensor *tensor,
                                  size_t tensors)
{
    unsigned __int128 sum = 0;
    for (size_t k = 0; k < tensors; k++) {
        for (size_t i = 0; i < tensor[k].count; i++) {
            int64_t x = (int64_t)(difference(&tensor[k], i) * factor); /* |.| < 2^32 */
            sum += (uint64_t)(x * x);
            *out++ = (int32_t)x;
        }
    }
    return sum;
}

err clip_quantise(int32_t *out, struct clip_result *result, const struct clip_bound *bound,
                  double weight, const struct clip_tensor *tensor, size_t tensors)
{
    struct clip_result r;
    REQUIRE(weight > 0 && weight <= 1);
    TRY(clip_norm(&r.norm, tensor, tensors));
    r.unclipped = r.norm <= bound->norm;
    /* Times a power of two is exact. */
    double factor = weight * (r.unclipped ? 1 : bound->norm / r.norm) * ldexp(1, bound->scale_log2);
    uint64_t most = bound->norm_int; /* the sensitivity for any weight */
    double less = 0x1p-44;
    for (int i = 0; quantise(out, factor, tensor, tensors) > (unsigned __int128)most * most; i++) {
        REQUIRE(i < SHRINKS); /* roundings of the norm and the factor are far smaller */
        factor *= 1 - less;
        less *= 2;
    }
    *result = r;
    return ERR_NONE;
}
