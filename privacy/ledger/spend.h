/* The part of a privacy budget that is spent, and the total after one more release. Callers ask
 * before a round starts and charge before its result leaves. Releases of the same kind are kept as
 * one event, so that the accountants compose them with themselves. Not thread-safe; no clock, no
 * disk.
 *
 * The published epsilon is the PLD accountant's. RDP is computed too, by an independent derivation.
 * It is always looser, so a PLD figure above it by more than 1e-3 is an error. */
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
    double epsilon; /* PLD: published and enforced */
    double rdp, rdp_order;
};

/* ERR_INPUT unless epsilon > 0 and 0 < delta < 1. */
err spend_open(struct spend *out, double epsilon, double delta);
void spend_close(struct spend *b);

/* The total of all charged events and `next` (may be NULL). */
err spend_after(struct spend_total *out, const struct spend *b, const struct account_event *next);
/* spend_after(), but ERR_LIMIT "the privacy budget is spent: ..." if the total exceeds the cap. */
err spend_allows(struct spend_total *out, const struct spend *b, const struct account_event *next);
/* Never refused because of the cap, because the release has already happened. */
err spend_charge(struct spend *b, const struct account_event *event);

#endif
