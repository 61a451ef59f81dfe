/* Products of rows with a packed right operand, by oneDNN. Used only in cpu_linear.c, cpu_weight.c
 * and cpu_onednn.c. Primitives depend only on shapes; the most recent ones are kept. */
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
/* oneDNN has a fast product for this shape with a right operand of this layout. */
bool onednn_takes(const struct cpu_primitives *all, const struct shape_key *key,
                  const dnnl_memory_desc_t *w_layout);
/* Memory of at least `bytes`, valid until the same room is made larger. */
enum { ONEDNN_ROOMS = 3 };
err onednn_room(void **out, struct cpu_primitives *all, int number, size_t bytes);
void *onednn_room_data(const struct cpu_primitives *all, int number);
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
