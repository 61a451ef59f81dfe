/* Inside the CPU backend: its context and the functions that its files share. Each file implements
 * the operations of backend.h that its name says; cpu_backend.c has the table. */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "kernels/backend.h"
#include "kernels/formula.h"

struct cpu_primitives; /* cpu_onednn.c: oneDNN's engine, streams and primitives by shape */

struct backend_context {
    enum dtype precision;
    int threads;
    err first; /* the first failure since the last check */
    struct backend_profile profile;
    struct cpu_primitives *primitives;
    /* Both grow as needed and serve one operation at a time: scratch within a product, room in the
     * low-rank operations, which call products. */
    void *scratch, *room;
    size_t scratch_bytes, room_bytes;
    uint64_t packed_bytes; /* of all weights packed so far */
};
struct backend_batch {
    struct batch_rows rows; /* its arrays are copies, owned by the batch */
    double *nll;            /* (learned) */
    float *scales;          /* (learned) room for gradient_scales */
    void *memory;
};

void cpu_fail(struct backend_context *c, err e); /* keeps e if it is the first failure */
/* Scratch memory, valid until the next call of the same function, 64-byte aligned; NULL after a
 * recorded failure. */
void *cpu_scratch(struct backend_context *c, size_t bytes);
void *cpu_room(struct backend_context *c, size_t bytes);
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
void cpu_weight_bytes(struct backend_weight_bytes *out, const struct backend_context *c,
                      const struct weight_source *source);
void cpu_embed(struct backend_context *c, struct mat to, const struct backend_weight *w,
               const struct backend_batch *b);
/* y (rows, n) = x (rows, k) W^T + bias [+ y];  dx (rows, k) = dy (rows, n) W [+ dx] */
void cpu_dense(struct backend_context *c, struct mat y, struct mat x,
               const struct backend_weight *w, size_t rows, bool add);
void cpu_dense_back(struct backend_context *c, struct mat dx, struct mat dy,
                    const struct backend_weight *w, size_t rows, bool add);
/* Products with a slice of rows of W, for cpu_head.c: y (rows, count) = x W_slice^T, or with `back`
 * y (rows, k) = x W_slice. */
struct linear_rows {
    size_t rows;
    bool add, back;
    bool few; /* do not round the number of rows up */
};
enum { CPU_SHARE = 128 }; /* most rows of one thread at once */
void cpu_weight_shape(size_t *n, size_t *k, const struct backend_weight *w);
float cpu_weight_cap(const struct backend_weight *w);
size_t cpu_weight_slices(const struct backend_weight *w);
void cpu_weight_slice(size_t *first, size_t *count, const struct backend_weight *w, size_t slice);
void cpu_linear_slice(struct backend_context *c, struct mat y, struct mat x,
                      const struct backend_weight *w, size_t slice, const struct linear_rows *r);
/* The same inside a parallel region, on the calling thread and with at most CPU_SHARE rows. Call
 * cpu_slice_prepare() with the same shape before the region. All threads call cpu_slice_make() for
 * one slice after the other, and cpu_slice_run() for a slice between its make and the next one.
 * cpu_slice_run() returns false if oneDNN failed. */
void cpu_slice_prepare(struct backend_context *c, struct mat y, struct mat x,
                       const struct backend_weight *w, size_t slice, const struct linear_rows *r);
void cpu_slice_make(const struct backend_context *c, const struct backend_weight *w, size_t slice,
                    bool back);
bool cpu_slice_run(struct backend_context *c, struct mat y, struct mat x,
                   const struct backend_weight *w, size_t slice, const struct linear_rows *r);

void cpu_head_loss(struct backend_context *c, struct mat dhidden, struct mat hidden,
                   const struct backend_weight *w, struct backend_batch *b, size_t first,
                   size_t rows);

/* Products of operands that are not packed. */
enum product_kind {
    PRODUCT_NN, /* c (m, n) = a (m, k) b (k, n)   */
    PRODUCT_NT, /* c (m, n) = a (m, k) b (n, k)^T */
    PRODUCT_TN, /* c (m, n) = a (k, m)^T b (k, n) */
};
struct product_shape { /* c = alpha * (...) + (add ? c : 0) */
    enum product_kind kind;
    size_t m, n, k;
    float alpha;
    bool add;
};
void cpu_product(struct backend_context *c, struct mat out, struct mat a, struct mat b,
                 const struct product_shape *p);

