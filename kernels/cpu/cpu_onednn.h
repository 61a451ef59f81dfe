/* Products of rows with a packed right operand, and changes of layout, by oneDNN. Used only in
 * cpu_linear.c and cpu_onednn.c. Primitives depend only on shapes; the most recent ones are
 * kept. */
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
/* The layout that oneDNN prefers for the right operand of this product. */
err onednn_layout(dnnl_memory_desc_t *out, const struct cpu_primitives *all,
                  const struct shape_key *key);
/* Memory for one weight of `bytes`, valid until the next call. */
err onednn_room(void **out, struct cpu_primitives *all, size_t bytes);
void *onednn_room_data(const struct cpu_primitives *all); /* that memory, unchanged */
/* Copies a matrix from one layout to another. */
err onednn_reorder(struct cpu_primitives *all, const dnnl_memory_desc_t *to, void *to_data,
                   const dnnl_memory_desc_t *from, void *from_data);
struct onednn_operands {
    void *x, *y, *w;
    const dnnl_memory_desc_t *w_layout;
    float *bias; /* (n), or NULL */
};
err onednn_multiply(struct backend_context *c, const struct shape_key *key,
                    const struct onednn_operands *o);
/* The same inside a parallel region, on the calling thread. onednn_prepare() must have been called
 * before the region, with no more shapes in between than are kept. */
err onednn_prepare(struct backend_context *c, const struct shape_key *key,
                   const dnnl_memory_desc_t *w_layout);
dnnl_status_t onednn_run(const struct backend_context *c, const struct shape_key *key,
                         const struct onednn_operands *o);

#endif
