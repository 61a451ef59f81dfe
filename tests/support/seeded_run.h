/* The runs of the seeded simulator (tests/fault/seeds.c): configurations, and the members' updates,
 * whose bytes depend on the kind of run, the member and the round only. Include it in one file of a
 * program. */
#ifndef TESTS_SUPPORT_SEEDED_RUN_H
#define TESTS_SUPPORT_SEEDED_RUN_H

#include "base/bytes.h"
#include "base/rng.h"
#include "coordinator/run/run.h"
#include "proto/message.h"

#include <stdio.h>
#include <string.h>

enum { MEMBERS = 3, ROUNDS = 4, MODULES = 2 };

static const char *const members[MEMBERS] = {"icu", "lab", "ward"};
static const struct method_module modules[MODULES] = {{"layers.0.q_proj", 6, 5},
                                                      {"layers.0.v_proj", 3, 5}};

struct kind { /* of run */
    const char *name, *method, *option;
    uint32_t quorum; /* below the number of members: with a deadline */
    uint32_t late_rounds, cohort, over_select;
    bool mixed_ranks;
};
static const struct kind kinds[] = {
    {"flora", "flora", NULL, MEMBERS, 0, 0, 0, true},
    {"fedit with FedAdam", "fedit", "server=fedadam", MEMBERS, 0, 0, 0, false},
    {"flora, quorum 2", "flora", NULL, 2, 0, 0, 0, true},
    {"flora, quorum 2, 2 rounds late", "flora", NULL, 2, 2, 0, 0, true},
    {"fedit, cohort 1 of 2 drawn, late", "fedit", NULL, 1, 1, 1, 1, false},
};
enum { KINDS = sizeof kinds / sizeof *kinds, DEADLINE_MS = 60000 };

static bool waits_for_all(const struct kind *k)
{
    return k->quorum == MEMBERS && !k->cohort;
}

static Fedlora__V1__RunConfig *seeded_config(const struct kind *k)
{
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT, *out = NULL;
    Fedlora__V1__Training training = FEDLORA__V1__TRAINING__INIT;
    Fedlora__V1__MemberConfig member[MEMBERS], *list[MEMBERS];
    struct digest base = digest_of("a base", 6);
    struct bytes packed = {.max = 1 << 20};
    char *option = (char *)(uintptr_t)k->option;
    for (size_t i = 0; i < MEMBERS; i++) {
        fedlora__v1__member_config__init(&member[i]);
        member[i].id = (char *)(uintptr_t)members[i];
        list[i] = &member[i];
    }
    training.steps = 1;
    config.name = "seeded";
    config.method = (char *)(uintptr_t)k->method;
    config.method_options = &option;
    config.n_method_options = option != NULL;
    config.rounds = ROUNDS;
    config.base_digest = (ProtobufCBinaryData){DIGEST_BYTES, base.byte};
    config.members = list;
    config.n_members = MEMBERS;
    config.rank = 4;
    config.quorum = k->quorum;
    config.deadline_ms = waits_for_all(k) ? 0 : DEADLINE_MS;
    config.late_rounds = k->late_rounds;
    config.cohort = k->cohort;
    config.over_select = k->over_select;
    config.seed = 5;
    config.evaluate_every = 2;
    config.training = &training;
    err e = message_pack(&packed, &config.base);
    if (!err_is(e))
        e = message_unpack(&out, &fedlora__v1__run_config__descriptor, packed.data, packed.size);
    REQUIRE(!err_is(e));
    bytes_close(&packed);
    return out;
}

static err seeded_hello(struct run *run, size_t member)
{
    Fedlora__V1__HelloRequest hello = FEDLORA__V1__HELLO_REQUEST__INIT;
    Fedlora__V1__ModuleShape shape[MODULES], *list[MODULES];
    for (size_t i = 0; i < MODULES; i++) {
        fedlora__v1__module_shape__init(&shape[i]);
        shape[i].name = (char *)(uintptr_t)modules[i].name;
        shape[i].d_out = modules[i].d_out;
        shape[i].d_in = modules[i].d_in;
        list[i] = &shape[i];
    }
    hello.base_digest = run->config->base_digest;
    hello.modules = list;
    hello.n_modules = MODULES;
    hello.rank = !strcmp(run->config->method, "flora") ? 2 + (uint32_t)member : 4;
    hello.examples = 10 + member;
    hello.eval_rows = member == 0 ? 3 : 0;
    return run_hello(run, member, &hello);
}

static void fill_factor(float *out, size_t n, const char *what, size_t member, uint32_t round)
{
    char label[64];
    struct rng rng;
    snprintf(label, sizeof label, "%s %s", members[member], what);
    rng_init(&rng, "seeded run", 1, label, round);
    rng_fill_uniform(&rng, out, n, 0.25);
}

static void make_update(struct bytes *out, const struct run *run, size_t m, uint32_t round)
{
    static float a[MODULES][32], b[MODULES][32];
    struct adapter_file_module module[MODULES] = {0};
    char base[DIGEST_TEXT_BYTES];
    struct digest digest;
    uint32_t rank = run->member[m].rank;
    unsigned sends = run->method->factors(round);
    memcpy(digest.byte, run->config->base_digest.data, DIGEST_BYTES);
    digest_text(base, &digest);
    for (size_t i = 0; i < MODULES; i++) {
        const struct method_module *shape = &modules[i];
        module[i].name = shape->name;
        module[i].rank = rank;
        module[i].alpha = run_alpha(run, m);
        fill_factor(a[i], (size_t)rank * shape->d_in, "A", m, round * 2 + (uint32_t)i);
        fill_factor(b[i], (size_t)shape->d_out * rank, "B", m, round * 2 + (uint32_t)i);
        if (sends & METHOD_A)
            module[i].factor[ADAPTER_FILE_A] =
                (struct adapter_file_factor){a[i], rank, shape->d_in, NULL};
        if (sends & METHOD_B)
            module[i].factor[ADAPTER_FILE_B] =
                (struct adapter_file_factor){b[i], shape->d_out, rank, NULL};
    }
    struct adapter_file_meta meta = {.kind = ADAPTER_FILE_UPDATE,
                                     .run = run->config->name,
                                     .method = run->config->method,
                                     .base = base,
                                     .member = members[m],
                                     .round = round,
                                     .rank = rank,
                                     .alpha = run_alpha(run, m)};
    err e = adapter_file_write_bytes(out, &meta, module, MODULES);
    REQUIRE(!err_is(e));
}

/* The update of a kind of run, member and round: made once in a process. */
struct update {
    struct bytes bytes;
    struct digest digest;
};
static struct update updates[KINDS][MEMBERS][ROUNDS + 1];

static const struct update *seeded_update(size_t kind, const struct run *run, size_t m,
                                          uint32_t round)
{
    struct update *u = &updates[kind][m][round];
    if (u->bytes.size) return u;
    u->bytes.max = 1 << 20;
    make_update(&u->bytes, run, m, round);
    u->digest = digest_of(u->bytes.data, u->bytes.size);
    return u;
}

#endif
