#include "sim/simulation.h"

#include "base/file.h"
#include "base/list.h"
#include "sim/cost_rounds.h"
#include "sim/flight.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- events ---- */

static int by_time(const void *a, const void *b)
{
    const struct event *x = a, *y = b;
    if (x->at_ms != y->at_ms) return x->at_ms < y->at_ms ? -1 : 1;
    if (x->task.member != y->task.member) return x->task.member < y->task.member ? -1 : 1;
    return x->task.round.round < y->task.round.round ? -1 : 1;
}

/* The events that are over make room for new ones. */
static err add_event(struct simulation *s, const struct event *e)
{
    if (s->events == s->capacity && s->next) {
        memmove(s->event, s->event + s->next, (s->events - s->next) * sizeof *s->event);
        s->events -= s->next;
        s->next = 0;
    }
    TRY(list_grow(&s->event, &s->capacity, s->events + 1, sizeof *s->event));
    s->event[s->events++] = *e;
    return ERR_NONE;
}

/* A member does one task at a time, so a busy one gets its next task when it has finished. */
static err hand_out(struct simulation *s, size_t member)
{
    const struct fleet_member *m = &s->fleet->member[member];
    struct event e = {.from_ms = s->federation.now_ms};
    const Fedlora__V1__RunConfig *config = s->federation.run->config;
    uint32_t vanishes = s->attack.vanishes[member];
    bool has = false;
    if (s->busy[member]) return ERR_NONE;
    if (vanishes && vanishes < round_under_way(&s->federation.run->round)) return ERR_NONE;
    TRY(federation_task(&has, &e.task, &s->federation, member));
    if (!has) return ERR_NONE;
    const struct device_work work = {.member = m->id,
                                     .round = e.task.round.round,
                                     .tokens =
                                         cost_rounds_tokens(config, &s->federation.training, m),
                                     .down_bytes = e.task.down_bytes,
                                     .up_bytes = e.task.up_bytes,
                                     .from_ms = e.from_ms};
    const struct devices *devices = &s->fleet->devices;
    e.at_ms = e.from_ms + device_ms(&e.drops, devices, m->device, &work);
    e.start_ms = device_start_ms(devices, m->device, m->id, e.from_ms);
    if (vanishes == e.task.round.round) e.drops = true;
    if (e.start_ms == e.from_ms) s->now.bytes_down += e.task.down_bytes;
    s->tasks++;
    s->busy[member] = true;
    return add_event(s, &e);
}

static void sort_events(struct simulation *s)
{
    qsort(s->event + s->next, s->events - s->next, sizeof *s->event, by_time);
}

/* Members learn from the answer to a report that their round has closed, and give up what cannot
 * count any more. */
static void give_up(struct simulation *s)
{
    for (size_t i = s->next; i < s->events; i++) {
        struct event *e = &s->event[i];
        if (e->drops || federation_accepts(&s->federation, e->task.member, e->task.round.round))
            continue;
        e->at_ms = s->federation.now_ms;
    }
}

void tasks_close(struct simulation *s, struct event *e)
{
    if (e->done && s->pool) pool_drop(s->pool, e->done);
    free(e->done);
    e->done = NULL;
}

err tasks_forget(struct simulation *s, struct event *e)
{
    if (!e->done) return ERR_NONE;
    pool_drop(s->pool, e->done);
    file_disk.unlink(e->done->path);
    err er = member_train_undo(&e->done->round);
    tasks_close(s, e);
    return er;
}

/* A device that was off has not asked for its task yet, so it gets one of the new round. */
static err take_back(struct simulation *s)
{
    size_t kept = s->next;
    for (size_t i = s->next; i < s->events; i++) {
        struct event *e = &s->event[i];
        if (e->start_ms <= s->federation.now_ms) {
            s->event[kept++] = *e;
            continue;
        }
        TRY(tasks_forget(s, e));
        s->busy[e->task.member] = false;
    }
    s->events = kept;
    return ERR_NONE;
}

err tasks_open_round(struct simulation *s)
{
    uint32_t round = round_under_way(&s->federation.run->round);
    if (s->handed >= round) return ERR_NONE;
    s->tasks = s->answered = 0;
    TRY(take_back(s));
    give_up(s);
    for (size_t i = 0; i < s->fleet->members; i++)
        TRY(hand_out(s, i));
    s->handed = round;
    sort_events(s);
    return ERR_NONE;
}

/* A member that was late may have a task of the round under way. One that has lost its task comes
 * back with the next round. */
