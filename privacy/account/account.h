/* Privacy accounting: epsilon at delta of a list of noisy releases.
 *
 *   struct account_event event = {.noise = 1.1, .sampling = 0.02, .count = 500};
 *   struct account_spent spent;
 *   TRY(account_epsilon(&spent, &event, 1, 1e-5, NULL));       spent.epsilon: 2.2932
 *
 * Every epsilon is an upper bound of the privacy loss of a unit, under the assumptions of the
 * events: it is rounded up, never down. Engines (docs/privacy.md has theorems and error bounds):
 *
 *     ACCOUNT_PLD   the default and the published number: privacy loss distributions by
 *                   connect-the-dots; the exact formula of the Gaussian mechanism if all units take
 *                   part in every release
 *     ACCOUNT_RDP   Renyi divergences: Mironov-Talwar-Zhang for Poisson sampling, Wang-Balle-
 *                   Kasiviswanathan theorem 27 for fixed-size sampling; looser and cheap
 *     ACCOUNT_PRV   Gopi-Lee-Wutschitz 2021: a cross-check with an upper and a lower bound
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
    ACCOUNT_ADD_REMOVE,  /* one unit is present or absent (or zeroed out): sensitivity C */
    ACCOUNT_REPLACE_ONE, /* one unit is replaced by another: sensitivity 2 C if it takes part */
};

/* `count` releases of the same kind. */
struct account_event {
    enum account_mechanism mechanism;
    double noise;    /* standard deviation of the noise over the clip norm C; > 0 */
    double sampling; /* rate in (0, 1]; 1: all units take part */
    uint64_t count;  /* number of such releases */
};

/* Zero everywhere is the default. */
struct account_options {
    enum account_engine engine;
    enum account_adjacency adjacency;
    bool rdp_signed;     /* fractional orders by the signed series, not by its upper bound */
    const double *order; /* RDP orders above 1; NULL: 1.1 to 10.9 by 0.1, 11 to 63, 128 ... 1024 */
    size_t order_count;
    double interval;  /* PLD: spacing of the grid of losses; 0: 1e-4, finer if losses are small */
    bool rough;       /* PLD: use a small grid, which is faster and looser; for a first guess */
    double prv_error; /* PRV: error in epsilon; 0: 0.01 */
};

struct account_spent {
    double epsilon;  /* upper bound; INFINITY if the engine has no finite one */
    double lower;    /* PRV: lower bound; else 0 */
    double order;    /* RDP: the order that gave it; else 0 */
    double interval; /* PLD: spacing of the grid; 0 if the exact formula was used */
};

/* ERR_INPUT with the field's name unless noise is in [0.01, 1e6], sampling in (0, 1], and count at
 * most 1e9. */
err account_check_event(const struct account_event *event);

/* Epsilon at `delta` in (0, 1) of all events composed; their order does not matter. */
err account_epsilon(struct account_spent *out, const struct account_event *event, size_t count,
                    double delta, const struct account_options *options);

struct account_budget {
    double epsilon, delta;
    const struct account_event *before; /* spent already; may be NULL */
    size_t before_count;
};

/* The least noise multiplier for which `event` (its noise is not read), after the events of
 * budget->before, spends at most `epsilon` at `delta`. Too large by at most 1e-6 relative, never
 * too small. */
err account_noise(double *out, const struct account_event *event,
                  const struct account_budget *budget, const struct account_options *options);

/* The largest count of `event` (its count is not read) that the budget still allows, 0 to 1e9. */
err account_steps(uint64_t *out, const struct account_event *event,
                  const struct account_budget *budget, const struct account_options *options);

/* Tree aggregation (Kairouz et al. 2021, arXiv 2103.00039): `leaves` releases of prefix sums, where
 * each node of the tree has noise of multiplier `noise`, as one event of full participation. A unit
 * takes part in at most `times` leaves, and any two of them are at least `apart` + 1 leaves apart.
 * The event's noise is `noise` / sqrt(S2). S2 = *sensitivity2 (may be NULL) is the largest sum over
 * nodes of the squared number of a unit's leaves below the node. Each tree after a restart is one
 * more event, because a unit may be in all of them. */
struct account_tree {
    uint32_t leaves; /* at most 1e6 */
    uint32_t times;  /* 0 or 1: once */
    uint32_t apart;
};
err account_tree_event(struct account_event *out, double *sensitivity2, double noise,
                       const struct account_tree *tree);

const char *account_engine_name(enum account_engine engine); /* "pld", "rdp", "prv" */

#endif
