/* What has been spent of a privacy budget, and what one more release would come to: asked before a
 * round starts, charged before its result leaves. Releases of the same kind are kept as one event,
 * so the accountants compose them with themselves. Not thread-safe; no clock, no disk.
 *
 * The published epsilon is the PLD accountant's; the RDP one stands beside it as a check from an
 * independent derivation: a PLD figure above it by more than 1e-3 is an error (specification D5).
 */
#ifndef PRIVACY_SPEND_H
#define PRIVACY_SPEND_H

#include "privacy/account/account.h"

enum { SPEND_KINDS = 4096 }; /* different kinds of releases in one ledger */

struct spend {
    double epsilon, delta; /* the cap */
    struct account_event *event;
    size_t count, capacity;
    uint64_t releases; /* the sum of the events' counts */
};

struct spend_total {
    double epsilon; /* PLD: what is published and enforced */
    double rdp, rdp_order;
};

/* ERR_INPUT unless epsilon > 0 and 0 < delta < 1. */
err spend_open(struct spend *out, double epsilon, double delta);
void spend_close(struct spend *b);

/* Of all that was charged and `next` (NULL: nothing more). */
err spend_after(struct spend_total *out, const struct spend *b, const struct account_event *next);
/* ERR_LIMIT "the privacy budget is spent: ..." when spend_after(next) exceeds the cap; *out says
 * what it would come to when it does not. */
err spend_allows(struct spend_total *out, const struct spend *b, const struct account_event *next);
/* Never refused for the cap: what was released was released. */
err spend_charge(struct spend *b, const struct account_event *event);

#endif
