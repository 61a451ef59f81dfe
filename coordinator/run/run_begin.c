/* How a run comes into being: created by an operator, or loaded from the store after a restart. */
#include "coordinator/run/run.h"

#include "base/text.h"
#include "coordinator/run/run_from.h"
#include "coordinator/run/run_shapes.h"
#include "proto/message.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { RUN_CONFIG_BYTES_MAX = 16 << 20 };

void run_rules(struct round_rules *out, const struct run_shop *shop,
               const Fedlora__V1__RunConfig *config)
{
    *out = (struct round_rules){.rounds = config->rounds,
                                .began = config->from_round,
                                .quorum = config->quorum,
                                .deadline_ms = config->deadline_ms,
                                .grace_ms = config->grace_ms,
                                .skips_absent = !strcmp(config->absent, "skip"),
                                .queues = shop->config->open_runs || shop->config->rounds_at_once,
                                .late_rounds = run_config_late_rounds(config),
                                .drawn = run_privacy_central(config) || config->cohort,
                                .secret = run_privacy_central(config),
                                .cohort = config->cohort,
                                .evaluate_every = config->evaluate_every,
                                .absent_ms = shop->config->absent_ms,
                                .retry_ms = shop->config->retry_ms};
}

bool run_is_gone(const struct run *run, const char *id)
{
    return run_config_dropped(run->config, id) || !config_allows(run->shop->config, id);
}

/* Takes `config` only on success. */
static err run_init(struct run **out, struct run_shop *shop, Fedlora__V1__RunConfig *config)
{
    struct round_rules rules;
    run_rules(&rules, shop, config);
    struct run *run = calloc(1, sizeof *run);
    const char **id = calloc(config->n_members + 1, sizeof *id);
    err e = run && id ? ERR_NONE : err_sys(ENOMEM, "run %s", config->name);
    for (size_t i = 0; i < config->n_members && !err_is(e); i++)
        id[i] = config->members[i]->id;
    if (!err_is(e)) e = round_init(&run->round, &rules, id, config->n_members);
    if (!err_is(e)) {
        run->member = calloc(run->round.members, sizeof *run->member);
        if (!run->member) e = err_sys(ENOMEM, "run %s", config->name);
    }
    free(id);
    if (err_is(e)) {
        run_close(run);
        return e;
    }
    run->shop = shop;
    run->config = config;
    run->method = run_config_method(config);
    run_config_options(&run->options, config);
    run->rank_max = run_config_rank_max(config);
    for (size_t i = 0; i < run->round.members; i++) /* the state was another run's to evaluate */
        run->round.member[i].evaluated = config->from_round;
    *out = run;
    return ERR_NONE;
}

/* The shared list is freed once. */
void run_forget_members(struct run *run)
{
    const char **shared = NULL;
    for (size_t i = 0; run->member && i < run->round.members; i++) {
        struct run_member *m = &run->member[i];
        if (!m->adapts_shared)
            free(m->adapts);
        else if (m->adapts)
            shared = m->adapts;
        m->adapts = NULL;
        m->adapts_count = 0;
        m->adapts_shared = false;
    }
    free(shared);
}

/* No job of this run may be with a worker any more, because jobs point to it. */
void run_close(struct run *run)
{
    if (!run) return;
    if (run->config) run_flush_counters(run);
    for (size_t i = 0; run->member && i < run->round.members; i++) {
        ledger_close(&run->member[i].ledger);
        free(run->member[i].session);
    }
    run_forget_members(run);
    private_noise_ahead_close(run->noise_ahead);
    round_close(&run->round);
    run_shapes_close(run);
    run_retired_free(run);
    message_free(run->config);
    message_free(run->modules);
    free(run->member);
    free(run);
}

/* Sorted, because an update's modules are compared with this list in one pass. */
err run_learn_member(struct run *run, size_t member, const Fedlora__V1__HelloRequest *modules)
{
    struct run_member *m = &run->member[member];
    const char *id = run->round.member[member].id, **list;
    size_t all = modules->n_modules, count = 0;
    list = calloc(all + 1, sizeof *list);
    if (!list) return err_sys(ENOMEM, "the modules of %s", id);
    for (size_t k = 0; k < all; k++) {
        const char *name = modules->modules[k]->name;
        if (run_config_adapts(run->config, id, name)) list[count++] = name;
    }
    qsort(list, count, sizeof *list, text_order);
    if (!m->adapts_shared) free(m->adapts);
    m->adapts = list;
    m->adapts_count = count;
    return ERR_NONE;
}

/* Members without targets of their own adapt all modules, and share one list. */
err run_learn_members(struct run *run)
{
    const struct run_member *first = NULL;
    err e = ERR_NONE;
    for (size_t i = 0; i < run->round.members && !err_is(e); i++) {
        struct run_member *m = &run->member[i];
        REQUIRE(!m->adapts);
        bool shared = !run_config_own_targets(run->config, run->round.member[i].id);
        if (shared && first) {
            m->adapts = first->adapts;
            m->adapts_count = first->adapts_count;
        } else {
            e = run_learn_member(run, i, run->modules);
            if (shared) first = m;
        }
        m->adapts_shared = shared;
    }
    if (err_is(e)) run_forget_members(run);
    return e;
}

