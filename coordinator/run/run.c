#include "coordinator/run/run.h"

#include "base/bytes.h"
#include "base/text.h"
#include "proto/message.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { RUN_MODULES_BYTES_MAX = 16 << 20 };

static void start_options(struct method_start *start, const struct run *run)
{
    start->run = run->config->name;
    start->seed = run->config->seed;
    start->rank = run_config_rank_max(run->config);
    start->alpha = run_config_alpha(run->config, NULL, start->rank);
    start->rslora = run->config->rslora;
    start->threads = (int)run->shop->config->threads;
    start->module_count = run->modules->n_modules;
}

static err copy_options(struct publish_job *job, const Fedlora__V1__RunConfig *config)
{
    const char **option = NULL;
    TRY(arena_take(&option, &job->arena, config->n_method_options, sizeof *option));
    for (size_t i = 0; i < config->n_method_options; i++)
        TRY(arena_text(&option[i], &job->arena, config->method_options[i],
                       strlen(config->method_options[i])));
    job->start.option = option;
    job->start.option_count = config->n_method_options;
    return ERR_NONE;
}

/* The worker must not read what the loop thread owns: all it needs is copied. */
static err copy_start(struct publish_job *job, const struct run *run)
{
    struct method_module *module = NULL;
    struct digest base;
    char text[DIGEST_TEXT_BYTES];
    start_options(&job->start, run);
    TRY(arena_text(&job->start.run, &job->arena, job->start.run, strlen(job->start.run)));
    memcpy(base.byte, run->config->base_digest.data, DIGEST_BYTES);
    digest_text(text, &base);
    TRY(arena_text(&job->start.base, &job->arena, text, strlen(text)));
    TRY(arena_take(&module, &job->arena, run->modules->n_modules, sizeof *module));
    for (size_t i = 0; i < run->modules->n_modules; i++) {
        const Fedlora__V1__ModuleShape *m = run->modules->modules[i];
        module[i] = (struct method_module){.d_out = m->d_out, .d_in = m->d_in};
        TRY(arena_text(&module[i].name, &job->arena, m->name, strlen(m->name)));
    }
    job->start.module = module;
    return copy_options(job, run->config);
}

static err copy_weights(struct publish_job *job, const struct run *run)
{
    const Fedlora__V1__RunConfig *c = run->config;
    struct publish_weight *given = NULL;
    bool uniform = !strcmp(c->weights, "uniform"), is_given = !strcmp(c->weights, "given");
    job->weights = uniform ? PUBLISH_UNIFORM : is_given ? PUBLISH_GIVEN : PUBLISH_EXAMPLES;
    if (!is_given) return ERR_NONE;
    TRY(arena_take(&given, &job->arena, c->n_members, sizeof *given));
    for (size_t i = 0; i < c->n_members; i++) {
        given[i].weight = c->members[i]->weight;
        TRY(arena_text(&given[i].member, &job->arena, c->members[i]->id,
                       strlen(c->members[i]->id)));
    }
    job->given = given;
    job->given_count = c->n_members;
    return ERR_NONE;
}

static void work_failed(struct run *run, err e)
{
    struct round_event event = {.now_ms = text_now_ms(), .reason = e.text};
    bool passing = e.kind == ERR_MACHINE || e.kind == ERR_LIMIT || e.kind == ERR_STOPPED;
    event.kind = passing ? ROUND_ON_TROUBLE : ROUND_ON_FAILURE;
    LOG(passing ? LOG_WARN : LOG_ERROR, passing ? "run.trouble" : "run.failed",
        LOG_STR("run", run->config->name), LOG_INT("round", round_under_way(&run->round)),
        LOG_STR("error", e.text));
    if (!passing) {
        struct store_event failed = {
            .event = "run.failed", .text = e.text, .round = round_under_way(&run->round)};
        /* Not stored: the next start meets the same failure and says so again. */
        err saved = store_hold(run->shop->store, run->id, "failed", e.text, &failed);
        (void)saved;
    }
    run_apply(run, &event);
}

