#include "sim/pool.h"

#include "base/stop.h"

#include <errno.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Tasks that a worker trains together, and the memory of their factors, gradients and moments. */
enum { TOGETHER = MEMBER_STATE_PACKED, TOGETHER_BYTES = 512 << 20 };

struct together {
    struct pool_task *task;
    struct member_round round;
    struct member_train work;
};
/* The state of a round is opened once by each worker, because an engine packs its carry. */
struct worker {
    struct pool *pool;
    pthread_t thread; /* not of the first worker */
    struct engine *engine;
    struct member_state state;
    char state_path[LIMIT_PATH_BYTES]; /* of `state`; "": none is open */
    struct together with[TOGETHER];    /* the tasks that it trains */
    struct member_job job[TOGETHER];
    size_t count;
};
struct pool {
    const struct fleet *fleet;
    struct worker *worker;
    size_t workers, threads; /* threads: those that run, at most workers - 1 */
    /* `lock` guards what follows, and the stages of all tasks. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct pool_task *first, **last; /* waiting */
    size_t waiting;                  /* their number */
    size_t shared;                   /* tasks that were trained in passes with others */
    bool closing;
    bool alone; /* pool_options.alone */
};

void pool_close(struct pool *p)
{
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->closing = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    for (size_t i = 1; i <= p->threads; i++)
        pthread_join(p->worker[i].thread, NULL);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    for (size_t i = p->workers; i-- > 0;) { /* the owner of the weights is the first */
        member_state_close(&p->worker[i].state);
        engine_close(p->worker[i].engine);
    }
    free(p->worker);
    free(p);
}

static void *work(void *argument);

err pool_open(struct pool **out, const struct fleet *fleet, const struct pool_options *o)
{
    struct pool *p = calloc(1, sizeof *p);
    struct engine_options engine = o->engine;
    if (!p || !(p->worker = calloc(o->workers, sizeof *p->worker))) {
        free(p);
        return err_sys(ENOMEM, "workers");
    }
    p->fleet = fleet;
    p->alone = o->alone;
    p->last = &p->first;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    if (o->workers > 1) engine.threads = 1;
    err e = ERR_NONE;
    for (size_t i = 0; i < o->workers && !err_is(e); i++) {
        struct worker *w = &p->worker[i];
        w->pool = p;
        e = i ? engine_share(&w->engine, p->worker[0].engine, 1)
              : engine_open(&w->engine, &fleet->model, &engine);
        if (!err_is(e)) p->workers++;
    }
    if (!err_is(e)) model_drop_pages(&fleet->model);
    /* If a thread cannot be started, the others do its tasks. */
    for (size_t i = 1; i < o->workers && !err_is(e); i++, p->threads++)
        if (pthread_create(&p->worker[i].thread, NULL, work, &p->worker[i])) break;
    if (err_is(e))
        pool_close(p);
    else
        *out = p;
    return e;
}

static err worker_state(struct worker *w, const struct member_round *round)
{
    if (!strcmp(w->state_path, round->state_path)) return ERR_NONE;
    member_state_close(&w->state);
    w->state_path[0] = 0;
    TRY(member_state_open(&w->state, round));
    snprintf(w->state_path, sizeof w->state_path, "%s", round->state_path);
    return ERR_NONE;
}

static bool not_stopped(void *user, const struct train_step *step)
{
    (void)user, (void)step;
    return !stop_asked;
}

err pool_describe(struct pool_task *t)
{
    struct stat st;
    if (stat(t->path, &st) != 0) return err_sys(errno, "%s", t->path);
    t->size = (uint64_t)st.st_size;
    return digest_of_file(&t->digest, t->path);
}

/* Trains the first task of the worker, and those beside it. */
static void do_tasks(struct worker *w)
{
    for (size_t i = 0; i < w->count; i++) {
        struct together *t = &w->with[i];
        t->round.state = &w->state;
        t->work = (struct member_train){.engine = w->engine,
                                        .data = t->task->data,
                                        .round = &t->round,
                                        .training = t->task->training,
                                        .ledger = t->task->ledger,
                                        .checkpoint = t->task->checkpoint,
                                        .on_step = not_stopped};
        w->job[i] = (struct member_job){.work = &t->work, .path = t->task->path};
    }
    member_train_many(w->job, w->count);
    for (size_t i = 0; i < w->count; i++) {
        struct pool_task *t = w->with[i].task;
        t->error = w->job[i].error;
        if (err_is(t->error)) continue;
        t->result = w->job[i].result;
        t->error = pool_describe(t);
    }
}

/* A waiting task becomes one of the worker's. The lock is held. */
static void take(struct worker *w, struct pool_task **link)
{
    struct pool *p = w->pool;
    struct pool_task *t = *link;
    *link = t->next;
    if (!*link) p->last = link;
    p->waiting--;
    t->stage = POOL_TAKEN;
    w->with[w->count].round = t->round;
    w->with[w->count++].task = t;
}

/* Takes tasks that fill the passes of the worker's first one: those of the same state, but no more
 * than leave an equal part of all that wait to the other workers. The lock is held. */
