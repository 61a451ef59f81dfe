/* One member's work in one round: train, or take a gradient, from the round's state and write the
 * update file. There is no network in it, so `fedlora join`, the simulator and the benchmarks call
 * the same function. */
#ifndef ENGINE_MEMBER_TRAIN_H
#define ENGINE_MEMBER_TRAIN_H

#include "engine/member/member_options.h"

struct member_train {
    struct engine *engine;
    const struct dataset *data;
    const struct member_round *round;
    const struct training_options *training;
    const struct train_ledger *ledger; /* example-level privacy, planned and asked; NULL: none */
    bool checkpoint;                   /* recompute activations: less memory, slower */
    /* Called after every step; false stops with ERR_STOPPED. A gradient pass has no steps. */
    bool (*on_step)(void *user, const struct train_step *step);
    void *user;
    const struct train_keep *keep; /* snapshots of the training (engine/train/train_keep.h) */
};
/* Writes the update to `path`, replacing what is there. The same inputs give the same bytes. */
err member_train(struct train_result *out, const char *path, const struct member_train *work);
/* The files that the member keeps are as if the round had not been trained: a simulated member's
 * update was lost, and whether it was trained before that was known must not matter. */
err member_train_undo(const struct member_round *round);

/* One of several members that train over one engine. */
struct member_job {
    const struct member_train *work; /* all have the same engine */
    const char *path;                /* of the update */
    struct train_result result;      /* out */
    err error;                       /* out */
    bool shared;                     /* out: it has trained in passes with other members */
};
/* As member_train() for each of them, with the same bytes. Small trainings share passes over the
 * base, and the error of one member does not touch the others. */
void member_train_many(struct member_job *job, size_t count);
/* Tokens of a pass of this member, on average; 0: it shares passes with no other member, as when
 * two like it do not fit into one. */
size_t member_train_tokens(const struct member_train *work);

#endif
