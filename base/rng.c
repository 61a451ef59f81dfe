#include "base/rng.h"

#include "base/err.h"

#include <math.h>
#include <sodium.h>
#include <string.h>

enum { RNG_BLOCKS = sizeof(((struct rng *)0)->block) / 64 };

static void le64_put(uint8_t out[8], uint64_t x)
{
    for (int i = 0; i < 8; i++)
        out[i] = (uint8_t)(x >> (8 * i));
}

/* The key hashes purpose, zero, seed (LE), label, zero, index (LE), so no two inputs share an
 * encoding. */
void rng_init(struct rng *rng, const char *purpose, uint64_t seed, const char *label,
              uint64_t index)
{
    REQUIRE(sodium_init() >= 0);
    uint8_t number[8];
    crypto_generichash_state state;
    *rng = (struct rng){.used = sizeof rng->block};
    crypto_generichash_init(&state, NULL, 0, sizeof rng->key);
    crypto_generichash_update(&state, (const uint8_t *)purpose, strlen(purpose) + 1);
    le64_put(number, seed);
    crypto_generichash_update(&state, number, sizeof number);
    crypto_generichash_update(&state, (const uint8_t *)label, strlen(label) + 1);
    le64_put(number, index);
    crypto_generichash_update(&state, number, sizeof number);
    crypto_generichash_final(&state, rng->key, sizeof rng->key);
}

static void rng_refill(struct rng *rng)
{
    static const uint8_t nonce[crypto_stream_chacha20_NONCEBYTES];
    memset(rng->block, 0, sizeof rng->block);
    crypto_stream_chacha20_xor_ic(rng->block, rng->block, sizeof rng->block, nonce,
                                  rng->counter * RNG_BLOCKS, rng->key);
    rng->counter++;
    rng->used = 0;
}

uint32_t rng_u32(struct rng *rng)
{
    if (rng->used + 4 > sizeof rng->block) rng_refill(rng);
    const uint8_t *p = rng->block + rng->used;
    rng->used += 4;
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t rng_u64(struct rng *rng)
{
    uint64_t low = rng_u32(rng);
    return low | (uint64_t)rng_u32(rng) << 32;
}

uint64_t rng_below(struct rng *rng, uint64_t bound)
{
    REQUIRE(bound > 0);
    uint64_t reject = -bound % bound; /* 2^64 mod bound: below it the remainders are uneven */
    for (;;) {
        uint64_t x = rng_u64(rng);
        if (x >= reject) return x % bound;
    }
}

void rng_shuffle(struct rng *rng, uint32_t *item, size_t n)
{
    for (size_t i = n; i > 1; i--) {
        size_t k = rng_below(rng, i);
        uint32_t other = item[i - 1];
        item[i - 1] = item[k];
        item[k] = other;
    }
}

double rng_unit(struct rng *rng)
{
    return (double)(rng_u64(rng) >> 11) * 0x1p-53;
}

double rng_normal(struct rng *rng)
{
    double u = 1.0 - rng_unit(rng); /* (0, 1]: its logarithm is finite */
    double v = rng_unit(rng);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586476925 * v);
}

void rng_fill_uniform(struct rng *rng, float *out, size_t n, double bound)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (float)((((double)rng_u32(rng) + 0.5) * 0x1p-31 - 1.0) * bound);
}
