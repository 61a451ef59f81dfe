/* The state machine by examples, and under a seeded simulator that sends it all kinds of events. */
#include "base/rng.h"
#include "coordinator/run/run_draw.h"
#include "tests/support/round_fixture.h"

#include <stdio.h>
#include <string.h>

Test(round, waits_for_the_quorum_to_join_before_it_opens)
{
    struct round r;
    struct round_rules rules = all_of_three;
    rules.quorum = 2;
    cr_assert(!err_is(round_init(&r, &rules, ids, 3)));
    tell(&r, ROUND_ON_BEGIN, 1, 0);
    tell(&r, ROUND_ON_SHAPES, 1, 0);
    tell(&r, ROUND_ON_STARTED, 1, 0);
    cr_expect_eq(tell(&r, ROUND_ON_HELLO, 1, 0), 0);
    char text[256];
    round_waiting_for(text, sizeof text, &r, 1);
    cr_expect_str_eq(text, "1 more of 3 members to join: lab, ward");
    cr_expect_eq(round_task(&r, 0), ROUND_TASK_WAIT);
    cr_expect_eq(tell(&r, ROUND_ON_HELLO, 1, 2), ROUND_DO_OPEN | ROUND_DO_WAKE);
    cr_expect_eq(round_task(&r, 0), ROUND_TASK_TRAIN);
    round_close(&r);
}

Test(round, closes_when_everyone_is_in_and_publishes_in_order)
{
    struct round r = open_run(&all_of_three, 3);
    for (uint32_t round = 1; round <= 3; round++) {
        for (size_t m = 0; m < 3; m++) {
            cr_expect_eq(round_phase(&r), ROUND_TRAINING);
            cr_assert(!err_is(submit(&r, 10, m, round, round * 10 + m)));
        }
        cr_expect_eq(round_phase(&r), ROUND_AGGREGATING);
        unsigned todo = tell(&r, ROUND_ON_PUBLISHED, 11, 0);
        cr_expect_eq(todo, ROUND_DO_WAKE | (round == 3 ? ROUND_DO_END : ROUND_DO_OPEN));
    }
    cr_expect_eq(round_phase(&r), ROUND_FINISHED);
    cr_expect_eq(round_task(&r, 1), ROUND_TASK_FINISHED);
    cr_expect_eq(round_under_way(&r), 3);
    round_close(&r);
}

Test(round, says_whom_it_waits_for_in_words)
{
    struct round r = open_run(&all_of_three, 4);
    size_t icu, lab, ward;
    cr_assert(round_find(&icu, &r, "icu") && round_find(&lab, &r, "lab") &&
              round_find(&ward, &r, "ward"));
    tell(&r, ROUND_ON_TASK, 200000, icu);
    round_apply(&r, &(struct round_event){.kind = ROUND_ON_STEP,
                                          .now_ms = 200000,
                                          .member = icu,
                                          .round = 1,
                                          .step = 12,
                                          .steps = 40});
    cr_assert(!err_is(submit(&r, 200000, ward, 1, 1)));
    tell(&r, ROUND_ON_SEEN, 200000 - 180000, lab);
    size_t er;
    cr_assert(round_find(&er, &r, "er"));
    cr_assert(!err_is(submit(&r, 200000, er, 1, 2)));
    char text[256];
    round_waiting_for(text, sizeof text, &r, 200000);
    cr_expect_str_eq(text,
                     "2 of 4 members: icu (training, step 12 of 40), lab (not seen for 3m00s); "
                     "the deadline passed 2m19s ago",
                     "%s", text);
    cr_expect_str_eq(round_activity(&r, lab, 200000), "absent");
    cr_expect_str_eq(round_activity(&r, ward, 200000), "submitted");
    cr_expect_str_eq(round_activity(&r, icu, 200000), "training");
    round_close(&r);
}

