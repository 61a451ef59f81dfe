#include "coordinator/run/run.h"

#include "base/bytes.h"
#include "base/text.h"
#include "coordinator/run/bounds.h"
#include "coordinator/run/run_draw.h"
#include "coordinator/run/run_shapes.h"
#include "proto/message.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

uint64_t run_clock(void *context)
{
    (void)context;
    return text_now_ms();
}

/* After a crash the store must know every round that a member may have been handed, otherwise an
 * update for it would be refused as one for a round that has not begun. So this comes before the
 * first member gets the round. It may fail on a full disk; then it is tried again with the next
 * request or tick. The draw comes first: without it no member may get the round. */
err run_save_opening(struct run *run)
{
    uint32_t round = run->round.opened;
    TRY(run_draw(run));
    if (round <= run->opened_saved) return ERR_NONE;
    struct store_event event = {.event = "round.opened", .round = round};
    TRY(store_opened(run->shop->store, run->id, round, &event));
    run->opened_saved = round;
    LOG(LOG_INFO, "round.opened", LOG_STR("run", run->config->name), LOG_INT("round", round));
    run->shop->changed(run, run->shop->context);
    return ERR_NONE;
}

/* A step that could not be done and is tried again. */
static void step_failed(const struct run *run, const char *step, err e)
{
    char text[TROUBLE_TEXT_BYTES];
    snprintf(text, sizeof text, "%s: %.440s", step, e.text);
    const struct trouble_case c = {
        .kind = TROUBLE_WORK_WAITS, .run = run->config->name, .text = text};
    trouble_raise(run->shop->troubles, &c, run_now_ms(run));
    trouble_of_disk(run->shop->troubles, e, run_now_ms(run));
}

/* Actions may feed further events, so this function is entered again from within. That is safe
 * because round_apply() has finished with the state before its actions are carried out. */
/* Counters for metrics. With a secret draw the time of an update would show that its member was
 * drawn, so only the end of a round is progress, and no update is counted. */
static void note_progress(struct run *run, const struct round_event *event)
{
    const struct round_member *m = &run->round.member[event->member];
    bool moved = false;
    switch (event->kind) {
    case ROUND_ON_BEGIN:
    case ROUND_ON_STARTED:
    case ROUND_ON_PUBLISHED:
    case ROUND_ON_RESUME:
        moved = true;
        break;
    case ROUND_ON_HELLO:
        moved = round_phase(&run->round) == ROUND_WAITING;
        break;
    case ROUND_ON_RECEIPT:
        moved = !run->round.rules.secret;
        run->updates_counted += moved && m->trained_round == m->counted_in;
        run->updates_late += moved && m->trained_round < m->counted_in;
        break;
    case ROUND_ON_REFUSAL:
    case ROUND_ON_UNFIT:
        run->updates_refused++;
        break;
    default:
        break;
    }
    if (moved) run->progress_ms = text_wall_ms();
}

void run_apply(struct run *run, const struct round_event *event)
{
    unsigned todo = round_apply(&run->round, event);
    note_progress(run, event);
    if (todo & ROUND_DO_OPEN) {
        err e = run_save_opening(run); /* else tried again before the round is handed out */
        if (err_is(e)) step_failed(run, "the round is not handed out yet", e);
        run_flush_counters(run);
        if (run->round.rules.secret) {
            e = run_push_work(run, PUBLISH_NOISE); /* else drawn at the round's end */
            if (err_is(e)) step_failed(run, "the noise is drawn at the end of the round", e);
        }
        if (run->round.rules.drawn) {
            /* No other event may come that closes the round: its deadline is past and all members
             * were left out, or late updates are enough for it. */
            run_apply(run, &(struct round_event){.kind = ROUND_ON_TICK, .now_ms = run_now_ms(run)});
        }
    }
    if (todo & (ROUND_DO_START | ROUND_DO_AGGREGATE)) {
        err e = run_push_work(run, todo & ROUND_DO_START ? PUBLISH_START : PUBLISH_NEXT);
        if (err_is(e)) run_work_failed(run, e);
    }
    if (todo & ROUND_DO_END) {
        enum round_phase phase = round_phase(&run->round);
        if (phase == ROUND_FINISHED || phase == ROUND_STOPPED) run->ended_ms = text_wall_ms();
        run_flush_counters(run);
    }
    if (todo & (ROUND_DO_WAKE | ROUND_DO_END)) run->shop->changed(run, run->shop->context);
}

