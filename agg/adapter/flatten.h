/* One plain LoRA pair a module out of a whole state: carry + scale B A (or scale B R A) as a single
 * (B, A) of scale 1, recompressed to a rank or an error. For exports (PEFT, GGUF) and evaluation.
 */
#ifndef AGG_FLATTEN_H
#define AGG_FLATTEN_H

#include "agg/adapter/adapter_file.h"
#include "agg/algebra/lowrank.h"

struct flatten {
    size_t count;
    struct adapter_file_module *module; /* only A and B; alpha = rank, scale 1; sorted by name */
    double *norm, *tail;                /* (count): of the whole, and what was cut off */
    double norm_total, tail_total;      /* roots of the sums of squares */
    struct arena arena;
};
/* Modules without any factor are left out. `file` is joined with its frozen factors where it needs
 * them. cut {0}: exact, of whatever rank that takes. A PEFT adapter flattens too. */
err flatten_open(struct flatten *out, const struct adapter_file *file,
                 const struct lowrank_cut *cut, int threads);
/* The terms of one module with float32 factors: their number, 0 to 2. Their sum is what the module
 * adds to W0. */
size_t flatten_terms(struct lowrank_term out[2], const struct adapter_file_module *module);
void flatten_close(struct flatten *f);

#endif
