#include "engine/member/member_train.h"

#include "agg/round/method.h"

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

struct bench {
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

static void bench_open(struct bench *b)
{
    static const enum module_kind kinds[MODULES] = {MODULE_Q, MODULE_V, MODULE_DOWN};
    static char name[MODULES][LIMIT_TENSOR_NAME_BYTES];
    struct method_module module[MODULES];
    char dir[] = "/tmp/member_state.XXXXXX";
    cr_assert_not_null(mkdtemp(dir));
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
    OK(method_start(method_find("flora"), b->state[0], &start));
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

static void bench_close(struct bench *b)
{
    char command[128];
    engine_close(b->engine);
    model_close(&b->model);
    snprintf(command, sizeof command, "rm -rf %s", b->dir);
    cr_assert_eq(system(command), 0);
}

static struct member_round describe(struct bench *b, uint32_t round, int member,
                                    struct member_state *shared)
{
    return (struct member_round){.run = "r",
                                 .member = members[member],
                                 .method = "flora",
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

static struct digest train(struct bench *b, uint32_t round, int member, struct member_state *shared)
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

/* The state of round 2, which carries the updates of round 1. */
static void next_state(struct bench *b)
{
    struct contribution contribution[MEMBERS];
    struct method_report report = {0};
    for (int i = 0; i < MEMBERS; i++) {
        train(b, 1, i, NULL);
        contribution[i] = (struct contribution){members[i], 1, b->update[i]};
    }
    const struct method_next next = {.state_path = b->state[0],
                                     .contribution = contribution,
                                     .count = MEMBERS,
                                     .rounds = 2,
                                     .threads = 1};
    OK(method_next(&report, method_find("flora"), b->state[1], &next));
    method_report_close(&report);
}

Test(member_state, members_that_share_it_send_the_same_bytes_as_alone)
{
    struct bench b = {0};
    struct member_state state = {0};
    struct digest alone[MEMBERS];
    bench_open(&b);
    next_state(&b);
    for (int i = 0; i < MEMBERS; i++)
        alone[i] = train(&b, 2, i, NULL);
    const struct member_round r = describe(&b, 2, 0, NULL);
    OK(member_state_open(&state, &r));
    cr_assert_gt(state.file.module[0].carry_rank, 0);
    for (int times = 0; times < 2; times++)
        for (int i = 0; i < MEMBERS; i++) {
            struct digest digest = train(&b, 2, i, &state);
            cr_expect(digest_equal(&digest, &alone[i]), "%s", members[i]);
        }
    cr_expect_not_null(state.packed);
    member_state_close(&state);
    bench_close(&b);
}

Test(member_state, a_shared_adapter_uses_the_carry_in_place)
{
    struct bench b = {0};
    struct member_state state = {0};
    struct member_adapter a = {0};
    bench_open(&b);
    next_state(&b);
    struct member_round r = describe(&b, 2, 0, NULL);
    OK(member_state_open(&state, &r));
    r.state = &state;
    OK(member_adapter_open(&a, &b.model.arch, &r));
    const struct adapter_module *q = adapter_find(&a.adapter, 0, MODULE_Q);
    bool found = false;
    for (size_t i = 0; i < state.file.count; i++)
        found |= state.file.module[i].factor[ADAPTER_FILE_CARRY_A].f32 == q->carry_a;
    cr_expect(found);
    member_adapter_close(&a);
    member_state_close(&state);
    bench_close(&b);
}

Test(member_state, refuses_the_state_of_another_run_or_base)
{
    struct bench b = {0};
    struct member_state state = {0};
    bench_open(&b);
    struct member_round r = describe(&b, 1, 0, NULL);
    r.run = "s";
    cr_expect_eq(member_state_open(&state, &r).kind, ERR_INPUT);
    r.run = "r";
    r.base = "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    cr_expect_eq(member_state_open(&state, &r).kind, ERR_INPUT);
    bench_close(&b);
}
