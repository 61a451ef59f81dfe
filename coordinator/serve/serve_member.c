/* Calls of members, except transfers of payloads: Hello, NextTask, Report. */
#include "base/text.h"
#include "base/version.h"
#include "coordinator/run/bounds.h"
#include "coordinator/run/run_shapes.h"
#include "coordinator/serve/serve.h"
#include "proto/message.h"

#include <string.h>

/* A module has three fields, and is one itself. */
enum {
    TASK_FIELDS_MAX = BOUNDS_WITHOUT + MESSAGE_FEW,
    HELLO_FIELDS_MAX = 4 * LIMIT_MODULES + TASK_FIELDS_MAX,
};
enum { SERVE_PROTOCOL = 1, SERVE_RETRY_MS = 200, SERVE_REASON_BYTES = 480 };

/* ---- Hello ---- */

/* A member that knows a newer start of this store shows that it is an old copy. It is refused, so
 * that no work of it is lost; it retries until the right copy answers. */
static err check_epoch(struct rpc_call *call, const Fedlora__V1__HelloRequest *request)
{
    struct serve *s = serve_of(call);
    const struct rpc_peer *peer = rpc_call_peer(call);
    char name[TROUBLE_PEER_BYTES];
    err e = store_epoch_judge(s->shop.store, request->epoch.data, request->epoch.len);
    if (e.kind != ERR_STATE) return e;
    const struct trouble_case c = {.kind = TROUBLE_OLD_COPY,
                                   .peer = serve_peer_name(name, peer),
                                   .address = peer->address,
                                   .text = e.text};
    trouble_raise(s->shop.troubles, &c, text_now_ms());
    return e;
}

/* A member that joins can train again. It may have reported before it knew the name of a run. */
static void end_cannot_train(struct rpc_call *call, const struct run *run)
{
    char name[TROUBLE_PEER_BYTES];
    struct troubles *t = serve_of(call)->shop.troubles;
    uint64_t now = text_now_ms();
    trouble_member(name, rpc_call_peer(call)->id);
    trouble_end(t, TROUBLE_MEMBER_CANNOT_TRAIN, NULL, name, now);
    trouble_end(t, TROUBLE_MEMBER_CANNOT_TRAIN, run->config->name, name, now);
}

/* A member whose base does not fit is not offered the run again for a while, as after Hello. */
static err look(Fedlora__V1__HelloReply *reply, struct run *run, size_t m,
                const Fedlora__V1__HelloRequest *request)
{
    ProtobufCBinaryData epoch = reply->epoch;
    err e = run_look_reply(reply, run, m, request);
    run->member[m].unfit_ms = e.kind == ERR_INPUT ? text_now_ms() : 0;
    reply->epoch = epoch;
    return e;
}

static err check_software(const char *software)
{
    char number[VERSION_NUMBER_BYTES];
    if (version_fits(number, software, FEDLORA_VERSION)) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "this member runs fedlora %s and the coordinator fedlorad %s, more than one "
                    "minor version apart: upgrade the older of the two",
                    number, FEDLORA_VERSION);
}

/* The protocol version comes first, because with another version the other fields may mean
 * something else. The reply points into the run, which is safe because it is packed before this
 * thread continues. */
static err hello(Fedlora__V1__HelloReply *reply, struct rpc_call *call,
                 const Fedlora__V1__HelloRequest *request)
{
    struct run *run = NULL;
    size_t m = 0;
    if (request->protocol != SERVE_PROTOCOL)
        return err_make(ERR_INPUT, "protocol %u (%.64s); this coordinator, fedlorad %s, uses %d",
                        request->protocol, request->software, FEDLORA_VERSION, SERVE_PROTOCOL);
    TRY(bounds_check(&request->base));
    TRY(check_software(request->software));
    const struct serve_turn turn = {
        .name = request->run, .without = request->without, .withouts = request->n_without};
    TRY(serve_turn(&run, &m, call, &turn));
    TRY(check_epoch(call, request));
    reply->epoch = (ProtobufCBinaryData){STORE_EPOCH_BYTES, serve_of(call)->epoch.byte};
    if (request->look) return look(reply, run, m, request);
    TRY(serve_session_check(call, run, m, &request->session, /*hello*/ true));
    err e = run_hello(run, m, request);
    run->member[m].unfit_ms = e.kind == ERR_INPUT ? text_now_ms() : 0;
    if (err_is(e)) return e;
    serve_session_take(call, run, m, &request->session);
    /* A member may be upgraded long before its next renewal, which tells it too. */
    size_t name = strncmp(request->software, "fedlora ", 8) ? 0 : 8;
    serve_identity_software(serve_of(call), rpc_call_peer(call), request->software + name);
    run_hello_reply(reply, run, m);
    reply->epoch = (ProtobufCBinaryData){STORE_EPOCH_BYTES, serve_of(call)->epoch.byte};
    run->member[m].greeted = true;
    run->round.member[m].held = NULL;
    end_cannot_train(call, run);
    return ERR_NONE;
}