static void log_published(const struct run *run, const struct publish_job *job)
{
    const struct store_round *r = &job->result;
    LOG(LOG_INFO, "round.closed", LOG_STR("run", run->config->name), LOG_INT("round", r->round),
        LOG_INT("updates", r->updates), LOG_INT("took_ms", r->took_ms),
        LOG_INT("aggregate_ms", r->aggregate_ms), LOG_NUM("train_loss", r->train_loss));
    if (r->round == run->round.rules.rounds)
        LOG(LOG_INFO, "run.finished", LOG_STR("run", run->config->name),
            LOG_INT("rounds", r->round));
}

/* ---- reports ---- */

/* Counted by its event, so that the count survives a restart. */
static void skip_report(struct run *run, uint32_t round, const char *why)
{
    struct store_event event = {.event = "report.skipped", .text = why, .round = round};
    LOG(LOG_WARN, "report.skipped", LOG_STR("run", run->config->name), LOG_INT("round", round),
        LOG_STR("reason", why));
    /* Not stored: a count that is too small, and the log has the line. */
    err e = store_event_add(run->shop->store, run->id, &event);
    (void)e;
}

static void report_done(struct work_job *work)
{
    struct publish_job *job = (struct publish_job *)(void *)work;
    struct run *run = job->owner;
    const struct store_round *r = &job->result;
    if (run->report == job) run->report = NULL;
    if (!err_is(work->result))
        LOG(LOG_INFO, "round.reported", LOG_STR("run", run->config->name),
            LOG_INT("round", r->round), LOG_NUM("update_norm", r->update_norm),
            LOG_NUM("error", r->error));
    else if (work->result.kind == ERR_STOPPED)
        skip_report(run, r->round, "it was not done before the next round closed, or at the stop");
    else
        skip_report(run, r->round, work->result.text);
    publish_close(job);
    run->shop->changed(run, run->shop->context);
}

/* The round is published; the job that published it makes its report while members train. Takes the
 * job. */
static void push_report(struct run *run, struct publish_job *job)
{
    uint32_t every = run->config->report_every;
    job->kind = PUBLISH_REPORT;
    job->job.done = report_done;
    job->report_frozen = &run->report_frozen;
    job->directions = job->round % every == 0 || job->round == job->rounds;
    err e = work_push_background(run->shop->maths, &job->job);
    if (err_is(e)) {
        skip_report(run, job->round, e.text);
        publish_close(job);
        return;
    }
    run->report = job;
}

static void log_privacy(const struct run *run, const struct publish_job *job)
{
    if (!job->terms.on) return;
    LOG(LOG_INFO, job->kind == PUBLISH_START ? "privacy.plan" : "privacy.spent",
        LOG_STR("run", run->config->name),
        LOG_INT("round", job->kind == PUBLISH_START ? 0 : job->round), LOG_STR("says", job->says));
    if (job->stop[0])
        LOG(LOG_WARN, "run.stopped", LOG_STR("run", run->config->name),
            LOG_STR("reason", job->stop));
}

static void publish_done(struct work_job *work)
{
    struct publish_job *job = (struct publish_job *)(void *)work;
    struct run *run = job->owner;
    bool is_start = job->kind == PUBLISH_START;
    struct round_event event = {.kind = is_start ? ROUND_ON_STARTED : ROUND_ON_PUBLISHED,
                                .now_ms = text_now_ms()};
    if (err_is(work->result)) {
        /* ERR_STOPPED: it was not begun, and the next start asks for it again. */
        if (work->result.kind != ERR_STOPPED) work_failed(run, work->result);
        publish_close(job);
        return;
    }
    log_privacy(run, job);
    run->newest = job->made;
    run->ledger_head = job->ledger_head;
    if (!is_start) log_published(run, job);
    if (job->stop[0]) /* durable already; before the next round could open */
        run_apply(run, &(struct round_event){
                           .kind = ROUND_ON_STOP, .now_ms = event.now_ms, .reason = job->stop});
    run_apply(run, &event);
    if (is_start)
        publish_close(job);
    else
        push_report(run, job);
}

