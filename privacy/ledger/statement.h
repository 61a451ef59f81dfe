/* Replays a ledger from zero and writes the page that an auditor needs: the privacy that was
 * promised, the releases, their total, the assumptions, and the limits of the protection.
 *
 *     ledger_read(&ledger, text, size, name);             chain and signatures
 *     statement_replay(&statement, &ledger, name);        arithmetic and accountants
 *     statement_text(&text, &statement) or statement_json(&json, &statement)
 *
 * The replay recomputes RDP after every release. PLD is slower, so it is recomputed after the last
 * release and up to 64 others; the figures between must not be below the last one recomputed.
 * ERR_INPUT with the line for a figure that differs, noise below the charged one, a denominator
 * that changed, or a budget that was exceeded. */
#ifndef PRIVACY_STATEMENT_H
#define PRIVACY_STATEMENT_H

#include "privacy/ledger/ledger.h"
#include "privacy/ledger/spend.h"

#include <jansson.h>

struct statement {
    const struct ledger *ledger;
    size_t plans; /* including the first line */
    size_t releases;
    uint64_t steps; /* noisy steps in all */
    struct spend_total spent;
    double seen;         /* epsilon if an attacker sees which units take part: all rates are 1 */
    double noise_least;  /* the smallest multiplier used; 0: no release */
    const char *stopped; /* the text of the last stop, or NULL */
    bool key_known;      /* set by the caller after comparing the key with one it trusts */
    bool head_known;     /* the same for the head */
};

err statement_replay(struct statement *out, const struct ledger *ledger, const char *name);
err statement_text(struct bytes *out, const struct statement *s);
err statement_json(json_t **out, const struct statement *s);

/* Unit client: the members drawn for each release, from a document that shows the seeds.
 *
 *     document   {"members": [ids], "rounds": [{"round", "seed"}]}
 *     *out       [{"round", "drawn": [ids]}]
 *
 * ERR_INPUT if a seed is missing, or if seeds and members differ from those that the ledger's first
 * line commits to. */
err statement_cohorts(json_t **out, const struct statement *s, const json_t *document,
                      const char *name);

/* The noise multiplier that follows from a release's deviations on the lattice. ERR_INPUT for a
 * clip norm that has no lattice. */
err statement_drawn(double *out, const struct ledger_release *release);

#endif
