/* Joins a state and a file of factors that belong to it in one file. A state of a method with
 * frozen factors (fed-sb, ffa) holds only the trained ones, because the frozen ones are sent once,
 * by digest. */
#ifndef AGG_STATE_WHOLE_H
#define AGG_STATE_WHOLE_H

#include "base/digest.h"

/* *needed is true if the state at `path` names frozen factors that it does not hold; *digest is
 * then the digest of their file. */
err state_whole_needs(bool *needed, struct digest *digest, const char *path);
/* Writes state and frozen factors as one state to `out` (which may be `state`), whole or not at
 * all. */
err state_whole_write(const char *out, const char *state, const char *frozen,
                      const struct digest *digest);
/* The same with the factors that a member keeps (fedsa), which replace the state's: this member's
 * model. */
err state_whole_write_own(const char *out, const char *state, const char *kept);

#endif
