/* The world of the seeded simulator (tests/fault/seeds.c): its members and messages, the network
 * between them, and what must be true of the coordinator after each event. Include it in one file
 * of a program. */
#ifndef TESTS_SUPPORT_SEEDED_WORLD_H
#define TESTS_SUPPORT_SEEDED_WORLD_H

#include "tests/support/database.h"
#include "tests/support/seeded_run.h"
#include "tests/support/shaky_disk.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdarg.h>
#include <stdlib.h>

enum { MESSAGES = 128, FAULTY_MS = 400000, END_MS = 8000000, PATIENCE_MS = 3000, EVENTS = 100000 };

enum call { HELLO, TASK, OFFSET, UPLOAD, EVALUATION };
static const char *const call_names[] = {"hello", "task", "offset", "upload", "evaluation"};

struct message {
    uint64_t at;
    bool reply;
    enum call call;
    size_t member;
    uint64_t number; /* of the call */
    uint32_t round;
    size_t offset, size; /* of an upload's bytes; a reply: offset has the bytes received */
    bool damaged, durable;
    enum round_task task;
    enum err_kind refused; /* ERR_OK: it was not */
};

struct member {
    uint64_t wakes, number, until; /* its next turn; its open call (0: none) and its patience */
    bool greeted, done;
    uint32_t training; /* the round whose update it has; 0: none */
    size_t sent;       /* bytes that the coordinator is known to have */
    bool asked;        /* `sent` is known */
    uint32_t evaluates;
    bool damaged; /* bytes of this upload were damaged on the way */
};

/* Known to the outside, so the coordinator must keep to it for ever. */
struct promise {
    uint32_t counted_in; /* of this member's update of this round; 0: no receipt yet */
    bool damaged;        /* its file was damaged on the disk, so it may be asked for again */
};

static struct world {
    uint64_t seed, now, numbers;
    struct rng rng;
    size_t kind;
    const struct kind *k;
    double lost, doubled, slow, kills, fails, flips; /* chances */
    bool trace, quiet;
    struct message message[MESSAGES];
    size_t messages;
    struct member member[MEMBERS];
    struct promise promise[MEMBERS][ROUNDS + 1];
    struct digest shown[ROUNDS + 1]; /* published states */
    bool is_shown[ROUNDS + 1];
    bool created, paused;
    uint64_t starts_at, works_at, booted; /* 0: the coordinator runs; no work waits */
    char dir[SUPPORT_PATH_BYTES];
    char database[DATABASE_BYTES];
    struct config config;
    struct run_shop shop;
    struct run *run;
    size_t in_flight; /* admissions */
    long checked;     /* steps of the disk at the last look at the store */
} w;

static bool alone; /* without Criterion */

/* Over all seeds. */
static struct totals {
    long seeds, events, kills, machine, failed, lost, doubled, flips, wrong_bytes, jumps, pauses;
    long vanished;
} totals;

static void wrong(const char *format, ...)
{
    char text[512];
    va_list more;
    va_start(more, format);
    vsnprintf(text, sizeof text, format, more);
    va_end(more);
    fprintf(stderr, "seed %llu (%s) at %llu ms: %s\n", (unsigned long long)w.seed, w.k->name,
            (unsigned long long)w.now, text);
    if (alone) exit(1);
    cr_assert(false, "seed %llu (%s): %s", (unsigned long long)w.seed, w.k->name, text);
}
#define must(condition, ...) ((condition) ? (void)0 : wrong(__VA_ARGS__))

static void must_do(err e, const char *what)
{
    must(!err_is(e), "%s: %s", what, e.text);
}

static bool chance(double p)
{
    return !w.quiet && p > 0 && rng_unit(&w.rng) < p;
}

static void say(const char *format, ...)
{
    va_list more;
    if (!w.trace) return;
    printf("%8llu ", (unsigned long long)w.now);
    va_start(more, format);
    vprintf(format, more);
    va_end(more);
    printf("\n");
}

/* ---- the network ---- */

static void put(const struct message *m)
{
    uint64_t delay = 1 + rng_below(&w.rng, 20);
    if (chance(w.slow)) delay += rng_below(&w.rng, 90000);
    if (w.messages == MESSAGES) return; /* lost */
    w.message[w.messages] = *m;
    w.message[w.messages++].at = w.now + delay;
}

static void post(const struct message *m)
{
    if (chance(w.lost)) {
        totals.lost++;
        return;
    }
    put(m);
    if (!chance(w.doubled)) return;
    totals.doubled++;
    put(m);
}

static void answer(const struct message *to, const struct message *reply)
{
    struct message m = *reply;
    if (shaky.dead) return; /* the process was gone before it could answer */
    m.reply = true;
    m.call = to->call;
    m.member = to->member;
    m.number = to->number;
    m.round = reply->round ? reply->round : to->round;
    post(&m);
}

