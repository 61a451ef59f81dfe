/* Calls of operators, except transfers of payloads (serve_fetch.c, serve_submit.c). */
#include "base/text.h"
#include "coordinator/run/run_shapes.h"
#include "coordinator/serve/serve.h"
#include "proto/message.h"

#include <string.h>

enum {
    WATCH_EVENTS_MAX = 256,
    LIST_BYTES_MAX = LIMIT_CHUNK_BYTES, /* of a page, so that it fits into one message */
    LIST_ENTRY_BYTES = 8,               /* more than the tag and the size of an entry */
};

static void answer_status(struct rpc_call *call, struct run *run)
{
    struct arena arena = {0};
    Fedlora__V1__RunStatus *status = NULL;
    err e = serve_status(&status, run, true, &arena);
    if (err_is(e))
        serve_refuse(call, e);
    else
        serve_answer(call, &status->base);
    arena_close(&arena);
}

/* The run is durable when run_create() returns, so the operator's answer is never about a run that
 * a crash undid. run_create() takes `config` in any case. The run is added at the end, because
 * lists are in order of creation. */
static err create(struct run **out, char name[LIMIT_NAME_BYTES], struct rpc_call *call,
                  const void *data, size_t size)
{
    struct serve *s = serve_of(call);
    Fedlora__V1__RunConfig *config = NULL;
    struct run *run = NULL, **last = &s->runs;
    TRY(serve_check_admin(call));
    TRY(serve_audit_ready(call));
    if (serve_open_runs(s) >= LIMIT_RUNS)
        return err_make(ERR_LIMIT, "%d runs are open, the largest number", LIMIT_RUNS);
    TRY(message_unpack(&config, &fedlora__v1__run_config__descriptor, data, size));
    snprintf(name, LIMIT_NAME_BYTES, "%.*s", LIMIT_NAME_BYTES - 1, config->name);
    TRY(run_create(&run, &s->shop, config));
    while (*last)
        last = &(*last)->next;
    *last = run;
    s->run_count++;
    s->shop.changed(run, s); /* members that wait for any run may join it */
    *out = run;
    return ERR_NONE;
}

static void create_begin(struct rpc_call *call, const void *data, size_t size)
{
    struct run *run = NULL;
    char name[LIMIT_NAME_BYTES] = "";
    err e = create(&run, name, call, data, size);
    if (*name) serve_audit_act(call, "run.created", name, run ? run->config->method : NULL, e);
    if (err_is(e))
        serve_refuse(call, e);
    else
        answer_status(call, run);
}

static err fill_aside(Fedlora__V1__RunStatus **out, struct run_aside *aside, struct arena *arena)
{
    Fedlora__V1__RunStatus *status = NULL;
    Fedlora__V1__RunConfig *config = NULL;
    TRY(arena_take(&status, arena, 1, sizeof *status));
    TRY(arena_take(&config, arena, 1, sizeof *config));
    fedlora__v1__run_status__init(status);
    fedlora__v1__run_config__init(config);
    config->name = aside->name;
    status->config = config;
    status->phase = "unreadable";
    status->waiting_for = aside->why.text;
    *out = status;
    return ERR_NONE;
}

/* First the runs that cannot be read, then the others in order of creation. Runs are only ever
 * added at the end, so the number that a page ended with stays valid. Short statuses in pages,
 * because a list of many runs could be larger than one message. */
static err list(Fedlora__V1__ListRunsReply *reply, struct rpc_call *call,
                const Fedlora__V1__ListRunsRequest *request, struct arena *arena)
{
    struct serve *s = serve_of(call);
    size_t asides = s->shop.asides, all = s->run_count + asides, n = request->after, bytes = 0;
    struct run *run = s->runs;
    TRY(serve_check_admin(call));
    TRY(serve_troubles(&reply->troubles, &reply->n_troubles, s->shop.troubles, NULL, arena));
    if (n >= all) return ERR_NONE;
    TRY(arena_take(&reply->runs, arena, all - n, sizeof *reply->runs));
    for (size_t i = asides; i < n; i++)
        run = run->next;
    for (; n < all && (!request->limit || reply->n_runs < request->limit); n++) {
        Fedlora__V1__RunStatus *status = NULL;
        TRY(n < asides ? fill_aside(&status, &s->shop.aside[n], arena)
                       : serve_status(&status, run, false, arena));
        bytes += fedlora__v1__run_status__get_packed_size(status) + LIST_ENTRY_BYTES;
        if (reply->n_runs && bytes > LIST_BYTES_MAX) break;
        reply->runs[reply->n_runs++] = status;
        if (n >= asides) run = run->next;
    }
    reply->next = n < all ? (uint32_t)n : 0;
    return ERR_NONE;
}

