/* The factors that members keep (fedsa): a round starts from them as if they were in the state. */
#include "engine/member/member_kept.h"

#include "base/file.h"
#include "tests/support/member_bench.h"

/* One member of fedsa, and one of fedit, which starts from the same A and B and sends both. */
struct pair {
    struct member_bench own, whole;
    char kept[192];
};

static void pair_open(struct pair *p)
{
    bench_open(&p->own, "fedsa");
    bench_open(&p->whole, "fedit");
    snprintf(p->kept, sizeof p->kept, "%s/kept", p->own.dir);
}

static void pair_close(struct pair *p)
{
    bench_close(&p->own);
    bench_close(&p->whole);
}

static err train_kept(struct pair *p, uint32_t round)
{
    struct train_result result = {0};
    struct member_bench *b = &p->own;
    struct member_round r = describe(b, round, 0, NULL);
    r.kept_path = p->kept;
    r.trains = ADAPTER_A;
    return member_train(
        &result, b->update[0],
        &(struct member_train){
            .engine = b->engine, .data = &b->data, .round = &r, .training = &b->training});
}

static void expect_same(const struct adapter_file *x, const struct adapter_file *y, int role)
{
    cr_assert_eq(x->count, MODULES);
    cr_assert_eq(y->count, MODULES);
    for (size_t i = 0; i < MODULES; i++) {
        const struct adapter_file_factor *f = &x->module[i].factor[role],
                                         *g = &y->module[i].factor[role];
        cr_assert_not_null(f->f32);
        cr_assert(f->rows == g->rows && f->cols == g->cols);
        cr_expect_arr_eq(f->f32, g->f32, (size_t)f->rows * f->cols * sizeof(float));
    }
}

/* The update and the kept file of fedsa have the factors of fedit's update. */
static void expect_parts(struct pair *p)
{
    struct adapter_file sent = {0}, kept = {0}, both = {0};
    OK(adapter_file_open(&sent, p->own.update[0]));
    OK(adapter_file_open(&kept, p->kept));
    OK(adapter_file_open(&both, p->whole.update[0]));
    expect_same(&sent, &both, ADAPTER_FILE_A);
    expect_same(&kept, &both, ADAPTER_FILE_B);
    for (size_t i = 0; i < MODULES; i++) {
        cr_expect_null(sent.module[i].factor[ADAPTER_FILE_B].f32, "B was sent");
        cr_expect_null(kept.module[i].factor[ADAPTER_FILE_A].f32);
    }
    adapter_file_close(&sent);
    adapter_file_close(&kept);
    adapter_file_close(&both);
}

/* State 2 of fedit: the member's own A and B. Of fedsa: its A, and B = 0. */
static void next_states(struct pair *p)
{
    struct member_bench *bench[] = {&p->own, &p->whole};
    for (int i = 0; i < 2; i++) {
        struct contribution alone = {members[0], 1, bench[i]->update[0]};
        struct method_report report = {0};
        const struct method_next next = {.state_path = bench[i]->state[0],
                                         .contribution = &alone,
                                         .count = 1,
                                         .rounds = 2,
                                         .threads = 1};
        OK(method_next(&report, method_find(bench[i]->method), bench[i]->state[1], &next));
        method_report_close(&report);
    }
}

Test(member_kept, a_round_starts_from_the_kept_factors)
{
    static struct pair p;
    struct digest first, again;
    pair_open(&p);
    OK(train_kept(&p, 1));
    train(&p.whole, 1, 0, NULL);
    expect_parts(&p);
    next_states(&p);
    OK(train_kept(&p, 2));
    train(&p.whole, 2, 0, NULL);
    expect_parts(&p);

    /* Again, as after the member was killed: from the B of round 1, not from that of round 2. */
    OK(digest_of_file(&first, p.own.update[0]));
    OK(train_kept(&p, 2));
    OK(digest_of_file(&again, p.own.update[0]));
    cr_expect(digest_equal(&first, &again));
    expect_parts(&p);

    /* Lost: round 2 is as if it had not been trained. */
    struct member_round r = describe(&p.own, 2, 0, NULL);
    r.kept_path = p.kept;
    OK(member_kept_undo(&r));
    OK(member_kept_undo(&r));
    train(&p.whole, 1, 0, NULL);
    OK(train_kept(&p, 1));
    expect_parts(&p);
    pair_close(&p);
}

Test(member_kept, an_evaluation_measures_the_kept_factors)
{
    static struct pair p;
    struct member_adapter a = {0};
    struct adapter_file kept = {0};
    pair_open(&p);
    OK(train_kept(&p, 1));
    train(&p.whole, 1, 0, NULL);
    next_states(&p);
    struct member_round r = describe(&p.own, 2, 0, NULL);
    r.kept_path = p.kept;
    r.evaluates = true;
    OK(member_adapter_open(&a, &p.own.model.arch, &r));
    OK(adapter_file_open(&kept, p.kept));
    const struct adapter_module *q = adapter_find(&a.adapter, 0, MODULE_Q);
    const struct adapter_file_module *m =
        adapter_file_find(&kept, "model.layers.0.self_attn.q_proj");
    cr_assert_not_null(m);
    cr_expect_arr_eq(q->b, m->factor[ADAPTER_FILE_B].f32,
                     (size_t)q->d_out * q->rank * sizeof(float));
    adapter_file_close(&kept);
    member_adapter_close(&a);
    pair_close(&p);
}

Test(member_kept, a_file_of_another_member_or_shape_is_refused)
{
    static struct pair p;
    pair_open(&p);
    OK(train_kept(&p, 1));
    train(&p.whole, 1, 0, NULL);
    next_states(&p);
    struct member_round r = describe(&p.own, 2, 1, NULL);
    struct member_adapter a = {0};
    r.kept_path = p.kept;
    err e = member_adapter_open(&a, &p.own.model.arch, &r);
    cr_expect_eq(e.kind, ERR_INPUT);
    cr_expect(strstr(e.text, "belongs to member \"ann\""), "%s", e.text);
    r = describe(&p.own, 2, 0, NULL);
    r.kept_path = p.kept;
    r.rank = 2;
    r.alpha = 4;
    e = member_adapter_open(&a, &p.own.model.arch, &r);
    cr_expect_eq(e.kind, ERR_INPUT);
    cr_expect(strstr(e.text, "another shape"), "%s", e.text);
    pair_close(&p);
}
