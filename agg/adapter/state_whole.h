/* A state of a method with frozen factors (fed-sb) holds only what trains; the factors lie in a
 * file of their own, sent once. For whoever wants one file that everything can read, the two become
 * one. */
#ifndef CLIENT_STATE_WHOLE_H
#define CLIENT_STATE_WHOLE_H

#include "base/digest.h"

/* *needed: the state at `path` names frozen factors that it does not hold; then *digest is theirs.
 */
err state_whole_needs(bool *needed, struct digest *digest, const char *path);
/* Writes state and frozen factors as one state to `out` (which may be `state`), whole or not at
 * all. */
err state_whole_write(const char *out, const char *state, const char *frozen,
                      const struct digest *digest);

#endif
