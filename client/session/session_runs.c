#include "client/session/session_runs.h"

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
    snprintf(run->result.run, sizeof run->result.run, "%s", hello->run);
    snprintf(run->result.member, sizeof run->result.member, "%s", hello->member);
    run->hello = hello;
    session_runs_use(s, run);
    return ERR_NONE;
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

bool session_runs_any_open(const struct session *s)
{
    for (const struct session_run *run = s->runs; run; run = run->next)
        if (!run->over) return true;
    return false;
}

void session_runs_ask_all(struct session *s)
{
    for (struct session_run *run = s->runs; run; run = run->next)
        run->ask = !run->over;
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
        message_free(run->hello);
        json_decref(run->data);
        free(run);
    }
    s->runs = s->now = NULL;
    s->hello = NULL;
}
