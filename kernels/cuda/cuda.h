/* Inside the CUDA backend: its context and the functions that its files share. Each file implements
 * the operations of backend.h that its name says; cuda.cu has the table.
 *
 * An operation begins with cuda_begin(), launches its kernels on c->stream and ends with
 * cuda_done(). It allocates no memory but by cuda_scratch(), and never waits for the device. */
#ifndef KERNELS_CUDA_CUDA_H
#define KERNELS_CUDA_CUDA_H

#include "kernels/cuda/cuda_common.cuh"
#include "kernels/formula.h"

extern "C" {
#include "base/err.h"
#include "kernels/backend.h"
}

struct cuda_products; /* cuda_product.cu: cuBLASLt's handle, workspace and algorithms */
struct cuda_staging;  /* cuda.cu: pinned memory between the caller's memory and the device */
struct cuda_set;      /* cuda_low_rank.cu: the table of low_rank_set() on the device */

struct cuda_room { /* device memory that cuda_grow() makes larger */
    void *data;
    size_t bytes;
};
struct backend_context {
    enum dtype precision;
    int device;
    cudaStream_t stream; /* all work, in order */
    err first;           /* the first failure since the last check */
    struct backend_profile profile;
    bool rows_depend; /* no algorithm was found whose rows do not depend on their number */
    bool timed;       /* wait for the device around each operation, to measure its seconds */
    uint64_t waits;   /* number of times that the stream has been waited for */
    /* cuda_record.cu: operations are being captured, and one of them cannot be. */
    bool capturing, uncapturable;
    uint64_t given; /* number of times that device memory was given back; graphs may point to it */
    struct cuda_room scratch; /* cuda_scratch() */
    struct cuda_staging *staging;
    struct cuda_products *products;
    struct cuda_set *set;
    uint64_t low_ranks; /* number of low_rank_open() so far */
    double *sums;       /* (CUDA_SUMS) device, cuda_update.cu */
    /* All blocks of cuda_take() that have not been given back. */
    struct cuda_room *taken;
    size_t takes, takes_most;
    cudaEvent_t event; /* cuda_peer.cu; NULL until it is needed */
    uint32_t reached;  /* devices that this one may address, by bit */
};

/* Scalars of a batch that kernels read. They lie on the device, so that a recorded pass takes those
 * of its own batch. */
struct batch_scalars {
    uint64_t dropout_key;
    float dropout;
};
struct backend_batch { /* copies on the device of the arrays of struct batch_rows */
    struct backend_context *context;
    /* Sizes and scalars: room, and those of the last batch_set(). Their pointers are NULL. */
    struct batch_rows most, now;
    int32_t *id, *target;
    uint32_t *start, *position, *index;
    float *gradient_scale; /* (learned) */
    struct batch_scalars *scalars;
    double *nll; /* (learned) */
    /* cuda.cu: the device block that holds all of these, and the pinned copies of its input. */
    void *block;
    char *pinned;
    size_t input_bytes;
    uint64_t slot_waits[2];
    unsigned slot;
    double *pinned_nll;
};

/* W (n, k). Either `packed`, or, with BACKEND_KEEP, the bytes of the file in `kept`, which
 * cuda_dequantise() converts at each use.
 *
 * A packed weight for both products has a margin: `margin` columns to the right of W and as many
 * rows below it. The factors of one low-rank object, `owner`, may lie there, b at the right and A
 * below. Then y = [x | H] [W | b]^T and dx = [dy | G] [W ; A] are one product each, if H is beside
 * x and G beside dy. */
enum { CUDA_MARGIN = 64 };
struct backend_weight {
    struct backend_context *context;
    uint64_t number; /* of this weight in the process, never used again */
    size_t n, k;
    float cap;         /* of a head: see struct weight_source */
    struct mat packed; /* (n, k) in the precision, or data NULL */
    size_t margin;     /* CUDA_MARGIN or 0 */
    /* Taken and given back by atomic exchanges, because contexts may share a weight. */
    struct backend_low_rank *owner;
    size_t parts;
    struct weight_part
        part[WEIGHT_PARTS_MAX]; /* data: device memory, or NULL without BACKEND_KEEP */
    float *bias;                /* (n), or NULL */
    void *kept;
};

