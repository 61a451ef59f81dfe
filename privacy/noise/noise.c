#include "privacy/noise/noise.h"

#include "privacy/noise/gauss.h"

#include <sodium.h>

err noise_draw(struct noise *out, size_t count, uint64_t sigma)
{
    struct keystream *k = NULL;
    REQUIRE(count > 0);
    TRY(keystream_open(&k));
    struct noise n = {.count = count, .sigma = sigma};
    n.value = sodium_allocarray(count, sizeof *n.value);
    if (n.value) gauss_fill(n.value, count, sigma, k);
    keystream_close(k);
    if (!n.value) return err_make(ERR_MACHINE, "no memory for the noise of %zu values", count);
    *out = n;
    return ERR_NONE;
}

void noise_add(int64_t *sum, size_t n, struct noise *noise)
{
    REQUIRE(n <= noise->count - noise->used);
    int64_t *value = noise->value + noise->used;
    for (size_t i = 0; i < n; i++)
        REQUIRE(!__builtin_add_overflow(sum[i], value[i], &sum[i]));
    sodium_memzero(value, n * sizeof *value);
    noise->used += n;
}

void noise_close(struct noise *noise)
{
    sodium_free(noise->value);
    *noise = (struct noise){0};
}
