/* Runs that are archived and deleted, by operators and by the rules of the configuration, and the
 * sweeps that remove files and rows after it (coordinator/work/keep.h). */
#include "base/text.h"
#include "coordinator/serve/serve.h"
#include "coordinator/work/keep.h"
#include "proto/message.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    RETAIN_FIRST_MS = 60 * 1000, /* after the start */
    RETAIN_MS = 60 * 60 * 1000,
    RETAIN_LEAST_MS = 1000,
    RETAIN_PARTS = 24, /* of store.keep_finished: sweeps in that time, if it is short */
    RETAIN_RUNS = 8,   /* archived in one turn, a flush of the disk each */
};

/* ---- sweeps ---- */

/* The trouble is about no run, because a sweep goes over all of them. The next sweep that works
 * ends it. */
static void swept(struct work_job *job)
{
    struct keep_job *k = (struct keep_job *)(void *)job;
    struct serve *s = k->owner;
    uint64_t now = text_now_ms();
    s->sweeping = false;
    if (err_is(job->result) && job->result.kind != ERR_STOPPED) {
        const struct trouble_case c = {.kind = TROUBLE_WORK_WAITS, .text = job->result.text};
        trouble_raise(s->shop.troubles, &c, now);
        trouble_of_disk(s->shop.troubles, job->result, now);
    } else if (!err_is(job->result)) {
        trouble_end(s->shop.troubles, TROUBLE_WORK_WAITS, NULL, NULL, now);
    }
    free(k);
}

/* Free pages are given back while nothing else waits for the disk. */
static err begin_sweep(struct serve *s)
{
    const struct config *c = s->config;
    uint64_t wall = text_wall_ms();
    struct keep_job *k = calloc(1, sizeof *k);
    if (!k) return err_sys(ENOMEM, "a sweep of the store");
    k->job.done = swept;
    k->owner = s;
    k->shrinks = s->promised == 0;
    if (c->keep_events_ms && c->keep_events_ms < wall)
        k->events_before_ms = wall - c->keep_events_ms;
    if (c->archive) snprintf(k->archive, sizeof k->archive, "%s", c->archive);
    err e = work_push(s->shop.keeper, &k->job);
    if (err_is(e))
        free(k);
    else
        s->sweeping = true;
    return e;
}

/* After an order of an operator, who looks at the disk next. */
static void sweep_soon(struct serve *s)
{
    s->watch.next_keep_ms = text_now_ms();
}

/* A test, or an operator with little disk, may keep finished runs for minutes only. */
static uint64_t period(const struct config *c)
{
    uint64_t part = c->keep_finished_ms / RETAIN_PARTS;
    if (!part || part > RETAIN_MS) return RETAIN_MS;
    return part < RETAIN_LEAST_MS ? RETAIN_LEAST_MS : part;
}

/* The rules act in the name of the coordinator, not of the operator who called last. */
void serve_retain_turn(struct serve *s, uint64_t now)
{
    size_t archived = 0;
    uint64_t wall = text_wall_ms(), every = period(s->config);
    s->shop.by[0] = 0;
    for (struct run *run = s->runs; run && archived < RETAIN_RUNS; run = run->next) {
        if (!run_is_due(run, wall)) continue;
        err e = run_archive(run);
        if (err_is(e)) trouble_of_disk(s->shop.troubles, e, now);
        if (err_is(e)) break;
        AUDIT(s->shop.audit, NULL, "run.archived", run->config->name, "ok",
              LOG_STR("detail", "store.keep_finished"));
        archived++;
    }
    if (archived) sweep_soon(s);
    if (!s->watch.next_keep_ms)
        s->watch.next_keep_ms = now + (every < RETAIN_FIRST_MS ? every : RETAIN_FIRST_MS);
    if (s->sweeping || now < s->watch.next_keep_ms) return;
    s->watch.next_keep_ms = now + every;
    err e = begin_sweep(s);
    (void)e; /* the next period tries again */
}

/* ---- calls ---- */

/* An action that the audit log could not record is refused before it is done. */
static err find(struct run **out, struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__RunName *request = NULL;
    TRY(message_unpack(&request, &fedlora__v1__run_name__descriptor, data, size));
    err e = serve_named(out, call, request->run);
    if (!err_is(e)) e = serve_audit_ready(call);
    message_free(request);
    return e;
}

static void archive_begin(struct rpc_call *call, const void *data, size_t size)
{
    struct run *run = NULL;
    err e = find(&run, call, data, size);
    if (!err_is(e)) e = run_archive(run);
    if (run) serve_audit_act(call, "run.archived", run->config->name, NULL, e);
    if (err_is(e)) {
        serve_refuse(call, e);
        return;
    }
    sweep_soon(serve_of(call));
    serve_answer_run(call, run);
}

/* The list forgets the run; calls that are under way may still point to it. */
static void bury(struct serve *s, struct run *run)
{
    struct run **link = &s->runs;
    while (*link != run)
        link = &(*link)->next;
    *link = run->next;
    s->run_count--;
    run->next = s->deleted;
    s->deleted = run;
}

/* The answer is made by hand, because the store has no rows to fill a whole status from any
 * more. */
static void delete_begin(struct rpc_call *call, const void *data, size_t size)
{
    struct run *run = NULL;
    struct serve *s = serve_of(call);
    Fedlora__V1__RunStatus status = FEDLORA__V1__RUN_STATUS__INIT;
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    err e = find(&run, call, data, size);
    if (!err_is(e)) e = run_delete(run);
    if (run) serve_audit_act(call, "run.deleted", run->config->name, NULL, e);
    if (err_is(e)) {
        serve_refuse(call, e);
        return;
    }
    bury(s, run);
    sweep_soon(s);
    config.name = run->config->name;
    config.method = run->config->method;
    config.rounds = run->config->rounds;
    status.config = &config;
    status.phase = (char *)(uintptr_t)run_phase_name(run);
    status.round = run->round.published;
    status.id = (uint32_t)run->id;
    serve_answer(call, &status.base);
}

const struct rpc_method serve_retain_method[] = {
    {RPC_PATH_ADMIN(archive_run), RPC_UNARY, RPC_ADMIN, .begin = archive_begin},
    {RPC_PATH_ADMIN(delete_run), RPC_UNARY, RPC_ADMIN, .begin = delete_begin},
};
const size_t serve_retain_methods = sizeof serve_retain_method / sizeof *serve_retain_method;
