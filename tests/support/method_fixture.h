/* A run of three modules and four members, with updates of random factors, for the tests of
 * methods. */
#ifndef TESTS_SUPPORT_METHOD_FIXTURE_H
#define TESTS_SUPPORT_METHOD_FIXTURE_H

#include "agg/method.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/rng.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MODULES = 3, MEMBERS = 4, OUT = 24, IN = 40, SIZE = OUT * IN };

static const struct method_module modules[MODULES] = {
    {"layers.1.v_proj", 16, 40}, {"layers.0.q_proj", OUT, IN}, {"layers.0.k_proj", 8, 24}};
static const char base[] = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

static char dir[SUPPORT_PATH_BYTES];

static inline void make_dir(void)
{
    support_dir_make(dir);
}

static inline void remove_dir(void)
{
    support_dir_remove(dir);
}

static inline const char *at(const char *format, unsigned n)
{
    enum { KEPT = 1024 }; /* paths stay valid for the length of a test */
    static char path[KEPT][SUPPORT_PATH_BYTES + 64];
    static int next;
    char name[64], *out = path[next++ % KEPT];
    snprintf(name, sizeof name, "%s.%u", format, n);
    snprintf(out, sizeof path[0], "%s/%s", dir, name);
    return out;
}

static inline struct method_start start_of(uint32_t rank, double alpha)
{
    return (struct method_start){.run = "r1",
                                 .base = base,
                                 .seed = 7,
                                 .rank = rank,
                                 .alpha = alpha,
                                 .module = modules,
                                 .module_count = MODULES};
}

static char frozen_digest[DIGEST_TEXT_BYTES];

static inline struct method_start frozen_start(uint32_t rank)
{
    struct method_start s = start_of(rank, rank);
    struct digest d;
    ok(method_make_frozen(method_find("fed-sb"), at("frozen", 0), &s));
    ok(digest_of_file(&d, at("frozen", 0)));
    digest_text(frozen_digest, &d);
    s.frozen_path = at("frozen", 0);
    s.frozen_digest = frozen_digest;
    return s;
}

struct sender {
    const char *method, *member, *frozen;
    uint32_t round, rank;
    double alpha;
    bool rslora, zero;
    size_t modules; /* the first so many only; 0: all */
    uint64_t seed;
};

/* Writes an update of random factors, as large as training makes them. */
static inline void send(const char *path, const struct sender *x)
{
    struct adapter_file_meta meta = {.kind = ADAPTER_FILE_UPDATE,
                                     .run = "r1",
                                     .method = x->method,
                                     .base = base,
                                     .frozen = x->frozen,
                                     .member = x->member,
                                     .round = x->round,
                                     .rank = x->rank,
                                     .alpha = x->alpha,
                                     .rslora = x->rslora};
    struct adapter_file_module m[MODULES] = {0};
    size_t count = x->modules ? x->modules : MODULES;
    bool square = strcmp(x->method, "fed-sb") == 0;
    struct rng rng;
    rng_init(&rng, "update", x->seed, x->member, x->round);
    for (size_t i = 0; i < count; i++) {
        uint32_t r = x->rank, least = modules[i].d_out < IN ? modules[i].d_out : IN;
        if (square && r > least) r = least;
        uint32_t rows[] = {r, modules[i].d_out, r}, cols[] = {modules[i].d_in, r, r};
        m[i].name = modules[i].name;
        m[i].rank = r;
        for (int f = square ? 2 : 0; f < (square ? 3 : 2); f++) {
            float *v = calloc((size_t)rows[f] * cols[f], sizeof *v);
            for (size_t j = 0; j < (size_t)rows[f] * cols[f]; j++)
                v[j] = x->zero && f == 1 ? 0 : (float)(0.1 * rng_normal(&rng));
            m[i].factor[f] =
                (struct adapter_file_factor){.f32 = v, .rows = rows[f], .cols = cols[f]};
        }
    }
    ok(adapter_file_write(path, &meta, m, count, true));
    for (size_t i = 0; i < count; i++)
        for (int f = 0; f < 3; f++)
            free((void *)(uintptr_t)m[i].factor[f].f32);
}

#endif
