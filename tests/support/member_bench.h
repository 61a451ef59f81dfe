/* Three members of a tiny base that train from states in a folder, without a coordinator. */
#ifndef TESTS_SUPPORT_MEMBER_BENCH_H
#define TESTS_SUPPORT_MEMBER_BENCH_H

#include "agg/round/method.h"
#include "engine/member/member_train.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BASE FEDLORA_SOURCE_DIR "/tests/models/llama"
#define DIGEST "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define OK(call)                                                                                   \
    do {                                                                                           \
        err ok_ = (call);                                                                          \
        cr_assert_eq(ok_.kind, ERR_OK, "%s: %s", #call, ok_.text);                                 \
    } while (0)

enum { MODULES = 3, ROWS = 4, TOKENS = 12, MEMBERS = 3 };

struct member_bench {
    const char *method;
    char dir[64], state[2][128], update[MEMBERS][128];
    struct model model;
    struct engine *engine;
    int32_t id[ROWS][TOKENS];
    struct data_row row[ROWS];
    struct dataset data;
    struct training_options training;
};

static const char *const members[MEMBERS] = {"ann", "bob", "eve"};
static const uint32_t ranks[MEMBERS] = {4, 2, 4}; /* bob's adapter cannot use ann's packed one */

static inline void bench_open(struct member_bench *b, const char *method)
{
    static const enum module_kind kinds[MODULES] = {MODULE_Q, MODULE_V, MODULE_DOWN};
    static char name[MODULES][LIMIT_TENSOR_NAME_BYTES];
    struct method_module module[MODULES];
    char dir[] = "/tmp/member_state.XXXXXX";
    cr_assert_not_null(mkdtemp(dir));
    b->method = method;
    snprintf(b->dir, sizeof b->dir, "%s", dir);
    for (int i = 0; i < 2; i++)
        snprintf(b->state[i], sizeof b->state[i], "%s/state%d", dir, i);
    for (int i = 0; i < MEMBERS; i++)
        snprintf(b->update[i], sizeof b->update[i], "%s/update%d", dir, i);
    OK(model_open(&b->model, BASE));
    OK(engine_open(
        &b->engine, &b->model,
        &(struct engine_options){.device = "cpu", .precision = DTYPE_F32, .threads = 1}));
    for (int i = 0; i < MODULES; i++) {
        model_module_name(name[i], 0, kinds[i]);
        module[i].name = name[i];
        model_module_shape(&module[i].d_out, &module[i].d_in, &b->model.arch, kinds[i]);
    }
    const struct method_start start = {.run = "r",
                                       .base = DIGEST,
                                       .seed = 7,
                                       .rank = 4,
                                       .alpha = 8,
                                       .module = module,
                                       .module_count = MODULES,
                                       .threads = 1};
    OK(method_start(method_find(method), b->state[0], &start));
    for (int i = 0; i < ROWS; i++) {
        for (int t = 0; t < TOKENS; t++)
            b->id[i][t] = (i * 7 + t * 3) % (int)b->model.arch.vocab;
        b->row[i] = (struct data_row){.id = b->id[i], .label = b->id[i], .count = TOKENS};
    }
    b->data = (struct dataset){.row = b->row, .count = ROWS};
    b->data.tokens = b->data.learned = (uint64_t)ROWS * TOKENS;
    training_options_defaults(&b->training);
    b->training.steps = 2;
    b->training.batch = 2;
    b->training.lr = 1e-2;
}

static inline void bench_close(struct member_bench *b)
{
    char command[128];
    engine_close(b->engine);
    model_close(&b->model);
    snprintf(command, sizeof command, "rm -rf %s", b->dir);
    cr_assert_eq(system(command), 0);
}

static inline struct member_round describe(struct member_bench *b, uint32_t round, int member,
                                           struct member_state *shared)
{
    return (struct member_round){.run = "r",
                                 .member = members[member],
                                 .method = b->method,
                                 .base = DIGEST,
                                 .state_path = b->state[round - 1],
                                 .frozen_digest = "",
                                 .state = shared,
                                 .round = round,
                                 .rank = ranks[member],
                                 .alpha = 8,
                                 .seed = 7,
                                 .trains = ADAPTER_A | ADAPTER_B};
}

static inline struct digest train(struct member_bench *b, uint32_t round, int member,
                                  struct member_state *shared)
{
    struct train_result result = {0};
    struct digest digest;
    const struct member_round r = describe(b, round, member, shared);
    OK(member_train(
        &result, b->update[member],
        &(struct member_train){
            .engine = b->engine, .data = &b->data, .round = &r, .training = &b->training}));
    OK(digest_of_file(&digest, b->update[member]));
    return digest;
}

#endif