static void noise_done(struct work_job *work)
{
    struct publish_job *job = (struct publish_job *)(void *)work;
    struct run *run = job->owner;
    if (job->noise_ahead && job->round == round_under_way(&run->round)) {
        private_noise_ahead_close(run->noise_ahead);
        run->noise_ahead = job->noise_ahead;
        run->noise_ahead_round = job->round;
        job->noise_ahead = NULL;
        LOG(LOG_INFO, "noise.drawn", LOG_STR("run", run->config->name),
            LOG_INT("round", job->round));
    }
    publish_close(job);
}

static err fill_job(struct publish_job *job, struct run *run, enum publish_kind kind)
{
    const struct config *config = run->shop->config;
    job->kind = kind;
    job->job.done = kind == PUBLISH_NOISE ? noise_done : publish_done;
    job->owner = run;
    job->run = run->id;
    job->method = run->method;
    job->round = round_under_way(&run->round);
    job->rounds = run->round.rules.rounds;
    job->keep = (uint32_t)config->keep_states;
    job->updates_keep = (uint32_t)config->keep_updates;
    job->carry_error = run->config->carry_error > 0 ? run->config->carry_error : 0;
    job->threads = (int)config->threads;
    job->opened_ms = run->round.opened_ms;
    job->options = run->options;
    job->from = run->newest;
    if (kind == PUBLISH_START) job->made.frozen = run->newest.frozen;
    TRY(kind == PUBLISH_START ? copy_start(job, run) : copy_weights(job, run));
    return run_privacy_terms(&job->terms, run->config, &run->options, config->ledger_key,
                             &job->arena);
}

static err push_work(struct run *run, enum publish_kind kind)
{
    struct publish_job *job = calloc(1, sizeof *job);
    if (!job) return err_sys(ENOMEM, "work for run %s", run->config->name);
    err e = fill_job(job, run, kind);
    if (!err_is(e) && kind == PUBLISH_NEXT && run->noise_ahead_round == job->round) {
        job->noise_ahead = run->noise_ahead;
        run->noise_ahead = NULL;
    }
    /* Combining must not wait for the report of the round before. */
    if (!err_is(e) && kind == PUBLISH_NEXT && run->report) work_abandon(&run->report->job);
    if (!err_is(e)) e = work_push(run->shop->maths, &job->job);
    if (err_is(e)) publish_close(job);
    return e;
}

/* Whoever is not drawn is not asked. The seed follows from what the ledger's first line commits to.
 */
static err draw_members(struct run *run)
{
    struct round *r = &run->round;
    struct cohort cohort = {.run = run->config->name,
                            .round = r->opened,
                            .q = run_privacy_sampling(run->config, &run->options, r->opened)};
    const struct cohort last = {.run = run->config->name, .round = r->rules.rounds, .q = 1};
    struct cohort_seed seed;
    if (!r->rules.drawn || r->drawn_for == r->opened || r->opened != round_under_way(r))
        return ERR_NONE;
    bool *drawn = calloc(r->members, sizeof *drawn);
    if (!drawn) return err_sys(ENOMEM, "the members of run %s", run->config->name);
    err e = store_private_seed(&seed, run->shop->store, run->id);
    if (!err_is(e)) cohort_seed_before(&seed, &seed, &last, r->opened);
    for (size_t i = 0; i < r->members && !err_is(e); i++)
        drawn[i] = cohort_has(&seed, &cohort, r->member[i].id);
    if (!err_is(e)) round_draw(r, drawn, cohort.q < 1);
    sodium_memzero(&seed, sizeof seed);
    free(drawn);
    return e;
}

