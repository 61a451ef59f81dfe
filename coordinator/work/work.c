#include "coordinator/work/work.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* A list with a pointer to its last link, so that adding at the end takes no search. */
struct queue {
    struct work_job *first, **last; /* last: the link to which the next job is added */
};

/* `lock` guards the queues, their counts and `closing`. `options` does not change after
 * work_open(), and `store` belongs to the new thread until it has been joined. */
struct work {
    struct work_options options;
    struct store store;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct queue waiting, background, finished;
    size_t waiting_count, background_count;
    bool closing;
};

static void queue_init(struct queue *q)
{
    q->first = NULL;
    q->last = &q->first;
}

static void queue_add(struct queue *q, struct work_job *job)
{
    job->next = NULL;
    *q->last = job;
    q->last = &job->next;
}

static void queue_add_first(struct queue *q, struct work_job *job)
{
    job->next = q->first;
    if (!q->first) q->last = &job->next;
    q->first = job;
}

static struct work_job *queue_take(struct queue *q)
{
    struct work_job *job = q->first;
    if (!job) return NULL;
    q->first = job->next;
    if (!q->first) q->last = &q->first;
    job->next = NULL;
    return job;
}

/* The queue has the first job of each lane, and each of these has the rest of its lane. There are
 * at most as many lanes as runs, so the search is short. */
static void lanes_add(struct queue *q, struct work_job *job)
{
    job->lane_next = NULL;
    job->lane_last = job;
    for (struct work_job *first = q->first; first; first = first->next) {
        if (first->lane != job->lane) continue;
        first->lane_last->lane_next = job;
        first->lane_last = job;
        return;
    }
    queue_add(q, job);
}

/* The next job of this lane waits behind those of all other lanes. */
static struct work_job *lanes_take(struct queue *q)
{
    struct work_job *job = queue_take(q), *next = job ? job->lane_next : NULL;
    if (!next) return job;
    next->lane_last = job->lane_last;
    queue_add(q, next);
    return job;
}

static bool queue_remove(struct queue *q, struct work_job *job)
{
    for (struct work_job **link = &q->first; *link; link = &(*link)->next) {
        if (*link != job) continue;
        *link = job->next;
        if (q->last == &job->next) q->last = link;
        job->next = NULL;
        return true;
    }
    return false;
}

/* A job that costs more than a batch may is a batch of its own. */
static void take_waiting(struct queue *batch, struct work *w)
{
    uint64_t cost = 0, most = w->options.cost_max;
    for (size_t i = 0; i < w->options.batch_max && w->waiting.first; i++) {
        uint64_t more = w->waiting.first->cost;
        if (i && most && (cost >= most || more > most - cost)) break;
        cost += more;
        queue_add(batch, lanes_take(&w->waiting));
        w->waiting_count--;
    }
}

/* Waits for work. A background job is taken only if nothing else waits, and alone, so that a batch
 * can still be served by one flush. NULL when closing, although jobs may still wait: work_close()
 * returns them. */
static struct work_job *take_batch(struct work *w)
{
    struct queue batch;
    queue_init(&batch);
    pthread_mutex_lock(&w->lock);
    while (!w->waiting.first && !w->background.first && !w->closing)
        pthread_cond_wait(&w->changed, &w->lock);
    if (!w->closing) take_waiting(&batch, w);
    if (!batch.first && !w->closing) {
        queue_add(&batch, queue_take(&w->background));
        w->background_count--;
    }
    pthread_mutex_unlock(&w->lock);
    return batch.first;
}

/* A background job that gave way keeps its place before those that have not begun. */
static bool runs_again(struct work *w, struct work_job *job)
{
    if (!job->in_background || job->result.kind != ERR_STOPPED) return false;
    if (w->closing || atomic_load(&job->abandoned)) return false;
    queue_add_first(&w->background, job);
    w->background_count++;
    return true;
}

/* `run` is called without the lock, so that the loop thread can push and take back meanwhile. */
static void run_batch(struct work *w, struct work_job *batch)
{
    w->options.run(batch, &w->store);
    pthread_mutex_lock(&w->lock);
    for (struct work_job *job = batch, *next; job; job = next) {
        next = job->next;
        if (!runs_again(w, job)) queue_add(&w->finished, job);
    }
    pthread_mutex_unlock(&w->lock);
}

static void *work_main(void *argument)
{
    struct work *w = argument;
    for (struct work_job *batch; (batch = take_batch(w));) {
        run_batch(w, batch);
        w->options.wake(w->options.context);
    }
    return NULL;
}

