#include "engine/member/member_evaluate.h"

#include "engine/completions.h"

static err evaluate(struct member_evaluation *out, const struct adapter *adapter,
                    const struct member_evaluate *w, struct arena *arena)
{
    struct engine_evaluation loss = {0};
    struct completions done = {0};
    const struct engine_evaluate_options options = {
        .adapter = adapter, .progress = w->progress, .user = w->user};
    const struct completions_task task = {.model = engine_model(w->engine),
                                          .tokenizer = w->tokenizer,
                                          .engine = w->engine,
                                          .adapter = adapter,
                                          .data = w->data,
                                          .progress = w->progress,
                                          .user = w->user};
    TRY(engine_evaluate(&loss, NULL, w->engine, w->data, &options));
    if (w->tokenizer) TRY(completions_measure(&done, &task, arena));
    *out = (struct member_evaluation){.rows = loss.rows, .loss = loss.loss, .accuracy = -1};
    if (done.asked > 0) out->accuracy = (double)done.right / (double)done.asked;
    return ERR_NONE;
}

err member_evaluate(struct member_evaluation *out, const struct member_evaluate *w)
{
    struct member_adapter a = {0};
    struct arena arena = {0};
    TRY(member_adapter_open(&a, &engine_model(w->engine)->arch, w->round));
    err e = evaluate(out, &a.adapter, w, &arena);
    arena_close(&arena);
    member_adapter_close(&a);
    return e;
}