void run_apply_member(struct run *run, enum round_event_kind kind, size_t member)
{
    run_apply(run,
              &(struct round_event){.kind = kind, .now_ms = run_now_ms(run), .member = member});
}

/* The loop calls this on every turn; it feeds a tick only when the state machine wants one. */
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

/* Every member must train on the same base weights, otherwise sums of updates mean nothing. */
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

/* A member may say hello again at any time, after each of its own restarts. Only a change is
 * written. */
err run_hello(struct run *run, size_t member, const Fedlora__V1__HelloRequest *hello)
{
    struct run_member *m = &run->member[member];
    struct round_member *r = &run->round.member[member];
    uint32_t rank = 0;
    TRY(bounds_check(&hello->base));
    TRY(check_base(run, hello));
    TRY(run_config_rank(&rank, run->config, r->id, hello->rank));
    if (m->pruned && m->pruned < rank) rank = m->pruned; /* a pruned rank stays */
    TRY(run_shapes_said(run, member, hello));
    char software[RUN_SOFTWARE_BYTES];
    snprintf(software, sizeof software, "%s; %s", hello->software, hello->libraries);
    struct store_member row = {
        .id = r->id, .rank = rank, .examples = hello->examples, .libraries = hello->libraries};
    row.software = software;
    row.eval_rows = hello->eval_rows;
    bool changed = !r->joined || rank != m->rank || hello->examples != m->examples ||
                   hello->eval_rows != m->eval_rows || !m->greeted;
    if (changed) TRY(store_hello(run->shop->store, run->id, &row, !r->joined));
    m->rank = rank;
    m->examples = hello->examples;
    m->eval_rows = hello->eval_rows;
    r->evaluates = hello->eval_rows > 0;
    /* A member may say hello without end. */
    if (changed || !m->greeted)
        LOG(LOG_INFO, "member.hello", LOG_STR("run", run->config->name), LOG_STR("member", r->id),
            LOG_INT("rank", rank), LOG_INT("examples", hello->examples));
    /* Not only after run_shapes_said(), because an earlier hello may have failed after it. */
    if (run->modules && !run->round.shapes_known) run_apply_member(run, ROUND_ON_SHAPES, member);
    run_apply_member(run, ROUND_ON_HELLO, member);
    return ERR_NONE;
}

void run_hello_reply(Fedlora__V1__HelloReply *out, const struct run *run, size_t member)
{
    *out = (Fedlora__V1__HelloReply)FEDLORA__V1__HELLO_REPLY__INIT;
    out->run = run->config->name;
    out->member = run->round.member[member].id;
    out->method = run->config->method;
    out->rank = run->member[member].rank;
    out->alpha = run_alpha(run, member);
    out->rslora = run_rslora(run, member);
    out->targets = (char **)(uintptr_t)run->member[member].adapts;
    out->n_targets = run->member[member].adapts_count;
    out->rounds = run->config->rounds;
    out->origin = run->config->origin;
    out->training = run->config->training;
    out->privacy = run->config->privacy;
}

err run_look_reply(Fedlora__V1__HelloReply *out, const struct run *run, size_t member,
                   const Fedlora__V1__HelloRequest *hello)
{
    uint32_t rank = 0;
    TRY(check_base(run, hello));
    TRY(run_config_rank(&rank, run->config, run->round.member[member].id, hello->rank));
    run_hello_reply(out, run, member);
    out->rank = rank;
    if (out->n_targets) return ERR_NONE;
    out->targets = run->config->targets;
    out->n_targets = run->config->n_targets;
    return ERR_NONE;
}

ProtobufCBinaryData run_blob_name(const struct store_blob *blob)
{
    if (!blob->size) return (ProtobufCBinaryData){0};
    return (ProtobufCBinaryData){.len = DIGEST_BYTES,
                                 .data = (uint8_t *)(uintptr_t)blob->digest.byte};
}