/* Everything that can be refused is refused here, before the run exists, because a run that fails
 * later costs every member's time. */
static err check_new(struct run_shop *shop, Fedlora__V1__RunConfig *config,
                     struct store_blob *frozen)
{
    struct method_options options;
    bool known = false;
    TRY(run_config_create(config));
    run_config_options(&options, config);
    TRY(run_privacy_judge(config, &options));
    if (run_privacy_central(config) && !shop->config->ledger_key)
        return err_make(ERR_INPUT, "privacy: this coordinator has no privacy.ledger_key to sign a "
                                   "ledger with");
    if (run_privacy_central(config)) TRY(config_check_ledger_key(shop->config));
    for (size_t i = 0; i < config->n_members; i++)
        if (!config_allows(shop->config, config->members[i]->id))
            return err_make(ERR_INPUT,
                            "member %s is not known here: fedlora token create %s invites it",
                            config->members[i]->id, config->members[i]->id);
    if (config->frozen_digest.len == 0) return ERR_NONE;
    memcpy(frozen->digest.byte, config->frozen_digest.data, DIGEST_BYTES);
    TRY(store_blob_known(&known, shop->store, &frozen->digest));
    if (known && !err_is(blob_size(&frozen->size, shop->store->dir, &frozen->digest)))
        return ERR_NONE;
    char text[DIGEST_TEXT_BYTES];
    digest_text(text, &frozen->digest);
    return err_make(ERR_INPUT, "frozen factors %.16s are missing; upload them first", text);
}

static err add_to_store(struct run *run, const struct store_run *row)
{
    const char **id = calloc(run->round.members, sizeof *id);
    if (!id) return err_sys(ENOMEM, "run %s", row->name);
    for (size_t i = 0; i < run->round.members; i++)
        id[i] = run->round.member[i].id;
    err e = store_run_add(&run->id, run->shop->store, row, id, run->round.members);
    free(id);
    return e;
}

/* The row is committed before ROUND_ON_BEGIN, so a run that was reported to an operator survives a
 * crash. */
err run_create(struct run **out, struct run_shop *shop, Fedlora__V1__RunConfig *config)
{
    struct run *run = NULL;
    struct bytes packed = {.max = RUN_CONFIG_BYTES_MAX};
    struct store_run row = {.created_ms = text_wall_ms()};
    struct run_from from = {0};
    err e = ERR_NONE;
    TRY_OUT(e, run_from_find(&from, shop, &config));
    TRY_OUT(e, check_new(shop, config, &row.frozen));
    TRY_OUT(e, run_from_check(&from, config));
    TRY_OUT(e, message_pack(&packed, &config->base));
    TRY_OUT(e, run_init(&run, shop, config));
    config = NULL; /* owned by the run from here on */
    TRY_OUT(e, run_shapes_given(run));
    TRY_OUT(e, run_from_check_modules(&from, run));
    run_from_begin(run, &from);
    row.name = run->config->name;
    row.by = shop->by;
    row.from = from.says;
    row.published = run->config->from_round;
    row.state = from.blobs.state;
    row.memory = from.blobs.memory;
    if (from.blobs.frozen.size) row.frozen = from.blobs.frozen;
    row.config = packed.data;
    row.config_size = packed.size;
    TRY_OUT(e, add_to_store(run, &row));
    run->created_ms = row.created_ms;
    run->newest = (struct publish_blobs){row.state, row.frozen, row.memory};
    LOG(LOG_INFO, "run.created", LOG_STR("run", row.name), LOG_STR("by", shop->by),
        LOG_STR("method", run->config->method), LOG_INT("rounds", run->config->rounds),
        LOG_INT("members", run->round.members));
    run_apply(run, &(struct round_event){.kind = ROUND_ON_BEGIN, .now_ms = run_now_ms(run)});
    if (run->modules) run_apply_member(run, ROUND_ON_SHAPES, 0);
    *out = run;
    run = NULL;
out:
    run_from_close(&from);
    run_close(run);
    message_free(config);
    bytes_close(&packed);
    return e;
}

/* Rows of members that the configuration does not name (any more) are ignored. Progress and
 * unfinished uploads have no rows, because the members report them again. */