Test(round, closes_at_the_deadline_with_a_quorum_and_not_before)
{
    struct round_rules rules = all_of_three;
    rules.quorum = 2;
    struct round r = open_run(&rules, 3);
    cr_assert(!err_is(submit(&r, 10, 0, 1, 1)));
    cr_expect_eq(round_wake_ms(&r), 60003);
    cr_expect_eq(tell(&r, ROUND_ON_TICK, 60003, 0), 0, "one update is no quorum");
    cr_assert(!err_is(submit(&r, 60010, 1, 1, 2)));
    cr_expect_eq(round_phase(&r), ROUND_AGGREGATING, "past the deadline the quorum is enough");
    err e = submit(&r, 60011, 2, 1, 3);
    cr_expect_eq(e.kind, ERR_STATE);
    cr_expect(strstr(e.text, "refuses late updates"), "%s", e.text);
    round_close(&r);
}

Test(round, takes_a_late_update_into_the_next_round_when_told_to)
{
    struct round_rules rules = all_of_three;
    rules.quorum = 2;
    rules.deadline_ms = 0;
    rules.late_rounds = 1;
    struct round r = open_run(&rules, 3);
    cr_assert(!err_is(submit(&r, 10, 0, 1, 1)));
    cr_assert(!err_is(submit(&r, 10, 1, 1, 2)));
    cr_expect_eq(round_phase(&r), ROUND_AGGREGATING);
    cr_assert(!err_is(submit(&r, 11, 2, 1, 3)), "late for round 1");
    cr_expect_eq(r.member[2].counted_in, 2);
    tell(&r, ROUND_ON_PUBLISHED, 12, 0);
    cr_expect_eq(round_updates(&r), 1);
    cr_expect_eq(round_task(&r, 2), ROUND_TASK_WAIT, "its update is in already");
    cr_expect_eq(submit(&r, 13, 2, 2, 4).kind, ERR_STATE);
    cr_assert(!err_is(submit(&r, 13, 2, 1, 3)), "the same update again is no error");
    round_close(&r);
}

Test(round, refuses_what_is_wrong_by_name)
{
    struct round r = open_run(&all_of_three, 3);
    cr_assert(!err_is(submit(&r, 10, 0, 1, 1)));
    err e = submit(&r, 10, 0, 1, 2);
    cr_expect_eq(e.kind, ERR_STATE);
    cr_expect(strstr(e.text, "second update of icu for round 1"), "%s", e.text);
    e = submit(&r, 10, 1, 2, 2);
    cr_expect_eq(e.kind, ERR_STATE, "the member must ask again");
    cr_expect(strstr(e.text, "update for round 2, but the run is at round 1"), "%s", e.text);
    cr_expect_eq(submit(&r, 10, 1, 0, 2).kind, ERR_INPUT);
    tell(&r, ROUND_ON_STOP, 11, 0);
    e = submit(&r, 12, 1, 1, 2);
    cr_expect_eq(e.kind, ERR_STATE);
    cr_expect(strstr(e.text, "the run is stopped"), "%s", e.text);
    round_close(&r);
}

Test(round, does_not_close_while_an_update_is_being_made_durable)
{
    struct round_rules rules = all_of_three;
    rules.quorum = 1;
    struct round r = open_run(&rules, 2);
    struct digest digest = digest_number(7);
    cr_assert(!err_is(submit(&r, 10, 0, 1, 1)));
    round_apply(
        &r, &(struct round_event){
                .kind = ROUND_ON_ADMIT, .now_ms = 10, .member = 1, .round = 1, .digest = digest});
    cr_expect_eq(tell(&r, ROUND_ON_TICK, 70000, 0), 0);
    cr_expect_eq(tell(&r, ROUND_ON_RECEIPT, 70001, 1), ROUND_DO_AGGREGATE | ROUND_DO_WAKE);
    round_close(&r);
}

