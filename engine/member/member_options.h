/* The training options of one member in one round, from the run's options of local training. */
#ifndef ENGINE_MEMBER_OPTIONS_H
#define ENGINE_MEMBER_OPTIONS_H

#include "engine/member/member_adapter.h"
#include "engine/train/train.h"
#include "engine/train/train_ledger.h"

/* "A", "B", "R" to bits; ERR_INPUT for any other name or none. */
err member_options_factors(unsigned *out, char *const *name, size_t count);
/* The run's seed, the run, the member and the round determine the order of rows. ERR_INPUT: an
 * option of the method is out of range, or neither steps nor epochs are given. */
err member_options_train(struct train_options *out, const struct training_options *training,
                         const struct member_round *round);
/* The rows of a gradient pass: as many as a round of training reads. They are the same in every
 * pass of a member, because the second pass must sketch the rows the first has seen. */
err member_options_gradient(struct train_gradient_options *out,
                            const struct training_options *training,
                            const struct member_round *round);
/* Noise, clip norm and sampling of this round under the member's privacy plan. ERR_INPUT: the round
 * is not what the plan has counted. */
err member_options_private(struct train_private_options *out, const struct train_ledger *ledger,
                           const struct train_options *options, const struct member_round *round);

#endif
