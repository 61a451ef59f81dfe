/* The jobs that a run gives to the worker for mathematics, and the handling of their results.
 * The worker must not read what the loop thread owns, so a job holds copies of everything it
 * needs. `done` callbacks run on the loop thread. */
#include "coordinator/run/run.h"

#include "agg/round/method_bound.h"
#include "base/text.h"
#include "coordinator/store/store_files.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

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

/* Modules, names and options of the run, in the job's arena. */
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

static double weight_of(const void *config, const char *member, uint64_t examples)
{
    return run_config_weight(config, member, examples);
}

static void set_weights(struct publish_job *job, const struct run *run)
{
    job->weight = weight_of;
    job->config = run->config;
    job->discounts_late = run->config->late_rounds > 0;
    job->weight_cap = run->config->weight_cap;
    job->norm_bound = run->config->norm_bound;
    /* Simulated attacks are studied with their whole effect, unless the experiment sets a bound. */
    if (job->norm_bound == 0 && !run->shop->simulated) job->norm_bound = METHOD_BOUND_RATIO;
}

/* A full disk, a busy database or a stopping worker pass by themselves, so the work is tried
 * again. Anything else (a file that contradicts its row, a spent privacy budget) would fail
 * again, so the run waits for an operator. */
void run_work_failed(struct run *run, err e)
{
    struct round_event event = {.now_ms = run_now_ms(run), .reason = e.text};
    bool passing = e.kind == ERR_MACHINE || e.kind == ERR_LIMIT || e.kind == ERR_STOPPED;
    event.kind = passing ? ROUND_ON_TROUBLE : ROUND_ON_FAILURE;
    if (passing) {
        const struct trouble_case c = {
            .kind = TROUBLE_WORK_WAITS, .run = run->config->name, .text = e.text};
        trouble_raise(run->shop->troubles, &c, event.now_ms);
        trouble_of_disk(run->shop->troubles, e, event.now_ms);
    } else {
        LOG(LOG_ERROR, "run.failed", LOG_STR("run", run->config->name),
            LOG_INT("round", round_under_way(&run->round)), LOG_STR("error", e.text));
        struct store_event failed = {
            .event = "run.failed", .text = e.text, .round = round_under_way(&run->round)};
        /* If it cannot be stored, the next start tries the work and meets the same failure. */
        err saved = store_hold(run->shop->store, run->id, "failed", e.text, &failed);
        (void)saved;
    }
    run_apply(run, &event);
}

err run_check_files(const struct run *run)
{
    const struct {
        const struct store_blob *blob;
        const char *what;
    } needed[] = {{&run->newest.state, "the state"},
                  {&run->newest.frozen, "the frozen factors"},
                  {&run->newest.memory, "the memory of the server's optimizer"}};
    const char *dir = run->shop->store->dir;
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        bool there = true;
        if (needed[i].blob->size) TRY(store_file_there(&there, dir, needed[i].blob));
        if (!there)
            return err_make(ERR_INPUT,
                            "%.300s, %s of round %u, is missing or has another size: restore it "
                            "from a backup, then resume the run",
                            blob_path(dir, &needed[i].blob->digest).text, needed[i].what,
                            run->round.published);
    }
    return ERR_NONE;
}

/* For the log only; the events of the round were stored with it. */
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

/* A report that was not made is counted by an event, so that the count survives a restart. */
static void skip_report(struct run *run, uint32_t round, const char *why)
{
    struct store_event event = {.event = "report.skipped", .text = why, .round = round};
    LOG(LOG_WARN, "report.skipped", LOG_STR("run", run->config->name), LOG_INT("round", round),
        LOG_STR("reason", why));
    /* If it cannot be stored, the next start counts it. */
    err e = store_event_add(run->shop->store, run->id, &event);
    trouble_of_disk(run->shop->troubles, e, run_now_ms(run));
}

static void log_reported(struct run *run, const struct publish_job *job)
{
    const struct store_round *r = &job->result;
    if (job->report.measured) run_diverge_state(run, r->round, job->report.total.state_norm);
    LOG(LOG_INFO, "round.reported", LOG_STR("run", run->config->name), LOG_INT("round", r->round),
        LOG_NUM("update_norm", r->update_norm), LOG_NUM("error", r->error));
}

static void report_done(struct work_job *work)
{
    struct publish_job *job = (struct publish_job *)(void *)work;
    struct run *run = job->owner;
    const struct store_round *r = &job->result;
    /* The report of a newer round may be in its place already. */
    if (run->report == job) run->report = NULL;
    if (!err_is(work->result))
        log_reported(run, job);
    else if (work->result.kind == ERR_STOPPED)
        skip_report(run, r->round,
                    "the next round closed, or the coordinator stopped, before it was done");
    else
        skip_report(run, r->round, work->result.text);
    publish_close(job);
    run->shop->changed(run, run->shop->context);
}

static bool wants_directions(const struct run *run, uint32_t round)
{
    return round % run->config->report_every == 0 || round == run->round.rules.rounds;
}

/* Takes the job that has published a round. It already holds the paths and weights of the
 * updates and the names of both states, so nothing is read from the store again. */
