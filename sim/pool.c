#include "sim/pool.h"

#include "base/stop.h"

#include <errno.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* The state of a round is opened once by each worker, because an engine packs its carry. */
struct worker {
    struct pool *pool;
    pthread_t thread; /* not of the first worker */
    struct engine *engine;
    struct member_state state;
    char state_path[LIMIT_PATH_BYTES]; /* of `state`; "": none is open */
};
struct pool {
    const struct fleet *fleet;
    struct worker *worker;
    size_t workers, threads; /* threads: those that run, at most workers - 1 */
    /* `lock` guards what follows, and the stages of all tasks. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct pool_task *first, **last; /* waiting */
    bool closing;
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

static err do_task(struct worker *w, struct pool_task *t)
{
    struct member_round round = t->round;
    const struct member_train work = {.engine = w->engine,
                                      .data = t->data,
                                      .round = &round,
                                      .training = t->training,
                                      .ledger = t->ledger,
                                      .checkpoint = t->checkpoint,
                                      .on_step = not_stopped};
    if (stop_asked) return err_make(ERR_STOPPED, "interrupted");
    TRY(worker_state(w, &round));
    round.state = &w->state;
    TRY(member_train(&t->result, t->path, &work));
    return pool_describe(t);
}

/* The first task that waits, or NULL. The lock is held. */
static struct pool_task *take(struct pool *p)
{
    struct pool_task *t = p->first;
    if (!t) return NULL;
    p->first = t->next;
    if (!p->first) p->last = &p->first;
    t->stage = POOL_TAKEN;
    return t;
}

/* The lock is held before and after, but not meanwhile. */
static void take_and_do(struct worker *w)
{
    struct pool *p = w->pool;
    struct pool_task *t = take(p);
    pthread_mutex_unlock(&p->lock);
    err e = do_task(w, t);
    pthread_mutex_lock(&p->lock);
    t->error = e;
    t->stage = POOL_DONE;
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
    pthread_mutex_lock(&p->lock);
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