static void take_more(struct worker *w)
{
    enum { LOOKED_AT = 4 * TOGETHER };
    struct pool *p = w->pool;
    const struct pool_task *first = w->with[0].task;
    size_t tokens = first->tokens, workers = p->threads + 1;
    uint64_t room = TOGETHER_BYTES / member_state_bytes(&w->state, first->round.rank);
    size_t most = (p->waiting + workers) / workers; /* with the first one, rounded up */
    if (most > TOGETHER) most = TOGETHER;
    if (most > room) most = (size_t)room;
    if (!tokens || p->alone) return;
    struct pool_task **link = &p->first;
    for (size_t i = 0; *link && i < LOOKED_AT && w->count < most; i++) {
        struct pool_task *t = *link;
        if (t->tokens && tokens + t->tokens <= BACKEND_ROWS &&
            !strcmp(t->round.state_path, first->round.state_path)) {
            tokens += t->tokens;
            take(w, link);
        } else {
            link = &t->next;
        }
    }
}

/* The lock is held before and after, but not meanwhile. */
static void take_and_do(struct worker *w)
{
    struct pool *p = w->pool;
    w->count = 0;
    take(w, &p->first);
    pthread_mutex_unlock(&p->lock);
    err e = stop_asked ? err_make(ERR_STOPPED, "interrupted") : worker_state(w, &w->with[0].round);
    if (!err_is(e)) {
        pthread_mutex_lock(&p->lock);
        take_more(w);
        pthread_mutex_unlock(&p->lock);
        do_tasks(w);
    } else {
        w->with[0].task->error = e;
    }
    pthread_mutex_lock(&p->lock);
    for (size_t i = 0; i < w->count; i++) {
        w->with[i].task->stage = POOL_DONE;
        p->shared += !err_is(e) && w->job[i].shared;
    }
    pthread_cond_broadcast(&p->changed);
}

/* Loops inside an operation use one thread when there are several workers. */
static void *work(void *argument)
{
    struct worker *w = argument;
    struct pool *p = w->pool;
    omp_set_num_threads(1);
    pthread_mutex_lock(&p->lock);
    while (!p->closing) {
        if (p->first)
            take_and_do(w);
        else
            pthread_cond_wait(&p->changed, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

void pool_start(struct pool *p, struct pool_task *const *task, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct member_train work = {.engine = p->worker[0].engine,
                                          .data = task[i]->data,
                                          .round = &task[i]->round,
                                          .training = task[i]->training,
                                          .ledger = task[i]->ledger};
        task[i]->tokens = member_train_tokens(&work);
    }
    pthread_mutex_lock(&p->lock);
    p->waiting += count;
    for (size_t i = 0; i < count; i++) {
        task[i]->stage = POOL_WAITING;
        task[i]->next = NULL;
        *p->last = task[i];
        p->last = &task[i]->next;
    }
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

bool pool_idle(struct pool *p)
{
    pthread_mutex_lock(&p->lock);
    bool idle = p->threads && !p->first;
    pthread_mutex_unlock(&p->lock);
    return idle;
}

size_t pool_shared(struct pool *p)
{
    pthread_mutex_lock(&p->lock);
    size_t shared = p->shared;
    pthread_mutex_unlock(&p->lock);
    return shared;
}

/* Trains other tasks while a worker trains this one. */
void pool_wait(struct pool *p, struct pool_task *task)
{
    int threads = omp_get_max_threads();
    if (p->workers > 1) omp_set_num_threads(1);
    pthread_mutex_lock(&p->lock);
    while (task->stage == POOL_WAITING || task->stage == POOL_TAKEN) {
        if (p->first)
            take_and_do(&p->worker[0]);
        else
            pthread_cond_wait(&p->changed, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    omp_set_num_threads(threads);
}

void pool_drop(struct pool *p, struct pool_task *task)
{
    pthread_mutex_lock(&p->lock);
    struct pool_task **link = &p->first;
    while (*link && *link != task)
        link = &(*link)->next;
    if (*link) {
        *link = task->next;
        if (!*link) p->last = link;
        p->waiting--;
        task->stage = POOL_NEW;
    }
    while (task->stage == POOL_TAKEN)
        pthread_cond_wait(&p->changed, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

void pool_train(struct pool *p, struct pool_task *const *task, size_t count)
{
    pool_start(p, task, count);
    for (size_t i = 0; i < count; i++)
        pool_wait(p, task[i]);
}

static bool goes_on(void *user, size_t done, size_t rows)
{
    (void)user, (void)done, (void)rows;
    return !stop_asked;
}

err pool_evaluate(struct member_evaluation *out, struct pool *p, const struct member_round *round,
                  const struct dataset *data, size_t rows)
{
    struct worker *w = &p->worker[0];
    struct dataset some = *data;
    struct member_round r = *round;
    if (rows && rows < some.count) some.count = rows;
    TRY(worker_state(w, &r));
    r.state = &w->state;
    const struct member_evaluate work_ = {.engine = w->engine,
                                          .tokenizer = p->fleet->tokenizer,
                                          .data = &some,
                                          .round = &r,
                                          .progress = goes_on};
    return member_evaluate(out, &work_);
}
