/* The facts about itself that a member reports in Hello. */
#ifndef CLIENT_SESSION_DESCRIBE_H
#define CLIENT_SESSION_DESCRIBE_H

#include "client/session/session_local.h"

struct session_describe {
    const struct arch *arch;
    const struct digest *base; /* digest of the base model */
    uint32_t rank;             /* that this machine offers; 0: the rank the run asks for */
    uint64_t memory;           /* bytes; 0: not reported */
    uint64_t examples, eval_rows;
    const char *device; /* as --device names it; NULL: auto */
};
void session_describe_of(struct session_describe *out, struct session_local *local);
/* Fills in the message, which points into `about` and the arena. */
err session_describe(Fedlora__V1__HelloRequest *out, const struct session_describe *about,
                     struct arena *arena);
/* All modules of a base that could be adapted, with their shapes, in the arena. */
err session_describe_modules(Fedlora__V1__ModuleShape ***out, size_t *count,
                             const struct arch *arch, struct arena *arena);
/* Upper bounds in bytes of a state, or of frozen factors, for this base and a member's rank. */
struct session_sizes {
    uint64_t header, file;
};
void session_describe_sizes(struct session_sizes *out, const struct arch *arch, uint32_t rank);

#endif
