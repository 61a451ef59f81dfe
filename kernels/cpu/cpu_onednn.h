/* Inside cpu_linear.c and cpu_onednn.c: a matrix product of rows with a packed right operand, and
 * changes of layout, by oneDNN. Primitives depend on shapes alone; the latest are kept. */
#ifndef KERNELS_CPU_CPU_ONEDNN_H
#define KERNELS_CPU_CPU_ONEDNN_H

#include "kernels/cpu/cpu.h"

#include <dnnl.h>

struct shape_key { /* y (rows, n) = x (rows, k) w (k, n) */
    int64_t rows, n, k, ldx, ldy;
    int32_t xtype, ytype, add, bias;
};

err onednn_check(dnnl_status_t s, const char *what);
dnnl_data_type_t onednn_type(int32_t dtype);
/* The layout oneDNN likes for the right operand of such a product. */
err onednn_layout(dnnl_memory_desc_t *out, const struct cpu_primitives *all,
                  const struct shape_key *key);
/* One weight's memory until the next call, for a layout of `bytes`. */
err onednn_room(void **out, struct cpu_primitives *all, size_t bytes);
void *onednn_room_data(const struct cpu_primitives *all); /* as it is */
/* From one layout to another of the same dimensions. */
err onednn_reorder(struct cpu_primitives *all, const dnnl_memory_desc_t *to, void *to_data,
                   const dnnl_memory_desc_t *from, void *from_data);
struct onednn_operands {
    void *x, *y, *w;
    const dnnl_memory_desc_t *w_layout;
    float *bias; /* (n), or NULL */
};
err onednn_multiply(struct backend_context *c, const struct shape_key *key,
                    const struct onednn_operands *o);
/* The same on the calling thread of a parallel region, for a shape that was prepared before it:
 * among the latest few. */
err onednn_prepare(struct backend_context *c, const struct shape_key *key,
                   const dnnl_memory_desc_t *w_layout);
dnnl_status_t onednn_run(const struct backend_context *c, const struct shape_key *key,
                         const struct onednn_operands *o);

#endif
