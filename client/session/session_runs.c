#include "client/session/session_runs.h"

#include "base/text.h"
#include "proto/message.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct session_run *session_runs_find(const struct session *s, const char *name)
{
    struct session_run *run = s->runs;
    while (run && strcmp(run->name, name) != 0)
        run = run->next;
    return run;
}

/* At the end of the list, so that runs are asked in the order in which they were joined. */
static err append(struct session_run **out, struct session *s, const char *name)
{
    struct session_run *run = calloc(1, sizeof *run), **last = &s->runs;
    if (!run) return err_sys(ENOMEM, "run %s", name);
    snprintf(run->name, sizeof run->name, "%s", name);
    while (*last)
        last = &(*last)->next;
    *last = run;
    *out = run;
    return ERR_NONE;
}

/* The run owns `hello` from here on. A failed append leaves it with the caller. */
err session_runs_add(struct session *s, Fedlora__V1__HelloReply *hello)
{
    struct session_run *run = NULL;
    TRY(append(&run, s, hello->run));
    session_runs_renew(run, hello);
    session_runs_use(s, run);
    return ERR_NONE;
}

void session_runs_renew(struct session_run *run, Fedlora__V1__HelloReply *hello)
{
    snprintf(run->result.run, sizeof run->result.run, "%s", hello->run);
    snprintf(run->result.member, sizeof run->result.member, "%s", hello->member);
    message_free(run->hello);
    run->hello = hello;
    run->over = run->left = false;
}

/* Keeps the name of a run that refuses this member, so that the next Hello asks for other runs. */
err session_runs_add_left(struct session *s, const char *name)
{
    struct session_run *run = NULL;
    TRY(append(&run, s, name));
    run->over = run->left = true;
    return ERR_NONE;
}

/* The session points into the current run, so that code for one run need not know of the others.
 * These pointers must change together. */
void session_runs_use(struct session *s, struct session_run *run)
{
    s->now = run;
    s->hello = run->hello;
    s->privacy = &run->privacy;
    s->result = &run->result;
}

void session_runs_leave(struct session *s, struct session_run *run)
{
    unsigned doubled = run->times_left < 6 ? run->times_left : 6;
    uint64_t pause = (uint64_t)SESSION_RUNS_AGAIN_MS << doubled;
    run->over = run->left = true;
    run->again_ms =
        text_now_ms() + (pause < SESSION_RUNS_AGAIN_MOST_MS ? pause : SESSION_RUNS_AGAIN_MOST_MS);
    if (s->o->stay) run->times_left++;
}

static void free_run(struct session_run *run)
{
    message_free(run->hello);
    json_decref(run->data);
    free(run);
}

/* A freed run may be the one that other members point to. A new run at the same address would else
 * be taken for it. */
void session_runs_forget(struct session *s)
{
    uint64_t now = text_now_ms();
    if (!s->o->stay) return;
    for (struct session_run **at = &s->runs, *run; (run = *at);) {
        if (run->left && !run->waits && now >= run->again_ms) run->left = false;
        bool may_come = run->times_left && now < run->again_ms + SESSION_RUNS_FORGET_MS;
        bool keeps = !run->over || run->left || may_come;
        if (keeps) {
            at = &run->next;
            continue;
        }
        *at = run->next;
        if (s->prepared == run) s->prepared = NULL;
        if (s->last == run) s->last = NULL;
        if (s->now == run) {
            s->now = NULL;
            s->hello = NULL;
        }
        free_run(run);
    }
}

bool session_runs_any_open(const struct session *s)
{
    for (const struct session_run *run = s->runs; run; run = run->next)
        if (!run->over) return true;
    return false;
}

void session_runs_ask_all(struct session *s)
{
    for (struct session_run *run = s->runs; run; run = run->next) {
        run->ask = !run->over;
        run->held_told_ms = 0; /* a coordinator that was started again does not know it */
    }
}

/* All-zero digests name no file, so they need no special case. */
void session_runs_drop_blobs(struct session *s, const struct digest *state,
                             const struct digest *frozen)
{
    struct digest keep[2 * LIMIT_RUNS];
    static const struct digest none;
    size_t count = 0;
    s->now->blob[0] = state ? *state : none;
    s->now->blob[1] = frozen ? *frozen : none;
    for (const struct session_run *run = s->runs; run && count + 2 <= 2 * LIMIT_RUNS;
         run = run->next)
        for (size_t i = 0; i < 2 && !run->over; i++)
            keep[count++] = run->blob[i];
    session_work_drop_blobs(&s->work, keep, count);
}

/* The coordinator takes no longer list. A run that does not fit into it is offered again, and fails
 * again. */
char **session_runs_left(size_t *count, struct session *s)
{
    *count = 0;
    for (struct session_run *run = s->runs; run && *count < SESSION_LEFT_MAX; run = run->next)
        if (run->left) s->left[(*count)++] = run->name;
    return s->left;
}

void session_runs_close(struct session *s)
{
    for (struct session_run *run = s->runs, *next; run; run = next) {
        next = run->next;
        free_run(run);
    }
    s->runs = s->now = NULL;
    s->hello = NULL;
}
