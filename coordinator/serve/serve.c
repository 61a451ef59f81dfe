#include "coordinator/serve/serve.h"

#include "base/text.h"
#include "base/version.h"
#include "proto/message.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    SERVE_STEP_MS = 500,
    SERVE_PEERS_MAX = 2 * LIMIT_MEMBERS,
    SERVE_REPLY_BYTES_MAX = RPC_MESSAGE_BYTES,
};

struct serve *serve_of(struct rpc_call *call)
{
    return rpc_call_context(call);
}

struct run *serve_find_run(const struct serve *s, const char *name)
{
    for (struct run *run = s->runs; run; run = run->next)
        if (!strcmp(run->config->name, name)) return run;
    return NULL;
}

/* ERR_INPUT and not ERR_STATE: asking again would not help. */
err serve_no_run(const struct serve *s, const char *name)
{
    for (size_t i = 0; i < s->shop.asides; i++)
        if (!strcmp(s->shop.aside[i].name, name))
            return err_make(ERR_INPUT, "run %s cannot be read from the store: %s", name,
                            s->shop.aside[i].why.text);
    return err_make(ERR_INPUT, "there is no run \"%.127s\"", name);
}

/* After an error of this machine the peer gets its text, and a status that makes it try again. */
void serve_refuse_only(struct rpc_call *call, err cause)
{
    if (cause.kind == ERR_MACHINE)
        cause = err_in(cause, "the coordinator cannot do this now, come back later");
    rpc_call_refuse(call, cause);
}

void serve_refuse(struct rpc_call *call, err cause)
{
    struct serve *s = serve_of(call);
    if (s->asking != call) s->asked = NULL;
    if (cause.kind == ERR_REFUSED)
        serve_audit_denied(s, rpc_call_peer(call), NULL, rpc_call_method(call)->path, cause.text);
    serve_report(s, rpc_call_peer(call), rpc_call_method(call)->path, cause);
    serve_refuse_only(call, cause);
}

void serve_about(struct rpc_call *call, const struct run *run)
{
    struct serve *s = serve_of(call);
    s->asking = call;
    s->asked = run;
}

void serve_answer(struct rpc_call *call, const ProtobufCMessage *reply)
{
    struct bytes packed = {.max = SERVE_REPLY_BYTES_MAX};
    err e = message_pack(&packed, reply);
    if (err_is(e))
        serve_refuse(call, e);
    else
        rpc_call_answer(call, packed.data, packed.size);
    bytes_close(&packed);
}

err serve_digest(struct digest *out, const ProtobufCBinaryData *data)
{
    if (data->len != DIGEST_BYTES)
        return err_make(ERR_INPUT, "digest: %zu bytes, expected %d", data->len, DIGEST_BYTES);
    memcpy(out->byte, data->data, DIGEST_BYTES);
    return ERR_NONE;
}

bool serve_is_over(const struct run *run)
{
    enum round_phase phase = round_phase(&run->round);
    return phase == ROUND_FINISHED || phase == ROUND_STOPPED;
}

size_t serve_open_runs(const struct serve *s)
{
    size_t count = 0;
    for (const struct run *run = s->runs; run; run = run->next)
        count += !serve_is_over(run);
    return count;
}

/* For a member that names no run. Two open runs are an error rather than a guess. */
static err only_open_run(struct run **out, size_t *member, const struct serve *s, const char *id)
{
    struct run *found = NULL;
    for (struct run *run = s->runs; run; run = run->next) {
        size_t m;
        if (serve_is_over(run) || !round_find(&m, &run->round, id)) continue;
        if (run_config_dropped(run->config, id)) continue;
        if (found)
            return err_make(ERR_INPUT, "%s belongs to several open runs (%s, %s); name one (--run)",
                            id, found->config->name, run->config->name);
        found = run;
        *member = m;
    }
    if (!found) return err_make(ERR_STATE, "no open run has %s as a member", id);
    *out = found;
    return ERR_NONE;
}

/* The list of the federation is asked at every call, so that a member removed from the
 * configuration is refused after the next restart even in runs that name it. */
err serve_check_member(struct rpc_call *call)
{
    const char *id = rpc_call_peer(call)->id;
    if (config_allows(serve_of(call)->config, id)) return ERR_NONE;
    return err_make(ERR_REFUSED, "%s is not listed among this federation's members", id);
}