static void push_report(struct run *run, struct publish_job *job)
{
    job->kind = PUBLISH_REPORT;
    job->job.done = report_done;
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

/* The rows of these updates are gone already. */
static void ask_again(struct run *run, const struct publish_job *job)
{
    for (size_t i = 0; i < job->damaged_count; i++) {
        const struct store_update *u = &job->damaged[i];
        size_t member;
        LOG(LOG_ERROR, "update.damaged", LOG_STR("run", run->config->name),
            LOG_STR("member", u->member), LOG_INT("round", u->counted_in));
        if (round_find(&member, &run->round, u->member))
            run_apply(run, &(struct round_event){.kind = ROUND_ON_DAMAGE,
                                                 .now_ms = run_now_ms(run),
                                                 .member = member,
                                                 .digest = u->blob.digest});
    }
    run_apply(run, &(struct round_event){.kind = ROUND_ON_REOPEN, .now_ms = run_now_ms(run)});
}

/* Their rows are gone already. All are taken out before the round is judged again, because it may
 * close at once. A simulation has no operator who could excuse a member. */
static void refuse(struct run *run, const struct publish_job *job)
{
    for (size_t i = 0; i < job->refused_count; i++) {
        const struct store_refusal *refused = &job->refused[i];
        struct round_event event = {.kind = ROUND_ON_UNFIT,
                                    .now_ms = run_now_ms(run),
                                    .digest = refused->update.blob.digest,
                                    .reason = refused->why};
        err why = err_make(ERR_INPUT, "%s", refused->why);
        run_report_refused(run, refused->update.member, job->round, why);
        run_audit_refused(run, refused->update.member, &refused->update, why);
        if (!round_find(&event.member, &run->round, refused->update.member)) continue;
        run_apply(run, &event);
        event.kind = ROUND_ON_EXCUSE;
        if (run->shop->simulated) run_apply(run, &event);
    }
    run_apply(run, &(struct round_event){.kind = ROUND_ON_RECOUNT, .now_ms = run_now_ms(run)});
}

/* Everything here is durable already. The order of events matters: a stop that the privacy
 * budget demands comes before ROUND_ON_PUBLISHED, otherwise the next round would open first. */
static void publish_done(struct work_job *work)
{
    struct publish_job *job = (struct publish_job *)(void *)work;
    struct run *run = job->owner;
    bool is_start = job->kind == PUBLISH_START;
    struct round_event event = {.kind = is_start ? ROUND_ON_STARTED : ROUND_ON_PUBLISHED,
                                .now_ms = run_now_ms(run)};
    if (err_is(work->result)) {
        /* ERR_STOPPED: the work was not begun, and the next start asks for it again. */
        if (job->damaged_count)
            ask_again(run, job);
        else if (job->refused_count)
            refuse(run, job);
        else if (work->result.kind != ERR_STOPPED)
            run_work_failed(run, work->result);
        publish_close(job);
        return;
    }
    log_privacy(run, job);
    trouble_end(run->shop->troubles, TROUBLE_WORK_WAITS, run->config->name, NULL, event.now_ms);
    run->newest = job->made;
    run->ledger_head = job->ledger_head;
    if (!is_start) run->loss_newest = job->result.train_loss;
    if (!is_start) tally_aggregate(run->shop->tally, job->result.aggregate_ms);
    if (!is_start) log_published(run, job);
    if (!is_start) run_audit_published(run, job);
    if (!is_start) run_diverge_round(run, job); /* before the next round can open */
    if (job->stop[0]) /* durable already; must come before the next round can open */
        run_apply(run, &(struct round_event){
                           .kind = ROUND_ON_STOP, .now_ms = event.now_ms, .reason = job->stop});
    run_apply(run, &event);
    if (!is_start && job->updates_keep) {
        push_report(run, job);
        return;
    }
    if (!is_start && job->result.reported)
        log_reported(run, job);
    else if (!is_start)
        skip_report(run, job->round, "it could not be stored");
    publish_close(job);
}

/* Noise that was drawn too late for its round is thrown away, because publish.c has drawn other
 * noise. */
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

/* The configuration may have changed since the round before (fedlora run set). */
static err set_origin(struct publish_job *job, const struct run *run)
{
    if (run->shop->simulated) return ERR_NONE;
    job->software = run->shop->software;
    return run_config_digest(&job->config_digest, run->config);
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
    job->open_ms = run_now_ms(run) - run->round.opened_ms;
    job->options = run->options;
    job->from = run->newest;
    job->report_frozen = &run->report_frozen;
    job->directions = wants_directions(run, job->round);
    TRY(set_origin(job, run));
    if (kind == PUBLISH_START) job->made.frozen = run->newest.frozen;
    if (kind == PUBLISH_START)
        TRY(copy_start(job, run));
    else
        set_weights(job, run);
    TRY(run_privacy_terms(&job->terms, run->config, &run->options, config->ledger_key,
                          &job->arena));
    job->terms.plan.simulated = job->trusts_disk = run->shop->simulated;
    return ERR_NONE;
}

/* On success the job belongs to the worker until its `done`. The job takes the noise of its own
 * round only; noise of another round stays with the run, which closes it. */
err run_push_work(struct run *run, enum publish_kind kind)
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
