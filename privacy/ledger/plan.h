/* May this run claim the privacy it asks for? One question before anything starts, answered with a
 * refusal that gives the reason, or with the summary that is printed and written into the ledger.
 * Specification 1.1 to 1.7; docs/privacy.md says why each refusal is one. Pure. */
#ifndef PRIVACY_PLAN_H
#define PRIVACY_PLAN_H

#include "base/bytes.h"
#include "privacy/ledger/ledger.h"

/* Texts may be NULL: the first word listed. */
struct plan {
    enum ledger_unit unit;
    const char *method; /* for messages and the ledger */
    /* Whether noise on the sum of what members send hides each member, as the method's row in agg
     * says. Only for unit client; false refuses the plan, with this reason. */
    bool client_method;
    const char *client_refusal; /* follows the method's name; NULL: not known to be private */
    const char *weights;        /* uniform, given (public), examples */
    const char *bases;          /* seed, weights, given, private, gradient */
    const char *robust;         /* none, norm, or a rule that picks members or coordinates */
    double epsilon, delta;      /* the budget; 0: missing */
    double noise;               /* multiplier; 0: what the budget needs */
    double sampling;            /* (0, 1] of members a round, or of records a step */
    double clip;
    struct adaptive adaptive;     /* sigma_b 0: expected members / 20 */
    struct digest cohorts, given; /* for the ledger's terms */
    const double *weight;         /* (units) public weights in (0, 1]; NULL: one each */
    uint64_t units;               /* members; records of one party */
    uint64_t dim;                 /* coordinates trained; 0: not known yet, for records only */
    uint32_t rounds, steps;       /* steps: noisy steps a round; 1 at the coordinator */
    /* bases = gradient: passes over everyone before the rounds, each clipped and noised by itself.
     */
    uint32_t basis_passes;
    double basis_noise; /* multiplier; 0: what PLAN_BASIS_SHARE of epsilon needs for all of them */
    double basis_clip;  /* of a unit's sketch; 0: the basis would be without noise */
    uint64_t basis_dim; /* coordinates of the larger pass */
    bool quorum;        /* closes with fewer than were drawn, over-selects, or the like */
    bool force;         /* go on although the noise drowns the change */
};

enum { PLAN_WARNINGS = 4, PLAN_WARNING_BYTES = 200 };
#define PLAN_BASIS_SHARE 0.2

struct plan_summary {
    double noise;       /* multiplier to be used */
    double epsilon;     /* after all rounds, by PLD */
    double rdp;         /* and by RDP */
    double expected;    /* members a round, or records a step */
    double denominator; /* fixed */
    double ratio;       /* norm of the noise in the mean over the clip norm */
    double basis_noise, basis_ratio, basis_denominator; /* of the passes; 0: there are none */
    uint64_t rounds; /* that the budget allows, at most plan.rounds */
    struct adaptive adaptive;
    char warning[PLAN_WARNINGS][PLAN_WARNING_BYTES];
    size_t warnings;
};

/* ERR_INPUT: refused, with the reason. */
err plan_check(struct plan_summary *out, const struct plan *plan);
/* A few lines for the operator: unit, budget, noise, ratio, warnings. */
err plan_text(struct bytes *out, const struct plan *plan, const struct plan_summary *summary);
/* What goes into the ledger before the first round of training; and before the passes for a basis.
 */
struct ledger_terms plan_terms(const struct plan *plan, const struct plan_summary *summary,
                               const char *job, const char *party);
struct ledger_terms plan_basis_terms(const struct plan *plan, const struct plan_summary *summary,
                                     const char *job, const char *party);

#endif
