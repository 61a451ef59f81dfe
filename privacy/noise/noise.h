/* The noise of one round. It is drawn before the first update of the round is read, so that the
 * time it takes reveals nothing about the data, and it is used once:
 *
 *     noise_draw(&noise, dim, sigma);      when the round opens
 *     noise_add(sum, n, &noise);           when the round closes, module by module
 *     noise_close(&noise);
 *
 * The values are exact rounded Gaussians of deviation `sigma` lattice steps (gauss.h) in guarded
 * memory; each is wiped after its use. Sums are integers too, so no floating point is used. */
#ifndef PRIVACY_NOISE_H
#define PRIVACY_NOISE_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

struct noise {
    int64_t *value; /* (count) */
    size_t count, used;
    uint64_t sigma;
};

/* 1 <= sigma <= 2^48 (gauss.h); count >= 1. */
err noise_draw(struct noise *out, size_t count, uint64_t sigma);
/* sum[i] += the next value, for n coordinates; at most `count` in total. |sum[i]| <= 2^61. */
void noise_add(int64_t *sum, size_t n, struct noise *noise);
void noise_close(struct noise *noise);

#endif