Test(round, holds_and_goes_on_with_a_fresh_deadline)
{
    struct round r = open_run(&all_of_three, 2);
    cr_expect_eq(tell(&r, ROUND_ON_PAUSE, 10000, 0), ROUND_DO_WAKE);
    cr_expect_eq(round_task(&r, 0), ROUND_TASK_WAIT);
    cr_expect_eq(round_wake_ms(&r), 0);
    cr_assert(!err_is(submit(&r, 10, 0, 1, 1)), "work in flight is still taken");
    tell(&r, ROUND_ON_RESUME, 500000, 0);
    cr_expect_eq(round_wake_ms(&r), 560000);
    cr_expect_eq(round_phase(&r), ROUND_TRAINING);
    round_close(&r);
}

Test(round, tries_again_after_trouble_and_fails_only_on_failure)
{
    struct round r = open_run(&all_of_three, 1);
    cr_assert(!err_is(submit(&r, 10, 0, 1, 1)));
    round_apply(
        &r, &(struct round_event){.kind = ROUND_ON_TROUBLE, .now_ms = 20, .reason = "disk full"});
    char text[128];
    round_waiting_for(text, sizeof text, &r, 21);
    cr_expect_str_eq(text, "the coordinator, which will try again: disk full");
    cr_expect_eq(tell(&r, ROUND_ON_TICK, 5019, 0), 0);
    cr_expect_eq(round_wake_ms(&r), 5020);
    cr_expect_eq(tell(&r, ROUND_ON_TICK, 5020, 0), ROUND_DO_AGGREGATE);
    round_apply(
        &r, &(struct round_event){.kind = ROUND_ON_FAILURE, .now_ms = 5030, .reason = "no SVD"});
    cr_expect_eq(round_phase(&r), ROUND_FAILED);
    cr_expect(tell(&r, ROUND_ON_RESUME, 6000, 0) & ROUND_DO_AGGREGATE);
    round_close(&r);
}

Test(round, knows_an_open_round_again_after_a_restart)
{
    struct round r;
    cr_assert(!err_is(round_init(&r, &all_of_three, ids, 3)));
    round_restore(&r, &(struct round_restored){.shapes_known = true, .started = true, .opened = 1});
    cr_expect_eq(tell(&r, ROUND_ON_BEGIN, 1000, 0), ROUND_DO_OPEN | ROUND_DO_WAKE);
    cr_expect_eq(round_wake_ms(&r), 61000, "the deadline starts afresh");
    cr_expect(!err_is(submit(&r, 1001, 2, 1, 5)), "a member's update trained before is welcome");
    round_close(&r);
}

/* ------------------------------------------------------------------------------------ simulator */
enum { SIM_MEMBERS = 4, SIM_UPDATES = 4096 };

struct sim_update {
    size_t member;
    uint32_t trained_round, counted_in;
    struct digest digest;
};
struct sim { /* the content of the disk, and the machine under test */
    struct round round;
    struct round_rules rules;
    uint32_t over;
    size_t members;
    bool shapes, started;
    uint32_t published, opened, aggregating; /* round in the worker's hands; 0: none */
    bool starting;
    enum round_phase hold;
    bool joined[SIM_MEMBERS];
    struct sim_update update[SIM_UPDATES];
    size_t updates;
    struct sim_update in_hand[SIM_MEMBERS];
    bool has_in_hand[SIM_MEMBERS];
    uint64_t now, next_digest, seed;
    struct rng rng;
};

static size_t sim_counted(const struct sim *s, uint32_t round)
{
    size_t n = 0;
    for (size_t i = 0; i < s->updates; i++)
        n += s->update[i].counted_in == round;
    return n;
}

static void sim_do(struct sim *s, unsigned todo)
{
    size_t all = s->rules.cohort ? s->rules.cohort : s->members;
    size_t quorum = s->rules.quorum ? s->rules.quorum : all;
    if (todo & ROUND_DO_START) {
        cr_assert(!s->started && !s->starting && s->shapes);
        s->starting = true;
    }
    if (todo & ROUND_DO_OPEN) {
        cr_assert(s->started);
        cr_assert_geq(round_under_way(&s->round), s->opened, "seed %zu", (size_t)s->seed);
        s->opened = round_under_way(&s->round);
    }
    if (todo & ROUND_DO_AGGREGATE) {
        uint32_t round = round_under_way(&s->round);
        cr_assert_eq(s->aggregating, 0, "aggregates twice at once, seed %zu", (size_t)s->seed);
        cr_assert_eq(round, s->published + 1);
        cr_assert_geq(sim_counted(s, round), quorum, "below the quorum, seed %zu", (size_t)s->seed);
        cr_assert_eq(sim_counted(s, round), round_updates(&s->round));
        s->aggregating = round;
    }
}

