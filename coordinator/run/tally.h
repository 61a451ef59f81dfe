/* Counters of what a coordinator has done since it started, for its metrics (coordinator/http). No
 * decision depends on them, so an event that finds no memory is not counted.
 *
 * They must not show which members a secret draw has drawn, or how many. Owners leave calls of
 * members out while a run with such a draw is open (tally_hide), and all bytes of such a run.
 *
 * One owner (the loop thread); tally_refused() may be called by any thread. NULL for `t` is
 * accepted everywhere. */
#ifndef COORDINATOR_TALLY_H
#define COORDINATOR_TALLY_H

#include "proto/rpc.h"

#include <stdatomic.h>

enum {
    TALLY_BUCKETS = 10,    /* of the histogram, the last without an upper bound */
    TALLY_CALLS_MAX = 512, /* pairs of a procedure and a status */
    TALLY_MEMBERS_MAX = 2 * LIMIT_MEMBERS,
    TALLY_PROCEDURE_BYTES = 48,
};
extern const double tally_bound[TALLY_BUCKETS - 1]; /* seconds */

struct tally_member {
    char id[LIMIT_NAME_BYTES];
    uint64_t received, sent; /* bytes of updates from it, and of files to it */
};

struct tally_call {
    char procedure[TALLY_PROCEDURE_BYTES];
    const char *code;
    uint64_t count;
};

struct tally {
    struct tally_member **member; /* (members) sorted by id */
    size_t members, places;
    struct tally_call call[TALLY_CALLS_MAX];
    size_t calls;
    bool hides_calls;
    uint64_t bucket[TALLY_BUCKETS], aggregated; /* rounds by the time to combine them; all */
    double aggregate_s;                         /* all of that time */
    atomic_uint_fast64_t refused[RPC_REFUSALS]; /* connections that ended before a call */
};

void tally_close(struct tally *t);
void tally_received(struct tally *t, const char *member, uint64_t bytes);
void tally_sent(struct tally *t, const char *member, uint64_t bytes);
/* procedure and code: as in rpc_server_options.ended. `code` must stay valid. */
void tally_call(struct tally *t, const char *procedure, const char *code);
/* While true, successful calls are not counted. */
void tally_hide(struct tally *t, bool hides_calls);
void tally_aggregate(struct tally *t, uint64_t took_ms);
void tally_refused(struct tally *t, enum rpc_refusal refusal);
/* NULL: no byte was counted. */
const struct tally_member *tally_find(const struct tally *t, const char *id);

#endif
