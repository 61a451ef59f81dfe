/* Draws the members of a round: each independently with chance q (Poisson sampling), from a secret
 * seed of 32 bytes. The draw depends only on the seed, the run, the round and the member's id:
 *
 *     in  iff  first 64 bits of BLAKE2b-128(key seed; "cohort", run, round, member)
 *              < floor(q 2^64);    q = 1: always
 *
 * Nothing else may decide (no quorum, no over-selection, no early close), because the accounting
 * assumes independent draws.
 *
 * All seeds are fixed before the first round and can be shown one after the other. The last seed is
 * random; each earlier seed is a hash of the next. Seed 0, hashed with all member ids, is the
 * anchor that the ledger's first line commits to:
 *
 *     seed(r - 1) = BLAKE2b-256(key seed(r); "chain", run, r)
 *     anchor = BLAKE2b-256(key seed(0); "members", run, 0, each id, sorted)
 *
 * An auditor who has seed r checks it by r hashes and learns nothing of later seeds. Pure except
 * for cohort_seed_draw(). */
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

void cohort_seed_draw(struct cohort_seed *out); /* from the operating system's generator */
/* The seed of an earlier round (0: seed 0) from that of a later one. */
void cohort_seed_before(struct cohort_seed *out, const struct cohort_seed *later,
                        const struct cohort *of, uint32_t round);
struct digest cohort_anchor(const struct cohort_seed *seed, const struct cohort *of,
                            const char *const *sorted_id, size_t members);
bool cohort_has(const struct cohort_seed *seed, const struct cohort *cohort, const char *member);

/* The fixed denominator: q times the sum of ALL members' public weights, drawn or not. A
 * denominator that followed the draw would depend on the members and need noise of its own. weight
 * NULL: one each. Weights are in (0, 1]. */
double cohort_denominator(double q, const double *weight, size_t members);

#endif
