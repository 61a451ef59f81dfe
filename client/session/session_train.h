/* How a task says that a round is to be trained. */
#ifndef CLIENT_SESSION_TRAIN_H
#define CLIENT_SESSION_TRAIN_H

#include "engine/member/member_adapter.h"
#include "engine/train/train.h"
#include "fedlora.pb-c.h"

/* "A", "B", "R" to bits; ERR_INPUT for any other word or none. */
err session_trains(unsigned *out, char *const *word, size_t count);
/* The run's options; zeros and "" where it leaves ours as they are. ERR_INPUT for what cannot be.
 * The order of rows is keyed by the run's seed, run, round and member. */
err session_train_options(struct train_options *out, const Fedlora__V1__Training *training,
                          const struct member_round *round);
/* Which rows a gradient pass sees: as many as a round of training would, the same in every pass of
 * a member, so that the second sketches what the first has seen. */
err session_gradient_options(struct train_gradient_options *out,
                             const Fedlora__V1__Training *training,
                             const struct member_round *round);

#endif
