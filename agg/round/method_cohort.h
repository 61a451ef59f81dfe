/* The files of one round, open: the state the updates started from, its frozen factors, the
 * server's memory, and every contribution in order of member id; and one module's view of them all.
 * Many updates are open at once, so only the map and the places of the factors are held of each. A
 * cohort is read from several threads at once; a view belongs to one. */
#ifndef AGG_METHOD_COHORT_H
#define AGG_METHOD_COHORT_H

#include "agg/round/method_round.h"
#include "base/file.h"
#include "base/json.h"

#include <stdatomic.h>

struct method_sent;   /* one module of one update */
struct method_update; /* an update's map and what is in it */

struct method_cohort {
    const struct contribution **member; /* (count) */
    double *p;                          /* (count): weights, sum 1 */
    struct method_update *update;       /* (count) */
    atomic_size_t *read;                /* bytes of the state since its pages were dropped */
    size_t count, opened;
    struct adapter_file state, frozen, memory;
    bool has_frozen, has_memory;
    struct method_options options;
    struct method_task task; /* of the round */
    json_t *dropped;
    struct arena arena;
};
/* Without `memory` the server's memory is neither needed nor looked at. */
err method_cohort_open(struct method_cohort *out, const struct method *method,
                       const struct method_next *next, bool memory);
void method_cohort_close(struct method_cohort *c);

struct method_view { /* one module of every file, all float32; zeroed before it is opened */
    struct arena arena;
    struct adapter_file_module state, frozen, *copy;
    const struct adapter_file_module **update; /* (count) */
};
/* Module i of the state. Sets the fields of `round` that point into the view or the cohort; the
 * caller sets the others. A view that failed to open is closed as well. */
err method_view_open(struct method_view *out, struct method_round *round,
                     const struct method_cohort *c, size_t i);
void method_view_close(struct method_view *view, const struct method_cohort *c);
/* Values were finite when the updates were admitted, so they are checked again only after a result
 * that is not. The error names the member or state with such a value; `otherwise` if there is
 * none. */
err method_view_blame(const struct method_view *view, const struct method_cohort *c, err otherwise);
/* All factors of a module are finite. */
err method_view_finite(const struct adapter_file_module *m);

#endif
