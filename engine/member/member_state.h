/* A round's state file, opened and checked, with its frozen factors joined. A process with several
 * members opens it once per round and shares it: their adapters use its carry in place, and the
 * carry is packed for the engine once, not once per member. One thread at a time. */
#ifndef ENGINE_MEMBER_STATE_H
#define ENGINE_MEMBER_STATE_H

#include "agg/adapter/adapter_file.h"

struct member_round; /* engine/member/member_adapter.h */
struct factors;      /* engine/factors.h */

/* Members that train together have a place each. */
enum { MEMBER_STATE_PACKED = 64 };
struct member_state {
    struct adapter_file file;   /* borrows from `frozen` where the state needs it */
    struct adapter_file frozen; /* zero: none */
    struct factors *packed[MEMBER_STATE_PACKED]; /* train_options.packed */
};

/* Opens the files of the round. ERR_INPUT: the state belongs to another base or run, or needs
 * frozen factors that the round does not name. */
err member_state_open(struct member_state *out, const struct member_round *round);
/* Bytes of the factors, gradient and moments of a member that trains this rank (0: the rank of the
 * state), and of a packed carry, at most. At least 1. */
uint64_t member_state_bytes(const struct member_state *state, uint32_t rank);
/* Before the engine closes. Accepts a zeroed struct. */
void member_state_close(struct member_state *state);

#endif