static __host__ __device__ inline size_t cuda_size(enum dtype t) /* bytes of a value */
{
    return t == DTYPE_F32 ? sizeof(float) : sizeof(bf16);
}
/* Columns of a row that is a multiple of 16 bytes in both types. */
static inline size_t cuda_padded(size_t cols)
{
    return (cols + 7) / 8 * 8;
}
/* Takes the next `bytes` of a block whose parts start at multiples of 256 bytes. With a NULL block
 * this only counts. */
static inline void *cuda_place(void *block, size_t *at, size_t bytes)
{
    char *here = block ? static_cast<char *>(block) + *at : NULL;
    *at += (bytes + 255) / 256 * 256;
    return here;
}

/* ---- cuda.cu */
void cuda_fail(struct backend_context *c, err e); /* keeps e if it is the first failure */
/* Keeps an error of the runtime, if there is one: "cuda:0: norm: out of memory". False then. */
bool cuda_good(struct backend_context *c, cudaError_t status, const char *what);
err cuda_error(const struct backend_context *c, cudaError_t status, const char *what);
/* For functions that return their failure: the one recorded since the context was `good`, that is
 * had none, and check() does not report it again. */
static inline err cuda_new_failure(struct backend_context *c, bool good)
{
    err e = good ? c->first : ERR_NONE;
    if (good) c->first = ERR_NONE;
    return e;
}
/* Makes a room hold at least `bytes`, aligned to 256 bytes and not zeroed; the old content is lost.
 * Its memory, or NULL after a recorded failure. */
void *cuda_grow(struct backend_context *c, struct cuda_room *r, size_t bytes);
/* Device memory, aligned to 256 bytes and not zeroed. Grows as needed and is valid until the next
 * call of cuda_scratch(); operations in the stream that use it may still be waiting then. NULL
 * after a recorded failure. */
void *cuda_scratch(struct backend_context *c, size_t bytes);
/* Device memory, not zeroed. The error gives the bytes asked and free. */
err cuda_take(void *out /* T ** */, struct backend_context *c, size_t bytes);
void cuda_give(struct backend_context *c, void *memory); /* accepts NULL */
/* Copies host memory to the device. It is read before the function returns. */
void cuda_send(struct backend_context *c, void *to, const void *host, size_t bytes);
/* Copies to host memory, which is written when check() returns. At most CUDA_RECEIVE_BYTES. */
void cuda_receive(struct backend_context *c, void *host, const void *from, size_t bytes);
void cuda_wait(struct backend_context *c); /* until all queued work is done; not in a capture */
enum { CUDA_RECEIVE_BYTES = 4096 };
/* Start and end of an operation: makes the context's device the current one; takes the errors of
 * the launches and adds to the profile. */
double cuda_begin(struct backend_context *c);
void cuda_done(struct backend_context *c, enum backend_op op, double since);

/* Device memory that batch_open() takes. */
size_t cuda_batch_bytes(const struct batch_rows *most);

/* ---- cuda_record.cu */
void cuda_repeat(struct backend_context *c, struct backend_record **record, uint64_t key,
                 void (*work)(void *user), void *user);
void cuda_record_close(struct backend_record *record);

/* ---- cuda_plan.cu, cuda_peer.cu */
bool cuda_taken_room(struct backend_context *c); /* for one more block in c->taken */
void cuda_taken_remove(struct backend_context *c, const void *memory);
int cuda_devices(void);
void cuda_profile(struct backend_profile *out, const struct backend_context *c);
enum dtype cuda_precision(const struct backend_context *c);
bool cuda_rows_alone(const struct backend_context *c);
uint64_t cuda_memory_free(struct backend_context *c);
uint64_t cuda_memory_held(const struct backend_context *c);
uint64_t cuda_scratch_bytes(const struct backend_context *c, const struct backend_need *need);
void cuda_peer_copy(struct backend_context *c, float *to, struct backend_context *other,
                    const float *from, size_t n);
void cuda_peer_add(struct backend_context *c, float *to, struct backend_context *other,
                   const float *from, size_t n);

