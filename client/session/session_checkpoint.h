/* Checkpoints within a round: RUN.checkpoint.safetensors in the work directory, one for each run.
 * A member that is started again continues its training from it, with the bytes of a training that
 * was not interrupted. The file is used only if everything that the result depends on is the same:
 * the task, the state, the data, the device, the precision, the privacy and this program's version.
 *
 * In a run with example-level privacy the remaining steps draw their records and noise anew, as
 * they would have without the interruption. Steps after the checkpoint that were lost are done
 * again with other noise; nothing of them has left this machine, and the ledger is charged once,
 * for the update. */
#ifndef CLIENT_SESSION_CHECKPOINT_H
#define CLIENT_SESSION_CHECKPOINT_H

#include "client/session/session_round.h"
#include "engine/train/train_keep.h"

struct session_checkpoint { /* must not move between open and close */
    struct train_keep keep; /* for the trainer */
    struct session *s;
    const Fedlora__V1__TrainTask *task;
    char path[LIMIT_PATH_BYTES], promise[SESSION_WORK_PROMISE];
    bool has_key;
    struct digest key;            /* of all that the result depends on */
    struct train_snapshot resume; /* of the file; its blocks are owned */
    uint64_t last_ms;             /* of the newest checkpoint, or the start */
    double counted;               /* seconds that the time of the day has already */
};
/* Reads the checkpoint of this task, if there is one that can be used; another one is deleted. */
void session_checkpoint_open(struct session_checkpoint *c, struct session *s,
                             const Fedlora__V1__TrainTask *task);
/* Training is done: the file is deleted, and `seconds` of training since the newest checkpoint are
 * counted. */
err session_checkpoint_done(struct session_checkpoint *c, double seconds);
/* Deletes the file of a run. */
void session_checkpoint_drop(const struct session *s, const char *run);
void session_checkpoint_close(struct session_checkpoint *c);

#endif
