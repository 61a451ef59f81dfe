/* AdamW's moments and step count, which a member keeps from round to round if the run asks for it
 * (train.keep_optimizer) and never sends. They lie beside kept_path, in one file of
 * engine/member/member_file.h for each set of factors that train together ("KEPT.optimizer.ab"), so
 * a method that trains B and A in turn keeps both.
 *
 * Moments belong to the tensor of the same module and factor with the same shape. If one trained
 * tensor has none, because a rank has changed, all moments start at zero: AdamW has one step count,
 * and moments of zero at a later step would make steps about three times too large. */
#ifndef ENGINE_MEMBER_OPTIMIZER_H
#define ENGINE_MEMBER_OPTIMIZER_H

#include "engine/member/member_adapter.h"
#include "engine/train/train.h"

/* The moments before the round, in memory of the arena. ERR_INPUT: the file belongs to another run,
 * member or base. */
err member_optimizer_take(struct train_moments *out, struct arena *arena,
                          const struct adapter *adapter, const struct member_round *round);
err member_optimizer_write(const struct train_moments *moments, const struct adapter *adapter,
                           const struct member_round *round);
err member_optimizer_undo(unsigned trains, const struct member_round *round);
/* Deletes all files of a run. */
void member_optimizer_drop(const char *kept_path);

#endif