static void list_begin(struct rpc_call *call, const void *data, size_t size)
{
    struct arena arena = {0};
    Fedlora__V1__ListRunsRequest *request = NULL;
    Fedlora__V1__ListRunsReply reply = FEDLORA__V1__LIST_RUNS_REPLY__INIT;
    err e = message_unpack(&request, &fedlora__v1__list_runs_request__descriptor, data, size);
    if (!err_is(e)) e = list(&reply, call, request, &arena);
    if (err_is(e))
        serve_refuse(call, e);
    else
        serve_answer(call, &reply.base);
    message_free(request);
    arena_close(&arena);
}

static err find_named(struct run **out, struct rpc_call *call, const char *name)
{
    TRY(serve_check_admin(call));
    *out = serve_find_run(serve_of(call), name);
    return *out ? ERR_NONE : serve_no_run(serve_of(call), name);
}

static err read_name(struct run **out, bool *forget_shapes, struct rpc_call *call, const void *data,
                     size_t size)
{
    Fedlora__V1__RunName *request = NULL;
    TRY(message_unpack(&request, &fedlora__v1__run_name__descriptor, data, size));
    err e = find_named(out, call, request->run);
    *forget_shapes = request->forget_shapes;
    message_free(request);
    return e;
}

static void get_begin(struct rpc_call *call, const void *data, size_t size)
{
    struct run *run = NULL;
    bool forget;
    err e = read_name(&run, &forget, call, data, size);
    if (err_is(e))
        serve_refuse(call, e);
    else
        answer_status(call, run);
}

/* For a change, whose line in the audit log must be possible. */
static err find_changed(struct run **out, struct rpc_call *call, const char *name)
{
    TRY(find_named(out, call, name));
    return serve_audit_ready(call);
}

/* The operator's answer is the status after the command, so that a script sees whether it took
 * effect. `act` describes it in the audit log. */
struct act {
    const char *action, *detail;
};
static void answer_changed(struct rpc_call *call, struct run *run, const struct act *act, err e)
{
    if (run) serve_audit_act(call, act->action, run->config->name, act->detail, e);
    if (err_is(e))
        serve_refuse(call, e);
    else
        answer_status(call, run);
}

static void hold(struct rpc_call *call, const void *data, size_t size, enum round_event_kind kind)
{
    struct run *run = NULL;
    bool forget = false;
    const struct act act = {kind == ROUND_ON_PAUSE    ? "run.paused"
                            : kind == ROUND_ON_RESUME ? "run.resumed"
                                                      : "run.stopped",
                            NULL};
    err e = read_name(&run, &forget, call, data, size);
    if (!err_is(e)) e = serve_audit_ready(call);
    if (!err_is(e))
        e = forget && kind == ROUND_ON_RESUME ? run_shapes_forget(run) : run_hold(run, kind);
    answer_changed(call, run, &act, e);
}
static void pause_begin(struct rpc_call *call, const void *data, size_t size)
{
    hold(call, data, size, ROUND_ON_PAUSE);
}
static void resume_begin(struct rpc_call *call, const void *data, size_t size)
{
    hold(call, data, size, ROUND_ON_RESUME);
}
static void stop_begin(struct rpc_call *call, const void *data, size_t size)
{
    hold(call, data, size, ROUND_ON_STOP);
}

/* ---- changes ---- */

static void join_words(char *out, size_t bytes, char *const *word, size_t count)
{
    size_t used = 0;
    *out = 0;
    for (size_t i = 0; i < count && used < bytes; i++)
        used += (size_t)snprintf(out + used, bytes - used, "%s%s", i ? " " : "", word[i]);
}

static void set_begin(struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__RunChange *request = NULL;
    struct run *run = NULL;
    char words[ERR_TEXT_BYTES] = "";
    err e = message_unpack(&request, &fedlora__v1__run_change__descriptor, data, size);
    if (!err_is(e)) join_words(words, sizeof words, request->set, request->n_set);
    if (!err_is(e)) e = find_changed(&run, call, request->run);
    if (!err_is(e)) e = run_set(run, request->set, request->n_set);
    answer_changed(call, run, &(struct act){"run.changed", words}, e);
    message_free(request);
}

static err member_change(struct run **out, struct rpc_call *call,
                         Fedlora__V1__MemberChange **request, const void *data, size_t size)
{
    TRY(message_unpack(request, &fedlora__v1__member_change__descriptor, data, size));
    TRY(find_changed(out, call, (*request)->run));
    return (*request)->member ? ERR_NONE : err_make(ERR_INPUT, "no member is named");
}
static void answer_member(struct rpc_call *call, struct run *run, const char *action,
                          const Fedlora__V1__MemberChange *request, err e)
{
    const char *id = request && request->member ? request->member->id : NULL;
    answer_changed(call, run, &(struct act){action, id}, e);
}

