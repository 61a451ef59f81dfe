/* Who takes part in a round: each member by itself with chance q (Poisson sampling), from a secret
 * seed of 32 bytes. A member's number depends on the seed, the run, the round and its id only:
 *
 *     in  iff  first 64 bits of BLAKE2b-128(key seed; "cohort", run, round, member)
 *              < floor(q 2^64);    q = 1: always
 *
 * Nothing else decides: no quorum, no over-selection, no early close.
 *
 * All seeds are fixed before the first round, and can be shown one after the other: the last one is
 * drawn, the others follow backwards, and what comes before the first makes, with everyone's id,
 * the anchor that the ledger's first line commits to:
 *
 *     seed(r - 1) = BLAKE2b-256(key seed(r); "chain", run, r)
 *     anchor = BLAKE2b-256(key seed(0); "members", run, 0, each id, sorted)
 *
 * Who is shown seed r checks it by r hashes, and learns nothing of later ones. Pure but for the
 * draw. */
#ifndef PRIVACY_COHORT_H
#define PRIVACY_COHORT_H

#include "base/digest.h"

struct cohort {
    const char *run;
    uint32_t round;
    double q; /* (0, 1] */
};

struct cohort_seed {
    uint8_t byte[32];
};

void cohort_seed_draw(struct cohort_seed *out); /* the operating system's randomness */
/* The seed of an earlier round (0: the anchor) from that of a later one. */
void cohort_seed_before(struct cohort_seed *out, const struct cohort_seed *later,
                        const struct cohort *of, uint32_t round);
struct digest cohort_anchor(const struct cohort_seed *seed, const struct cohort *of,
                            const char *const *sorted_id, size_t members);
bool cohort_has(const struct cohort_seed *seed, const struct cohort *cohort, const char *member);

/* The fixed denominator: q times the sum of ALL members' public weights, whoever takes part
 * (specification 1.2). weight NULL: one each. Weights lie in (0, 1]. */
double cohort_denominator(double q, const double *weight, size_t members);

#endif
