/* Calls of operators, except transfers of payloads (serve_fetch.c, serve_submit.c). */
#include "base/text.h"
#include "coordinator/run/run_shapes.h"
#include "coordinator/serve/serve.h"
#include "proto/message.h"

#include <string.h>

static void answer_page(struct rpc_call *call, struct run *run, uint32_t members_after)
{
    struct arena arena = {0};
    Fedlora__V1__RunStatus *status = NULL;
    err e = serve_status_page(&status, run, members_after, &arena);
    if (err_is(e))
        serve_refuse(call, e);
    else
        serve_answer(call, &status->base);
    arena_close(&arena);
}

void serve_answer_run(struct rpc_call *call, struct run *run)
{
    answer_page(call, run, 0);
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
    run_queue_turn(s->runs); /* so that the answer says whether it is queued */
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
        serve_answer_run(call, run);
}

err serve_named(struct run **out, struct rpc_call *call, const char *name)
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
    err e = serve_named(out, call, request->run);
    *forget_shapes = request->forget_shapes;
    message_free(request);
    return e;
}

static void get_begin(struct rpc_call *call, const void *data, size_t size)
{
    struct run *run = NULL;
    Fedlora__V1__RunName *request = NULL;
    err e = message_unpack(&request, &fedlora__v1__run_name__descriptor, data, size);
    if (!err_is(e)) e = serve_named(&run, call, request->run);
    if (err_is(e))
        serve_refuse(call, e);
    else
        answer_page(call, run, request->members_after);
    message_free(request);
}

/* For a change, whose line in the audit log must be possible. */
static err find_changed(struct run **out, struct rpc_call *call, const char *name)
{
    TRY(serve_named(out, call, name));
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
        serve_answer_run(call, run);
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

const struct rpc_method serve_admin_method[] = {
    {RPC_PATH_ADMIN(create_run), RPC_UNARY, RPC_ADMIN, .begin = create_begin},
    {RPC_PATH_ADMIN(get_run), RPC_UNARY, RPC_ADMIN, .begin = get_begin},
    {RPC_PATH_ADMIN(pause_run), RPC_UNARY, RPC_ADMIN, .begin = pause_begin},
    {RPC_PATH_ADMIN(resume_run), RPC_UNARY, RPC_ADMIN, .begin = resume_begin},
    {RPC_PATH_ADMIN(stop_run), RPC_UNARY, RPC_ADMIN, .begin = stop_begin},
    {RPC_PATH_ADMIN(set_run), RPC_UNARY, RPC_ADMIN, .begin = set_begin},
    {RPC_PATH_ADMIN(add_member), RPC_UNARY, RPC_ADMIN, .begin = add_member_begin},
    {RPC_PATH_ADMIN(drop_member), RPC_UNARY, RPC_ADMIN, .begin = drop_member_begin},
    {RPC_PATH_ADMIN(drop_update), RPC_UNARY, RPC_ADMIN, .begin = drop_update_begin},
};
const size_t serve_admin_methods = sizeof serve_admin_method / sizeof *serve_admin_method;
