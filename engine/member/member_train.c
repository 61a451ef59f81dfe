#include "engine/member/member_train.h"

#include "agg/round/method.h"
#include "engine/member/member_kept.h"
#include "engine/member/member_optimizer.h"

#include <string.h>

static err train_from(struct train_result *out, struct adapter *adapter,
                      const struct member_train *w, struct train_moments *moments)
{
    struct train_options options = {0};
    struct train_private_options private;
    TRY(member_options_train(&options, w->training, w->round));
    options.moments = moments;
    options.checkpoint = w->checkpoint;
    options.on_step = w->on_step;
    options.user = w->user;
    if (w->round->state) options.packed = &w->round->state->packed;
    if (w->ledger == NULL) return train_run(out, adapter, w->engine, w->data, &options);
    TRY(member_options_private(&private, w->ledger, &options, w->round));
    return train_private_run(out, adapter, w->engine, w->data, &private);
}

static err train(struct train_result *out, struct adapter *adapter, const struct member_train *w)
{
    struct train_moments moments = {0};
    struct arena arena = {0};
    if (!w->training->keep_optimizer || !w->round->kept_path)
        return train_from(out, adapter, w, NULL);
    if (w->ledger)
        return err_make(ERR_INPUT, "the run keeps the members' optimizer (keep_optimizer), which "
                                   "example-level privacy does not allow");
    err e = member_optimizer_take(&moments, &arena, adapter, w->round);
    if (!err_is(e)) e = train_from(out, adapter, w, &moments);
    if (!err_is(e)) e = member_optimizer_write(&moments, adapter, w->round);
    arena_close(&arena);
    return e;
}

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

err member_train(struct train_result *out, const char *path, const struct member_train *w)
{
    struct member_adapter a = {0};
    struct train_result result = {0};
    const struct member_round *round = w->round;
    uint32_t rank = 0;
    TRY(member_adapter_open(&a, &engine_model(w->engine)->arch, round));
    err e = round->gradient ? find_gradient(&result, &a.adapter, w) : train(&result, &a.adapter, w);
    if (!round->gradient && round->prune_lambda > 0)
        rank = train_pruned_rank(round->rank, round->prune_gamma, &result);
    if (!err_is(e)) e = member_adapter_write(path, &a, round, rank);
    if (!err_is(e)) e = member_kept_write(&a, round);
    if (!err_is(e)) *out = result;
    member_adapter_close(&a);
    return e;
}

err member_train_undo(const struct member_round *round)
{
    const struct method *method = method_find(round->method);
    if (!method || !round->kept_path) return ERR_NONE;
    TRY(member_kept_undo(round));
    return member_optimizer_undo(round->trains | method->keeps, round);
}
