/* Members that keep their optimizer: two rounds are like one of twice the steps. */
#include "engine/member/member_optimizer.h"

#include "base/file.h"
#include "tests/support/member_bench.h"

/* The rows of a round are all rows once in file order, so those of two rounds follow each other. */
static void open_bench(struct member_bench *b, const char *method)
{
    bench_open(b, method);
    b->training.shuffle = false;
    b->training.schedule = TRAINING_CONSTANT;
    b->training.keep_optimizer = true;
    cr_assert_eq(b->training.steps * b->training.batch, ROWS);
}

/* The digest of the first member's update. `kept` NULL: it keeps nothing. */
static struct digest train_round(struct member_bench *b, const struct member_round *r,
                                 const char *kept)
{
    struct train_result result = {0};
    struct digest digest;
    struct member_round round = *r;
    round.kept_path = kept;
    OK(member_train(
        &result, b->update[0],
        &(struct member_train){
            .engine = b->engine, .data = &b->data, .round = &round, .training = &b->training}));
    OK(digest_of_file(&digest, b->update[0]));
    return digest;
}

/* The first member's update becomes the state. */
static void next_state(struct member_bench *b)
{
    struct contribution alone = {members[0], 1, b->update[0]};
    struct method_report report = {0};
    const struct method_next next = {
        .state_path = b->state[0], .contribution = &alone, .count = 1, .rounds = 2, .threads = 1};
    OK(method_next(&report, method_find(b->method), b->state[1], &next));
    method_report_close(&report);
}

static void expect_values(const char *path, const char *other, bool same)
{
    struct adapter_file x = {0}, y = {0};
    OK(adapter_file_open(&x, path));
    OK(adapter_file_open(&y, other));
    bool equal = true;
    for (size_t i = 0; i < MODULES; i++)
        for (int role = ADAPTER_FILE_A; role <= ADAPTER_FILE_B; role++) {
            const struct adapter_file_factor *f = &x.module[i].factor[role],
                                             *g = &y.module[i].factor[role];
            if (f->f32 || g->f32)
                equal &= f->rows == g->rows &&
                         !memcmp(f->f32, g->f32, (size_t)f->rows * f->cols * sizeof(float));
        }
    cr_expect_eq(equal, same);
    adapter_file_close(&x);
    adapter_file_close(&y);
}

Test(member_optimizer, two_rounds_are_one_of_twice_the_steps)
{
    static struct member_bench b, whole;
    char kept[160];
    open_bench(&b, "fedit");
    open_bench(&whole, "fedit");
    snprintf(kept, sizeof kept, "%s/kept", b.dir);
    whole.training.steps *= 2;
    const struct member_round first = describe(&b, 1, 0, NULL), both = describe(&whole, 1, 0, NULL);
    struct member_round second = describe(&b, 2, 0, NULL);
    train_round(&b, &first, kept);
    next_state(&b);
    struct digest once = train_round(&b, &second, kept);
    train_round(&whole, &both, NULL);
    expect_values(b.update[0], whole.update[0], true);

    /* Again, as after the member was killed: from the moments of round 1, not of round 2. */
    struct digest again = train_round(&b, &second, kept);
    cr_expect(digest_equal(&once, &again));

    /* Lost: as if round 2 had not been trained, but round 1 counts. */
    second.kept_path = kept;
    OK(member_train_undo(&second));
    OK(member_train_undo(&second));
    again = train_round(&b, &second, kept);
    cr_expect(digest_equal(&once, &again));

    train_round(&b, &second, NULL);
    expect_values(b.update[0], whole.update[0], false);
    bench_close(&b);
    bench_close(&whole);
}

Test(member_optimizer, moments_of_another_rank_are_not_used)
{
    static struct member_bench b;
    char kept[160];
    struct digest with[2], without[2];
    open_bench(&b, "hetlora");
    snprintf(kept, sizeof kept, "%s/kept", b.dir);
    const struct member_round first = describe(&b, 1, 0, NULL);
    train_round(&b, &first, kept);
    next_state(&b);
    for (int pruned = 0; pruned < 2; pruned++) {
        struct member_round second = describe(&b, 2, 0, NULL);
        second.rank = pruned ? 2 : 4;
        second.alpha = 2 * second.rank;
        with[pruned] = train_round(&b, &second, kept);
        without[pruned] = train_round(&b, &second, NULL);
    }
    cr_expect_not(digest_equal(&with[0], &without[0]));
    cr_expect(digest_equal(&with[1], &without[1]));
    bench_close(&b);
}

/* Round 2 trains A only, and round 3 continues with the moments of B from round 1. */
Test(member_optimizer, each_set_of_factors_has_its_own_moments)
{
    static struct member_bench b, whole;
    char kept[160];
    open_bench(&b, "rolora");
    open_bench(&whole, "rolora");
    snprintf(kept, sizeof kept, "%s/kept", b.dir);
    whole.training.steps *= 2;
    struct member_round round = describe(&b, 1, 0, NULL), both = describe(&whole, 1, 0, NULL);
    round.trains = both.trains = ADAPTER_B;
    train_round(&b, &round, kept);
    next_state(&b);
    round.state_path = b.state[1];
    round.round = 2;
    round.trains = ADAPTER_A;
    train_round(&b, &round, kept);
    round.round = 3;
    round.trains = ADAPTER_B;
    train_round(&b, &round, kept);
    train_round(&whole, &both, NULL);
    expect_values(b.update[0], whole.update[0], true);

    member_optimizer_drop(kept);
    char left[200];
    snprintf(left, sizeof left, "%s.optimizer.b", kept);
    cr_expect_not(file_exists(left));
    bench_close(&b);
    bench_close(&whole);
}

Test(member_optimizer, a_file_of_another_member_is_refused)
{
    static struct member_bench b;
    struct train_result result = {0};
    char kept[160];
    open_bench(&b, "fedit");
    snprintf(kept, sizeof kept, "%s/kept", b.dir);
    struct member_round round = describe(&b, 1, 0, NULL);
    train_round(&b, &round, kept);
    round.member = members[2];
    round.kept_path = kept;
    err e = member_train(
        &result, b.update[2],
        &(struct member_train){
            .engine = b.engine, .data = &b.data, .round = &round, .training = &b.training});
    cr_expect_eq(e.kind, ERR_INPUT);
    cr_expect(strstr(e.text, "belongs to member \"ann\""), "%s", e.text);
    bench_close(&b);
}
