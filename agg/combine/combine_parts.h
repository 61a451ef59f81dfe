/* What agg/combine*.c share; contract in combine.h. */
#ifndef AGG_COMBINE_PARTS_H
#define AGG_COMBINE_PARTS_H

#include "agg/combine/combine.h"

/* The result is the exact sum, cut or not; else the method combines factors. */
bool combine_sums(const struct method *method);

/* One module's result; rank_max 0: no bound beside the options'. */
err combine_module(struct method_result *out, const struct combine *c,
                   const struct combine_options *o, size_t i, uint32_t rank_max);
/* The ranks that c->bytes hold (agg/algebra/budget.h). */
err combine_spend(uint32_t *rank, const struct combine *c, int threads);

/* Inner products (file_count, file_count) of what the adapters add to module i. */
err combine_gram(double *gram, const struct combine *c, const struct combine_options *o, size_t i);
/* c->p becomes what the robust rule makes of the shares, over all modules together; with `compare`
 * also how far adapters agree. */
err combine_robust(struct combine *c, const struct combine_options *o, int threads);

/* The tensors saved whole are in every adapter, of one shape, and the configuration that speaks of
 * them is the same. */
err combine_saved_list(struct combine *c);
/* Their means, appended to the scratch file; then, when that is mapped, where they lie. */
err combine_saved_mean(struct combine *c);
void combine_saved_map(struct combine *c);

#endif
