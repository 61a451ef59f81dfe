/* The change D_k that member k's update makes to a module's weight, W_k less what the member
 * started from. It is a product, so (B Q)(Q^-1 A) gives the same as B A. (d_out, d_in), never
 * formed; its rank is at most 2 r_k.
 *
 *     fresh methods   D_k = s_k B_k A_k                                  the start was zero
 *     A, B sent       D_k = s_k B_k A_k - s_0 B_0[:, :r_k] A_0[:r_k]
 *     R sent          D_k = s_0 B[:, :r_k] (R_k - R_0[:r_k, :r_k]) A[:r_k]
 *
 * B_0, A_0, R_0 are the state's factors. A member of smaller rank than the state's changes only
 * their leading part; the rest of them is not in D_k. A factor that is not sent is the state's, or
 * the frozen one. Pure; one module at a time. */
#ifndef AGG_METHOD_CHANGE_H
#define AGG_METHOD_CHANGE_H

#include "agg/round/method_round.h"

/* sum_k p_k D_k as a stack of float32 terms, which lie in the files of the members and the
 * state. */
struct method_change {
    struct lowrank_stack stack; /* do not move the struct while it is used */
    struct lowrank_term *term;
    struct method_stack owners;
    struct arena arena;
};
/* With room for `more` terms. ERR_INPUT where frozen factors are needed but not given. */
err method_change_open(struct method_change *out, const struct method_round *round,
                       const struct method *method, size_t more);
void method_change_add(struct method_change *change, const struct lowrank_term *term);
void method_change_close(struct method_change *change);

#endif