static void add_member_begin(struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__MemberChange *request = NULL;
    struct run *run = NULL;
    err e = member_change(&run, call, &request, data, size);
    if (!err_is(e)) e = run_member_add(run, request->member);
    answer_member(call, run, "member.added", request, e);
    message_free(request);
}
static void drop_member_begin(struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__MemberChange *request = NULL;
    struct run *run = NULL;
    err e = member_change(&run, call, &request, data, size);
    if (!err_is(e)) e = run_member_drop(run, request->member->id);
    answer_member(call, run, "member.dropped", request, e);
    message_free(request);
}
static void drop_update_begin(struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__MemberChange *request = NULL;
    struct run *run = NULL;
    err e = member_change(&run, call, &request, data, size);
    if (!err_is(e)) e = run_drop_update(run, request->member->id);
    answer_member(call, run, "update.dropped", request, e);
    message_free(request);
}

/* ---- watch ---- */

/* At most WATCH_EVENTS_MAX events; the caller asks again with the last sequence number. */
static err watch_reply(Fedlora__V1__WatchReply *reply, struct run *run, uint64_t after,
                       struct arena *arena)
{
    struct store_event *row = NULL;
    Fedlora__V1__RunEvent *event = NULL;
    size_t count = 0;
    TRY(store_events(&row, &count, run->shop->store, run->id, after, WATCH_EVENTS_MAX, arena));
    TRY(arena_take(&event, arena, count, sizeof *event));
    TRY(arena_take(&reply->events, arena, count, sizeof *reply->events));
    for (size_t i = 0; i < count; i++) {
        fedlora__v1__run_event__init(&event[i]);
        event[i].sequence = row[i].sequence;
        event[i].wall_ms = row[i].wall_ms;
        event[i].event = (char *)(uintptr_t)row[i].event;
        event[i].text = (char *)(uintptr_t)row[i].text;
        event[i].round = row[i].round;
        event[i].member = (char *)(uintptr_t)row[i].member;
        reply->events[i] = &event[i];
    }
    reply->n_events = count;
    reply->phase = (char *)(uintptr_t)round_phase_name(round_phase(&run->round));
    reply->round = round_under_way(&run->round);
    return ERR_NONE;
}

/* Without events there is nothing to answer until the time is over. */
static bool answer_watch(const struct serve_poll *poll, bool must)
{
    struct arena arena = {0};
    Fedlora__V1__WatchReply reply = FEDLORA__V1__WATCH_REPLY__INIT;
    struct rpc_call *call = poll->call;
    err e = watch_reply(&reply, poll->run, poll->after, &arena);
    bool done = err_is(e) || must || reply.n_events > 0;
    if (err_is(e))
        serve_refuse(call, e);
    else if (done)
        serve_answer(call, &reply.base);
    arena_close(&arena);
    return done;
}

static void watch_begin(struct rpc_call *call, const void *data, size_t size)
{
    struct serve *s = serve_of(call);
    Fedlora__V1__WatchRequest *request = NULL;
    struct serve_poll poll = {.call = call, .answer = answer_watch};
    err e = message_unpack(&request, &fedlora__v1__watch_request__descriptor, data, size);
    if (!err_is(e)) e = find_named(&poll.run, call, request->run);
    if (err_is(e))
        serve_refuse(call, e);
    else {
        uint64_t wait_ms =
            request->wait_ms < s->config->poll_ms ? request->wait_ms : s->config->poll_ms;
        poll.after = request->after;
        poll.until_ms = text_now_ms() + wait_ms;
        if (!answer_watch(&poll, wait_ms == 0 || s->draining)) serve_wait(s, &poll);
    }
    message_free(request);
}

const struct rpc_method serve_admin_method[] = {
    {RPC_PATH_ADMIN(create_run), RPC_UNARY, RPC_ADMIN, .begin = create_begin},
    {RPC_PATH_ADMIN(list_runs), RPC_UNARY, RPC_ADMIN, .begin = list_begin},
    {RPC_PATH_ADMIN(get_run), RPC_UNARY, RPC_ADMIN, .begin = get_begin},
    {RPC_PATH_ADMIN(pause_run), RPC_UNARY, RPC_ADMIN, .begin = pause_begin},
    {RPC_PATH_ADMIN(resume_run), RPC_UNARY, RPC_ADMIN, .begin = resume_begin},
    {RPC_PATH_ADMIN(stop_run), RPC_UNARY, RPC_ADMIN, .begin = stop_begin},
    {RPC_PATH_ADMIN(set_run), RPC_UNARY, RPC_ADMIN, .begin = set_begin},
    {RPC_PATH_ADMIN(add_member), RPC_UNARY, RPC_ADMIN, .begin = add_member_begin},
    {RPC_PATH_ADMIN(drop_member), RPC_UNARY, RPC_ADMIN, .begin = drop_member_begin},
    {RPC_PATH_ADMIN(drop_update), RPC_UNARY, RPC_ADMIN, .begin = drop_update_begin},
    {RPC_PATH_ADMIN(watch_run), RPC_UNARY, RPC_ADMIN, .begin = watch_begin,
     .over = serve_poll_over},
};
const size_t serve_admin_methods = sizeof serve_admin_method / sizeof *serve_admin_method;
