/* Reports are made after their round is published, and never delay a round. The hook keeps a report
 * from being made until the test says so, or until it has to give way. */
#include "tests/support/crash_fixture.h"

static atomic_bool released;
static atomic_uint seen, with_directions; /* reports, in the order of rounds; bits */
static atomic_uint calls;                 /* of the hook */
static atomic_bool dies;

static void hold_report(const struct work_job *job)
{
    const struct publish_job *p = (const struct publish_job *)(const void *)job;
    if (atomic_load(&dies)) raise(SIGKILL);
    atomic_fetch_add(&calls, 1);
    if (p->directions) atomic_fetch_or(&with_directions, 1u << p->round);
    atomic_fetch_or(&seen, 1u << p->round);
    while (!atomic_load(&released) && !work_gives_way(job))
        usleep(100);
}

static void turn(struct script *script, struct run_shop *shop)
{
    for (size_t m = 0; m < MEMBERS; m++)
        member_turn(script, m);
    if (!work_take(shop->receipts) && !work_take(shop->maths)) usleep(100);
    run_tick(script->run, text_now_ms());
}

static struct store_round round_of(struct run *run, uint32_t number, struct arena *arena)
{
    struct store_round *row = NULL;
    size_t count = 0;
    ok(store_rounds(&row, &count, run->shop->store, run->id, true, arena));
    cr_assert_geq(count, number);
    cr_assert_eq(row[number - 1].round, number);
    return row[number - 1];
}

static void expect_reported(struct run *run, uint32_t number, bool reported)
{
    struct arena arena = {0};
    struct store_round r = round_of(run, number, &arena);
    cr_expect_gt(r.state.size + (r.round + 2 <= run->round.published), 0, "published");
    cr_expect_eq(r.reported, reported, "round %u", number);
    cr_expect_eq(strstr(r.report_json, "q_proj") != NULL, reported);
    cr_expect_eq(r.update_norm > 0, reported);
    arena_close(&arena);
}

static void release_report(struct run *run)
{
    atomic_store(&released, true);
    while (run->report)
        if (!work_take(run->shop->maths)) usleep(100);
}

static uint32_t skipped(struct run *run)
{
    uint32_t n = 0;
    ok(store_reports_skipped(&n, run->shop->store, run->id));
    return n;
}

static void close_all(struct run *run, struct run_shop *shop)
{
    run_shop_stop(shop);
    run_close(run);
}

static void in_new_dir(err (*serve)(struct run_shop *shop))
{
    char dir[SUPPORT_PATH_BYTES];
    make_dir(dir);
    ok(serve_run_with(dir, serve));
    support_dir_remove(dir);
}

static err publish_while_held(struct run_shop *shop)
{
    struct script script = {0};
    publish_report_hook = hold_report;
    ok(find_or_create(&script.run, shop));
    struct run *run = script.run;
    while (run->round.published < 1)
        turn(&script, shop);
    cr_expect_eq(round_phase(&run->round), ROUND_TRAINING);
    cr_expect_eq(round_under_way(&run->round), 2);
    cr_expect_eq(round_task(&run->round, 0), ROUND_TASK_TRAIN);
    cr_assert(run->report);
    expect_reported(run, 1, false);
    release_report(run);
    expect_reported(run, 1, true);
    cr_expect_eq(skipped(run), 0);
    close_all(run, shop);
    return ERR_NONE;
}

Test(report, is_made_while_members_train_on_the_published_state)
{
    in_new_dir(publish_while_held);
}

static err finish_while_held(struct run_shop *shop)
{
    struct script script = {0};
    publish_report_hook = hold_report;
    report_every = 2;
    ok(find_or_create(&script.run, shop));
    struct run *run = script.run;
    while (round_phase(&run->round) != ROUND_FINISHED)
        turn(&script, shop);
    cr_assert(run->report, "the run is finished, its last report is not");
    expect_reported(run, 1, false);
    expect_reported(run, 2, false);
    expect_reported(run, ROUNDS, false);
    cr_expect_eq(skipped(run), ROUNDS - 1);
    release_report(run);
    expect_reported(run, ROUNDS, true);
    cr_expect_eq(skipped(run), ROUNDS - 1);
    /* A report may have to give way before it begins; then the hook does not see it. */
    cr_expect(atomic_load(&seen) & 1u << ROUNDS);
    cr_expect_eq(atomic_load(&with_directions), atomic_load(&seen) & (1u << 2 | 1u << ROUNDS),
                 "every second round, and the last");
    close_all(run, shop);
    return ERR_NONE;
}