static err find_member(struct run **out, size_t *member, struct rpc_call *call, const char *name)
{
    const struct serve *s = serve_of(call);
    const char *id = rpc_call_peer(call)->id;
    TRY(serve_check_member(call));
    if (!*name) {
        err e = only_open_run(out, member, s, id);
        if (e.kind == ERR_INPUT) serve_report_ambiguous(call, e);
        return e;
    }
    struct run *run = serve_find_run(s, name);
    if (!run) return err_make(ERR_STATE, "there is no run %s", name);
    if (!round_find(member, &run->round, id))
        return err_make(ERR_REFUSED, "%s is not a member of run %s", id, name);
    if (run_config_dropped(run->config, id))
        return err_make(ERR_REFUSED, "an operator has dropped %s from run %s", id, name);
    *out = run;
    return ERR_NONE;
}

err serve_member(struct run **out, size_t *member, struct rpc_call *call, const char *name)
{
    struct run *run = NULL;
    TRY(find_member(&run, member, call, name));
    struct run_member *m = &run->member[*member];
    snprintf(m->address, sizeof m->address, "%s", rpc_call_peer(call)->address);
    serve_about(call, run);
    *out = run;
    return ERR_NONE;
}

err serve_check_admin(struct rpc_call *call)
{
    const struct rpc_peer *peer = rpc_call_peer(call);
    const char *id = peer->id;
    struct serve *s = serve_of(call);
    char name[TROUBLE_PEER_BYTES];
    if (config_allows_admin(s->config, id)) {
        snprintf(s->shop.by, sizeof s->shop.by, "%s at %s", serve_peer_name(name, peer),
                 peer->address);
        return ERR_NONE;
    }
    return err_make(ERR_REFUSED, "%s is not listed among this federation's operators", id);
}

/* ---- waiting calls ---- */

/* A waiting call costs one struct, not a thread. It is answered by run_changed() or when its
 * time is over. */
void serve_wait(struct serve *s, const struct serve_poll *poll)
{
    struct serve_poll *p = malloc(sizeof *p);
    if (!p) {
        message_free(poll->request);
        serve_refuse(poll->call, err_sys(ENOMEM, "a waiting call"));
        return;
    }
    *p = *poll;
    p->previous = NULL;
    p->next = s->polls;
    if (p->next) p->next->previous = p;
    s->polls = p;
    if (!s->polls_at_ms || p->until_ms < s->polls_at_ms) s->polls_at_ms = p->until_ms;
    rpc_call_set_state(p->call, p);
}

/* `over` of the call: the only place that frees a poll, whether it was answered or the peer has
 * left. */
void serve_poll_over(struct rpc_call *call, bool answered)
{
    struct serve *s = serve_of(call);
    struct serve_poll *p = rpc_call_state(call);
    (void)answered;
    if (!p) return;
    if (p->previous)
        p->previous->next = p->next;
    else
        s->polls = p->next;
    if (p->next) p->next->previous = p->previous;
    message_free(p->request);
    free(p);
}

/* An answer may change the run and so call this function again for the same poll. So the call is
 * hidden from the list first. An answered poll stays in the list until its `over`. */
static void answer_poll(struct serve_poll *p, bool must)
{
    struct serve_poll asked = *p;
    if (!asked.call) return;
    p->call = NULL;
    if (!asked.answer(&asked, must)) p->call = asked.call;
}

/* A call that waits for any run of its member looks at all of them, so it is asked only if this run
 * has a task for that member, or has another round or phase than when it was asked last. */
static bool may_answer(const struct serve_poll *p, const struct run *run, bool news)
{
    size_t m;
    if (p->run == run)
        return !p->any || news || round_task(&run->round, p->member) != ROUND_TASK_WAIT;
    return p->any && news && p->call && round_find(&m, &run->round, rpc_call_peer(p->call)->id);
}

static void run_changed(struct run *run, void *context)
{
    struct serve *s = context;
    enum round_phase phase = round_phase(&run->round);
    uint32_t round = round_under_way(&run->round);
    bool news = run->woken_round != round || run->woken_in != phase;
    run->woken_round = round;
    run->woken_in = phase;
    for (struct serve_poll *p = s->polls; p; p = p->next)
        if (may_answer(p, run, news)) answer_poll(p, false);
}

/* Answers the polls whose time is over; all of them while draining, so that members learn early
 * that they have to come back. */
static void end_polls(struct serve *s, uint64_t now)
{
    if (!s->draining && (!s->polls_at_ms || now < s->polls_at_ms)) return;
    s->polls_at_ms = 0;
    for (struct serve_poll *p = s->polls; p; p = p->next) {
        if (p->call && (s->draining || now >= p->until_ms)) answer_poll(p, true);
        if (p->call && (!s->polls_at_ms || p->until_ms < s->polls_at_ms))
            s->polls_at_ms = p->until_ms;
    }
}

void serve_end_waits(struct serve *s, const struct run *run, size_t member)
{
    for (struct serve_poll *p = s->polls; p; p = p->next)
        if (p->call && rpc_call_peer(p->call)->role == RPC_CLIENT && p->run == run &&
            p->member == member)
            answer_poll(p, true);
}