static void hello_begin(struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__HelloRequest *request = NULL;
    Fedlora__V1__HelloReply reply = FEDLORA__V1__HELLO_REPLY__INIT;
    err e = message_unpack_few(&request, &fedlora__v1__hello_request__descriptor, data, size,
                               HELLO_FIELDS_MAX);
    if (!err_is(e)) e = hello(&reply, call, request);
    serve_end(call, e, &reply.base);
    message_free(request);
}

/* ---- NextTask ---- */

/* If the disk refuses to store the opening of the round, the member comes back later. */
static void answer_train(struct run *run, size_t member, struct rpc_call *call)
{
    Fedlora__V1__Task task = FEDLORA__V1__TASK__INIT;
    struct run_train_task train;
    err e = run_train_task(&train, run, member);
    if (err_is(e)) {
        serve_refuse(call, e);
        return;
    }
    task.kind_case = FEDLORA__V1__TASK__KIND_TRAIN;
    task.train = &train.message;
    serve_answer(call, &task.base);
}

/* The name outlives the answer, which is packed before this thread continues. */
static void answer_greet(const struct run *run, struct rpc_call *call)
{
    Fedlora__V1__Task task = FEDLORA__V1__TASK__INIT;
    Fedlora__V1__GreetTask greet = FEDLORA__V1__GREET_TASK__INIT;
    greet.run = run->config->name;
    task.kind_case = FEDLORA__V1__TASK__KIND_GREET;
    task.greet = &greet;
    serve_answer(call, &task.base);
}

/* To a member that stays without a run. The reason is empty, because nothing is missing. */
static void answer_idle(struct rpc_call *call)
{
    Fedlora__V1__Task task = FEDLORA__V1__TASK__INIT;
    Fedlora__V1__WaitTask wait = FEDLORA__V1__WAIT_TASK__INIT;
    wait.retry_ms = SERVE_RETRY_MS;
    task.kind_case = FEDLORA__V1__TASK__KIND_WAIT;
    task.wait = &wait;
    serve_answer(call, &task.base);
}

static void answer_evaluate(struct run *run, struct rpc_call *call)
{
    Fedlora__V1__Task task = FEDLORA__V1__TASK__INIT;
    Fedlora__V1__EvaluateTask evaluate = FEDLORA__V1__EVALUATE_TASK__INIT;
    evaluate.run = run->config->name;
    evaluate.round = run->round.published;
    evaluate.state_digest = run_blob_name(&run->newest.state);
    evaluate.state_size = run->newest.state.size;
    evaluate.frozen_digest = run_blob_name(&run->newest.frozen);
    evaluate.frozen_size = run->newest.frozen.size;
    task.kind_case = FEDLORA__V1__TASK__KIND_EVALUATE;
    task.evaluate = &evaluate;
    serve_answer(call, &task.base);
}

/* Also for a stopped run, whose members get the newest state and leave. */
static void answer_finished(struct run *run, size_t member, struct rpc_call *call)
{
    Fedlora__V1__Task task = FEDLORA__V1__TASK__INIT;
    Fedlora__V1__FinishedTask finished = FEDLORA__V1__FINISHED_TASK__INIT;
    finished.run = run->config->name;
    finished.outcome = (char *)(uintptr_t)round_phase_name(round_phase(&run->round));
    finished.state_digest = run_blob_name(&run->newest.state);
    finished.state_size = run->newest.state.size;
    if (run->round.rules.secret)
        finished.ledger_head = (ProtobufCBinaryData){DIGEST_BYTES, run->ledger_head.byte};
    task.kind_case = FEDLORA__V1__TASK__KIND_FINISHED;
    task.finished = &finished;
    run->member[member].told_end = true;
    serve_answer(call, &task.base);
}

