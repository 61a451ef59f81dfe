#include "privacy/noise/gauss.h"

/* A uniform deviate in (0, 1), in digits of 32 bits, the highest first. More than sixteen are
 * needed with a chance below 2^-400; the process then ends, because a cut would bias the sample. */
enum { REAL_DIGITS = 16 };

struct real {
    uint32_t digit[REAL_DIGITS];
    unsigned count; /* digits drawn so far */
};

static inline uint32_t real_digit(struct real *x, unsigned i, struct keystream *k)
{
    if (i == x->count) {
        REQUIRE(i < REAL_DIGITS);
        x->digit[x->count++] = keystream_u32(k);
    }
    return x->digit[i];
}

static inline bool real_less(struct real *a, struct real *b, struct keystream *k)
{
    for (unsigned i = 0;; i++) {
        uint32_t x = real_digit(a, i, k), y = real_digit(b, i, k);
        if (x != y) return x < y;
    }
}

/* Algorithm H: true with chance exp(-1/2), the chance that a falling run which starts below 1/2 has
 * even length. */
static inline bool half_trial(struct keystream *k)
{
    struct real slot[2];
    slot[0].count = 0;
    if (real_digit(&slot[0], 0, k) >> 31) return true;
    for (unsigned n = 1;; n++) {
        struct real *next = &slot[n & 1];
        next->count = 0;
        if (!real_less(next, &slot[~n & 1], k)) return !(n & 1);
    }
}

/* True with chance (2 whole + x) / (2 whole + 2). */
static inline bool ratio_trial(uint32_t whole, struct real *x, struct keystream *k)
{
    uint32_t part = keystream_below(k, 2 * whole + 2);
    if (part != 2 * whole) return part < 2 * whole;
    struct real rest = {.count = 0};
    return real_less(&rest, x, k);
}

/* Algorithm B: true with chance exp(-x (2 whole + x) / (2 whole + 2)). */
static inline bool tail_trial(uint32_t whole, struct real *x, struct keystream *k)
{
    struct real slot[2], *last = x;
    for (unsigned n = 0;; n++) {
        struct real *next = &slot[n & 1];
        next->count = 0;
        if (!real_less(next, last, k) || !ratio_trial(whole, x, k)) return !(n & 1);
        last = next;
    }
}

/* Steps N1 and N2: k with chance proportional to exp(-k^2 / 2). */
static inline bool draw_whole(uint32_t *whole, struct keystream *k)
{
    uint32_t n = 0;
    while (half_trial(k))
        n++;
    REQUIRE(n < 1 << 14); /* chance exp(-8192) */
    *whole = n;
    for (uint32_t i = 0; i < n * (n - (n > 0)); i++)
        if (!half_trial(k)) return false;
    return true;
}

/* |Z| = whole + x. */
static inline void draw_normal(uint32_t *whole, struct real *x, struct keystream *k)
{
    for (;;) {
        if (!draw_whole(whole, k)) continue;
        uint32_t i = 0;
        x->count = 0;
        while (i <= *whole && tail_trial(*whole, x, k))
            i++;
        if (i > *whole) return;
    }
}

/* floor(sigma (whole + x) + 1/2). Two digits of x decide it, unless sigma t may carry over `left`,
 * where t in (0, 1) is the rest of x. Then the digits of t are drawn one by one. */
static inline uint64_t scale_round(uint64_t sigma, uint32_t whole, struct real *x,
                                   struct keystream *k)
{
    uint64_t two = (uint64_t)real_digit(x, 0, k) << 32;
    two |= real_digit(x, 1, k);
    unsigned __int128 product = (unsigned __int128)sigma * two + (UINT64_C(1) << 63);
    uint64_t rounded = (uint64_t)(product >> 64);
    unsigned __int128 left = ((unsigned __int128)1 << 64) - (uint64_t)product;
    for (unsigned i = 2; left < sigma; i++) { /* carries iff sigma t >= left */
        unsigned __int128 part = (unsigned __int128)sigma * real_digit(x, i, k);
        left <<= 32;
        if (part >= left) {
            rounded++;
            break;
        }
        left -= part;
    }
    return sigma * whole + rounded;
}

void gauss_fill(int64_t *out, size_t n, uint64_t sigma, struct keystream *k)
{
    REQUIRE(sigma >= 1 && sigma <= GAUSS_SIGMA_MAX);
    uint32_t signs = 0;
    for (size_t i = 0; i < n; i++) {
        struct real x;
        uint32_t whole;
        if (i % 32 == 0) signs = keystream_u32(k);
        draw_normal(&whole, &x, k);
        int64_t magnitude = (int64_t)scale_round(sigma, whole, &x, k);
        out[i] = signs & 1 ? -magnitude : magnitude;
        signs >>= 1;
    }
}