static void refuse(const struct message *to, err e)
{
    struct member *m = &w.member[to->member];
    bool honest = !m->damaged && !to->damaged;
    must(shaky.dead || e.kind != ERR_INPUT || !honest, "%s refuses %s of round %u: %s",
         call_names[to->call], members[to->member], to->round, e.text);
    answer(to, &(struct message){.refused = e.kind});
}

/* ---- checks ---- */

/* The disk must agree with the receipts given and with the status. */
static void check_round(struct arena *arena, const struct store_round *published, uint32_t round,
                        uint32_t seen[MEMBERS][ROUNDS + 1])
{
    struct store_update *row = NULL;
    size_t rows = 0;
    const struct round *r = &w.run->round;
    must_do(store_updates(&row, &rows, w.shop.store, w.run->id, round, arena), "updates");
    for (size_t i = 0; i < rows; i++) {
        size_t m = 0;
        uint32_t from = row[i].trained_round;
        must(round_find(&m, r, row[i].member), "an update of %s", row[i].member);
        must(i == 0 || strcmp(row[i - 1].member, row[i].member), "two of %s in round %u",
             row[i].member, round);
        must(from >= 1 && from <= round && round - from <= w.k->late_rounds,
             "an update for round %u in round %u", from, round);
        must(!seen[m][from], "the update of %s for round %u counts in rounds %u and %u",
             row[i].member, from, seen[m][from], round);
        seen[m][from] = round;
        must(digest_equal(&row[i].blob.digest, &updates[w.kind][m][from].digest),
             "other bytes of %s for round %u", row[i].member, from);
    }
    if (published) {
        must(published->updates == rows, "round %u: %u updates, %zu rows", round,
             published->updates, rows);
        must(rows >= w.k->quorum, "round %u with %zu updates", round, rows);
    } else if (round == round_under_way(r) && r->stage != ROUND_FINISHED)
        must(round_updates(r) == rows, "status has %zu updates, the store %zu", round_updates(r),
             rows);
}

static void check_promises(uint32_t seen[MEMBERS][ROUNDS + 1])
{
    for (size_t m = 0; m < MEMBERS; m++)
        for (uint32_t t = 1; t <= ROUNDS; t++) {
            const struct promise *p = &w.promise[m][t];
            if (!p->counted_in || (p->damaged && !seen[m][t])) continue;
            must(seen[m][t] == p->counted_in || p->damaged,
                 "the receipt of %s for round %u says %u, the store %u", members[m], t,
                 p->counted_in, seen[m][t]);
        }
}

static void check_status(void)
{
    const struct round *r = &w.run->round;
    struct round_counts all = round_recount(r);
    must(!memcmp(&all, &r->counts, sizeof all), "counters");
    uint64_t now = w.now - w.booted;
    for (size_t m = 0; m < MEMBERS; m++) {
        const char *doing = round_activity(r, m, now);
        const struct round_member *x = &r->member[m];
        bool absent = !x->seen_ms || now - x->seen_ms >= r->rules.absent_ms;
        must(strcmp(doing, "submitted") || x->counted_in >= round_under_way(r),
             "%s is \"submitted\", but counts in round %u", members[m], x->counted_in);
        must(strcmp(doing, "absent") || absent, "%s is \"absent\", but was seen", members[m]);
    }
    must(!w.paused || round_phase(r) == ROUND_PAUSED || round_phase(r) == ROUND_FINISHED,
         "paused, but %s", round_phase_name(round_phase(r)));
    must(round_phase(r) != ROUND_FAILED, "failed: %s", r->reason);
}

static void check_all(void)
{
    struct arena arena = {0};
    struct store_round *row = NULL;
    size_t rows = 0;
    uint32_t seen[MEMBERS][ROUNDS + 1] = {0};
    if (!w.run || shaky.dead) return;
    check_status();
    if (w.checked == shaky.steps) return; /* nothing was written since */
    w.checked = shaky.steps;
    const struct round *r = &w.run->round;
    if (r->started && !r->published) w.shown[0] = w.run->newest.state.digest;
    must_do(store_rounds(&row, &rows, w.shop.store, w.run->id, false, &arena), "rounds");
    /* Published in the store, and the state machine learns it with the end of the work. */
    must(rows == r->published || (rows == r->published + 1 && r->stage == ROUND_AGGREGATING),
         "%zu rounds in the store, %u in the status", rows, r->published);
    for (uint32_t i = 1; i <= rows; i++) {
        must(row[i - 1].round == i, "round %u is missing", i);
        must(!w.is_shown[i] || digest_equal(&w.shown[i], &row[i - 1].state.digest),
             "another state of round %u", i);
        w.shown[i] = row[i - 1].state.digest;
        w.is_shown[i] = true;
    }
    for (uint32_t i = 1; i <= ROUNDS; i++)
        check_round(&arena, i <= rows ? &row[i - 1] : NULL, i, seen);
    check_promises(seen);
    arena_close(&arena);
}

#endif
