/* A ledger replayed from zero, and the page an auditor needs: what was promised, what was done,
 * what it comes to, what is assumed, and what is not protected (specification 6.2).
 *
 *     ledger_read(&ledger, text, size, name);             chain and signatures
 *     statement_replay(&statement, &ledger, name);        arithmetic and accountants
 *     statement_text(&text, &statement) or statement_json(&json, &statement)
 *
 * The replay recomputes RDP after every release, and PLD after the last and up to 64 others, which
 * those between must not fall below; a figure that differs, noise below what was charged, a
 * denominator that moved, a budget that was passed: the error is ERR_INPUT and names the line. */
#ifndef PRIVACY_STATEMENT_H
#define PRIVACY_STATEMENT_H

#include "privacy/ledger/ledger.h"
#include "privacy/ledger/spend.h"

#include <jansson.h>

struct statement {
    const struct ledger *ledger;
    size_t plans; /* the first line's among them */
    size_t releases;
    uint64_t steps; /* noisy steps in all */
    struct spend_total spent;
    double seen;         /* epsilon against who sees which units take part: all rates taken as 1 */
    double noise_least;  /* the smallest multiplier drawn; 0: no release */
    const char *stopped; /* the text of the last stop, or NULL */
    bool key_known;      /* set by the caller when it compared the key with one it trusts */
    bool head_known;     /* and the head */
};

err statement_replay(struct statement *out, const struct ledger *ledger, const char *name);
err statement_text(struct bytes *out, const struct statement *s);
err statement_json(json_t **out, const struct statement *s);

/* Unit client: who was drawn for each release, from the seeds shown: a document {"members": [ids],
 * "rounds": [{"round", "seed"}]}. *out: [{"round", "drawn": [ids]}]. ERR_INPUT: a seed is missing,
 * or seeds and members are not those that the ledger's first line commits to. */
err statement_cohorts(json_t **out, const struct statement *s, const json_t *document,
                      const char *name);

/* The multiplier that a release's deviations on the lattice amount to; ERR_INPUT for a clip norm
 * that has no lattice. */
err statement_drawn(double *out, const struct ledger_release *release);

#endif