static void sim_tell(struct sim *s, struct round_event event);

/* As in run_save_opening(), which may fail and is then tried again with a tick. */
static void sim_draw(struct sim *s)
{
    bool drawn[SIM_MEMBERS];
    struct round *r = &s->round;
    const struct run_draw_cohort of = {s->members, s->rules.cohort + s->over, s->seed, r->opened};
    if (!s->rules.drawn || r->drawn_for == r->opened || r->opened != round_under_way(r)) return;
    run_draw_cohort(drawn, &of);
    round_draw(r, drawn, true);
    sim_tell(s, (struct round_event){.kind = ROUND_ON_TICK});
}

static void sim_tell(struct sim *s, struct round_event event)
{
    event.now_ms = s->now;
    unsigned todo = round_apply(&s->round, &event);
    expect_counts(&s->round);
    sim_do(s, todo);
    if ((todo & ROUND_DO_OPEN) && rng_below(&s->rng, 8) > 0) sim_draw(s);
}

static void sim_crash(struct sim *s)
{
    const char *names[SIM_MEMBERS];
    for (size_t i = 0; i < s->members; i++)
        names[i] = ids[i];
    round_close(&s->round);
    cr_assert(!err_is(round_init(&s->round, &s->rules, names, s->members)));
    s->aggregating = 0;
    s->starting = false;
    memset(s->has_in_hand, 0, sizeof s->has_in_hand);
    round_restore(&s->round, &(struct round_restored){.shapes_known = s->shapes,
                                                      .started = s->started,
                                                      .published = s->published,
                                                      .opened = s->opened,
                                                      .hold = s->hold,
                                                      .reason = "kept"});
    for (size_t m = 0; m < s->members; m++) {
        struct round_member was = {.joined = s->joined[m]};
        for (size_t i = 0; i < s->updates; i++) { /* the newest wins, as in the store */
            if (s->update[i].member != m) continue;
            was.trained_round = s->update[i].trained_round;
            was.counted_in = s->update[i].counted_in;
            was.digest = s->update[i].digest;
        }
        round_restore_member(&s->round, m, &was);
    }
    sim_tell(s, (struct round_event){.kind = ROUND_ON_BEGIN});
}

static void sim_submit(struct sim *s, size_t m)
{
    struct round_place place;
    uint32_t early = (uint32_t)rng_below(&s->rng, 3);
    uint32_t trained_round = s->published + (uint32_t)rng_below(&s->rng, 3);
    if (early == 0 && trained_round > 2) trained_round -= 2;
    struct digest digest = digest_number(s->next_digest++);
    if (s->updates && rng_below(&s->rng, 4) == 0) { /* an old one again */
        const struct sim_update *old = &s->update[rng_below(&s->rng, s->updates)];
        trained_round = old->trained_round;
        digest = old->digest;
    }
    if (s->updates == SIM_UPDATES ||
        err_is(round_judge(&place, &s->round, m, trained_round, &digest)))
        return;
    if (place.have) {
        bool found = false;
        for (size_t i = 0; i < s->updates; i++)
            found |= digest_equal(&s->update[i].digest, &digest) && s->update[i].member == m;
        cr_assert(found, "acknowledges what it does not have, seed %zu", (size_t)s->seed);
        return;
    }
    s->in_hand[m] = (struct sim_update){m, trained_round, place.counted_in, digest};
    s->has_in_hand[m] = true;
    sim_tell(s, (struct round_event){
                    .kind = ROUND_ON_ADMIT, .member = m, .round = trained_round, .digest = digest});
}

