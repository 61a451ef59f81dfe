/* A real fedlorad process with a run of three members without a model, over TLS, for the end-to-end
 * tests of the coordinator. */
#ifndef TESTS_SUPPORT_THREE_MEMBERS_H
#define TESTS_SUPPORT_THREE_MEMBERS_H

#include "tests/support/fake_federation.h"
#include "tests/support/fake_member.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

enum { MEMBERS = 3, ROUNDS = 3 };

static const struct method_module modules[] = {{"model.layers.0.self_attn.q_proj", 48, 32},
                                               {"model.layers.0.self_attn.v_proj", 16, 32}};
static struct fake_base base;
static struct fake_federation federation;
static struct fake_member ops;
static char dir[SUPPORT_PATH_BYTES];
static const char *run_name = "r"; /* of the run that is created and that members take part in */

static inline struct fake_options options_of(const char *id, uint32_t rank)
{
    return (struct fake_options){.server = federation.address,
                                 .certs = federation.certs,
                                 .id = id,
                                 .run = run_name,
                                 .base = &base,
                                 .rank = rank,
                                 .examples = 10 + rank,
                                 .give_up_ms = 20000};
}

static inline void open_member(struct fake_member *m, const char *id, uint32_t rank)
{
    struct fake_options options = options_of(id, rank);
    ok(fake_open(m, &options));
}

/* With a quorum of 2, a late update counts in the next round. */
static inline err create_run(const char *method, uint32_t quorum)
{
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    static char *targets[] = {"q", "v_proj"};
    config.name = (char *)(uintptr_t)run_name;
    config.method = (char *)(uintptr_t)method;
    config.rounds = ROUNDS;
    config.rank = 8;
    config.quorum = quorum;
    if (quorum == 2) config.late = "next";
    config.targets = targets;
    config.n_targets = 2;
    return fake_create_run(&ops, &config, MEMBERS);
}

static inline void begin(const char *more)
{
    base = (struct fake_base){digest_of("a base", 6), modules, 2};
    support_dir_make(dir);
    ok(rpc_init());
    ok(fake_federation_open(&federation, dir, MEMBERS, more));
    ok(fake_federation_start(&federation));
    open_member(&ops, "ops", 0);
}

static inline void end(void)
{
    fake_close(&ops);
    cr_expect_eq(fake_federation_stop(&federation, SIGTERM), 0, "a clean stop");
    cr_expect(fake_federation_logged(&federation, "event=fedlorad.stopped"));
    support_dir_remove(dir);
}

/* ---- everyone at once */
/* Kills the coordinator `kills` times while the members take part. Returns the last state. Rank 0
 * stands for the ranks 2, 4 and 8. */
static inline struct digest run_everyone(int kills, uint32_t rank)
{
    static struct fake_joining joining[MEMBERS];
    for (int i = 0; i < MEMBERS; i++) {
        struct fake_options options = options_of(NULL, rank ? rank : 2u << i);
        fake_join_begin(&joining[i], i, &options);
    }
    ok(fake_federation_kill(&federation, kills));
    for (int i = 0; i < MEMBERS; i++) {
        err e = fake_join_end(&joining[i]);
        cr_assert(!err_is(e), "%s: %s", joining[i].id, e.text);
        cr_expect(digest_equal(&joining[i].last, &joining[0].last));
    }
    return joining[0].last;
}

static inline void expect_finished(void)
{
    Fedlora__V1__RunStatus *status = NULL;
    fake_close(&ops); /* a coordinator that was killed has dropped the connection */
    open_member(&ops, "ops", 0);
    ok(fake_status(&status, &ops, "r"));
    cr_expect_str_eq(status->phase, "finished");
    cr_expect_eq(status->n_history, ROUNDS);
    for (size_t i = 0; i < status->n_history; i++) {
        const Fedlora__V1__RoundStatus *r = status->history[i];
        cr_expect_eq(r->updates, MEMBERS);
        cr_expect_eq(isnan(r->update_norm) != 0, !*r->report_json, "both or neither");
        cr_expect(!*r->report_json || strstr(r->report_json, "q_proj"));
    }
    message_free(status);
}

/* A kill between a round and its report would lose the report uncounted. */
static inline void expect_reports(void)
{
    size_t made = 0, skipped = 0;
    ok(fake_reports(&made, &skipped, &ops, "r"));
    cr_expect_eq(made + skipped, ROUNDS, "%zu made, %zu skipped", made, skipped);
}

/* ---- one member, by hand */
struct hand {
    struct fake_member member;
    Fedlora__V1__Task *task;
    struct bytes update;
    Fedlora__V1__SubmitHeader header;
    struct digest digest;
};

static inline void hello(struct fake_member *m)
{
    Fedlora__V1__HelloReply *reply = NULL;
    ok(fake_hello(&reply, m));
    message_free(reply);
}

/* The member has the task of the current round and a valid update for it. */
static inline void open_hand(struct hand *h, const char *id, uint32_t rank)
{
    *h = (struct hand){.update = {.max = 1 << 20}};
    open_member(&h->member, id, rank);
    hello(&h->member);
    for (int i = 0; i < 10; i++) {
        ok(fake_next_task(&h->task, &h->member, 2000));
        if (h->task->kind_case == FEDLORA__V1__TASK__KIND_TRAIN) break;
        message_free(h->task);
        h->task = NULL;
    }
    cr_assert_not_null(h->task);
    ok(fake_update(&h->update, &h->member, h->task->train));
    fake_header(&h->header, &h->member, h->task->train->round, &h->update, &h->digest);
}

/* All members have said hello; m0 has the task of the first round and a valid update. */
static inline void take_task(struct hand *h)
{
    struct fake_member other;
    for (int i = 1; i < MEMBERS; i++) {
        char id[16];
        snprintf(id, sizeof id, "m%d", i);
        open_member(&other, id, 2u << i);
        hello(&other);
        fake_close(&other);
    }
    open_hand(h, "m0", 2);
}

static inline uint32_t submit_task(struct hand *h)
{
    Fedlora__V1__SubmitReply *reply = NULL;
    ok(fake_submit(&reply, &h->member, &h->header, &h->update, 0));
    cr_assert(reply->durable);
    uint32_t counted_in = reply->counted_in;
    message_free(reply);
    return counted_in;
}

static inline void drop_task(struct hand *h)
{
    message_free(h->task);
    bytes_close(&h->update);
    fake_close(&h->member);
}

static inline void refuse_header(struct hand *h, enum err_kind kind, const char *why)
{
    Fedlora__V1__SubmitReply *reply = NULL;
    refused(fake_submit(&reply, &h->member, &h->header, &h->update, 0), kind, why);
}

#endif