err run_save_opening(struct run *run)
{
    uint32_t round = run->round.opened;
    TRY(draw_members(run));
    if (round <= run->opened_saved) return ERR_NONE;
    struct store_event event = {.event = "round.opened", .round = round};
    TRY(store_opened(run->shop->store, run->id, round, &event));
    run->opened_saved = round;
    LOG(LOG_INFO, "round.opened", LOG_STR("run", run->config->name), LOG_INT("round", round));
    run->shop->changed(run, run->shop->context);
    return ERR_NONE;
}

static void log_error(const struct run *run, const char *event, err e)
{
    LOG(LOG_ERROR, event, LOG_STR("run", run->config->name), LOG_STR("error", e.text));
}

void run_apply(struct run *run, const struct round_event *event)
{
    unsigned todo = round_apply(&run->round, event);
    if (todo & ROUND_DO_OPEN) {
        err e = run_save_opening(run); /* else tried again before the round is handed out */
        if (err_is(e)) log_error(run, "round.not_saved", e);
        run_flush_counters(run);
        if (run->round.rules.drawn) {
            e = push_work(run, PUBLISH_NOISE); /* else drawn at the round's end */
            if (err_is(e)) log_error(run, "noise.not_drawn", e);
            /* Nobody may be in it. */
            run_apply(run, &(struct round_event){.kind = ROUND_ON_TICK, .now_ms = text_now_ms()});
        }
    }
    if (todo & (ROUND_DO_START | ROUND_DO_AGGREGATE)) {
        err e = push_work(run, todo & ROUND_DO_START ? PUBLISH_START : PUBLISH_NEXT);
        if (err_is(e)) work_failed(run, e);
    }
    if (todo & ROUND_DO_END) run_flush_counters(run);
    if (todo & (ROUND_DO_WAKE | ROUND_DO_END)) run->shop->changed(run, run->shop->context);
}

void run_apply_member(struct run *run, enum round_event_kind kind, size_t member)
{
    run_apply(run, &(struct round_event){.kind = kind, .now_ms = text_now_ms(), .member = member});
}

void run_tick(struct run *run, uint64_t now_ms)
{
    uint64_t wake = round_wake_ms(&run->round);
    if (run->round.rules.drawn && round_phase(&run->round) == ROUND_TRAINING &&
        run->round.drawn_for != run->round.opened) {
        err e = run_save_opening(run); /* the disk was full when the round opened */
        if (!err_is(e)) wake = now_ms;
    }
    if (wake && now_ms >= wake)
        run_apply(run, &(struct round_event){.kind = ROUND_ON_TICK, .now_ms = now_ms});
}

/* ------------------------------------------------------------------------------------- members */
static err learn_modules(struct run *run, const Fedlora__V1__HelloRequest *hello)
{
    Fedlora__V1__HelloRequest *modules = NULL;
    struct bytes packed = {.max = RUN_MODULES_BYTES_MAX};
    err e = run_config_modules(&modules, run->config, hello);
    if (!err_is(e)) e = message_pack(&packed, &modules->base);
    if (!err_is(e)) e = store_modules(run->shop->store, run->id, packed.data, packed.size);
    bytes_close(&packed);
    if (err_is(e)) {
        message_free(modules);
        return e;
    }
    run->modules = modules;
    return run_learn_members(run);
}

static err check_base(const struct run *run, const Fedlora__V1__HelloRequest *hello)
{
    struct digest theirs, ours;
    char is[DIGEST_TEXT_BYTES], wanted[DIGEST_TEXT_BYTES];
    if (hello->base_digest.len != DIGEST_BYTES)
        return err_make(ERR_INPUT, "base digest: %zu bytes, expected %d", hello->base_digest.len,
                        DIGEST_BYTES);
    memcpy(theirs.byte, hello->base_digest.data, DIGEST_BYTES);
    memcpy(ours.byte, run->config->base_digest.data, DIGEST_BYTES);
    if (digest_equal(&theirs, &ours)) return ERR_NONE;
    digest_text(is, &theirs);
    digest_text(wanted, &ours);
    return err_make(ERR_INPUT, "wrong base model: yours has digest %s, run %s needs %s", is,
                    run->config->name, wanted);
}

