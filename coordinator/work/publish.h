/* The mathematics of a run, on the worker thread: the start state (with frozen factors where the
 * method has them and none were given), and the next state from a closed round's updates. The state
 * is written aside, named by its digest, and committed with its round; done again after a crash, or
 * after a result that was lost, it gives the same bytes. */
#ifndef COORDINATOR_PUBLISH_H
#define COORDINATOR_PUBLISH_H

#include "agg/round/method_options.h"
#include "coordinator/work/private.h"
#include "coordinator/work/work.h"

enum publish_weights { PUBLISH_EXAMPLES, PUBLISH_UNIFORM, PUBLISH_GIVEN };

struct publish_weight {
    const char *member;
    double weight;
};

struct publish_job {
    struct work_job job; /* first: work.h's part */
    void *owner;         /* the loop thread's own */
    int64_t run;
    const struct method *method;
    struct arena arena; /* holds what the pointers below point to; closed by publish_close() */

    bool is_start, is_noise; /* is_noise: only draw the round's noise, into `noise_ahead` */
    struct method_start
        start; /* without frozen_path and frozen_digest, which follow from `frozen` */

    uint32_t round, rounds, updates, keep, updates_keep;
    enum publish_weights weights;
    const struct publish_weight *given; /* (given_count), sorted by member */
    size_t given_count;
    double carry_error;
    int threads;
    uint64_t opened_ms; /* monotonic */

    struct method_options options;
    struct private_terms terms;    /* of privacy; in the arena */
    struct central *noise_ahead;   /* in, or out of is_noise: noise drawn while members trained */
    char stop[ERR_TEXT_BYTES];     /* out: why no round follows, or "" */
    char says[PRIVATE_SAYS_BYTES]; /* out: what the release says of its privacy */
    struct digest ledger_head;     /* out: hash of the ledger's last line */

    /* In: the newest state (not at the start), the frozen factors and the server's memory or size
     * 0; out: the new ones. */
    struct store_blob state, frozen, memory;
    struct store_round result; /* out; report_json is not set */
};

/* work_options.run for a queue of publish_jobs, one at a time. */
void publish_run(struct work_job *batch, struct store *store);
void publish_close(struct publish_job *job);

#endif