/* ---- open, step, close ---- */

/* Called by the workers. The loop may be waiting for the network just then, so its wait is
 * ended. */
static void wake(void *context)
{
    struct serve *s = context;
    if (s->server) rpc_server_wake(s->server);
}

/* Before every call. */
static err allow(void *context, const struct rpc_peer *peer)
{
    struct serve *s = context;
    char name[TROUBLE_PEER_BYTES];
    s->asking = NULL;
    s->shop.by[0] = 0;
    if (peer->role == RPC_NONE) return ERR_NONE; /* Enroll has a limit of its own */
    TRY(rate_take(&s->rate, serve_peer_name(name, peer), text_now_ms()));
    TRY(serve_identity_check(s, peer));
    serve_identity_seen(s, peer);
    serve_check_certificate(s, peer);
    return ERR_NONE;
}

/* Called by the server's own thread. */
static void on_event(void *context, const struct rpc_event *event)
{
    static const struct rpc_peer unknown;
    static const struct {
        enum log_level level;
        const char *name;
    } line[] = {
        [RPC_EVENT_HANDSHAKE] = {LOG_WARN, "handshake.failed"},
        [RPC_EVENT_REFUSED] = {LOG_WARN, "connection.refused"},
        [RPC_EVENT_FULL] = {LOG_WARN, "connections.full"},
        [RPC_EVENT_DESCRIPTORS] = {LOG_ERROR, "descriptors.short"},
    };
    const struct serve *s = context;
    if (event->kind == RPC_EVENT_HANDSHAKE || event->kind == RPC_EVENT_REFUSED)
        serve_audit_denied(s, event->peer ? event->peer : &unknown, event->address,
                           line[event->kind].name, event->reason);
    const struct log_field field[] = {
        LOG_STR("address", event->address),
        LOG_STR("reason", event->reason),
        LOG_INT("left_out", event->left_out),
        LOG_INT("refused_ms", event->refused_ms),
        LOG_STR("peer", event->peer ? event->peer->id : ""),
        LOG_STR("role", rpc_role_name(event->peer ? event->peer->role : RPC_CLIENT)),
        LOG_STR("serial", event->peer ? event->peer->serial : ""),
    };
    log_event(line[event->kind].level, line[event->kind].name, field,
              event->peer         ? 7
              : event->refused_ms ? 4
                                  : 3);
}

/* Called by the server's own thread. */
static void on_refusal(void *context, const struct rpc_event *event)
{
    struct serve *s = context;
    tally_refused(&s->tally, event->refusal);
}

static void on_ended(void *context, const char *procedure, const char *code)
{
    struct serve *s = context;
    tally_call(&s->tally, procedure, code);
}

/* A burst of four seconds' calls, and at least one call, otherwise no call would be allowed. */
static struct rate_rules rate_rules(const struct config *config)
{
    double per_second = config->calls_per_second;
    return (struct rate_rules){.per_second = per_second,
                               .burst = per_second > 0.25 ? 4 * per_second : 1,
                               .names_max = SERVE_PEERS_MAX};
}

void serve_use_rate(struct serve *s)
{
    s->rate.rules = rate_rules(s->config);
}

static err open_rate(struct serve *s)
{
    const struct rate_rules rules = rate_rules(s->config);
    return rate_open(&s->rate, &rules);
}

static err open_server(struct serve *s)
{
    /* Static, because the server keeps the pointer. */
    static struct rpc_method method[SERVE_METHODS];
    serve_methods(method);
    struct rpc_server_options options = {.listen = s->config->listen,
                                         .open_listen = s->config->enroll_listen,
                                         .ca = s->config->ca,
                                         .cert = s->config->cert,
                                         .key = s->config->key,
                                         .federation = s->config->federation,
                                         .method = method,
                                         .method_count = SERVE_METHODS,
                                         .context = s,
                                         .allow = allow,
                                         .holds = serve_audit_holds,
                                         .event = on_event,
                                         .count = on_refusal,
                                         .ended = on_ended,
                                         .refused = serve_refused_early};
    struct rpc_server *server = NULL;
    TRY(rpc_server_open(&server, &options));
    s->server = server;
    return ERR_NONE;
}

/* Runs are loaded before the server listens, so the first call finds all of them; ROUND_ON_BEGIN
 * comes last, because it may push work and answer calls. */