err tasks_hand_out_next(struct simulation *s, size_t member)
{
    size_t before = s->events - s->next;
    if (s->handed != round_under_way(&s->federation.run->round)) return ERR_NONE;
    TRY(hand_out(s, member));
    if (s->events - s->next != before) sort_events(s);
    return ERR_NONE;
}

/* ---- an interruption ---- */

/* Called before the line of the round is written, so that a line that is there has its tasks. */
err tasks_save(const struct simulation *s)
{
    const struct flight f = {.published = s->published,
                             .updates_bytes = (uint64_t)ftell(s->results.updates),
                             .item = s->event + s->next,
                             .item_bytes = sizeof *s->event,
                             .count = s->events - s->next};
    return flight_save(s->o->dir, &f);
}

err tasks_load(struct simulation *s)
{
    const struct flight f = {.published = s->published, .item_bytes = sizeof *s->event};
    bool found = false;
    void *event = NULL;
    if (!s->published || !federation_repeats(&s->federation)) return ERR_NONE;
    TRY(flight_load(&found, &event, &s->capacity, s->o->dir, &f));
    if (found) s->event = event;
    return ERR_NONE;
}

void tasks_adopt(struct simulation *s)
{
    for (; s->events < s->capacity; s->events++) {
        struct event *e = &s->event[s->events];
        e->done = NULL;
        federation_adopt(&e->task, &s->federation);
        s->busy[e->task.member] = true;
    }
}

/* ---- training ---- */

/* Whether the update will be accepted when it arrives, as far as that can be known now. */
static bool worth_training(const struct simulation *s, const struct event *e)
{
    const struct round *r = &s->federation.run->round;
    if (e->drops || e->done) return false;
    if (!federation_accepts(&s->federation, e->task.member, e->task.round.round)) return false;
    return r->rules.late_rounds || !r->deadline_at_ms || e->at_ms < r->deadline_at_ms;
}

struct job {
    struct pool_task task;
    struct federation_paths paths;
    char run[LIMIT_NAME_BYTES]; /* a crash of the coordinator frees its own text */
};

static err make_job(struct pool_task **out, struct simulation *s, const struct event *e)
{
    struct job *job = calloc(1, sizeof *job);
    if (!job) return err_sys(ENOMEM, "simulation");
    job->task.data = attack_data(&s->attack, s->fleet, e->task.member);
    job->task.training = &s->federation.training;
    job->task.checkpoint = s->o->checkpoint;
    if (s->federation.privacy) job->task.ledger = &s->federation.privacy[e->task.member].ledger;
    federation_paths(&job->paths, &job->task.round, &s->federation, &e->task);
    snprintf(job->run, sizeof job->run, "%s", job->task.round.run);
    job->task.round.run = job->run;
    err er = federation_upload(job->task.path, &s->federation, e->task.member, e->task.round.round);
    if (err_is(er))
        free(job);
    else
        *out = &job->task; /* the first member of the job */
    return er;
}

/* Starts to train the next event, and some that follow soon and are worth it. If late updates are
 * refused, no more are worth it than the round still waits for. */
static err train_ahead(struct simulation *s)
{
    enum { AHEAD = 16 };
    const struct round *r = &s->federation.run->round;
    size_t most = AHEAD * s->o->pool.workers * (size_t)ranks.count, count = 0, ahead = 0;
    size_t end = s->next + 8 * most < s->events ? s->next + 8 * most : s->events;
    size_t in = round_updates(r), wanted = r->rules.late_rounds ? SIZE_MAX : round_wanted(r);
    struct pool_task **task = calloc(most, sizeof *task);
    err e = task ? ERR_NONE : err_sys(ENOMEM, "simulation");
    for (size_t i = s->next; i < end && count + ahead < most && !err_is(e); i++) {
        if (i > s->next && in + count + ahead >= wanted) break;
        ahead += s->event[i].done != NULL;
        if (s->event[i].done || (i > s->next && !worth_training(s, &s->event[i]))) continue;
        e = make_job(&s->event[i].done, s, &s->event[i]);
        if (!err_is(e)) task[count++] = s->event[i].done;
    }
    if (!err_is(e) && s->farm)
        farm_train(s->farm, s->pool, task, count);
    else if (!err_is(e))
        pool_start(s->pool, task, count);
    free(task);
    return e;
}

/* The other workers get new tasks before they have done all. */
err tasks_train(struct simulation *s, struct event *e)
{
    if (!e->done || (!s->farm && pool_idle(s->pool))) TRY(train_ahead(s));
    const struct pool_task *t = e->done;
    pool_wait(s->pool, e->done);
    return err_is(t->error) ? err_in(t->error, "%s, round %u", t->round.member, t->round.round)
                            : ERR_NONE;
}
