/* A run of up to four members under test, which gets its events one by one. */
#ifndef TESTS_SUPPORT_ROUND_FIXTURE_H
#define TESTS_SUPPORT_ROUND_FIXTURE_H

#include "coordinator/run/round.h"

#include <criterion/criterion.h>

static const char *const ids[] = {"ward", "icu", "lab", "er"};
static const struct round_rules all_of_three = {
    .rounds = 3, .absent_ms = 90000, .retry_ms = 5000, .deadline_ms = 60000};

/* The counters that every event keeps up to date, against a look at all members. */
static inline void expect_counts(const struct round *r)
{
    struct round_counts all = round_recount(r);
    for (int k = 0; k < 2; k++) {
        cr_assert_eq(r->counts.updates[k], all.updates[k]);
        cr_assert_eq(r->counts.admitting[k], all.admitting[k]);
    }
    cr_assert_eq(r->counts.present, all.present);
    cr_assert_eq(r->counts.drawn, all.drawn);
    cr_assert_eq(r->counts.refused, all.refused);
}

static inline unsigned tell(struct round *r, enum round_event_kind kind, uint64_t now,
                            size_t member)
{
    unsigned todo =
        round_apply(r, &(struct round_event){.kind = kind, .now_ms = now, .member = member});
    expect_counts(r);
    return todo;
}

static inline struct digest digest_number(uint64_t n)
{
    return digest_of(&n, sizeof n);
}

static inline err submit(struct round *r, uint64_t now, size_t member, uint32_t round,
                         uint64_t number)
{
    struct round_place place;
    struct digest digest = digest_number(number);
    err e = round_judge(&place, r, member, round, &digest);
    if (err_is(e) || place.have) return e;
    round_apply(r, &(struct round_event){.kind = ROUND_ON_ADMIT,
                                         .now_ms = now,
                                         .member = member,
                                         .round = round,
                                         .digest = digest});
    tell(r, ROUND_ON_RECEIPT, now, member);
    return e;
}

static inline struct round open_run(const struct round_rules *rules, size_t members)
{
    struct round r;
    cr_assert(!err_is(round_init(&r, rules, ids, members)));
    tell(&r, ROUND_ON_BEGIN, 1, 0);
    cr_assert_eq(tell(&r, ROUND_ON_SHAPES, 1, 0), ROUND_DO_START);
    tell(&r, ROUND_ON_STARTED, 2, 0);
    for (size_t i = 0; i < members; i++)
        tell(&r, ROUND_ON_HELLO, 3, i);
    return r;
}

#endif
