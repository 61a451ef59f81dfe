/* What members have learned in a round, in product space, where A and B of one member mean nothing
 * apart: (B Q)(Q^-1 A) is B A. Member k's change of a module's weight is
 *
 *     D_k = s_k B_k A_k - s_0 B_0[:, :r_k] A_0[:r_k]        or    s_0 B[:, :r_k] (R_k - R_0[:r_k,
 * :r_k]) A[:r_k]
 *
 * with what it started from taken off: the leading part of the state's factors, where it holds less
 * than the state (all of it, whatever method: what it does not hold did not change), and nothing
 * where it began afresh. A factor that is not sent is the state's, or the frozen one. Shapes: D_k
 * (d_out, d_in) is never formed; its rank is at most 2 r_k. Pure; one module at a time. */
#ifndef AGG_METHOD_CHANGE_H
#define AGG_METHOD_CHANGE_H

#include "agg/round/method_round.h"

/* sum_k p_k D_k as a stack of float32 terms in the members' files and the state's. */
struct method_change {
    struct lowrank_stack stack; /* do not move the struct while it is used */
    struct lowrank_term *term;
    struct method_stack owners;
    struct arena arena;
};
/* With room for `more` terms. ERR_INPUT where frozen factors are needed and not given. */
err method_change_open(struct method_change *out, const struct method_round *round,
                       const struct method *method, size_t more);
void method_change_add(struct method_change *change, const struct lowrank_term *term);
void method_change_close(struct method_change *change);

#endif