err run_train_task(struct run_train_task *out, struct run *run, size_t member)
{
    static char *const names[] = {"A", "B", "R"};
    Fedlora__V1__TrainTask *train = &out->message;
    struct method_task asked;
    TRY(run_save_opening(run));
    run_apply_member(run, ROUND_ON_TASK, member);
    uint64_t now = run_now_ms(run), ends = run->round.deadline_at_ms;
    *train = (Fedlora__V1__TrainTask)FEDLORA__V1__TRAIN_TASK__INIT;
    train->run = run->config->name;
    train->round = round_under_way(&run->round);
    train->state_digest = run_blob_name(&run->newest.state);
    train->state_size = run->newest.state.size;
    train->frozen_digest = run_blob_name(&run->newest.frozen);
    train->frozen_size = run->newest.frozen.size;
    method_task(&asked, run->method, &run->options, train->round);
    for (size_t i = 0; i < 3; i++)
        if (asked.trains & (1u << i)) out->factors[train->n_factors++] = names[i];
    train->factors = out->factors;
    train->rank = run->member[member].rank;
    train->alpha = run_alpha(run, member);
    train->rslora = run_rslora(run, member);
    train->gradient = asked.gradient;
    train->prox = run->options.prox;
    if (run->method->prunes && run->options.prune_lambda > 0) {
        train->prune_gamma = run->options.prune_gamma;
        train->prune_lambda = run->options.prune_lambda;
    }
    train->training = run->config->training;
    if (run->round.rules.secret)
        train->ledger_head = (ProtobufCBinaryData){DIGEST_BYTES, run->ledger_head.byte};
    train->deadline_ms = ends == 0 ? 0 : ends > now ? ends - now : 1; /* 0 means none */
    train->rounds = run->config->rounds;
    return ERR_NONE;
}

/* The job is pushed before ROUND_ON_ADMIT is applied: if the queue is full nothing has changed,
 * and the member is told to come back. The worker cannot finish it in between, because its
 * result is taken by this thread. */
err run_admit(struct run *run, struct admit_job *job, uint32_t trained_round)
{
    struct round_place place;
    struct run_sizes sizes;
    size_t m = job->member_index;
    /* A late gradient was taken at factors that have since been replaced, so it cannot be used. */
    uint32_t behind =
        trained_round > method_setup_rounds(&run->options) ? run->round.rules.late_rounds : 0;
    TRY(round_judge(&place, &run->round, m, trained_round, &job->update.blob.digest));
    REQUIRE(!place.have);
    /* In the round under way round_judge() has checked it. */
    if (trained_round < round_under_way(&run->round) && !run_draw_has(run, m, trained_round))
        return err_make(ERR_STATE, "%s was not drawn for round %u; ask for the next task",
                        run->round.member[m].id, trained_round);
    run_update_sizes(&sizes, run, m, trained_round);
    job->header_max = sizes.header;
    job->method = run->method;
    job->state = run->newest.state.digest;
    job->update.run = run->id;
    job->update.trained_round = trained_round;
    job->update.counted_in = place.counted_in;
    job->expect = (struct method_expect){.round = round_under_way(&run->round),
                                         .behind = behind,
                                         .rank = run->member[m].rank,
                                         .alpha = run_alpha(run, m),
                                         .rslora = run_rslora(run, m),
                                         .module = run->member[m].adapts,
                                         .module_count = run->member[m].adapts_count};
    /* Loss, time and tokens reveal something about the records, and no budget counts them. */
    if (run->config->privacy) {
        job->update.train_loss = job->update.seconds = 0;
        job->update.tokens = 0;
    }
    if (run_privacy_local(run->config)) {
        job->epsilon = run->config->privacy->epsilon;
        job->delta = run->config->privacy->delta;
    }
    TRY(run_shop_admit(run->shop, job, run));
    run_apply(run, &(struct round_event){.kind = ROUND_ON_ADMIT,
                                         .now_ms = run_now_ms(run),
                                         .member = m,
                                         .round = trained_round,
                                         .digest = job->update.blob.digest});
    return ERR_NONE;
}

/* An error of this machine is not the member's fault. */
void run_report_refused(struct run *run, const char *member, uint32_t round, err why)
{
    char peer[TROUBLE_PEER_BYTES], text[TROUBLE_TEXT_BYTES];
    bool ours = why.kind == ERR_MACHINE || why.kind == ERR_STOPPED;
    size_t m = 0;
    trouble_member(peer, member);
    snprintf(text, sizeof text, "round %u: %.480s", round, why.text);
    const struct trouble_case c = {
        .kind = ours ? TROUBLE_CALL_FAILED : TROUBLE_UPDATE_REFUSED,
        .run = run->config->name,
        .peer = peer,
        .address = round_find(&m, &run->round, member) ? run->member[m].address : NULL,
        .text = text};
    trouble_raise(run->shop->troubles, &c, run_now_ms(run));
    trouble_of_disk(run->shop->troubles, why, run_now_ms(run));
}