/* ---- cuda_product.cu */
/* Forgets which weight the scratch of converted weights holds. */
void cuda_products_forget(struct cuda_products *p);
err cuda_products_open(struct cuda_products **out, struct backend_context *c);
void cuda_products_close(struct cuda_products *p);
/* Memory that products take beside that of weights: the workspace and copies of operands. */
size_t cuda_products_bytes(const struct cuda_products *p);
/* y (rows, n) = x (rows, k) W^T [+ y], or with `back` y (rows, k) = x (rows, n) W [+ y], where W
 * are the rows [w_first, w_first + w_rows) of a weight; w_rows 0: all, and then `margin` columns of
 * x beyond k, or n, are multiplied with the margin of W. */
struct cuda_product {
    size_t rows;
    bool back, add;
    size_t w_first, w_rows;
    size_t margin = 0;
};
void cuda_multiply(struct backend_context *c, struct mat y, struct mat x,
                   const struct backend_weight *w, const struct cuda_product *p);

/* ---- cuda_linear.cu */
err cuda_weight_pack(struct backend_weight **out, struct backend_context *c,
                     const struct weight_source *source);
void cuda_weight_close(struct backend_weight *w);
void cuda_weight_bytes(struct backend_weight_bytes *out, const struct backend_context *c,
                       const struct weight_source *source);
void cuda_linear(struct backend_context *c, struct mat y, struct mat x,
                 const struct backend_weight *w, const struct low_rank_site *l,
                 const struct backend_batch *b, size_t rows, bool add);
void cuda_linear_back(struct backend_context *c, struct mat dx, struct mat dy,
                      const struct backend_weight *w, const struct low_rank_site *l,
                      const struct backend_batch *b, size_t rows);

/* ---- cuda_low_rank.cu */
size_t cuda_low_rank_room(const struct backend_context *c, size_t width);
err cuda_low_rank_open(struct backend_low_rank **out, struct backend_context *c,
                       struct backend_weight *w, const struct low_rank_module *module,
                       size_t modules);
void cuda_low_rank_close(struct backend_low_rank *l);
void cuda_low_rank_load(struct backend_context *c, struct backend_low_rank *l, size_t module,
                        const struct low_rank_values *values);
void cuda_low_rank_set(struct backend_context *c, struct backend_low_rank *const *all, size_t count,
                       const float *value);
void cuda_set_close(struct cuda_set *s);
size_t cuda_set_bytes(const struct cuda_set *s);

/* ---- cuda_low_rank_apply.cu */
void cuda_low_rank_shrink(struct backend_context *c, const struct low_rank_site *l, struct mat x,
                          const struct backend_batch *b);
/* The parts of linear() and linear_back() before the product with W. They set H, or G and P. Then
 * either
 *
 *   the plain path: they set y (rows, n) = bias + low-rank part [+ y], or dx (rows, k) = low-rank
 *   part, for any uses and with dropout; or
 *   the margin path: they write H beside x too, or G beside dy, and the product does the rest. It
 *   needs factors in the margin of W that are used by the whole batch, and no dropout. The gradient
 *   reads H and G where l->h and l->g are, because x is computed again before the backward pass.
 */
struct cuda_applied {
    bool set;      /* y, or dx, has values to which the product has to be added */
    size_t margin; /* for struct cuda_product */
};
struct cuda_applied cuda_low_rank_forward(struct backend_context *c, struct mat y, struct mat x,
                                          const struct backend_weight *w,
                                          const struct low_rank_site *l,
                                          const struct backend_batch *b, size_t rows, bool add);
struct cuda_applied cuda_low_rank_back(struct backend_context *c, struct mat dx, struct mat dy,
                                       const struct backend_weight *w,
                                       const struct low_rank_site *l, const struct backend_batch *b,
                                       size_t rows);

/* ---- cuda_low_rank_gradient.cu */
void cuda_low_rank_gradient(struct backend_context *c, const struct low_rank_site *l, struct mat dy,
                            struct mat x, const struct backend_batch *b);
/* An upper bound of its scratch memory. */
size_t cuda_gradient_bytes(const struct backend_context *c, const struct backend_need *need);