err run_hello(struct run *run, size_t member, const Fedlora__V1__HelloRequest *hello)
{
    struct run_member *m = &run->member[member];
    struct round_member *r = &run->round.member[member];
    uint32_t rank = 0;
    TRY(check_base(run, hello));
    TRY(run_config_rank(&rank, run->config, r->id, hello->rank));
    if (m->pruned && m->pruned < rank) rank = m->pruned;
    if (run->modules)
        TRY(run_config_same_modules(run->modules, hello));
    else
        TRY(learn_modules(run, hello));
    struct store_member row = {
        .id = r->id, .rank = rank, .examples = hello->examples, .libraries = hello->libraries};
    row.eval_rows = hello->eval_rows;
    bool changed = !r->joined || rank != m->rank || hello->examples != m->examples ||
                   hello->eval_rows != m->eval_rows;
    if (changed) TRY(store_hello(run->shop->store, run->id, &row, !r->joined));
    m->rank = rank;
    m->examples = hello->examples;
    m->eval_rows = hello->eval_rows;
    r->evaluates = hello->eval_rows > 0;
    LOG(LOG_INFO, "member.hello", LOG_STR("run", run->config->name), LOG_STR("member", r->id),
        LOG_INT("rank", rank), LOG_INT("examples", hello->examples));
    if (!run->round.shapes_known) run_apply_member(run, ROUND_ON_SHAPES, member);
    run_apply_member(run, ROUND_ON_HELLO, member);
    return ERR_NONE;
}

err run_admit(struct run *run, struct admit_job *job, uint32_t trained_round)
{
    struct round_place place;
    size_t m = job->member_index;
    /* A gradient that comes late is of other factors than those asked for since. */
    bool late_counts =
        run->round.rules.late_next && trained_round > method_setup_rounds(&run->options);
    TRY(round_judge(&place, &run->round, m, trained_round, &job->update.blob.digest));
    REQUIRE(!place.have);
    job->method = run->method;
    job->state = run->newest.state.digest;
    job->update.run = run->id;
    job->update.trained_round = trained_round;
    job->update.counted_in = place.counted_in;
    job->expect = (struct method_expect){.round = round_under_way(&run->round),
                                         .behind = late_counts ? 1 : 0,
                                         .rank = run->member[m].rank,
                                         .alpha = run_alpha(run, m),
                                         .rslora = run_rslora(run, m),
                                         .module = run->member[m].adapts,
                                         .module_count = run->member[m].adapts_count};
    if (run->config->privacy) { /* what a member says beside its update was never counted */
        job->update.train_loss = job->update.seconds = 0;
        job->update.tokens = 0;
    }
    if (run_privacy_local(run->config)) {
        job->epsilon = run->config->privacy->epsilon;
        job->delta = run->config->privacy->delta;
    }
    TRY(work_push(run->shop->receipts, &job->job));
    run_apply(run, &(struct round_event){.kind = ROUND_ON_ADMIT,
                                         .now_ms = text_now_ms(),
                                         .member = m,
                                         .round = trained_round,
                                         .digest = job->update.blob.digest});
    return ERR_NONE;
}

