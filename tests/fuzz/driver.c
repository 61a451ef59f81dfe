/* Runs a fuzz target on mutated seeds, the same ones every time, or on the files named on the
 * command line. The empty input and the packed inputs of tests/fuzz/campaign.sh are not mutated.
 * With FUZZ_KEEP set, each mutation is first written to fuzz-crash.bin in the working folder, so
 * that the file holds the input of a crash. FUZZ_RUNS sets the number of mutations of each seed. */
#include "base/rng.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEED_BYTES_MAX = 1 << 20, GROWTH = 64, HEAD_BYTES = 4096, MUTATIONS_MAX = 4 };

static size_t read_seed(uint8_t *out, const char *path)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL) return 0;
    size_t size = fread(out, 1, SEED_BYTES_MAX, f);
    fclose(f);
    return size;
}

/* Mostly near the start, where headers are. */
static size_t pick_place(struct rng *rng, size_t size)
{
    size_t head = size < HEAD_BYTES ? size : HEAD_BYTES;
    return (size_t)rng_below(rng, rng_below(rng, 4) == 0 ? size : head);
}

static void put_number(struct rng *rng, uint8_t *data, size_t size, size_t at)
{
    static const uint64_t numbers[] = {0,
                                       1,
                                       2,
                                       3,
                                       7,
                                       8,
                                       13,
                                       64,
                                       255,
                                       65535,
                                       0x7fffffff,
                                       0xffffffff,
                                       1ull << 32,
                                       1ull << 61,
                                       1ull << 63,
                                       UINT64_MAX,
                                       UINT64_MAX - 7};
    uint64_t value = numbers[rng_below(rng, sizeof numbers / sizeof numbers[0])];
    if (rng_below(rng, 8) == 0) value = size;
    size_t bytes = rng_below(rng, 2) ? 8 : 4;
    if (at + bytes <= size) memcpy(data + at, &value, bytes);
}

static size_t mutate(struct rng *rng, uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    size_t at = pick_place(rng, size), n = 1 + (size_t)rng_below(rng, GROWTH);
    switch (rng_below(rng, 7)) {
    case 0:
        data[at] ^= (uint8_t)(1u << rng_below(rng, 8));
        return size;
    case 1:
        data[at] = (uint8_t)rng_u32(rng);
        return size;
    case 2:
    case 3:
        put_number(rng, data, size, at);
        return size;
    case 4: /* cut */
        return rng_below(rng, 4) == 0 ? at : size;
    case 5: /* leave some bytes out */
        if (n > size - at) n = size - at;
        memmove(data + at, data + at + n, size - at - n);
        return size - n;
    default: /* repeat some bytes */
        if (n > size - at) n = size - at;
        memmove(data + at + n, data + at, size - at);
        return size + n;
    }
}

static void keep(const uint8_t *data, size_t size)
{
    FILE *f = fopen("fuzz-crash.bin", "wb");
    if (f == NULL) return;
    fwrite(data, 1, size, f);
    fclose(f);
}

/* The bytes are copied to a block of exactly their size, so that the sanitizer sees a read past
 * its end. */
static void run_exact(const uint8_t *data, size_t size)
{
    uint8_t *exact = calloc(size > 0 ? size : 1, 1);
    if (exact == NULL) abort();
    memcpy(exact, data, size);
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
}

static void run_seed(const char *name, const uint8_t *seed, size_t seed_size, uint8_t *work)
{
    run_exact(seed, seed_size);
    const char *more = getenv("FUZZ_RUNS");
    int runs = more != NULL ? (int)strtol(more, NULL, 10) : fuzz_runs;
    for (int i = 0; i < runs; i++) {
        struct rng rng;
        rng_init(&rng, "fuzz", 1, name, (uint64_t)i);
        memcpy(work, seed, seed_size);
        size_t size = seed_size;
        for (uint64_t k = 1 + rng_below(&rng, MUTATIONS_MAX); k > 0; k--)
            size = mutate(&rng, work, size);
        if (getenv("FUZZ_KEEP") != NULL) keep(work, size);
        run_exact(work, size);
    }
    printf("%s: %d mutations\n", name, runs);
}

/* tests/fuzz/pack.py: each input after its size in four bytes. */
static int run_pack(const uint8_t *pack, size_t size)
{
    int inputs = 0;
    for (size_t at = 0; at + 4 <= size; inputs++) {
        uint32_t length;
        memcpy(&length, pack + at, sizeof length);
        at += sizeof length;
        if (length > size - at) break;
        run_exact(pack + at, length);
        at += length;
    }
    return inputs;
}

int main(int argc, char **argv)
{
    uint8_t *seed = calloc(1, SEED_BYTES_MAX),
            *work = malloc(SEED_BYTES_MAX + GROWTH * MUTATIONS_MAX);
    int seeds = 0;
    if (seed == NULL || work == NULL) return 1;
    if (argc == 1) run_exact(seed, 0); /* the empty input */
    for (int i = 1; i < argc; i++)
        run_exact(seed, read_seed(seed, argv[i]));
    for (int i = 0; argc == 1 && fuzz_seeds[i] != NULL; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", FEDLORA_SOURCE_DIR, fuzz_seeds[i]);
        size_t size = read_seed(seed, path);
        if (size == 0) continue;
        run_seed(fuzz_seeds[i], seed, size, work);
        seeds++;
    }
    if (argc == 1)
        printf("packed: %d inputs\n",
               run_pack(seed, read_seed(seed, FEDLORA_SOURCE_DIR "/tests/fuzz/seeds/" FUZZ_NAME
                                                                 ".pack")));
    free(seed);
    free(work);
    if (argc == 1 && seeds == 0) printf("no seeds\n");
    return argc == 1 && seeds == 0;
}
