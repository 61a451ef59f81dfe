/* The state of a training between two steps, so that a later process continues it: values, AdamW's
 * moments, and sums. Everything else follows from the number of steps, because the order of rows
 * and the masks of dropout are keyed by it. A continued training has the bits of one that was not
 * interrupted, on the same device and with the same data and options.
 *
 * With example-level privacy only released values are in it, and the steps that follow draw records
 * and noise anew, as always: they are not repeated, because no result of a step that was lost has
 * left the process. */
#ifndef ENGINE_TRAIN_KEEP_H
#define ENGINE_TRAIN_KEEP_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct train_snapshot {
    uint64_t steps; /* done */
    uint64_t tokens, learned;
    double seconds, first_loss, last_loss;
    double loss_sum;               /* of the losses of all steps times their learned tokens */
    size_t count;                  /* value_count of the adapter */
    float *value, *first, *second; /* (count) */
};
struct train_keep {
    const struct train_snapshot *resume; /* continue from it; NULL: from the beginning */
    /* Asked after each step, and after the one that on_step() stopped: take a snapshot now? */
    bool (*due)(void *user, bool stopped);
    /* The snapshot is the trainer's, valid until it returns. A failure to store it is no error of
     * the training. */
    void (*take)(void *user, const struct train_snapshot *snapshot);
    void *user;
};

struct training;
/* For trainers, after training_open(). ERR_INPUT: the snapshot is of another training. */
err train_keep_resume(struct training *t);
/* For trainers, after a step: takes a snapshot if it is due. The fields but for count and blocks
 * are those of `so_far`. */
err train_keep_step(struct training *t, const struct train_snapshot *so_far, bool stopped);

#endif