void run_admitted(struct run *run, const struct admit_job *job)
{
    size_t m = job->member_index;
    const struct store_update *u = &job->update;
    if (err_is(job->job.result)) {
        LOG(LOG_WARN, "update.refused", LOG_STR("run", run->config->name),
            LOG_STR("member", job->member), LOG_INT("round", u->trained_round),
            LOG_STR("error", job->job.result.text));
        run_apply_member(run, ROUND_ON_REFUSAL, m);
        return;
    }
    run->member[m].bytes_up += u->blob.size;
    if (u->pruned) run->member[m].rank = run->member[m].pruned = u->pruned;
    run->member[m].train_loss = u->train_loss;
    LOG(LOG_INFO, "update.received", LOG_STR("run", run->config->name),
        LOG_STR("member", job->member), LOG_INT("round", u->counted_in),
        LOG_INT("bytes", u->blob.size));
    run_apply_member(run, ROUND_ON_RECEIPT, m);
    run->shop->changed(run, run->shop->context);
}

/* ------------------------------------------------------------------------------------ operator */
err run_hold(struct run *run, enum round_event_kind kind)
{
    static const char *const words[3][2] = {
        {"paused", "run.paused"}, {"", "run.resumed"}, {"stopped", "run.stopped"}};
    const char *const *word = words[kind - ROUND_ON_PAUSE];
    enum round_phase phase = round_phase(&run->round);
    if (phase == ROUND_FINISHED || phase == ROUND_STOPPED) {
        if (kind == ROUND_ON_STOP) return ERR_NONE;
        return err_make(ERR_STATE, "run %s is %s", run->config->name, round_phase_name(phase));
    }
    if (kind == ROUND_ON_PAUSE && phase == ROUND_FAILED)
        return err_make(ERR_STATE, "run %s has failed: %s", run->config->name, run->round.reason);
    bool is_held = phase == ROUND_PAUSED || phase == ROUND_FAILED;
    if (kind == ROUND_ON_RESUME && !is_held) return ERR_NONE;
    struct store_event event = {.event = word[1], .round = round_under_way(&run->round)};
    TRY(store_hold(run->shop->store, run->id, word[0], "", &event));
    LOG(LOG_INFO, word[1], LOG_STR("run", run->config->name));
    run_apply_member(run, kind, 0);
    return ERR_NONE;
}

err run_evaluated(struct run *run, size_t member, const struct store_evaluation *v)
{
    const char *id = run->round.member[member].id;
    if (run->config->privacy)
        return err_make(ERR_INPUT,
                        "run %s: an evaluation reveals what its privacy budget does not "
                        "count: none is taken",
                        run->config->name);
    if (!isfinite(v->loss) || !isfinite(v->accuracy) || v->accuracy > 1)
        return err_make(ERR_INPUT, "an evaluation's loss %g and accuracy %g: expected numbers",
                        v->loss, v->accuracy);
    if (v->round == 0 || v->round > run->round.published)
        return err_make(ERR_INPUT, "an evaluation of round %u, but %u rounds are published",
                        v->round, run->round.published);
    TRY(store_evaluated(run->shop->store, run->id, id, v));
    run->member[member].evaluation = *v;
    LOG(LOG_INFO, "evaluation.received", LOG_STR("run", run->config->name), LOG_STR("member", id),
        LOG_INT("round", v->round), LOG_NUM("loss", v->loss));
    run_apply(run, &(struct round_event){.kind = ROUND_ON_EVALUATED,
                                         .now_ms = text_now_ms(),
                                         .member = member,
                                         .round = v->round});
    run->shop->changed(run, run->shop->context);
    return ERR_NONE;
}

/* Statistics only: a crash may lose what was counted since the round began. */
void run_flush_counters(struct run *run)
{
    for (size_t i = 0; i < run->round.members; i++) {
        struct run_member *m = &run->member[i];
        if (!m->bytes_down_new) continue;
        err e =
            store_bytes_down(run->shop->store, run->id, run->round.member[i].id, m->bytes_down_new);
        if (err_is(e)) return;
        m->bytes_down_new = 0;
    }
}

double run_alpha(const struct run *run, size_t member)
{
    return run_config_alpha(run->config, run->round.member[member].id, run->member[member].rank);
}

bool run_rslora(const struct run *run, size_t member)
{
    return run_config_rslora(run->config, run->round.member[member].id);
}
