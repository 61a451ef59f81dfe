/* The proof that a state may be published. Under privacy only a `struct release` leaves: this file
 * alone makes one, and the store commits nothing else. It commits the release's digest as the
 * round's state, and its ledger line (if any) in the same transaction. A run without privacy makes
 * a release too, and its text says that there is no privacy.
 *
 *     release_plain(&r, &state)                 privacy is off, or
 *     release_noisy(&r, &budget, &head, ...)    a finished round with noise of the coordinator
 *     store: release_state(r) and release_line(r), in one transaction
 *     release_close(r)
 *
 * release_noisy() advances budget and head. If the transaction fails, the caller reads both from
 * the store again. */
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
/* Charges the budget and writes the line. `state` is the digest of the durable file that was made
 * from the round's noisy mean. ERR_LIMIT if the budget does not allow the release; nothing may be
 * published then. */
err release_noisy(struct release **out, struct spend *budget, struct ledger_head *head,
                  const struct ledger_key *key, const struct central *round,
                  const struct digest *state, const struct release_charge *charge);
void release_close(struct release *r); /* r may be NULL */

const struct digest *release_state(const struct release *r);
bool release_private(const struct release *r);
const char *release_line(const struct release *r); /* with newline; "" without privacy */
uint64_t release_line_number(const struct release *r);
const char *release_says(const struct release *r); /* "epsilon 1.2 of 3 ...", "no privacy: ..." */

#endif