static err load_members(struct run *run)
{
    struct arena arena = {0};
    struct store_member *row = NULL;
    size_t count = 0;
    err e = store_members(&row, &count, run->shop->store, run->id, &arena);
    for (size_t i = 0; i < count && !err_is(e); i++) {
        size_t m;
        if (!round_find(&m, &run->round, row[i].id)) continue;
        struct run_member lists = run->member[m]; /* known already if the operator gave shapes */
        run->member[m] = (struct run_member){.adapts = lists.adapts,
                                             .adapts_count = lists.adapts_count,
                                             .adapts_shared = lists.adapts_shared,
                                             .rank = row[i].rank,
                                             .pruned = row[i].pruned,
                                             .examples = row[i].examples,
                                             .eval_rows = row[i].eval_rows,
                                             .bytes_up = row[i].bytes_up,
                                             .bytes_down = row[i].bytes_down,
                                             .train_loss = row[i].train_loss};
        /* Without shapes a member has agreed to none, and must say Hello again. */
        struct round_member was = {.joined = row[i].joined && run->modules,
                                   .trained_round = row[i].trained_round,
                                   .counted_in = row[i].counted_in,
                                   .digest = row[i].digest,
                                   .evaluates = row[i].eval_rows > 0,
                                   .refused_in = row[i].refused_in,
                                   .excused_in = row[i].excused_in};
        snprintf(was.refusal, sizeof was.refusal, "%s", row[i].refusal);
        was.evaluated = run->config->from_round; /* as in run_init() */
        if (row[i].evaluation) {
            run->member[m].evaluation = *row[i].evaluation;
            was.evaluated = row[i].evaluation->round;
        }
        round_restore_member(&run->round, m, &was);
    }
    arena_close(&arena);
    return e;
}

/* From the column `hold` of a run (store_schema.c). */
static enum round_phase hold_of(const char *text)
{
    return !strcmp(text, "paused")    ? ROUND_PAUSED
           : !strcmp(text, "stopped") ? ROUND_STOPPED
           : !strcmp(text, "failed")  ? ROUND_FAILED
                                      : ROUND_WAITING;
}

/* Absent until members agree, unless the operator gave them. */
static err load_modules(struct run *run, const struct store_run *was)
{
    if (run->config->n_modules || !was->modules_size) return run_shapes_given(run);
    return message_unpack(&run->modules, &fedlora__v1__hello_request__descriptor, was->modules,
                          was->modules_size);
}

/* The configuration is completed again, because an older version may have stored it without options
 * that exist today, and a newer one with methods that this version does not know. Nothing is pushed
 * to a worker here: ROUND_ON_BEGIN does that, when all runs are loaded and the server listens. */
err run_load(struct run **out, struct run_shop *shop, const struct store_run *was)
{
    Fedlora__V1__RunConfig *config = NULL;
    struct run *run = NULL;
    TRY(message_unpack(&config, &fedlora__v1__run_config__descriptor, was->config,
                       was->config_size));
    err e = run_config_complete(config);
    if (err_is(e)) e = err_in(e, "run %s", was->name);
    if (!err_is(e)) e = run_init(&run, shop, config);
    if (err_is(e)) {
        message_free(config);
        return e;
    }
    run->id = was->id;
    run->created_ms = was->created_ms;
    run->ended_ms = was->ended_ms;
    run->archived_ms = was->archived_ms;
    run->newest.state = was->state;
    run->newest.frozen = was->frozen;
    run->newest.memory = was->memory;
    run->opened_saved = was->opened;
    e = load_modules(run, was);
    if (!err_is(e)) e = load_members(run);
    bool known = false;
    if (!err_is(e) && run_privacy_central(config))
        e = store_ledger_head(&known, &run->ledger_head, shop->store, run->id);
    /* A crash may have come between the last commit and the ledger's copy for auditors. */
    if (!err_is(e) && run_privacy_central(config))
        e = private_export(shop->store, run->id, config->name);
    if (!err_is(e) && run->modules && !config->n_modules) e = run_learn_members(run);
    if (!err_is(e)) e = run_diverge_load(run);
    if (err_is(e)) {
        run_close(run);
        return err_in(e, "run %s", was->name);
    }
    for (size_t i = 0; i < run->round.members; i++)
        run->round.member[i].gone = run_is_gone(run, run->round.member[i].id);
    struct round_restored restored = {.shapes_known = run->modules,
                                      .started = was->started,
                                      .published = was->published,
                                      .opened = was->opened,
                                      .hold = hold_of(was->hold),
                                      .reason = was->reason};
    round_restore(&run->round, &restored);
    *out = run;
    return ERR_NONE;
}

static err set_aside(struct run_shop *shop, const char *name, err why)
{
    struct run_aside *more = realloc(shop->aside, (shop->asides + 1) * sizeof *more);
    if (!more) return err_sys(ENOMEM, "run %s", name);
    shop->aside = more;
    more[shop->asides] = (struct run_aside){.why = why};
    snprintf(more[shop->asides++].name, sizeof more->name, "%s", name);
    LOG(LOG_ERROR, "run.unreadable", LOG_STR("run", name), LOG_STR("error", why.text));
    return ERR_NONE;
}

err run_load_all(struct run **first, size_t *count, struct run_shop *shop)
{
    struct arena arena = {0};
    struct store_run *row = NULL;
    size_t rows = 0;
    struct run **last = first;
    err e = store_runs(&row, &rows, shop->store, &arena);
    for (size_t i = 0; i < rows && !err_is(e); i++) {
        e = run_load(last, shop, &row[i]);
        if (e.kind == ERR_INPUT) {
            e = set_aside(shop, row[i].name, e);
            continue;
        }
        if (err_is(e)) break;
        last = &(*last)->next;
        ++*count;
    }
    arena_close(&arena);
    return e;
}
