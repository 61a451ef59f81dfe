/* Flattens a whole state to one plain LoRA pair per module: carry + scale B A (or scale B R A) as a
 * single (B, A) of scale 1, recompressed to a rank or an error. For exports (PEFT, GGUF) and
 * evaluation. */
#ifndef AGG_FLATTEN_H
#define AGG_FLATTEN_H

#include "agg/adapter/adapter_file.h"
#include "agg/algebra/lowrank.h"

struct flatten {
    size_t count;
    struct adapter_file_module *module; /* only A and B; alpha = rank, scale 1; sorted by name */
    double *norm, *tail;                /* (count): norm before the cut, and norm cut off */
    double norm_total, tail_total;      /* roots of the sums of squares */
    const char *root; /* of the file's names: adapter_file_meta.root; static or NULL */
    struct arena arena;
};
/* Modules without any factor are left out. `file` must be joined with its frozen factors if it
 * needs them (adapter_file_join()). A zeroed cut gives the exact result, of the rank that this
 * needs. PEFT adapters can be flattened as well. */
err flatten_open(struct flatten *out, const struct adapter_file *file,
                 const struct lowrank_cut *cut, int threads);
/* The terms of one module with float32 factors, whose sum the module adds to W0. Returns their
 * number, 0 to 2. */
size_t flatten_terms(struct lowrank_term out[2], const struct adapter_file_module *module);
void flatten_close(struct flatten *f);

#endif
