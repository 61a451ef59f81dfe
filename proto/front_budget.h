/* The budget of one identity: how often it may send each kind of frame. Frames that cost the server
 * much more than the client are counted in token buckets: a bucket holds at most `burst` tokens and
 * gains `per_second`. All connections of an identity share its budget, so that a new connection
 * gives no new one. Pure: the caller passes the time. */
#ifndef PROTO_FRONT_BUDGET_H
#define PROTO_FRONT_BUDGET_H

#include <stdbool.h>
#include <stdint.h>

enum front_cost {
    FRONT_COST_STREAM,
    FRONT_COST_RESET,
    FRONT_COST_PING,
    FRONT_COST_SETTINGS,
    FRONT_COST_EMPTY,
    FRONT_COST_PRIORITY,
    FRONT_COST_OTHER,
    FRONT_COST_WINDOW,
    FRONT_COST_SMALL,
    FRONT_COST_STRAY, /* in bytes */
    FRONT_COST_KEYS,
    FRONT_COST_HANDSHAKE, /* of an address; the others are of an identity */
    FRONT_COSTS
};

struct front_rule {
    const char *what;
    double burst, per_second;
    bool waits; /* an empty bucket delays the peer; otherwise it ends the connection */
};
extern const struct front_rule front_rule[FRONT_COSTS];

struct front_budget {
    double left[FRONT_COSTS];
    uint64_t at_ms;
};

void front_budget_fill(struct front_budget *budget, uint64_t now_ms);
/* Adds the tokens gained since the last call. Call it before a batch of front_budget_take(). */
void front_budget_gain(struct front_budget *budget, uint64_t now_ms);
/* False: the bucket is empty, and its rule does not wait. A rule that waits may go into debt. */
bool front_budget_take(struct front_budget *budget, enum front_cost cost, double amount);
void front_budget_earn(struct front_budget *budget, enum front_cost cost, double amount);
uint64_t front_budget_wait_ms(const struct front_budget *budget); /* until no bucket is in debt */

#endif
