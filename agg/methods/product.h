/* The exact mean of the products that members trained in a round, as the stack
 *
 *     X = sum_k p_k W_k,    W_k = s_k B_k A_k   of member k, with its own scale and rank
 *
 * whose terms point into the members' files. A factor that a member did not send is the state's
 * (if B alone is sent, A is shared). The method chooses what replaces a member that sent nothing,
 * and the part of the state's pair beyond the rank of a smaller member (enum product_rest). Never
 * dense where the total rank is below the module's size. */
#ifndef AGG_METHODS_PRODUCT_H
#define AGG_METHODS_PRODUCT_H

#include "agg/round/method_round.h"

/* The factors that count in place of those that a member did not send. Weight removed by a robust
 * rule (1 - sum p_k) is dropped for `fresh` methods; otherwise it goes to the state's own
 * factors. */
enum product_rest {
    PRODUCT_FRESH, /* nothing, because members start at zero (flora) */
    PRODUCT_STAYS, /* the state's factors, which were frozen meanwhile (flexlora) */
    PRODUCT_GONE   /* nothing beyond the rank of a smaller member (hetlora); the state's pair for a
                      member that sent nothing */
};

struct product {
    struct lowrank_stack stack;
    size_t sent; /* members that sent this module */
    struct lowrank_term *term;
    struct method_stack owners;
    struct arena arena;
};

/* Room for `more` terms beside X's, and for what product_server_step() adds. */
err product_open(struct product *out, const struct method_round *round, enum product_rest rest,
                 size_t more);
void product_close(struct product *p);
/* With a server optimizer the published sum is old + server_lr (X - old) + momentum: multiplies the
 * members' terms by server_lr and adds the other terms. `old` is the state's pair, or zero for
 * `fresh` methods. */
void product_server_step(struct product *p, const struct method_round *round);
/* Adds a term that is not in a member's file. */
void product_add(struct product *p, const struct lowrank_term *term);

/* c times the pair of a module (of scale `module->scale`), c times its carry. */
struct lowrank_term product_pair(const struct adapter_file_module *module, double c);
struct lowrank_term product_carry(const struct adapter_file_module *module, double c);
/* ||carry + pair||_F of a module. */
err product_norm(double *out, const struct adapter_file_module *module);

/* The carry becomes the stack's sum, cut by the run's carry_error and never less coarsely than
 * `floor` (an error that is there anyway: a published pair's own rounding). Sets row.dropped
 * and `dropped`. */
err product_into_carry(struct method_result *out, const struct method_round *round,
                       const struct lowrank_svd *svd, double floor);
/* The state's carry as it is. */
void product_keep_carry(struct method_result *out, const struct method_round *round);

#endif
