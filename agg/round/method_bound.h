/* The bound on the norms of a round's updates: it finds updates so large that they would be most
 * of the mean, or overflow it. D_k is member k's change (agg/round/method_change.h), V_k its
 * factors as sent. An update is beyond the bound if for D_k or V_k
 *
 *     its square overflows float32, in which members compute; in a module or in all
 *     ||.||_F of all modules  > ratio * m      m: the median over the members
 *     ||.||_F of a module     > ratio * max(the median over the members that sent it, m / sqrt(M))
 *
 * with M modules. V_k is compared because (B Q)(Q^-1 A) hides huge factors in an ordinary
 * change, and methods that average factors publish them. With fewer than METHOD_BOUND_LEAST
 * updates left after the first rule a median says little: then m of D_k is `reference`, a norm of
 * earlier rounds, and only the norms of all modules are compared. Without a reference m is the
 * smaller norm of two. Rounds that only find a basis
 * compare V_k, the gradients. */
#ifndef AGG_METHOD_BOUND_H
#define AGG_METHOD_BOUND_H

#include "agg/round/method.h"

enum { METHOD_BOUND_LEAST = 3, METHOD_BOUND_WHY_BYTES = 160 };
#define METHOD_BOUND_RATIO 1000.0

struct method_bound_options {
    double ratio;
    double reference; /* 0: none */
    int threads;      /* 0: as many as OpenMP gives */
};
struct method_bound {
    double norm;                      /* of D_k over all modules, or of the gradients */
    char why[METHOD_BOUND_WHY_BYTES]; /* why it is beyond the bound; "": it is not */
};
/* Fills out (next->count), in order of the members' ids. *median: of the norms within the bound, 0
 * where there are none. Does not depend on the number of threads. */
err method_bound(struct method_bound *out, double *median, const struct method *method,
                 const struct method_next *next, const struct method_bound_options *options);

#endif
