/* Decides before a run starts whether it may claim the privacy it asks for. The answer is a refusal
 * with the reason, or the summary that is printed and written into the ledger. docs/privacy.md
 * explains every refusal. Pure. */
#ifndef PRIVACY_PLAN_H
#define PRIVACY_PLAN_H

#include "base/bytes.h"
#include "privacy/ledger/ledger.h"

/* A text that is NULL means the first value listed. */
struct plan {
    enum ledger_unit unit;
    const char *method; /* for messages and the ledger */
    /* True if noise on the sum of the members' updates hides each member; from the method's row in
     * agg. Only for unit client; false refuses the plan, with the reason in client_refusal. */
    bool client_method;
    const char *client_refusal; /* follows the method's name; NULL: not known to be private */
    const char *weights;        /* uniform, given (public), examples */
    const char *bases;          /* seed, weights, given, private, gradient */
    const char *robust;         /* none, norm, or a rule that picks members or coordinates */
    double epsilon, delta;      /* the budget; 0: missing */
    double noise;               /* multiplier; 0: the smallest that the budget allows */
    double sampling;            /* rate in (0, 1]: members per round, or records per step */
    double clip;
    struct adaptive adaptive;     /* sigma_b 0: expected members / 20 */
    struct digest cohorts, given; /* for the ledger's terms */
    const double *weight;         /* (units) public weights in (0, 1]; NULL: one each */
    uint64_t units;               /* members; records of one party */
    uint64_t dim;                 /* coordinates trained; 0: not known yet, for records only */
    uint32_t rounds, steps;       /* steps: noisy steps a round; 1 at the coordinator */
    /* bases = gradient: passes over all units before the rounds. Each is clipped and gets noise. */
    uint32_t basis_passes;
    double basis_noise; /* multiplier; 0: the smallest for PLAN_BASIS_SHARE of epsilon in total */
    double basis_clip;  /* clip norm of a unit's sketch; 0: none given, which is refused */
    uint64_t basis_dim; /* coordinates of the larger pass */
    bool quorum;        /* a round may close with fewer members than were drawn */
    bool force;         /* continue although the noise is larger than the change */
    bool simulated;     /* ledger_terms.simulated */
};

enum { PLAN_WARNINGS = 4, PLAN_WARNING_BYTES = 200 };
#define PLAN_BASIS_SHARE 0.2

struct plan_summary {
    double noise;       /* multiplier to use */
    double epsilon;     /* after all rounds, by the PLD accountant */
    double rdp;         /* the same by the RDP accountant */
    double expected;    /* mean number of members per round, or of records per step */
    double denominator; /* fixed divisor of the sum */
    double ratio;       /* norm of the noise in the mean, divided by the clip norm */
    double basis_noise, basis_ratio, basis_denominator; /* of the passes; 0: no passes */
    uint64_t rounds; /* number of rounds that the budget allows, at most plan.rounds */
    struct adaptive adaptive;
    char warning[PLAN_WARNINGS][PLAN_WARNING_BYTES];
    size_t warnings;
};

/* ERR_INPUT: refused, with the reason. */
err plan_check(struct plan_summary *out, const struct plan *plan);
/* A few lines for the operator: unit, budget, noise, ratio, warnings. */
err plan_text(struct bytes *out, const struct plan *plan, const struct plan_summary *summary);
/* The terms for the ledger, before the first round of training or before the passes for a basis. */
struct ledger_terms plan_terms(const struct plan *plan, const struct plan_summary *summary,
                               const char *job, const char *party);
struct ledger_terms plan_basis_terms(const struct plan *plan, const struct plan_summary *summary,
                                     const char *job, const char *party);

#endif
