/* Inside the CPU backend: its context and the functions that its files share. Each file implements
 * the operations of backend.h that its name says; cpu_backend.c has the table. */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "kernels/backend.h"

struct cpu_primitives; /* cpu_onednn.c: oneDNN's engine, streams and primitives by shape */

struct backend_context {
    enum dtype precision;
    int threads;
    err first; /* the first failure since the last check */
    struct backend_profile profile;
    struct cpu_primitives *primitives;
    void *scratch; /* grows as needed; used by one operation at a time */
    size_t scratch_bytes;
};

void cpu_fail(struct backend_context *c, err e); /* keeps e if it is the first failure */
/* Scratch memory, valid until the next call, 64-byte aligned; NULL after a recorded failure. */
void *cpu_scratch(struct backend_context *c, size_t bytes);
void *cpu_alloc(size_t bytes); /* 64-byte aligned, not zeroed; free() it */

int cpu_thread(void);   /* number of this thread in the parallel region */
double cpu_clock(void); /* seconds, monotonic */
/* Adds the time since `since` to the profile of an operation. */
void cpu_count(struct backend_context *c, enum backend_op op, double since);

err cpu_primitives_open(struct cpu_primitives **out, const struct backend_context *c);
void cpu_primitives_close(struct cpu_primitives *p);
/* The processor has AMX. With avx512_bf16 alone, bfloat16 products took 1.4 to 2 times as long as
 * float32 ones, at 256 and 2,048 rows. */
bool cpu_bf16_is_faster(void);
bool cpu_can_bf16(void); /* oneDNN can multiply bf16 weights on this processor */

err cpu_weight_pack(struct backend_weight **out, struct backend_context *c,
                    const struct weight_source *source);
void cpu_weight_close(struct backend_weight *w);
void cpu_linear(struct backend_context *c, struct mat y, struct mat x,
                const struct backend_weight *w, size_t rows, bool add);
void cpu_linear_back(struct backend_context *c, struct mat dx, struct mat dy,
                     const struct backend_weight *w, size_t rows, bool add);
/* Products with a slice of rows of W, for cpu_head.c: y (rows, count) = x W_slice^T, or with `back`
 * y (rows, k) = x W_slice. */
struct linear_rows {
    size_t rows;
    bool add, back;
    bool few; /* do not round the number of rows up */
};
enum { CPU_SHARE = 128 };                               /* most rows of one thread at once */
size_t cpu_weight_rows(const struct backend_weight *w); /* n of W (n, k) */
size_t cpu_weight_slices(const struct backend_weight *w);
void cpu_weight_slice(size_t *first, size_t *count, const struct backend_weight *w, size_t slice);
void cpu_linear_slice(struct backend_context *c, struct mat y, struct mat x,
                      const struct backend_weight *w, size_t slice, const struct linear_rows *r);
/* The same inside a parallel region, on the calling thread and with at most CPU_SHARE rows. Call
 * cpu_slice_prepare() with the same shape before the region. cpu_slice_run() returns false if
 * oneDNN failed. */
void cpu_slice_prepare(struct backend_context *c, struct mat y, struct mat x,
                       const struct backend_weight *w, size_t slice, const struct linear_rows *r);
bool cpu_slice_run(struct backend_context *c, struct mat y, struct mat x,
                   const struct backend_weight *w, size_t slice, const struct linear_rows *r);

void cpu_head_loss(struct backend_context *c, struct mat dhidden, struct mat hidden,
                   const struct backend_weight *w, const struct head_loss *loss);
void cpu_product(struct backend_context *c, struct mat out, struct mat a, struct mat b,
                 const struct product_shape *p);

void cpu_norm(struct backend_context *c, struct mat y, float *inv, struct mat x,
              const float *weight, const struct norm_shape *s);
void cpu_norm_back(struct backend_context *c, struct mat dx, struct mat dy, struct mat x,
                   const float *inv, const float *weight, const struct norm_shape *s, bool set);
void cpu_rope(struct backend_context *c, struct mat to, struct mat from,
              const struct rope_shape *s);
void cpu_gate(struct backend_context *c, struct mat h, struct mat gate, struct mat up, size_t rows,
              size_t width);
void cpu_gate_back(struct backend_context *c, struct mat dgate, struct mat dup, struct mat dh,
                   struct mat gate, struct mat up, size_t rows, size_t width);

void cpu_attention(struct backend_context *c, const struct attention_tensors *t,
                   const struct attention_shape *s);
void cpu_attention_back(struct backend_context *c, const struct attention_tensors *grad,
                        const struct attention_tensors *t, const struct attention_shape *s);
void cpu_attention_decode(struct backend_context *c, struct mat out, struct mat q,
                          const struct decode_row *row, const struct attention_shape *s);

void cpu_sum_squares(struct backend_context *c, double *out, const float *x, size_t n);
void cpu_adamw(struct backend_context *c, float *value, float *first, float *second,
               const float *gradient, size_t n, const struct adamw *a);

#endif
