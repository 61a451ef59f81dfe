/* The exact mean of what a round's members have learned, in product space: the stack
 *
 *     X = sum_k p_k W_k,    W_k = s_k B_k A_k   of member k, with its own scale and rank
 *
 * whose terms point into the members' files. A factor that a member did not send is the state's
 * (B alone is sent: A is shared). What stands in for a member that sent nothing, and for the part
 * of the state's pair beyond the rank of a member that trains less, is the method's to say. Never
 * dense where the total rank is below the module's size (reference "one object", section 0). */
#ifndef AGG_METHODS_PRODUCT_H
#define AGG_METHODS_PRODUCT_H

#include "agg/round/method_round.h"

/* What robust rules take from the members, 1 - sum p_k, is nobody's of fresh ones, else the
 * state's.
 */
enum product_rest {
    PRODUCT_FRESH, /* nothing: who sends nothing has added nothing (flora) */
    PRODUCT_STAYS, /* the state's: it was frozen, not absent (flexlora); all ranks may be equal */
    PRODUCT_GONE   /* of a smaller member nothing (hetlora); of a silent one the state's */
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
/* With a server optimizer what is published is old + server_lr (X - old) + momentum: the members'
 * terms times server_lr, and the rest of that. `old` is the state's pair; of fresh members nothing.
 */
void product_server_step(struct product *p, const struct method_round *round);
/* A term that no member owns. */
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
