/* A coordinator in memory, with runs that no worker serves, for tests of what is shown of them. */
#ifndef TESTS_SUPPORT_RUNS_FIXTURE_H
#define TESTS_SUPPORT_RUNS_FIXTURE_H

#include "coordinator/http/facts.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct runs_fixture {
    struct config config;
    struct serve serve;
    struct facts facts;
    struct store store;
    char dir[SUPPORT_PATH_BYTES];
    struct run *last;
};

/* With `members` members that the configuration lists: m0000, m0001, ... */
static inline void runs_fixture_open(struct runs_fixture *f, size_t members)
{
    support_dir_make(f->dir);
    f->config = (struct config){.federation = "clinics", .path = f->dir, .absent_ms = 90000};
    f->config.allowed.item = calloc(members, sizeof *f->config.allowed.item);
    f->config.allowed.count = members;
    for (size_t i = 0; i < members; i++) {
        char *name = malloc(16);
        snprintf(name, 16, "m%04zu", i);
        f->config.allowed.item[i] = name;
    }
    f->serve.config = &f->config;
    f->serve.shop.config = &f->config;
    err e = store_open_at(&f->store, &(struct store_place){.dir = f->dir, .care = DB_UNFLUSHED});
    cr_assert(!err_is(e), "%s", e.text);
    f->serve.shop.store = &f->store;
    f->serve.shop.now_ms = run_clock;
    f->facts = (struct facts){.serve = &f->serve,
                              .now_ms = 1000000,
                              .wall_ms = 1796000000000,
                              .started_ms = 1795000000000,
                              .ready = true,
                              .disk_days = -1};
    for (int i = 0; i < FACTS_CHECKS; i++)
        f->facts.passes[i] = true;
}

/* A run of two members, in its first round. */
static inline struct run *runs_fixture_add(struct runs_fixture *f, const char *name)
{
    static const char *const id[] = {"m0000", "m0001"};
    static const struct method method = {.name = "flora"};
    struct round_rules rules = {.rounds = 10, .absent_ms = 90000};
    struct run *run = calloc(1, sizeof *run);
    run->config = calloc(1, sizeof *run->config);
    fedlora__v1__run_config__init(run->config);
    run->config->name = strdup(name);
    run->config->method = (char *)(uintptr_t) "flora";
    run->shop = &f->serve.shop;
    run->method = &method;
    cr_assert(!err_is(round_init(&run->round, &rules, id, 2)));
    run->member = calloc(2, sizeof *run->member);
    run->round.started = run->round.shapes_known = true;
    run->round.stage = ROUND_TRAINING;
    run->round.opened = 1;
    if (f->last)
        f->last->next = run;
    else
        f->serve.runs = run;
    f->last = run;
    f->serve.run_count++;
    return run;
}

/* A member that has called. In the order of their ids. */
static inline void runs_fixture_seen(struct runs_fixture *f, const char *id, uint64_t seen_ms)
{
    struct serve_identities *all = &f->serve.identities;
    all->row = realloc(all->row, (all->count + 1) * sizeof *all->row);
    struct serve_identity *is = &all->row[all->count++];
    *is = (struct serve_identity){.role = RPC_CLIENT, .seen_ms = seen_ms, .ends_s = 1800000000};
    snprintf(is->id, sizeof is->id, "%s", id);
}

static inline void runs_fixture_close(struct runs_fixture *f)
{
    for (struct run *run = f->serve.runs, *next; run; run = next) {
        next = run->next;
        round_close(&run->round);
        free(run->member);
        free(run->config->name);
        free(run->config);
        free(run);
    }
    for (size_t i = 0; i < f->config.allowed.count; i++)
        free((void *)(uintptr_t)f->config.allowed.item[i]);
    free(f->config.allowed.item);
    free(f->serve.identities.row);
    tally_close(&f->serve.tally);
    store_close(&f->store);
    support_dir_remove(f->dir);
}

#endif
