/* Example-level privacy of local training, for `fedlora train` alone and for each round of a run
 * joined with `fedlora join`. The plan is checked and the ledger asked before any training; a
 * trained update is charged before it is written or sent.
 *
 *   train_ledger_plan(&l, &options, records);      makes a plan or refuses; touches no file
 *   train_ledger_ask(&l);                          does the budget allow the rest of the plan?
 *   train_private_run(&result, ..., &l.how);       or train_private_gradient()
 *   train_ledger_charge(&l, &made);                equal bytes are charged once
 *
 * The ledger file is open only during these calls, because several runs may share one ledger. */
#ifndef ENGINE_TRAIN_LEDGER_H
#define ENGINE_TRAIN_LEDGER_H

#include "engine/train/train_private.h"
#include "privacy/ledger/ledger_file.h"
#include "privacy/ledger/plan.h"

#include <jansson.h>

struct train_ledger_options {
    const struct train_options *train;  /* of one round */
    double epsilon, delta, noise, clip; /* noise 0: computed from epsilon and delta */
    double sampling;                    /* 0: rows of a step / number of records */
    uint32_t rounds;                    /* 0: 1 */
    uint64_t dim;                       /* number of trained values; 0: not known yet */
    uint32_t basis_passes;              /* gradient passes before the rounds; see plan.h */
    double basis_noise, basis_clip;
    double cap_epsilon, cap_delta; /* budget of a new ledger; 0: epsilon, delta */
    const char *ledger, *key;
    const char *job, *party, *method, *bases; /* recorded in the ledger */
    bool simulated;                           /* ledger_terms.simulated */
    bool afresh; /* count no earlier charge of this job as part of this plan */
};

struct train_ledger {
    struct train_ledger_options o;
    struct train_private_options how; /* options for train_private_run() */
    struct plan plan;
    struct plan_summary summary;
    char says[1024]; /* the plan as text for the user; train_ledger_ask() adds the ledger */
};

/* ERR_INPUT: refused, with the reason. `options` and everything it points to must outlive *out. */
err train_ledger_plan(struct train_ledger *out, const struct train_ledger_options *options,
                      uint64_t records);
/* ERR_INPUT: the budget does not allow all rounds that are not charged yet. This is permanent, so
 * it is not ERR_LIMIT. Creates the ledger if there is none. */
err train_ledger_ask(struct train_ledger *l);

struct train_ledger_made {
    uint32_t round; /* number of the round, or of the basis pass */
    bool basis;
    uint64_t dim;         /* number of values with noise */
    struct digest digest; /* of the update */
    /* Digest of the values that training started from, zero if they came from a seed. Values that
     * this ledger has released are covered by it already. */
    struct digest given;
};
/* ERR_LIMIT: the budget does not allow this update, so it must not be sent. */
err train_ledger_charge(const struct train_ledger *l, const struct train_ledger_made *made);

struct train_ledger_spent {
    double epsilon, budget, delta;
    uint64_t lines;
    struct digest head;
};
/* The total of the whole ledger. */
err train_ledger_spent(struct train_ledger_spent *out, const struct train_ledger *l);
/* {"epsilon", "budget", "delta", "ledger", "ledger_lines", "ledger_head"}; NULL without memory. */
json_t *train_ledger_json(const struct train_ledger_spent *spent, const char *path);

#endif
