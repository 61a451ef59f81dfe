/* Measures the seconds to draw the noise for the coordinates of one release, on one thread.
 *
 *   bench_noise [COORDINATES] [--sigma STEPS] [--repeat N] */
#include "privacy/noise/noise.h"
#include "base/text.h"

#include <stdio.h>
#include <string.h>

static void must(err e)
{
    if (err_is(e)) fprintf(stderr, "bench_noise: %s\n", e.text);
    REQUIRE(!err_is(e));
}

int main(int argc, char **argv)
{
    int64_t count = 1000000, sigma = INT64_C(1) << 31, repeat = 5;
    for (int i = 1; i < argc; i++) {
        int64_t *into = !strcmp(argv[i], "--sigma")    ? &sigma
                        : !strcmp(argv[i], "--repeat") ? &repeat
                                                       : &count;
        if (into != &count && ++i == argc) return 2;
        must(text_parse_int(into, argv[i], 1, INT64_C(1) << 32));
    }
    uint64_t best = UINT64_MAX;
    for (int64_t i = 0; i < repeat; i++) {
        struct noise noise = {0};
        uint64_t began = text_now_ms();
        must(noise_draw(&noise, (size_t)count, (uint64_t)sigma));
        uint64_t took = text_now_ms() - began;
        best = took < best ? took : best;
        noise_close(&noise);
    }
    printf("%lld coordinates, deviation %lld steps: %.3f s (best of %lld, one thread)\n",
           (long long)count, (long long)sigma, (double)best / 1000, (long long)repeat);
    return 0;
}