/* The store's connection is opened here but used by the new thread only, so SQLite is told not to
 * lock (SQLITE_OPEN_NOMUTEX). */
err work_open(struct work **out, const struct work_options *options)
{
    REQUIRE(options->queue_max > 0 && options->batch_max > 0);
    struct work *w = calloc(1, sizeof *w);
    if (!w) return err_sys(ENOMEM, "a worker");
    w->options = *options;
    queue_init(&w->waiting);
    queue_init(&w->background);
    queue_init(&w->finished);
    err e = store_open_at(&w->store, &options->place);
    if (!err_is(e)) {
        pthread_mutex_init(&w->lock, NULL);
        pthread_cond_init(&w->changed, NULL);
    }
    if (!err_is(e) && !options->in_caller) {
        int code = pthread_create(&w->thread, NULL, work_main, w);
        if (code) e = err_sys(code, "starting thread %s", options->name);
    }
    if (err_is(e)) {
        store_close(&w->store);
        free(w);
        return e;
    }
    if (!options->in_caller) pthread_setname_np(w->thread, options->name);
    *out = w;
    return ERR_NONE;
}

/* A full queue refuses at once instead of waiting, because the loop thread must not stop, and the
 * peer can come back. */
static err push(struct work *w, struct work_job *job, struct queue *queue, size_t *count)
{
    err e = ERR_NONE;
    pthread_mutex_lock(&w->lock);
    if (w->closing)
        e = err_make(ERR_LIMIT, "the coordinator is stopping; come back later");
    else if (*count >= w->options.queue_max)
        e = err_make(ERR_LIMIT, "the coordinator has %zu jobs waiting; come back later", *count);
    else {
        job->work = w;
        job->in_background = queue == &w->background;
        atomic_store(&job->abandoned, false);
        if (job->in_background)
            queue_add(queue, job);
        else
            lanes_add(queue, job);
        (*count)++;
        pthread_cond_signal(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
    return e;
}

err work_push(struct work *w, struct work_job *job)
{
    return push(w, job, &w->waiting, &w->waiting_count);
}

err work_push_background(struct work *w, struct work_job *job)
{
    return push(w, job, &w->background, &w->background_count);
}

/* A job that has not begun is taken out of its queue. On a worker that is always busy it would
 * otherwise wait there for ever and keep its memory. The flag is atomic, because the job may be
 * running and reads it without the lock. */
void work_abandon(struct work_job *job)
{
    struct work *w = job->work;
    atomic_store(&job->abandoned, true);
    pthread_mutex_lock(&w->lock);
    if (queue_remove(&w->background, job)) {
        w->background_count--;
        job->result = err_make(ERR_STOPPED, "abandoned before it began");
        queue_add(&w->finished, job);
    }
    pthread_mutex_unlock(&w->lock);
}

/* May be called from any thread that the worker uses for its mathematics. */
bool work_gives_way(const struct work_job *job)
{
    struct work *w = job->work;
    if (atomic_load(&job->abandoned)) return true;
    pthread_mutex_lock(&w->lock);
    bool others = w->waiting.first || w->closing;
    pthread_mutex_unlock(&w->lock);
    return others;
}

/* With in_caller: whether there was a batch to do. */
static bool did_batch(struct work *w)
{
    bool waits = w->options.in_caller && !w->closing && (w->waiting.first || w->background.first);
    if (waits) run_batch(w, take_batch(w));
    return waits;
}

/* `done` runs without the lock, because it usually pushes the next job. */
size_t work_take(struct work *w)
{
    size_t count = 0;
    for (;;) {
        pthread_mutex_lock(&w->lock);
        struct work_job *job = queue_take(&w->finished);
        pthread_mutex_unlock(&w->lock);
        if (job) {
            job->done(job);
            count++;
        } else if (!did_batch(w)) {
            return count;
        }
    }
}

/* Jobs that have not begun come back with ERR_STOPPED: for their owner that means "not done",
 * and the next start asks for them again. */
void work_close(struct work *w)
{
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->closing = true;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    if (!w->options.in_caller) pthread_join(w->thread, NULL);
    /* The thread is gone, so the queues need no lock any more. */
    struct work_job *job;
    while ((job = lanes_take(&w->waiting)) || (job = queue_take(&w->background))) {
        job->result = err_make(ERR_STOPPED, "the coordinator is stopping");
        queue_add(&w->finished, job);
    }
    work_take(w);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->changed);
    store_close(&w->store);
    free(w);
}