static void sim_receipt(struct sim *s, size_t m, bool good)
{
    if (!s->has_in_hand[m]) return;
    s->has_in_hand[m] = false;
    if (good) {
        const struct sim_update *u = &s->in_hand[m];
        cr_assert_gt(u->counted_in, s->published, "counted in a published round, seed %zu",
                     (size_t)s->seed);
        cr_assert_neq(u->counted_in, s->aggregating, "counted in a closed round, seed %zu",
                      (size_t)s->seed);
        cr_assert_leq(u->counted_in - u->trained_round, s->rules.late_rounds,
                      "counts an update that is too late, seed %zu", (size_t)s->seed);
        for (size_t i = 0; i < s->updates; i++)
            cr_assert(s->update[i].member != m || s->update[i].counted_in != u->counted_in,
                      "two updates of a member in a round, seed %zu", (size_t)s->seed);
        s->update[s->updates++] = *u;
    }
    sim_tell(s,
             (struct round_event){.kind = good ? ROUND_ON_RECEIPT : ROUND_ON_REFUSAL, .member = m});
}

/* One of the updates of the closed round is damaged; the others stay. */
static bool sim_damage(struct sim *s, uint32_t round)
{
    for (size_t i = 0; i < s->updates; i++) {
        struct sim_update u = s->update[i];
        if (u.counted_in != round) continue;
        memmove(&s->update[i], &s->update[i + 1], (--s->updates - i) * sizeof u);
        sim_tell(s, (struct round_event){
                        .kind = ROUND_ON_DAMAGE, .member = u.member, .digest = u.digest});
        sim_tell(s, (struct round_event){.kind = ROUND_ON_REOPEN});
        return true;
    }
    return false;
}

static void sim_work(struct sim *s, uint64_t chance)
{
    bool fails = chance == 0, trouble = chance == 1 || chance == 2;
    if (!s->starting && !s->aggregating) return;
    bool start = s->starting;
    uint32_t round = s->aggregating;
    s->starting = false;
    s->aggregating = 0;
    if (chance == 3 && round && sim_damage(s, round)) return;
    if (fails) {
        if (s->hold != ROUND_STOPPED) s->hold = ROUND_FAILED;
        sim_tell(s, (struct round_event){.kind = ROUND_ON_FAILURE, .reason = "no"});
    } else if (trouble) {
        sim_tell(s, (struct round_event){.kind = ROUND_ON_TROUBLE, .reason = "full"});
    } else if (start) {
        s->started = true;
        sim_tell(s, (struct round_event){.kind = ROUND_ON_STARTED});
    } else {
        cr_assert_eq(round, s->published + 1, "publishes out of order, seed %zu", (size_t)s->seed);
        s->published = round;
        sim_tell(s, (struct round_event){.kind = ROUND_ON_PUBLISHED});
    }
}

static void sim_operator(struct sim *s, uint64_t chance)
{
    if (s->hold == ROUND_STOPPED || s->published == s->rules.rounds) return;
    if (chance == 0 && s->hold != ROUND_FAILED) {
        s->hold = ROUND_PAUSED;
        sim_tell(s, (struct round_event){.kind = ROUND_ON_PAUSE});
    } else if (chance < 4) {
        s->hold = ROUND_WAITING;
        sim_tell(s, (struct round_event){.kind = ROUND_ON_RESUME});
    }
}