Test(report, gives_way_to_the_next_round_and_is_counted)
{
    in_new_dir(finish_while_held);
}

static err stop_while_held(struct run_shop *shop)
{
    struct script script = {0};
    publish_report_hook = hold_report;
    ok(find_or_create(&script.run, shop));
    while (script.run->round.published < 1)
        turn(&script, shop);
    while (!atomic_load(&seen))
        usleep(100);
    run_shop_stop(shop); /* returns, although nobody releases the report */
    cr_expect(!script.run->report);
    expect_reported(script.run, 1, false);
    cr_expect_eq(skipped(script.run), 1);
    run_close(script.run);
    return ERR_NONE;
}

Test(report, does_not_delay_a_stop)
{
    in_new_dir(stop_while_held);
}

static err give_way_to_other_work(struct run_shop *shop)
{
    struct script script = {0};
    publish_report_hook = hold_report;
    ok(find_or_create(&script.run, shop));
    struct run *run = script.run;
    while (run->round.published < 1)
        turn(&script, shop);
    /* Each draw of noise interrupts the report, which then begins again. */
    for (unsigned i = 1; i <= 3; i++) {
        while (atomic_load(&calls) < i && run->report)
            if (!work_take(shop->maths)) usleep(100);
        ok(run_push_work(run, PUBLISH_NOISE));
    }
    release_report(run);
    expect_reported(run, 1, true);
    cr_expect_eq(atomic_load(&calls), 4);
    cr_expect_eq(skipped(run), 0);
    close_all(run, shop);
    return ERR_NONE;
}

/* A private run, because it gives up its noisy mean when it publishes, and its report needs it. */
Test(report, that_gave_way_to_other_work_still_finds_its_files)
{
    char place[SUPPORT_PATH_BYTES], key[SUPPORT_PATH_BYTES + 16];
    make_dir(place);
    make_key(key, place);
    in_new_dir(give_way_to_other_work);
    support_dir_remove(place);
}

/* The worker kills the process when it begins the report of the first round. */
static err die_in_report(struct run_shop *shop)
{
    struct script script = {0};
    publish_report_hook = hold_report;
    atomic_store(&dies, true);
    ok(find_or_create(&script.run, shop));
    while (script.run->round.published < 1)
        turn(&script, shop);
    pause();
    return ERR_NONE;
}

static void kill_in_report(const char *dir)
{
    int status;
    fflush(NULL);
    pid_t child = fork();
    cr_assert_geq(child, 0);
    if (child == 0) {
        log_init(LOG_ERROR, false);
        err e = serve_run_with(dir, die_in_report);
        _exit(err_is(e) ? 1 : 2);
    }
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* Each round's report is stored, or counted as skipped. */
static struct digest state_of(const char *dir, bool first_lost)
{
    struct store store = {0};
    struct arena arena = {0};
    struct store_run *run = NULL;
    struct store_round *row = NULL;
    size_t runs = 0, rounds = 0;
    uint32_t lost = 0, counted = 0;
    ok(support_store_open(&store, dir));
    ok(store_runs(&run, &runs, &store, &arena));
    ok(store_rounds(&row, &rounds, &store, run->id, true, &arena));
    cr_assert_eq(rounds, ROUNDS);
    struct digest digest = run->state.digest;
    for (size_t i = 0; i < ROUNDS; i++)
        lost += !row[i].reported;
    ok(store_reports_skipped(&counted, &store, run->id));
    cr_expect_eq(counted, lost, "%u are lost, %u are counted", lost, counted);
    cr_expect(row[ROUNDS - 1].reported);
    if (first_lost) cr_expect(!row[0].reported);
    store_close(&store);
    arena_close(&arena);
    return digest;
}

Test(report, a_crash_before_it_is_stored_loses_it_and_nothing_else)
{
    struct digest last[2];
    for (int killed = 0; killed < 2; killed++) {
        char dir[SUPPORT_PATH_BYTES];
        make_dir(dir);
        if (killed) kill_in_report(dir);
        cr_assert_gt(spawn(dir, FAULT_NONE, 0), 0);
        last[killed] = state_of(dir, killed);
        support_dir_remove(dir);
    }
    cr_expect(digest_equal(&last[0], &last[1]));
}
