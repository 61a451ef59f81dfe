/* The factors that a member trains, keeps to itself and never sends (struct method, `keeps`). They
 * lie at kept_path, a file of engine/member/member_file.h. */
#ifndef ENGINE_MEMBER_KEPT_H
#define ENGINE_MEMBER_KEPT_H

#include "engine/member/member_adapter.h"

/* Replaces the state's factors in the adapter by the member's own: those before the round, or after
 * it if the round evaluates. Without a file the state's stay. ERR_INPUT: the file belongs to
 * another run, member or base. Does nothing for methods that keep nothing, or without kept_path. */
err member_kept_take(struct adapter *adapter, const struct member_round *round);
err member_kept_write(const struct member_adapter *a, const struct member_round *round);
err member_kept_undo(const struct member_round *round);

#endif
