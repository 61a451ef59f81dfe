#include "engine/member/member_train.h"

#include "agg/round/method.h"
#include "engine/member/member_kept.h"
#include "engine/member/member_optimizer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The members of a call, and the trainings without privacy among them. */
struct work {
    struct member_job *job;
    struct member_adapter adapter;
    struct train_options options;
    struct train_moments moments; /* with keep_optimizer; in the arena */
    struct arena arena;
    bool trains; /* in train_many() */
};

/* The mean of the clipped gradients of all records, with noise. */
static err find_private_gradient(struct train_result *out, struct adapter *adapter,
                                 const struct member_train *w)
{
    struct train_options options = {0};
    struct train_private_options private;
    TRY(member_options_train(&options, w->training, w->round));
    options.checkpoint = w->checkpoint;
    TRY(member_options_private(&private, w->ledger, &options, w->round));
    out->values = adapter->value_count;
    return train_private_gradient(adapter->value, adapter, w->engine, w->data, &private);
}

/* The gradient is written over adapter->value, in the same layout. */
static err find_gradient(struct train_result *out, struct adapter *adapter,
                         const struct member_train *w)
{
    struct train_gradient_options options = {0};
    struct train_gradient gradient = {0};
    struct arena arena = {0};
    if (w->ledger) return find_private_gradient(out, adapter, w);
    TRY(member_options_gradient(&options, w->training, w->round));
    options.checkpoint = w->checkpoint;
    err e = arena_take(&gradient.value, &arena, adapter->value_count, sizeof *gradient.value);
    if (!err_is(e)) e = train_gradient_run(&gradient, adapter, w->engine, w->data, &options);
    if (!err_is(e)) {
        memcpy(adapter->value, gradient.value, adapter->value_count * sizeof *adapter->value);
        out->mean_loss = gradient.loss;
        out->learned = gradient.learned;
    }
    arena_close(&arena);
    return e;
}

/* Kept moments are refused with a ledger here too, because the coordinator is not trusted with the
 * member's privacy: moments of a round that was trained but never charged would enter later
 * updates. */
static err take_optimizer(struct work *work)
{
    const struct member_train *w = work->job->work;
    if (!w->training->keep_optimizer || !w->round->kept_path) return ERR_NONE;
    if (w->ledger)
        return err_make(ERR_INPUT, "the run keeps the members' optimizer (keep_optimizer), which "
                                   "example-level privacy does not allow");
    work->options.moments = &work->moments;
    return member_optimizer_take(&work->moments, &work->arena, &work->adapter.adapter, w->round);
}

static err open_one(struct work *work, size_t place)
{
    const struct member_train *w = work->job->work;
    struct member_state *state = w->round->state;
    struct train_options *o = &work->options;
    TRY(member_adapter_open(&work->adapter, &engine_model(w->engine)->arch, w->round));
    if (w->round->gradient) return ERR_NONE;
    TRY(member_options_train(o, w->training, w->round));
    o->checkpoint = w->checkpoint;
    o->on_step = w->on_step;
    o->user = w->user;
    o->keep = w->keep;
    if (state && place < MEMBER_STATE_PACKED) o->packed = &state->packed[place];
    TRY(take_optimizer(work));
    work->trains = !w->ledger;
    return ERR_NONE;
}

/* Members with privacy and gradients without an optimizer. */
static err train_alone(struct train_result *out, struct work *work)
{
    const struct member_train *w = work->job->work;
    struct train_private_options private;
    if (w->round->gradient) return find_gradient(out, &work->adapter.adapter, w);
    TRY(member_options_private(&private, w->ledger, &work->options, w->round));
    return train_private_run(out, &work->adapter.adapter, w->engine, w->data, &private);
}

static err train_together(struct work *work, size_t count)
{
    struct train_job *train = calloc(count, sizeof *train);
    size_t n = 0;
    if (!train) return err_sys(ENOMEM, "training");
    for (size_t i = 0; i < count; i++)
        if (work[i].trains)
            train[n++] = (struct train_job){.adapter = &work[i].adapter.adapter,
                                            .data = work[i].job->work->data,
                                            .options = &work[i].options};
    if (n) train_many(train, n, work[0].job->work->engine);
    n = 0;
    for (size_t i = 0; i < count; i++) {
        if (!work[i].trains) continue;
        work[i].job->result = train[n].result;
        work[i].job->shared = train[n].shared > 0;
        work[i].job->error = train[n++].error;
    }
    free(train);
    return ERR_NONE;
}

static err write_update(const struct work *work)
{
    const struct member_round *round = work->job->work->round;
    uint32_t rank = 0;
    if (!round->gradient && round->prune_lambda > 0)
        rank = train_pruned_rank(round->rank, round->prune_gamma, &work->job->result);
    if (work->options.moments)
        TRY(member_optimizer_write(&work->moments, &work->adapter.adapter, round));
    TRY(member_adapter_write(work->job->path, &work->adapter, round, rank));
    return member_kept_write(&work->adapter, round);
}

void member_train_many(struct member_job *job, size_t count)
{
    struct work *work = calloc(count, sizeof *work);
    err e = work ? ERR_NONE : err_sys(ENOMEM, "training");
    for (size_t i = 0; i < count; i++) {
        job[i].shared = false;
        job[i].result = (struct train_result){0};
        if (work) work[i].job = &job[i];
        job[i].error = err_is(e) ? e : open_one(&work[i], i);
    }
    if (!err_is(e)) e = train_together(work, count);
    for (size_t i = 0; work && i < count; i++) {
        err *one = &job[i].error;
        if (err_is(e)) *one = e;
        if (!err_is(*one) && !work[i].trains) *one = train_alone(&job[i].result, &work[i]);
        if (!err_is(*one)) *one = write_update(&work[i]);
        member_adapter_close(&work[i].adapter);
        arena_close(&work[i].arena);
    }
    free(work);
}

err member_train(struct train_result *out, const char *path, const struct member_train *w)
{
    struct member_job job = {.work = w, .path = path};
    member_train_many(&job, 1);
    if (!err_is(job.error)) *out = job.result;
    return job.error;
}

size_t member_train_tokens(const struct member_train *w)
{
    struct train_options o = {0};
    train_set(&o, w->training);
    size_t tokens = train_tokens(w->data, &o);
    if (w->ledger || w->round->gradient || tokens > BACKEND_ROWS / 2) return 0;
    return train_fills(w->engine, &o) ? tokens : 0;
}

err member_train_undo(const struct member_round *round)
{
    const struct method *method = method_find(round->method);
    if (!method || !round->kept_path) return ERR_NONE;
    TRY(member_kept_undo(round));
    return member_optimizer_undo(round->trains | method->keeps, round);
}
