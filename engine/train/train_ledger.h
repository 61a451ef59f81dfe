/* Example-level privacy of local training, by itself (`fedlora train`) or round by round in a run
 * (`fedlora join`): the plan is judged and the ledger asked before anything is trained, and what
 * was trained is charged before it is written or sent.
 *
 *     train_ledger_plan(&l, &options, records);      refused, or a plan; touches no file
 *     train_ledger_ask(&l);                          does the ledger allow what is left of it?
 *     train_private_run(&result, ..., &l.how);       or train_private_gradient()
 *     train_ledger_charge(&l, &made);                once for the same bytes, however often called
 *
 * The ledger is open only inside these calls: several runs may share one. */
#ifndef CLIENT_TRAIN_LEDGER_H
#define CLIENT_TRAIN_LEDGER_H

#include "engine/train/train_private.h"
#include "privacy/ledger/ledger_file.h"
#include "privacy/ledger/plan.h"

#include <jansson.h>

struct train_ledger_options {
    const struct train_options *train;  /* of one round */
    double epsilon, delta, noise, clip; /* noise 0: what the budget needs */
    double sampling;                    /* 0: rows of a step over the number of records */
    uint32_t rounds;                    /* 0: 1 */
    uint64_t dim;                       /* values trained; 0: not known yet */
    uint32_t basis_passes;              /* before the rounds; see plan.h */
    double basis_noise, basis_clip;
    double cap_epsilon, cap_delta; /* of the ledger, if it begins now; 0: epsilon, delta */
    const char *ledger, *key;
    const char *job, *party, *method, *bases; /* for the ledger */
    bool afresh; /* nothing of it is charged yet, whatever the ledger has of this job */
};

struct train_ledger {
    struct train_ledger_options o;
    struct train_private_options how; /* of a round of training */
    struct plan plan;
    struct plan_summary summary;
    char says[1024]; /* the plan in a few lines; once it was asked, what the ledger has too */
};

/* ERR_INPUT: refused, with the reason. `options` and what it points to must stay. */
err train_ledger_plan(struct train_ledger *out, const struct train_ledger_options *options,
                      uint64_t records);
/* ERR_INPUT: the ledger's budget does not allow all rounds that are not charged yet; time does not
 * make it grow. Begins the ledger where there is none. */
err train_ledger_ask(struct train_ledger *l);

struct train_ledger_made {
    uint32_t round; /* of training, or the number of the pass */
    bool basis;
    uint64_t dim; /* values that got noise */
    struct digest digest;
    /* What it began with, where that is no seed; or zero. What this very ledger has released is
     * covered by it, and counts as nothing given. */
    struct digest given;
};
/* ERR_LIMIT: the budget does not allow it; then it must not leave. */
err train_ledger_charge(const struct train_ledger *l, const struct train_ledger_made *made);

struct train_ledger_spent {
    double epsilon, budget, delta;
    uint64_t lines;
    struct digest head;
};
/* What the whole ledger comes to now. */
err train_ledger_spent(struct train_ledger_spent *out, const struct train_ledger *l);
/* {"epsilon", "budget", "delta", "ledger", "ledger_lines", "ledger_head"}; NULL: no memory. */
json_t *train_ledger_json(const struct train_ledger_spent *spent, const char *path);

#endif