/* If the draw is secret, a waiting member must not learn who was drawn, or how many. */
static const char *drawn_reason(const struct run *run)
{
    enum round_phase phase = round_phase(&run->round);
    return phase == ROUND_PAUSED || phase == ROUND_FAILED ? "an operator" : "the round under way";
}

/* The retry is short, because the long poll itself does the waiting; it only spaces out the
 * calls of members that ask without waiting. */
static void answer_wait(struct run *run, size_t member, struct rpc_call *call)
{
    Fedlora__V1__Task task = FEDLORA__V1__TASK__INIT;
    Fedlora__V1__WaitTask wait = FEDLORA__V1__WAIT_TASK__INIT;
    char reason[SERVE_REASON_BYTES], notice[SERVE_REASON_BYTES];
    serve_session_notice(notice, sizeof notice, run, member);
    if (*notice)
        snprintf(reason, sizeof reason, "%s", notice);
    else if (run->round.rules.secret)
        snprintf(reason, sizeof reason, "%s", drawn_reason(run));
    else
        round_wait_reason(reason, sizeof reason, &run->round);
    wait.retry_ms = SERVE_RETRY_MS;
    wait.reason = reason;
    task.kind_case = FEDLORA__V1__TASK__KIND_WAIT;
    task.wait = &wait;
    serve_answer(call, &task.base);
}

/* A member without a task keeps waiting until its time is over. One that has said Hello with other
 * shapes than the run's, while it waited, says it again and learns the reason. */
static bool answer_task(const struct serve_poll *poll, bool must)
{
    struct run *run = poll->run;
    struct rpc_call *call = poll->call;
    size_t member = poll->member;
    if (!run->round.member[member].joined) {
        serve_refuse(call, err_make(ERR_STATE, "call Hello first"));
        return true;
    }
    switch (round_task(&run->round, member)) {
    case ROUND_TASK_TRAIN:
        answer_train(run, member, call);
        return true;
    case ROUND_TASK_EVALUATE:
        answer_evaluate(run, call);
        return true;
    case ROUND_TASK_FINISHED:
        answer_finished(run, member, call);
        return true;
    default:
        break;
    }
    if (must) answer_wait(run, member, call);
    return must;
}

/* In any of its runs: the epoch in Hello is about the whole store. */
static bool has_greeted(const struct serve_poll *poll)
{
    struct run_member *is = &poll->run->member[poll->member];
    const char *id = poll->run->round.member[poll->member].id;
    size_t m;
    for (struct run *run = serve_of(poll->call)->runs; run && !is->greeted; run = run->next)
        if (round_find(&m, &run->round, id)) is->greeted = run->member[m].greeted;
    return is->greeted;
}

/* Before the first Hello a member has no rank and no modules, so there is no task for it. After a
 * restart each member says Hello again, because its epoch may show that this is an old copy of the
 * store. */
static err check_joined(const struct serve_poll *poll)
{
    if (poll->run->round.member[poll->member].joined && has_greeted(poll)) return ERR_NONE;
    return err_make(ERR_STATE, "call Hello first");
}

static struct serve_turn turn_of(const Fedlora__V1__NextTaskRequest *request)
{
    return (struct serve_turn){.name = request->run,
                               .ended = true,
                               .stay = request->stay,
                               .without = request->without,
                               .withouts = request->n_without};
}

/* The same for a call about all runs of the member. An error is an answer: there is a run to join,
 * or no run is left. A member that stays learns the first from a task, and waits for the second to
 * change. */
static bool answer_turn(const struct serve_poll *poll, bool must)
{
    struct serve_poll one = *poll;
    const struct serve_turn turn = turn_of(poll->request);
    err e = serve_turn(&one.run, &one.member, poll->call, &turn);
    if (!err_is(e) && !one.run) {
        if (must) answer_idle(poll->call);
        return must;
    }
    if (!err_is(e)) e = check_joined(&one);
    if (!err_is(e)) return answer_task(&one, must);
    if (turn.stay && e.kind == ERR_STATE && one.run)
        answer_greet(one.run, poll->call);
    else
        serve_refuse(poll->call, e);
    return true;
}

