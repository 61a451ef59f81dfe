#include "privacy/noise/cohort.h"

#include <math.h>
#include <string.h>

void cohort_seed_draw(struct cohort_seed *out)
{
    REQUIRE(sodium_init() >= 0);
    randombytes_buf(out->byte, sizeof out->byte);
}

static void number(uint8_t out[4], uint32_t n)
{
    for (int i = 0; i < 4; i++)
        out[i] = (uint8_t)(n >> (8 * i));
}

/* Texts are hashed with their zero byte, so that no two inputs have the same encoding. */
static void add_text(crypto_generichash_state *s, const char *text)
{
    crypto_generichash_update(s, (const uint8_t *)text, strlen(text) + 1);
}

static void begin(crypto_generichash_state *s, size_t bytes, const struct cohort_seed *seed,
                  const struct cohort *cohort, const char *purpose)
{
    uint8_t round[4];
    REQUIRE(sodium_init() >= 0);
    number(round, cohort->round);
    crypto_generichash_init(s, seed->byte, sizeof seed->byte, bytes);
    add_text(s, purpose);
    add_text(s, cohort->run);
    crypto_generichash_update(s, round, sizeof round);
}

static void hash(uint8_t *out, size_t bytes, const struct cohort_seed *seed,
                 const struct cohort *cohort, const char *purpose, const char *member)
{
    crypto_generichash_state s;
    begin(&s, bytes, seed, cohort, purpose);
    add_text(&s, member);
    crypto_generichash_final(&s, out, bytes);
}

void cohort_seed_before(struct cohort_seed *out, const struct cohort_seed *later,
                        const struct cohort *of, uint32_t round)
{
    struct cohort at = *of;
    struct cohort_seed seed = *later, next;
    REQUIRE(round <= of->round);
    for (; at.round > round; at.round--) {
        hash(next.byte, sizeof next.byte, &seed, &at, "chain", "");
        seed = next;
    }
    *out = seed;
    sodium_memzero(&seed, sizeof seed);
    sodium_memzero(&next, sizeof next);
}

struct digest cohort_anchor(const struct cohort_seed *seed, const struct cohort *of,
                            const char *const *sorted_id, size_t members)
{
    const struct cohort before = {.run = of->run};
    crypto_generichash_state s;
    struct cohort_seed first;
    struct digest d;
    cohort_seed_before(&first, seed, of, 0);
    begin(&s, sizeof d.byte, &first, &before, "members");
    for (size_t i = 0; i < members; i++)
        add_text(&s, sorted_id[i]);
    crypto_generichash_final(&s, d.byte, sizeof d.byte);
    sodium_memzero(&first, sizeof first);
    return d;
}

bool cohort_has(const struct cohort_seed *seed, const struct cohort *cohort, const char *member)
{
    enum { BYTES = 16 }; /* libsodium's smallest hash; the first eight bytes are used */
    uint8_t byte[BYTES];
    uint64_t u = 0;
    REQUIRE(cohort->q > 0 && cohort->q <= 1);
    if (cohort->q == 1) return true;
    hash(byte, sizeof byte, seed, cohort, "cohort", member);
    for (int i = 0; i < 8; i++)
        u |= (uint64_t)byte[i] << (8 * i);
    return u < (uint64_t)ldexp(cohort->q, 64);
}

double cohort_denominator(double q, const double *weight, size_t members)
{
    double sum = 0;
    REQUIRE(q > 0 && q <= 1 && members > 0);
    for (size_t i = 0; i < members; i++) {
        double w = weight ? weight[i] : 1;
        REQUIRE(w > 0 && w <= 1);
        sum += w;
    }
    return q * sum;
}
