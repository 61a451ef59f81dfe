/* The coordinator's messages as the plain structs that engine/member reads. */
#ifndef CLIENT_SESSION_TASK_H
#define CLIENT_SESSION_TASK_H

#include "engine/member/member_options.h"

#include "fedlora.pb-c.h"

/* The run's options of local training: defaults filled in, ranges checked. */
err session_task_training(struct training_options *out, const Fedlora__V1__Training *from);
/* The run's name in files and random draws: that of the run it continues, or its own. */
const char *session_task_origin(const Fedlora__V1__HelloReply *hello);
/* The round of a training task. The caller adds base, state_path, frozen_path and frozen_digest. */
err session_task_round(struct member_round *out, const Fedlora__V1__HelloReply *hello,
                       const Fedlora__V1__TrainTask *task);

#endif
