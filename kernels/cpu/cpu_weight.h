/* Frozen weights and the right operands of their products, for cpu_linear.c. A weight is divided
 * into slices of rows, and each slice has a forward operand W^T (k, count) and a backward operand W
 * (count, k). An operand that is not kept is made before its product, by all threads together, in
 * memory that all weights share:
 *
 *   cpu_operand_reserve(c, w, slice)               before the parallel region
 *   if (cpu_operand_is_made(w, slice, back))       the same answer on all threads
 *       cpu_operand_make(c, w, slice, back);       each thread makes its share; then a barrier
 *   cpu_operand_data(c, w, slice, back)
 *
 * An operand that was made is valid until an operand of another slice with the same parity is made,
 * so threads need one barrier for each slice. */
#ifndef KERNELS_CPU_CPU_WEIGHT_H
#define KERNELS_CPU_CPU_WEIGHT_H

#include "kernels/cpu/cpu_onednn.h"
#include "kernels/cpu/cpu_pack.h"

struct weight_slice { /* rows first .. first + shape.n - 1 of W */
    size_t first;
    struct pack_shape shape;
    dnnl_memory_desc_t layout[2]; /* of the forward and the backward operand */
    void *data;                   /* the forward operand; NULL: made at each use */
};
struct backend_weight {
    struct weight_source source;
    size_t slices;
    struct weight_slice *slice;
    float *bias; /* (n), or NULL */
};

bool cpu_operand_is_made(const struct backend_weight *w, size_t slice, bool back);
err cpu_operand_reserve(struct backend_context *c, const struct backend_weight *w, size_t slice);
void cpu_operand_make(const struct backend_context *c, const struct backend_weight *w, size_t slice,
                      bool back);
void *cpu_operand_data(const struct backend_context *c, const struct backend_weight *w,
                       size_t slice, bool back);

#endif
