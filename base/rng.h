/* Reproducible random numbers: the same key gives the same stream on every machine, independent of
 * the order in which streams are used. NOT for secrets or privacy noise (those must be
 * unpredictable). The stream is ChaCha20 (64-bit counter, zero nonce, libsodium) under the key
 * BLAKE2b-256(purpose, seed, label, index); each struct is one stream. Not thread-safe. */
#ifndef BASE_RNG_H
#define BASE_RNG_H

#include <stddef.h>
#include <stdint.h>

struct rng {
    uint8_t key[32];
    uint64_t counter; /* next ChaCha20 block group */
    uint8_t block[512];
    uint32_t used;
};

/* `purpose` separates uses ("lora_A", "shuffle"); label is any text (a module's name). */
void rng_init(struct rng *rng, const char *purpose, uint64_t seed, const char *label,
              uint64_t index);
uint32_t rng_u32(struct rng *rng);
uint64_t rng_below(struct rng *rng, uint64_t bound); /* uniform in [0, bound), bound > 0 */
/* Puts the items in a random order, all orders with the same probability (Fisher and Yates). */
void rng_shuffle(struct rng *rng, uint32_t *item, size_t n);
double rng_unit(struct rng *rng);   /* uniform in [0, 1), 53 bits */
double rng_normal(struct rng *rng); /* standard normal, Box-Muller */
/* n values uniform in (-bound, bound). LoRA's A uses bound = 1/sqrt(d_in), which is PyTorch's
 * kaiming_uniform(a = sqrt 5). */
void rng_fill_uniform(struct rng *rng, float *out, size_t n, double bound);

#endif