/* The rows are committed when this runs; the fields here are copies for status replies. */
void run_admitted(struct run *run, const struct admit_job *job)
{
    size_t m = job->member_index;
    const struct store_update *u = &job->update;
    if (err_is(job->job.result)) {
        run_report_refused(run, job->member, u->trained_round, job->job.result);
        run_audit_refused(run, job->member, u, job->job.result);
        run_apply_member(run, ROUND_ON_REFUSAL, m);
        if (job->damage.kind == ERR_INPUT) run_work_failed(run, job->damage);
        return;
    }
    run->member[m].bytes_up += u->blob.size;
    if (!run->round.rules.secret) tally_received(run->shop->tally, job->member, u->blob.size);
    if (u->pruned) run->member[m].rank = run->member[m].pruned = u->pruned;
    run->member[m].train_loss = u->train_loss;
    LOG(LOG_INFO, "update.received", LOG_STR("run", run->config->name),
        LOG_STR("member", job->member), LOG_INT("round", u->counted_in),
        LOG_INT("bytes", u->blob.size));
    run_apply_member(run, ROUND_ON_RECEIPT, m);
    run->shop->changed(run, run->shop->context);
}

/* The hold is stored before it is applied, so a run that was reported as held to an operator is
 * still held after a crash. */
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
    if (kind == ROUND_ON_RESUME) TRY(run_check_files(run));
    struct store_event event = {
        .event = word[1], .text = run->shop->by, .round = round_under_way(&run->round)};
    TRY(store_hold(run->shop->store, run->id, word[0], "", &event));
    LOG(LOG_INFO, word[1], LOG_STR("run", run->config->name), LOG_STR("by", run->shop->by));
    run_apply_member(run, kind, 0);
    return ERR_NONE;
}

/* Evaluations are refused in private runs, because a loss on a member's rows is a function of
 * its data that the budget does not cover. */
err run_evaluated(struct run *run, size_t member, const struct store_evaluation *v)
{
    const char *id = run->round.member[member].id;
    if (run->config->privacy)
        return err_make(ERR_INPUT,
                        "run %s: evaluations are refused, because they reveal something that its "
                        "privacy budget does not count",
                        run->config->name);
    if (v->rows > run->member[member].eval_rows)
        return err_make(ERR_INPUT, "an evaluation on %llu rows, but your Hello has eval_rows %llu",
                        (unsigned long long)v->rows,
                        (unsigned long long)run->member[member].eval_rows);
    if (v->round == 0 || v->round > run->round.published)
        return err_make(ERR_INPUT, "an evaluation of round %u, but %u rounds are published",
                        v->round, run->round.published);
    /* One for each round, so that the store cannot be filled. Members repeat a lost call. */
    if (v->round <= run->member[member].evaluation.round) return ERR_NONE;
    TRY(store_evaluated(run->shop->store, run->id, id, v));
    run->member[member].evaluation = *v;
    LOG(LOG_INFO, "evaluation.received", LOG_STR("run", run->config->name), LOG_STR("member", id),
        LOG_INT("round", v->round), LOG_NUM("loss", v->loss));
    run_apply(run, &(struct round_event){.kind = ROUND_ON_EVALUATED,
                                         .now_ms = run_now_ms(run),
                                         .member = member,
                                         .round = v->round});
    run_diverge_evaluated(run);
    run->shop->changed(run, run->shop->context);
    return ERR_NONE;
}

/* Statistics only. They are written once a round instead of with every chunk; a crash loses the
 * bytes counted since then. */
void run_flush_counters(struct run *run)
{
    for (size_t i = 0; i < run->round.members; i++) {
        struct run_member *m = &run->member[i];
        if (!m->bytes_down_new) continue;
        err e =
            store_bytes_down(run->shop->store, run->id, run->round.member[i].id, m->bytes_down_new);
        trouble_of_disk(run->shop->troubles, e, run_now_ms(run));
        if (err_is(e)) return;
        m->bytes_down_new = 0;
    }
}

double run_alpha(const struct run *run, size_t member)
{
    return run_config_alpha_of(run->config, run->round.member[member].id, run->member[member].rank,
                               run->rank_max);
}

bool run_rslora(const struct run *run, size_t member)
{
    return run_config_rslora(run->config, run->round.member[member].id);
}