/* cpu_elementwise.c: to = scale * from; to += from; to = from with a mask */
void cpu_zero(struct backend_context *c, struct mat m, size_t rows, size_t cols);
void cpu_convert(struct backend_context *c, struct mat to, struct mat from, size_t rows,
                 size_t cols, float scale);
void cpu_add(struct backend_context *c, struct mat to, struct mat from, size_t rows, size_t cols,
             float scale);
void cpu_dropout(struct backend_context *c, struct mat to, struct mat from, size_t rows,
                 size_t cols, const struct formula_mask *mask);
/* n values x become cap tanh(scale x / cap), which has the derivative scale (1 - (result /
 * cap)^2). */
void cpu_cap(float *x, size_t n, float scale, float cap);
void cpu_learned_take(struct backend_context *c, struct mat to, struct mat from,
                      const struct backend_batch *b, size_t first, size_t rows, size_t cols);
void cpu_learned_add(struct backend_context *c, struct mat to, struct mat from,
                     const struct backend_batch *b, size_t first, size_t rows, size_t cols);

/* cpu_low_rank.c: the operations of backend.h with these names */
size_t cpu_low_rank_room(const struct backend_context *c, size_t width);
err cpu_low_rank_open(struct backend_low_rank **out, struct backend_context *c,
                      struct backend_weight *w, const struct low_rank_module *module,
                      size_t modules);
void cpu_low_rank_close(struct backend_low_rank *l);
void cpu_low_rank_load(struct backend_context *c, struct backend_low_rank *l, size_t module,
                       const struct low_rank_values *values);
void cpu_low_rank_set(struct backend_context *c, struct backend_low_rank *const *all, size_t count,
                      const float *value);
void cpu_low_rank_shrink(struct backend_context *c, const struct low_rank_site *l, struct mat x,
                         const struct backend_batch *b);
void cpu_low_rank_gradient(struct backend_context *c, const struct low_rank_site *l, struct mat dy,
                           struct mat x, const struct backend_batch *b);
void cpu_linear(struct backend_context *c, struct mat y, struct mat x,
                const struct backend_weight *w, const struct low_rank_site *l,
                const struct backend_batch *b, size_t rows, bool add);
void cpu_linear_back(struct backend_context *c, struct mat dx, struct mat dy,
                     const struct backend_weight *w, const struct low_rank_site *l,
                     const struct backend_batch *b, size_t rows);

/* cpu_norm.c: norms, rotation, the gated unit and AdamW */
void cpu_norm(struct backend_context *c, struct mat y, float *inv, struct mat copy, struct mat x,
              const float *weight, const struct norm_shape *s);
void cpu_norm_back(struct backend_context *c, struct mat dx, struct mat narrow, struct mat dy,
                   struct mat x, const float *inv, const float *weight, const struct norm_shape *s,
                   bool set);
void cpu_rope(struct backend_context *c, struct mat to, struct mat from, const struct rope_shape *s,
              const struct backend_batch *b);
void cpu_gate(struct backend_context *c, struct mat h, struct mat gate, struct mat up,
              const struct gate_shape *s);
void cpu_gate_back(struct backend_context *c, struct mat dgate, struct mat dup, struct mat dh,
                   struct mat gate, struct mat up, const struct gate_shape *s);

void cpu_attention(struct backend_context *c, const struct attention_tensors *t,
                   const struct attention_shape *s, const struct backend_batch *b);
void cpu_attention_back(struct backend_context *c, const struct attention_tensors *grad,
                        const struct attention_tensors *t, const struct attention_shape *s,
                        const struct backend_batch *b);
void cpu_attention_decode(struct backend_context *c, const struct attention_tensors *t,
                          const struct decode_row *row, size_t rows,
                          const struct attention_shape *s);

void cpu_adamw(struct backend_context *c, double norm2[2], const struct optimizer *o,
               const struct adamw *a);

#endif