err serve_open(struct serve *out, struct config *config)
{
    *out = (struct serve){.config = config};
    err e = ERR_NONE;
    out->shop = (struct run_shop){.config = config,
                                  .changed = run_changed,
                                  .wake = wake,
                                  .now_ms = run_clock,
                                  .tally = &out->tally,
                                  .context = out};
    TRY_OUT(e, run_shop_open(&out->shop));
    TRY_OUT(e, audit_open(&out->shop.audit, config->path, config->audit_key));
    TRY_OUT(e, store_epoch_begin(&out->epoch, out->shop.store));
    TRY_OUT(e, serve_identity_open(out)); /* before the runs, which ask who is a member */
    TRY_OUT(e, serve_enroll_open(out));
    TRY_OUT(e, run_load_all(&out->runs, &out->run_count, &out->shop));
    TRY_OUT(e, open_rate(out));
    TRY_OUT(e, open_server(out));
    TRY_OUT(e, run_audit_recover(out->runs, text_wall_ms()));
    AUDIT(out->shop.audit, NULL, "service.started", "", "ok", LOG_STR("version", version_text()),
          LOG_INT("runs", out->run_count));
    serve_check_blobs(out);
    for (struct run *run = out->runs; run; run = run->next) {
        if (!serve_is_over(run))
            LOG(LOG_INFO, "run.resumed", LOG_STR("run", run->config->name),
                LOG_INT("round", round_under_way(&run->round)),
                LOG_INT("updates", round_updates(&run->round)));
        if (!serve_is_over(run)) run_audit_loaded(run);
        run_apply(run, &(struct round_event){.kind = ROUND_ON_BEGIN, .now_ms = text_now_ms()});
    }
    serve_audit_turn(out);
    rpc_server_set_serving(out->server, true);
    return e;
out:
    serve_close(out, 0);
    return e;
}

/* The time until the first poll must be answered, or the first run needs a tick. A deadline that
 * has passed without a quorum stays in the past; its tick was given, and only an event of a member
 * can close the round. */
static uint64_t step_timeout(const struct serve *s, uint64_t timeout_ms, uint64_t now)
{
    uint64_t at = s->polls_at_ms;
    for (const struct run *run = s->runs; run; run = run->next) {
        uint64_t wanted = round_wake_ms(&run->round);
        if (wanted > s->ticked_ms && (!at || wanted < at)) at = wanted;
    }
    if (!at) return timeout_ms;
    uint64_t left = at > now ? at - now : 0;
    return left < timeout_ms ? left : timeout_ms;
}

/* Network first, then results, so that a call that arrives together with the result it waits for is
 * answered in the same turn. */
void serve_step(struct serve *s, uint64_t timeout_ms)
{
    serve_hide_calls(s);
    rpc_server_poll(s->server, step_timeout(s, timeout_ms, text_now_ms()));
    run_shop_turn(&s->shop);
    work_take(s->signer);
    uint64_t now = text_now_ms();
    for (struct run *run = s->runs; run; run = run->next)
        run_tick(run, now);
    run_queue_turn(s->runs);
    s->ticked_ms = now;
    end_polls(s, now);
    serve_watch(s, now);
    serve_identity_turn(s, now);
    serve_audit_turn(s);
}

static void close_runs(struct run *first)
{
    for (struct run *run = first, *next; run; run = next) {
        next = run->next;
        run_close(run);
    }
}

/* Open calls wait for receipts, so the results of that worker are taken until the calls end.
 * Mathematics in progress is committed, a report gives way, and work that has not begun is done by
 * the next start. Workers are closed before the runs, because their jobs point to runs. */
void serve_close(struct serve *s, uint64_t grace_ms)
{
    uint64_t until = text_now_ms() + grace_ms;
    s->draining = true;
    if (s->server) {
        AUDIT(s->shop.audit, NULL, "service.stopped", "", "ok",
              LOG_INT("open_calls", rpc_server_calls(s->server)));
        rpc_server_set_serving(s->server, false);
        rpc_server_drain(s->server);
        end_polls(s, text_now_ms());
        serve_audit_turn(s);
        while (rpc_server_calls(s->server) > 0 && text_now_ms() < until) {
            rpc_server_poll(s->server, SERVE_STEP_MS / 10);
            work_take(s->shop.receipts);
            work_take(s->signer);
            end_polls(s, text_now_ms());
            serve_audit_turn(s);
        }
    }
    run_shop_stop(&s->shop);
    work_close(s->signer);
    s->signer = NULL;
    struct rpc_server *server = s->server;
    s->server = NULL;
    rpc_server_close(server, 0);
    close_runs(s->runs);
    close_runs(s->deleted);
    serve_identity_close(s);
    serve_enroll_close(s);
    rate_close(&s->rate);
    audit_close(s->shop.audit);
    run_shop_close(&s->shop);
    tally_close(&s->tally);
    *s = (struct serve){0};
}
