/* Messages of the coordinator to plain structs: client/session/session_task.h. This is the only
 * place where a training task is interpreted, so that engine/member/ does not depend on the
 * protocol. */
#include "client/session/session_task.h"

#include "proto/training_wire.h"

/* A field that an older coordinator does not send keeps its default. Values are checked here: the
 * coordinator is not trusted with this machine's memory and time. */
err session_task_training(struct training_options *out, const Fedlora__V1__Training *from)
{
    training_options_defaults(out);
    err e = training_wire_read(out, from);
    return err_is(e) ? err_in(e, "the run's training options") : e;
}

const char *session_task_origin(const Fedlora__V1__HelloReply *hello)
{
    return hello->origin[0] ? hello->origin : hello->run;
}

/* The strings are borrowed from both messages, which must outlive the round. */
err session_task_round(struct member_round *out, const Fedlora__V1__HelloReply *hello,
                       const Fedlora__V1__TrainTask *task)
{
    *out = (struct member_round){.run = session_task_origin(hello),
                                 .member = hello->member,
                                 .method = hello->method,
                                 .round = task->round,
                                 .rank = task->rank,
                                 .alpha = task->alpha,
                                 .rslora = task->rslora,
                                 .gradient = task->gradient,
                                 .seed = task->training->seed,
                                 .adapts = hello->targets,
                                 .adapts_count = hello->n_targets,
                                 .prox = task->prox,
                                 .prune_gamma = task->prune_gamma,
                                 .prune_lambda = task->prune_lambda};
    return member_options_factors(&out->trains, task->factors, task->n_factors);
}
