/* The one thing that may be published: a state with the proof of what privacy it has. Only this
 * file makes one, and the store commits nothing else: its digest as the round's state, and its
 * ledger line (where it has one) in the same transaction. A run without privacy passes here too,
 * and the release says so.
 *
 *     release_plain(&r, &state)                 privacy is off
 *     release_noisy(&r, &budget, &head, ...)    a central round, finished
 *     store: release_state(r), release_line(r) in one transaction; then budget and head have moved
 * on release_close(r)
 *
 * If the transaction fails, the caller reads budget and head from the store again. */
#ifndef PRIVACY_RELEASE_H
#define PRIVACY_RELEASE_H

#include "privacy/ledger/ledger.h"
#include "privacy/ledger/spend.h"
#include "privacy/noise/central.h"

struct release; /* opaque: nothing else can make or change one */

struct release_charge {
    uint32_t round;
    double sampling;
};

err release_plain(struct release **out, const struct digest *state);
/* Charges the budget and writes the line. `state` is the digest of the durable file made of the
 * round's noisy mean. ERR_LIMIT when the budget does not allow it: nothing may be published. */
err release_noisy(struct release **out, struct spend *budget, struct ledger_head *head,
                  const struct ledger_key *key, const struct central *round,
                  const struct digest *state, const struct release_charge *charge);
void release_close(struct release *r); /* NULL is taken */

const struct digest *release_state(const struct release *r);
bool release_private(const struct release *r);
const char *release_line(const struct release *r); /* with its newline; "" without privacy */
uint64_t release_line_number(const struct release *r);
const char *release_says(const struct release *r); /* "epsilon 1.2 of 3 ...", "no privacy: ..." */

#endif
