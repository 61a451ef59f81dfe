/* The mathematics of a run, on the worker thread, in four kinds of work:
 *
 *     PUBLISH_START    the start state, with frozen factors where the method has them and none were
 *                      given
 *     PUBLISH_NOISE    the noise of a round of a private run, drawn while its members train
 *     PUBLISH_NEXT     the next state from a closed round's updates
 *     PUBLISH_REPORT   that round's report; background work (work.h), with the same job
 *
 * A state is written to the spool, named by its digest, and committed with its round. Work that is
 * repeated after a crash, or because its result was lost, gives the same bytes. A report is made
 * from files after its round is published, so members do not wait for it; a crash before it is
 * stored loses that report and nothing else. */
#ifndef COORDINATOR_PUBLISH_H
#define COORDINATOR_PUBLISH_H

#include "agg/round/method_options.h"
#include "coordinator/work/private.h"
#include "coordinator/work/work.h"

enum publish_kind { PUBLISH_START, PUBLISH_NOISE, PUBLISH_NEXT, PUBLISH_REPORT };

/* The blobs that belong together as the result of one round; size 0: there is none. */
struct publish_blobs {
    struct store_blob state;  /* none at the start */
    struct store_blob frozen; /* frozen factors */
    struct store_blob memory; /* of the server's optimizer */
};

struct publish_job {
    struct work_job job; /* first: work.h's part */
    enum publish_kind kind;
    void *owner; /* for the loop thread only */
    int64_t run;
    const struct method *method;
    struct arena arena; /* holds what the pointers below point to; closed by publish_close() */

    /* PUBLISH_START; without frozen_path and frozen_digest, which follow from `made.frozen`. */
    struct method_start start;

    uint32_t round, rounds, updates, keep, updates_keep;
    /* The weight of a member's update by the run's rule. `config` is not changed while the job is
     * under way. */
    double (*weight)(const void *config, const char *member, uint64_t examples);
    const void *config;
    double weight_cap;   /* largest share of one member; 0: no limit */
    bool discounts_late; /* the weight of an update s rounds late is times (1 + s)^-1/2 */
    double norm_bound;   /* agg/round/method_bound.h: its ratio; 0: updates are not compared */
    double carry_error;
    int threads;
    uint64_t open_ms; /* the time that the round was open */

    struct method_options options;
    struct private_terms terms;    /* of privacy; in the arena */
    struct central *noise_ahead;   /* PUBLISH_NOISE: out; PUBLISH_NEXT: in, or NULL */
    char stop[ERR_TEXT_BYTES];     /* out: why no round follows, or "" */
    char says[PRIVATE_SAYS_BYTES]; /* out: the release's description of its privacy */
    struct digest ledger_head;     /* out: hash of the ledger's last line */

    bool trusts_disk; /* as in a simulation: files are combined without a check of their digest */
    /* out: updates of the round that are damaged, so that nothing was published. In the arena. */
    const struct store_update *damaged;
    size_t damaged_count;
    /* out: the same for updates beyond the norm bound, and why. */
    const struct store_refusal *refused;
    size_t refused_count;

    struct publish_blobs from; /* in: the result that the round started from */
    struct publish_blobs made; /* out: the result; at the start: in, given frozen factors */
    struct store_round result; /* out */
    double loss_median;        /* out: of the members' training losses; 0: there are none */

    const struct store_update *update; /* (result.updates) their rows; PUBLISH_NEXT only */
    const double *weights;             /* (result.updates) by the run's rules, before privacy */
    struct digest config_digest;       /* of the run's packed configuration */
    const char *software;              /* of this coordinator; NULL: lineage is not recorded */
    /* PUBLISH_NEXT leaves the combined updates here for PUBLISH_REPORT. In the arena. */
    const struct contribution *contribution;
    size_t contributions;
    struct method_report report;                /* without norms until PUBLISH_REPORT */
    bool directions;                            /* report directions and cosines too */
    struct method_report_frozen *report_frozen; /* the run's own; only the worker uses it */
};

/* For tests, NULL otherwise: called on the worker thread before each report is made. */
extern void (*publish_report_hook)(const struct work_job *job);

/* work_options.run for a queue of publish_jobs, one at a time. */
void publish_run(struct work_job *batch, struct store *store);
void publish_close(struct publish_job *job);

#endif