/* A call without a run is a sign of life in all runs in which this machine takes part. */
static void see_member(struct rpc_call *call, const struct serve_poll *poll,
                       const ProtobufCBinaryData *session)
{
    size_t m;
    if (poll->run) run_apply_member(poll->run, ROUND_ON_SEEN, poll->member);
    for (struct run *run = serve_of(call)->runs; poll->any && run; run = run->next)
        if (run != poll->run && !serve_is_over(run) &&
            round_find(&m, &run->round, rpc_call_peer(call)->id) && run->round.member[m].joined &&
            !err_is(serve_session_check(call, run, m, session, /*hello*/ false)))
            run_apply_member(run, ROUND_ON_SEEN, m);
}

static err find_task(struct serve_poll *poll, Fedlora__V1__NextTaskRequest *request)
{
    struct rpc_call *call = poll->call;
    const struct serve_turn turn = turn_of(request);
    if (request->n_without > BOUNDS_WITHOUT)
        return err_make(ERR_INPUT, "without: %zu runs, at most %d", request->n_without,
                        BOUNDS_WITHOUT);
    TRY(serve_turn(&poll->run, &poll->member, call, &turn));
    poll->any = !*request->run;
    if (poll->any) {
        poll->answer = answer_turn;
        poll->request = request;
    }
    if (poll->run) {
        err e = check_joined(poll);
        if (err_is(e)) return request->stay && poll->any ? ERR_NONE : e; /* answered as a task */
        TRY(serve_session_check(call, poll->run, poll->member, &request->session, /*hello*/ false));
        if (!poll->run->member[poll->member].session)
            serve_session_take(call, poll->run, poll->member, &request->session);
    }
    see_member(call, poll, &request->session);
    return ERR_NONE;
}

/* The coordinator bounds the wait, so that it knows how long it must keep a call. */
static void next_task_begin(struct rpc_call *call, const void *data, size_t size)
{
    struct serve *s = serve_of(call);
    Fedlora__V1__NextTaskRequest *request = NULL;
    struct serve_poll poll = {.call = call, .answer = answer_task};
    err e = message_unpack_few(&request, &fedlora__v1__next_task_request__descriptor, data, size,
                               TASK_FIELDS_MAX);
    if (!err_is(e)) e = find_task(&poll, request);
    if (err_is(e)) {
        serve_refuse(call, e);
    } else {
        uint64_t wait_ms =
            request->wait_ms < s->config->poll_ms ? request->wait_ms : s->config->poll_ms;
        poll.until_ms = text_now_ms() + wait_ms;
        if (!poll.answer(&poll, wait_ms == 0 || s->draining)) {
            serve_wait(s, &poll);
            if (poll.any) request = NULL; /* the waiting call's now */
        }
    }
    message_free(request);
}

/* ---- Report ---- */

/* A member finds out before Hello that its data teaches nothing, and then knows no run unless its
 * user names one. The trouble is shown in the status until the member joins a run. */
static err cannot_train(struct rpc_call *call, const Fedlora__V1__ReportRequest *request)
{
    struct run *run = NULL;
    size_t m;
    char name[TROUBLE_PEER_BYTES];
    const struct rpc_peer *peer = rpc_call_peer(call);
    if (*request->run) TRY(serve_member(&run, &m, call, request->run));
    TRY(serve_check_member(call));
    if (run && run->config->privacy)
        return err_make(ERR_INPUT,
                        "run %s: a member's reason why it cannot train reveals something that the "
                        "privacy budget does not count",
                        run->config->name);
    const struct trouble_case c = {.kind = TROUBLE_MEMBER_CANNOT_TRAIN,
                                   .run = run ? run->config->name : NULL,
                                   .peer = trouble_member(name, peer->id),
                                   .address = peer->address,
                                   .text = request->cannot_train};
    trouble_raise(serve_of(call)->shop.troubles, &c, text_now_ms());
    return ERR_NONE;
}

