#include "sim/pool.h"

#include "base/stop.h"

#include <errno.h>
#include <omp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* The state of a round is opened once by each worker, because an engine packs its carry. */
struct worker {
    struct pool *pool;
    struct engine *engine;
    struct member_state state;
    char state_path[LIMIT_PATH_BYTES]; /* of `state`; "": none is open */
};
struct pool {
    const struct fleet *fleet;
    struct worker *worker;
    size_t workers;
    struct pool_task *const *task;
    size_t tasks;
    atomic_size_t next;
};

void pool_close(struct pool *p)
{
    if (!p) return;
    for (size_t i = p->workers; i-- > 0;) { /* the owner of the weights is the first */
        member_state_close(&p->worker[i].state);
        engine_close(p->worker[i].engine);
    }
    free(p->worker);
    free(p);
}

err pool_open(struct pool **out, const struct fleet *fleet, const struct pool_options *o)
{
    struct pool *p = calloc(1, sizeof *p);
    struct engine_options engine = o->engine;
    if (!p || !(p->worker = calloc(o->workers, sizeof *p->worker))) {
        free(p);
        return err_sys(ENOMEM, "workers");
    }
    p->fleet = fleet;
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

static err do_task(struct worker *w, struct pool_task *t)
{
    struct stat st;
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
    if (stat(t->path, &st) != 0) return err_sys(errno, "%s", t->path);
    t->size = (uint64_t)st.st_size;
    return digest_of_file(&t->digest, t->path);
}

/* Loops inside an operation use one thread when there are several workers. */
static void *work(void *argument)
{
    struct worker *w = argument;
    struct pool *p = w->pool;
    if (p->workers > 1) omp_set_num_threads(1);
    for (size_t i; (i = atomic_fetch_add(&p->next, 1)) < p->tasks;)
        p->task[i]->error = do_task(w, p->task[i]);
    return NULL;
}

uint64_t pool_tokens(const struct training_options *t, const struct dataset *data)
{
    return fleet_task_tokens(t, 0, data->count, data->tokens);
}

/* If a thread cannot be started, the caller does its tasks. */
void pool_train(struct pool *p, struct pool_task *const *task, size_t count)
{
    pthread_t *thread = calloc(p->workers, sizeof *thread);
    size_t started = 0;
    p->task = task;
    p->tasks = count;
    atomic_store(&p->next, 0);
    for (size_t i = 1; thread && i < p->workers && i < count; i++)
        if (!pthread_create(&thread[started], NULL, work, &p->worker[i])) started++;
    int threads = omp_get_max_threads();
    work(&p->worker[0]);
    omp_set_num_threads(threads);
    for (size_t i = 0; i < started; i++)
        pthread_join(thread[i], NULL);
    free(thread);
}

static bool goes_on(void *user, size_t done, size_t rows)
{
    (void)user, (void)done, (void)rows;
    return !stop_asked;
}

err pool_evaluate(struct member_evaluation *out, struct pool *p, const struct member_round *round,
                  size_t rows)
{
    struct worker *w = &p->worker[0];
    struct dataset some = p->fleet->test;
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
