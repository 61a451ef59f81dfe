/* What a plan or a ledger has spent: epsilon at delta of a list of noisy releases.
 *
 *   struct account_event event = {.noise = 1.1, .sampling = 0.02, .count = 500};
 *   struct account_spent spent;
 *   TRY(account_epsilon(&spent, &event, 1, 1e-5, NULL));       spent.epsilon: 2.2932
 *
 * Every epsilon is an upper bound of what a member of the population risks, under the assumptions
 * of the events: it is rounded up, never down. Engines (docs/privacy.md has theorems and error
 * bounds):
 *
 * - ACCOUNT_PLD (default, the published number): privacy loss distributions by connect-the-dots;
 *   plans of full participation by the exact formula of the Gaussian mechanism.
 * - ACCOUNT_RDP: Renyi divergences, Mironov-Talwar-Zhang for Poisson sampling, Wang-Balle-
 *   Kasiviswanathan theorem 27 for fixed-size sampling. Looser, cheap.
 * - ACCOUNT_PRV: Gopi-Lee-Wutschitz 2021; a cross-check with both an upper and a lower bound.
 *
 * Pure functions, from any thread; nothing is kept between calls. */
#ifndef PRIVACY_ACCOUNT_H
#define PRIVACY_ACCOUNT_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum account_mechanism {
    ACCOUNT_GAUSSIAN,   /* Gaussian noise; each unit takes part independently at rate `sampling` */
    ACCOUNT_FIXED_SIZE, /* the same with exactly sampling * population units, drawn without
                           replacement: replace-one, RDP only */
};

enum account_engine { ACCOUNT_PLD, ACCOUNT_RDP, ACCOUNT_PRV };

enum account_adjacency {
    ACCOUNT_ADD_REMOVE,  /* one unit is there or is not (or is zeroed out): sensitivity C */
    ACCOUNT_REPLACE_ONE, /* one unit becomes another: sensitivity 2 C of those that take part */
};

/* `count` releases of the same kind. */
struct account_event {
    enum account_mechanism mechanism;
    double noise;    /* standard deviation of the noise over the clip norm C; > 0 */
    double sampling; /* in (0, 1]; 1: everyone */
    uint64_t count;  /* 0: none */
};

/* Zero everywhere is the default. */
struct account_options {
    enum account_engine engine;
    enum account_adjacency adjacency;
    bool rdp_signed;     /* fractional orders by the signed series, not by its upper bound */
    const double *order; /* RDP orders above 1; NULL: 1.1 to 10.9 by 0.1, 11 to 63, 128 ... 1024 */
    size_t order_count;
    double interval;  /* PLD: width of the grid of losses; 0: 1e-4, finer where losses are small */
    bool rough;       /* PLD: on a small grid: looser and sooner, for a guess */
    double prv_error; /* PRV: error in epsilon; 0: 0.01 */
};

struct account_spent {
    double epsilon;  /* upper bound; INFINITY where the engine has no finite one */
    double lower;    /* PRV: lower bound; else 0 */
    double order;    /* RDP: the order that gave it; else 0 */
    double interval; /* PLD: the grid used; 0 where the exact formula was */
};

/* ERR_INPUT that names the field: noise in [0.01, 1e6], sampling in (0, 1], count at most 1e9. */
err account_check_event(const struct account_event *event);

/* Epsilon at `delta` in (0, 1) of all events composed; their order does not matter. */
err account_epsilon(struct account_spent *out, const struct account_event *event, size_t count,
                    double delta, const struct account_options *options);

/* The least noise multiplier with which `event` (its noise is not read), after the `before` events,
 * spends at most `epsilon` at `delta`; within 1e-6 relative, on the private side. */
struct account_budget {
    double epsilon, delta;
    const struct account_event *before; /* spent already; may be NULL */
    size_t before_count;
};
err account_noise(double *out, const struct account_event *event,
                  const struct account_budget *budget, const struct account_options *options);

/* The largest count of `event` (its count is not read) that the budget still allows; 0: none.
 * At most 1e9. */
err account_steps(uint64_t *out, const struct account_event *event,
                  const struct account_budget *budget, const struct account_options *options);

/* Tree aggregation (Kairouz et al. 2021): `leaves` releases of prefix sums, each node of the tree
 * with noise of multiplier `noise`, as one event of full participation. A unit takes part in at
 * most `times` leaves, of which two are at least `apart` + 1 leaves from one another. Its noise is
 * `noise` / sqrt(S2): S2 = *sensitivity2 (may be NULL) is the most that a unit's leaves can add up
 * to, the sum over nodes of squared numbers of its leaves below. Trees after a restart: one event
 * each, where a unit may be in all of them. */
struct account_tree {
    uint32_t leaves; /* at most 1e6 */
    uint32_t times;  /* 0 or 1: once */
    uint32_t apart;
};
err account_tree_event(struct account_event *out, double *sensitivity2, double noise,
                       const struct account_tree *tree);

const char *account_engine_name(enum account_engine engine); /* "pld", "rdp", "prv" */

#endif