/* ---- cuda_head.cu, cuda_update.cu */
size_t cuda_head_bytes(size_t vocab, size_t rows); /* scratch memory of cuda_head_loss() */
void cuda_head_loss(struct backend_context *c, struct mat dhidden, struct mat hidden,
                    const struct backend_weight *w, struct backend_batch *b, size_t first,
                    size_t rows);
enum { CUDA_SUM_PARTS = 512, CUDA_SUMS = 2 * CUDA_SUM_PARTS + 2 };
void cuda_adamw(struct backend_context *c, double norm2[2], const struct optimizer *o,
                const struct adamw *a);

/* ---- cuda_norm.cu */
void cuda_norm(struct backend_context *c, struct mat y, float *inv, struct mat copy, struct mat x,
               const float *weight, const struct norm_shape *s);
void cuda_norm_back(struct backend_context *c, struct mat dx, struct mat narrow, struct mat dy,
                    struct mat x, const float *inv, const float *weight, const struct norm_shape *s,
                    bool set);
void cuda_rope(struct backend_context *c, struct mat to, struct mat from,
               const struct rope_shape *s, const struct backend_batch *b);

/* ---- cuda_elementwise.cu */
void cuda_gate(struct backend_context *c, struct mat h, struct mat gate, struct mat up,
               const struct gate_shape *s);
void cuda_gate_back(struct backend_context *c, struct mat dgate, struct mat dup, struct mat dh,
                    struct mat gate, struct mat up, const struct gate_shape *s);
void cuda_zero(struct backend_context *c, struct mat m, size_t rows, size_t cols);
void cuda_add(struct backend_context *c, struct mat to, struct mat from, size_t rows, size_t cols,
              float scale);
void cuda_convert(struct backend_context *c, struct mat to, struct mat from, size_t rows,
                  size_t cols, float scale);
/* m becomes cap tanh(m / cap). A part of an operation, without cuda_begin(). */
void cuda_cap(struct backend_context *c, struct mat m, size_t rows, size_t cols, float cap);
/* Both kinds of weights: packed, and as in the file. */
void cuda_embed(struct backend_context *c, struct mat to, const struct backend_weight *w,
                const struct backend_batch *b);
void cuda_learned_take(struct backend_context *c, struct mat to, struct mat from,
                       const struct backend_batch *b, size_t first, size_t rows, size_t cols);
void cuda_learned_add(struct backend_context *c, struct mat to, struct mat from,
                      const struct backend_batch *b, size_t first, size_t rows, size_t cols);

/* ---- cuda_attention.cu, cuda_decode.cu */
enum { CUDA_HEAD_DIM_MAX = 256 };
/* False, with a recorded failure, for a shape without kernels. */
bool cuda_attention_known(struct backend_context *c, const struct attention_shape *s);
/* Scores are scale q k^T, and *inner is 0; or with a cap they are scale tanh(*inner q k^T). */
float cuda_attention_scale(float *inner, const struct attention_shape *s);
void cuda_attention(struct backend_context *c, const struct attention_tensors *t,
                    const struct attention_shape *s, const struct backend_batch *b);
void cuda_attention_back(struct backend_context *c, const struct attention_tensors *grad,
                         const struct attention_tensors *t, const struct attention_shape *s,
                         const struct backend_batch *b);
void cuda_attention_decode(struct backend_context *c, const struct attention_tensors *t,
                           const struct decode_row *row, size_t rows,
                           const struct attention_shape *s);

/* ---- cuda_quant.cu */
/* to (rows, k) = rows [row, row + rows) of a part of W, float32 or bfloat16. Rows are counted after
 * the permutation of part->rope_heads. device_bytes: the bytes of the whole part, from its first
 * row on; part->data is not read. */
void cuda_dequantise(struct backend_context *c, struct mat to, const void *device_bytes,
                     const struct weight_part *part, size_t k, size_t row, size_t rows);
/* to (rows, w->k) = rows id[0], id[1], ... of a weight with BACKEND_KEEP; id is device memory. */
void cuda_dequantise_ids(struct backend_context *c, struct mat to, const struct backend_weight *w,
                         const int32_t *id, size_t rows);
#endif