static void sim_step(struct sim *s)
{
    size_t m = rng_below(&s->rng, s->members);
    s->now += rng_below(&s->rng, 4000);
    switch (rng_below(&s->rng, 12)) {
    case 0:
        s->joined[m] = s->shapes = true;
        sim_tell(s, (struct round_event){.kind = ROUND_ON_HELLO, .member = m});
        if (!s->round.shapes_known) sim_tell(s, (struct round_event){.kind = ROUND_ON_SHAPES});
        break;
    case 1:
        sim_tell(s, (struct round_event){.kind = ROUND_ON_TASK, .member = m});
        break;
    case 2:
    case 3:
    case 4:
        sim_submit(s, m);
        break;
    case 5:
    case 6:
    case 7:
        sim_receipt(s, m, rng_below(&s->rng, 8) > 0);
        break;
    case 8:
        sim_work(s, rng_below(&s->rng, 12));
        break;
    case 9:
        sim_tell(s, (struct round_event){.kind = ROUND_ON_TICK});
        sim_draw(s);
        break;
    case 10:
        sim_operator(s, rng_below(&s->rng, 12));
        break;
    default:
        if (rng_below(&s->rng, 10) == 0) sim_crash(s);
    }
}

/* From now on all members work without faults, so the run must finish. */
static void sim_finish(struct sim *s)
{
    for (int i = 0; i < 60 && round_phase(&s->round) != ROUND_FINISHED; i++) {
        s->now += 100000;
        s->shapes = true;
        s->hold = ROUND_WAITING;
        sim_tell(s, (struct round_event){.kind = ROUND_ON_RESUME});
        sim_tell(s, (struct round_event){.kind = ROUND_ON_SHAPES});
        sim_draw(s);
        for (size_t m = 0; m < s->members; m++) {
            sim_receipt(s, m, true);
            s->joined[m] = true;
            sim_tell(s, (struct round_event){.kind = ROUND_ON_HELLO, .member = m});
            if (round_task(&s->round, m) != ROUND_TASK_TRAIN) continue;
            struct round_place place;
            struct digest digest = digest_number(s->next_digest++);
            uint32_t round = round_under_way(&s->round);
            cr_assert(!err_is(round_judge(&place, &s->round, m, round, &digest)), "seed %zu",
                      (size_t)s->seed);
            s->in_hand[m] = (struct sim_update){m, round, place.counted_in, digest};
            s->has_in_hand[m] = true;
            sim_tell(s, (struct round_event){
                            .kind = ROUND_ON_ADMIT, .member = m, .round = round, .digest = digest});
        }
        sim_work(s, 9);
    }
    char text[256];
    round_waiting_for(text, sizeof text, &s->round, s->now);
    cr_assert_eq(round_phase(&s->round), ROUND_FINISHED, "the run hangs, seed %zu: %s",
                 (size_t)s->seed, text);
    cr_assert_eq(s->published, s->rules.rounds);
}

static void sim_run(uint64_t seed, uint64_t steps)
{
    static struct sim s;
    memset(&s, 0, sizeof s);
    s.seed = seed;
    s.now = 1;
    rng_init(&s.rng, "round simulator", seed, "", 0);
    s.members = 1 + rng_below(&s.rng, SIM_MEMBERS);
    s.rules = (struct round_rules){.rounds = 1 + (uint32_t)rng_below(&s.rng, 6),
                                   .cohort = (uint32_t)rng_below(&s.rng, s.members + 1),
                                   .deadline_ms = rng_below(&s.rng, 2) * 20000,
                                   .late_rounds = (uint32_t)rng_below(&s.rng, 4),
                                   .absent_ms = 9000,
                                   .retry_ms = 3000};
    s.rules.drawn = s.rules.cohort > 0;
    s.over = s.rules.drawn ? (uint32_t)rng_below(&s.rng, s.members - s.rules.cohort + 1) : 0;
    size_t all = s.rules.drawn ? s.rules.cohort : s.members;
    s.rules.quorum = (uint32_t)rng_below(&s.rng, all + 1);
    cr_assert(!err_is(round_init(&s.round, &s.rules, ids, s.members)));
    sim_tell(&s, (struct round_event){.kind = ROUND_ON_BEGIN});
    for (uint64_t i = 0; i < steps; i++)
        sim_step(&s);
    sim_finish(&s);
    round_close(&s.round);
}

Test(round, keeps_its_promises_under_any_order_of_events)
{
    for (uint64_t seed = 1; seed <= 3000; seed++)
        sim_run(seed, 20 + seed % 400);
}
