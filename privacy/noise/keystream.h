/* Unpredictable bits for privacy noise and for drawing cohorts: ChaCha20 with fast key erasure.
 * Each refill makes 32 + 4096 bytes from the key (zero nonce). The first 32 bytes are the next key,
 * and words are zeroed when they are given out, so a memory image does not reveal earlier output.
 * The key comes from the operating system (libsodium's randombytes_buf), again after 2^20 refills
 * and in the child after a fork.
 *
 * There is no way to give a seed. A test that needs known words defines these symbols itself, in an
 * object that no release library contains. One struct for each thread. */
#ifndef PRIVACY_KEYSTREAM_H
#define PRIVACY_KEYSTREAM_H

#include "base/err.h"

#include <stdint.h>

enum { KEYSTREAM_WORDS = 1024 };

struct keystream {
    uint32_t word[KEYSTREAM_WORDS];
    uint32_t used;    /* words given out; KEYSTREAM_WORDS: none left */
    unsigned forks;   /* value of keystream_forks when the words were made */
    uint32_t refills; /* refills since the key came from the operating system */
    uint8_t key[32];
};

err keystream_open(struct keystream **out); /* in guarded, locked memory */
void keystream_close(struct keystream *k);  /* wipes it; k may be NULL */
void keystream_refill(struct keystream *k);

extern volatile unsigned keystream_forks; /* counts the forks up to this process */

static inline uint32_t keystream_u32(struct keystream *k)
{
    if (k->used == KEYSTREAM_WORDS || k->forks != keystream_forks) keystream_refill(k);
    uint32_t word = k->word[k->used];
    k->word[k->used++] = 0;
    return word;
}

/* Uniform in [0, bound), exactly; bound > 0. */
static inline uint32_t keystream_below(struct keystream *k, uint32_t bound)
{
    uint64_t product = (uint64_t)keystream_u32(k) * bound;
    if ((uint32_t)product < bound) {
        /* Lemire's method: the lowest 2^32 mod bound products would come once too often. */
        uint32_t uneven = -bound % bound;
        while ((uint32_t)product < uneven)
            product = (uint64_t)keystream_u32(k) * bound;
    }
    return (uint32_t)(product >> 32);
}

#endif