/* A decision of the member's administrator says nothing about the data, so it is shown in runs with
 * privacy too. It ends with the next Hello. */
static err held(struct rpc_call *call, const Fedlora__V1__ReportRequest *request)
{
    struct run *run = NULL;
    size_t m;
    char name[TROUBLE_PEER_BYTES];
    TRY(serve_member(&run, &m, call, request->run));
    run->round.member[m].held = request->undecided ? "waits for its administrator"
                                : request->for_now ? "pauses by its policy"
                                                   : "declined by its policy";
    const struct trouble_case c = {.kind = TROUBLE_MEMBER_CANNOT_TRAIN,
                                   .run = run->config->name,
                                   .peer = trouble_member(name, rpc_call_peer(call)->id),
                                   .address = rpc_call_peer(call)->address,
                                   .text = request->held};
    trouble_raise(serve_of(call)->shop.troubles, &c, text_now_ms());
    return ERR_NONE;
}

/* Four kinds of reports: an evaluation, a member that cannot or may not train, or progress in a
 * round. The
 * reply to progress is the only way to tell a training member that its round is over. If late
 * updates count, the update is worth finishing for some rounds more. */
static err report(Fedlora__V1__ReportReply *reply, struct rpc_call *call,
                  const Fedlora__V1__ReportRequest *request, char notice[SERVE_REASON_BYTES])
{
    struct run *run = NULL;
    size_t m = 0;
    TRY(bounds_check(&request->base));
    if (*request->cannot_train) return cannot_train(call, request);
    if (*request->held) return held(call, request);
    TRY(serve_member(&run, &m, call, request->run));
    if (!request->eval_rows && request->eval_loss != 0)
        return err_make(ERR_INPUT,
                        "eval_loss %g over 0 rows: rows without a learned token have "
                        "no loss",
                        request->eval_loss);
    if (request->eval_rows) {
        const struct store_evaluation v = {.round = request->round,
                                           .rows = request->eval_rows,
                                           .loss = request->eval_loss,
                                           .accuracy = request->eval_accuracy};
        return run_evaluated(run, m, &v);
    }
    if (run->round.member[m].held) { /* it trains after all */
        run->round.member[m].held = NULL;
        end_cannot_train(call, run);
    }
    if (*request->trouble) return run_failing(run, m, request->round, request->trouble);
    run_apply(run, &(struct round_event){.kind = ROUND_ON_STEP,
                                         .now_ms = text_now_ms(),
                                         .member = m,
                                         .round = request->round,
                                         .step = request->step,
                                         .steps = request->steps});
    serve_session_notice(notice, SERVE_REASON_BYTES, run, m);
    reply->reason = notice;
    enum round_phase phase = round_phase(&run->round);
    bool over = phase == ROUND_FINISHED || phase == ROUND_STOPPED;
    uint32_t under_way = round_under_way(&run->round);
    if (over || (uint64_t)request->round + run->round.rules.late_rounds < under_way) {
        reply->abandon = request->steps > 0;
        reply->reason = over ? "the run is over" : "the round has closed";
    }
    return ERR_NONE;
}

static void report_begin(struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__ReportRequest *request = NULL;
    Fedlora__V1__ReportReply reply = FEDLORA__V1__REPORT_REPLY__INIT;
    char notice[SERVE_REASON_BYTES];
    err e = message_unpack_few(&request, &fedlora__v1__report_request__descriptor, data, size,
                               MESSAGE_FEW);
    if (!err_is(e)) e = report(&reply, call, request, notice);
    serve_end(call, e, &reply.base);
    message_free(request);
}

const struct rpc_method serve_member_method[] = {
    {.path = RPC_PATH_FEDERATION(hello),
     .shape = RPC_UNARY,
     .roles = RPC_CLIENT,
     .begin = hello_begin},
    {.path = RPC_PATH_FEDERATION(next_task),
     .shape = RPC_UNARY,
     .roles = RPC_CLIENT,
     .begin = next_task_begin,
     .over = serve_poll_over},
    {.path = RPC_PATH_FEDERATION(report),
     .shape = RPC_UNARY,
     .roles = RPC_CLIENT,
     .begin = report_begin},
};
const size_t serve_member_methods = sizeof serve_member_method / sizeof *serve_member_method;
