/* Parts shared by agg/combine/combine*.c; contract in combine.h. */
#ifndef AGG_COMBINE_PARTS_H
#define AGG_COMBINE_PARTS_H

#include "agg/combine/combine.h"

/* True if the method gives the exact sum, cut or not; false if it combines factors. */
bool combine_sums(const struct method *method);

/* The result of module i; rank_max 0: only the limits of the options. */
err combine_module(struct method_result *out, const struct combine *c,
                   const struct combine_options *o, size_t i, uint32_t rank_max);
/* The rank of each module that c->bytes allow (agg/algebra/budget.h). */
err combine_spend(uint32_t *rank, const struct combine *c, int threads);

/* Inner products (file_count, file_count) of the products that the adapters add to module i. */
err combine_gram(double *gram, const struct combine *c, const struct combine_options *o, size_t i);
/* Applies the robust rule to the shares c->p, over all modules together, and with `compare` sets
 * c->compared. */
err combine_robust(struct combine *c, const struct combine_options *o, int threads);

/* Decides whether the result is a DoRA adapter, and makes room for its magnitudes. ERR_INPUT for
 * what cannot be combined with DoRA. */
err combine_dora_list(struct combine *c, const struct combine_options *o);
struct combine_dora_term {
    double p; /* weight of the adapter */
    struct arena *arena;
};
/* Scales the rows of B of an adapter with magnitudes by g, and adds p (g - 1) to d (d_out). */
err combine_dora_scale(struct adapter_file_module *m, double *d, const struct combine *c, size_t i,
                       const struct combine_dora_term *term);
/* Turns the result's (B, A), whose product is S, into those of DoRA, and sets the magnitudes. */
err combine_dora_result(struct method_result *out, const struct combine *c, size_t i,
                        const double *d);

/* Lists the tensors saved whole. ERR_INPUT unless every adapter has them with the same shapes and
 * the same `bias`. */
err combine_saved_list(struct combine *c);
/* Appends their means to the scratch file. */
err combine_saved_mean(struct combine *c);
/* Points c->saved to the means, once the scratch file is mapped. */
void combine_saved_map(struct combine *c);

#endif
