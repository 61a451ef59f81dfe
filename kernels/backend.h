/* The operations that the engine needs from a compute device: one constant table of functions per
 * device. kernels/cpu is the reference implementation; any other backend must agree with it.
 *
 * Tensors are row-major views of memory from memory_take(), float32 or bfloat16 (enum dtype); `ld`
 * is the distance between rows in elements. Pointers marked "host" are ordinary memory of the
 * caller. Sums accumulate in float32.
 *
 * Operations are queued. Results in host memory are there once check() has returned: it waits, and
 * reports the first failure since the last check. Until then the place of a result must stay; what
 * an operation reads from the host is read before it returns. Everything that changes from pass to
 * pass is in a backend_batch, so that a pass can be recorded once and run again.
 *
 * Results have the same bits for any number of threads. One thread at a time calls a context;
 * packed weights are immutable and may be shared by contexts.
 *
 * Order of use: open, weight_pack ..., low_rank_open ..., batch_open, then for each pass batch_set,
 * operations, check; at last the close functions, close() after all others. */
#ifndef KERNELS_BACKEND_H
#define KERNELS_BACKEND_H

#include "base/dtype.h"
#include "base/err.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mat {
    void *data;
    enum dtype type; /* DTYPE_F32 or DTYPE_BF16 */
    size_t ld;
};
/* The view that starts at (row, col) of m. */
static inline struct mat mat_at(struct mat m, size_t row, size_t col)
{
    size_t size = m.type == DTYPE_F32 ? sizeof(float) : sizeof(uint16_t);
    m.data = (char *)m.data + (row * m.ld + col) * size;
    return m;
}

/* Takes the next (rows, cols) of a block, aligned to 64 bytes; only counts in *at if memory is
 * NULL. */
static inline struct mat mat_take(char *memory, size_t *at, enum dtype type, size_t rows,
                                  size_t cols)
{
    struct mat m = {memory ? memory + *at : NULL, type, cols};
    *at += (rows * cols * (type == DTYPE_F32 ? sizeof(float) : sizeof(uint16_t)) + 63) / 64 * 64;
    return m;
}

/* Kinds of operations in a profile. */
enum backend_op {
    OP_LINEAR,
    OP_LINEAR_BACK,
    OP_HEAD,
    OP_LOW_RANK,
    OP_ATTENTION,
    OP_ATTENTION_BACK,
    OP_NORM,
    OP_ROPE,
    OP_GATE,
    OP_COPY,
    OP_ADAMW,
    OP_COUNT,
};
const char *backend_op_name(enum backend_op op); /* "linear", "linear.back", ... */
struct backend_profile {
    double seconds[OP_COUNT];
    uint64_t calls[OP_COUNT];
};

struct backend_context;  /* threads, scratch, cached primitives, the first failure */
struct backend_weight;   /* a frozen W (n, k), packed for its products */
struct backend_low_rank; /* the factors of one adapter at one W */
struct backend_batch;    /* what changes from pass to pass, on the device */
struct backend_record;   /* a recorded pass */

struct backend_options {
    enum dtype precision; /* DTYPE_F32 or DTYPE_BF16; DTYPE_NONE: bf16 if it is faster there */
    int threads;          /* 0: as many as the machine has */
    int device;           /* N of cuda:N */
    bool profile;         /* measure seconds, also where that means to wait after each operation */
};

/* The rows of a pass, one after the other without padding, T tokens in all. All in host memory. */
struct batch_rows {
    size_t tokens, rows, learned;
    const int32_t *id;        /* (tokens) */
    const uint32_t *start;    /* (rows + 1) row i has the tokens start[i] .. start[i + 1] - 1 */
    const uint32_t *position; /* (tokens) */
    const uint32_t *index;    /* (learned) ascending; tokens whose outputs are wanted */
    const int32_t *target;    /* (learned) the token that follows there, or -1; or NULL */
    float gradient_scale;     /* factor of each negative log likelihood in the gradient */
    float dropout;            /* probability on the input of A; kept values / (1 - probability) */
    uint64_t dropout_key;     /* equal keys give equal masks, in linear() and in its gradients */
    /* (learned) a factor for each of them in place of gradient_scale, or NULL */
    const float *gradient_scales;
};

/* Buffers of linear() hold a multiple of BACKEND_ROWS rows.
 *
 * Rows alone: if rows_alone() is true, the result of a row does not depend on the other rows of the
 * call, bit for bit: in linear() if there are at least BACKEND_FEW rows, in all other operations
 * always. Then the gradient of a record is the same in any pass, which private training needs.
 *
 *   CPU    float32: always.  bfloat16: never, products sum in another order for other numbers of
 *          rows.
 *   CUDA   both: as long as each product has an algorithm of cuBLAS that has been tried with
 *          several numbers of rows. Algorithms are chosen at the first product of a kind, and
 *          checked again for each new number of rows. */
enum { BACKEND_ROWS = 64, BACKEND_FEW = 8 };
/* Uses of a packed weight. KEEP holds the bytes of the file and converts them at each use, to save
 * memory. */
enum {
    BACKEND_FORWARD = 1,
    BACKEND_BACKWARD = 2,
    BACKEND_HEAD = 4,  /* beside the two above: for head_loss(), in slices of the vocabulary */
    BACKEND_EMBED = 8, /* embed() */
    BACKEND_KEEP = 16,
};
/* Rows of W as the file has them. The bytes must stay readable as long as the packed weight. */
struct weight_part {
    const void *data; /* (rows, k) of `type`, a type of quant.h; may be unaligned */
    enum dtype type;
    uint32_t rows;
    uint32_t rope_heads; /* > 0: rows are permuted for interleaved rotation, in so many heads */
};
enum { WEIGHT_PARTS_MAX = 3 };
struct weight_source { /* W (n, k): parts one below the other */
    size_t n, k;
    struct weight_part part[WEIGHT_PARTS_MAX];
    size_t parts;
    const float *bias; /* (n) host, read before weight_pack() returns; or NULL */
    /* Of a head: logits become cap tanh(logit / cap), in head_loss() and linear(); 0: they do
     * not. */
    float cap;
    unsigned products; /* BACKEND_FORWARD | ... */
};

/* ---- The low-rank part of a linear operation.
 *
 * The adapter's modules at one W share its input x (rows, k): q, k, v; o; gate, up; down. Their
 * factors A are stacked, so that one product gives H = x A^T (rows, width). Module m has the
 * columns [col, col + rank) of H for the factors that train, [col + rank, col + width) for its
 * carry, and the columns [row, row + rows) of y:
 *
 *   H = drop(x) A^T           y_m += s H_m R^T B^T       (R: identity if there is none; the carry
 *                                                         has s = 1 and no dropout)
 *   P_m = dy_m B              G_m = s P_m R              dx += drop(G A)
 *   dA_m += G_m^T drop(x)     dB_m += s dy_m^T H_m R^T   dR_m += s P_m^T H_m
 */
enum { LOW_RANK_A = 1, LOW_RANK_B = 2, LOW_RANK_R = 4 };
struct low_rank_module {
    uint32_t row, rows;      /* the columns of y */
    uint32_t col;            /* the first column of H */
    uint32_t rank, width;    /* width: rank + rank of the carry */
    float scale;             /* s = alpha / r, or its variant */
    bool small;              /* there is an R (rank, rank) */
    unsigned trains;         /* LOW_RANK_A | ...: factors in the trained block */
    size_t a_at, b_at, r_at; /* their places in the trained block, in values */
    uint32_t place;          /* number of the module in the model: each has a mask of its own */
};
/* Host values of one module; NULL leaves the factor as it is (zero at first). */
struct low_rank_values {
    const float *a, *b, *r;         /* (rank, k), (rows, rank), (rank, rank) */
    const float *carry_a, *carry_b; /* (width - rank, k), (rows, width - rank) */
};
struct low_rank_use { /* tokens [first, first + tokens) of the batch use these factors */
    const struct backend_low_rank *factors; /* NULL: none */
    size_t first, tokens;
    float *gradient; /* as the trained block, gradients are added; NULL: none */
    /* With rows > 0 each of the batch's rows [row, row + rows), which lie within these tokens, has
     * its own gradient, row `row + i` at gradient + i * stride. */
    size_t row, rows, stride;
};
struct low_rank_site {
    const struct low_rank_use *use; /* ascending, without overlap */
    size_t uses;
    struct mat h, g, p; /* (T, widest width): H, G and P; p is needed only with an R */
};

struct norm_shape { /* a row is `groups` vectors of `width` values, one after the other */
    size_t rows, groups, width;
    float eps;
};
struct rope_shape {
    size_t rows, heads, head_dim;
    size_t rotary_dim;      /* leading values of a head that rotate; 0: head_dim */
    const float *cos, *sin; /* (positions, rotary_dim / 2), device */
    bool back;              /* rotate by minus the angle, which is the transpose */
};
static inline size_t rope_dim(const struct rope_shape *s)
{
    return s->rotary_dim ? s->rotary_dim : s->head_dim;
}
struct attention_shape {
    uint32_t heads, kv_heads, head_dim;
    uint32_t window; /* positions that a token sees, its own included; 0: all before it */
    float scale;     /* of q k^T; 0: 1 / sqrt(head_dim) */
    float cap;       /* scaled scores become cap tanh(score / cap); 0: they do not */
};
static inline float attention_scale(const struct attention_shape *s)
{
    return s->scale != 0.0f ? s->scale : 1.0f / sqrtf((float)s->head_dim);
}
struct attention_tensors {
    struct mat q, k, v; /* (tokens, heads*head_dim), (tokens, kv_heads*head_dim) twice */
    struct mat out;     /* (tokens, heads*head_dim) */
    float *lse;         /* (tokens, heads) log of the sum of exponentials; backward reads it */
};
struct decode_row {          /* the cache of one sequence for one new token */
    struct mat keys, values; /* (capacity, kv_heads*head_dim) */
    uint32_t positions;      /* filled before this token, whose key and value become the next */
};
enum activation {
    ACTIVATION_SILU,
    ACTIVATION_GELU_TANH, /* x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) */
};
struct gate_shape {
    size_t rows, width;
    enum activation activation;
};
struct adamw {
    double lr, beta1, beta2, eps, weight_decay; /* formula of PyTorch: decoupled weight decay */
    uint64_t step;                              /* from 1 */
    double clip; /* largest norm of the gradient, as clip_grad_norm_ of PyTorch; 0: none */
};
struct optimizer { /* each (n), device */
    float *value, *first, *second, *gradient;
    size_t n;
    const float *start; /* with prox: the gradient of prox / 2 |value - start|^2 is added first */
    double prox;
};

struct backend_weight_bytes {
    uint64_t held;    /* what weight_pack() takes */
    uint64_t scratch; /* of its operations; weights share it, so only the largest counts */
};
struct backend_need { /* the largest pass that will run, for scratch_bytes() */
    size_t tokens, rows, learned;
    size_t head_rows, vocab; /* of one head_loss() */
    size_t widest;           /* columns of the widest x, or rows of the widest module */
    size_t heads;
    uint32_t width; /* of H at the widest site */
    bool each_row;  /* each row has a gradient of its own */
};

struct backend {
    const char *name;
    /* Tokens and learned tokens of a pass that is recorded are filled up to a multiple of this, so
     * that batches of similar sizes share a record. 1: passes are not recorded. */
    size_t bucket;
    int (*devices)(void); /* number of devices that this process can use */
    err (*open)(struct backend_context **out, const struct backend_options *options);
    void (*close)(struct backend_context *c);
    /* Type of activations and packed weights. */
    enum dtype (*precision)(const struct backend_context *c);
    /* Waits for everything queued; the first failure since the last check. */
    err (*check)(struct backend_context *c);
    void (*profile)(struct backend_profile *out, const struct backend_context *c);
    /* Whether the promise on rows at BACKEND_ROWS has been kept by all operations so far. */
    bool (*rows_alone)(const struct backend_context *c);

    /* ---- Memory, counted before it is taken. */
    /* Bytes that can be taken now; UINT64_MAX if that is not known. */
    uint64_t (*memory_free)(struct backend_context *c);
    /* Bytes that this context has taken. On the CPU only packed weights are counted. */
    uint64_t (*memory_held)(const struct backend_context *c);
    /* The data of the parts and of the bias is not read. */
    void (*weight_bytes)(struct backend_weight_bytes *out, const struct backend_context *c,
                         const struct weight_source *source);
    /* Bytes that a context and its batch take for themselves in passes of this size, apart from the
     * scratch of weights. */
    uint64_t (*scratch_bytes)(const struct backend_context *c, const struct backend_need *need);

    err (*memory_take)(void *out /* T ** */, struct backend_context *c, size_t bytes); /* zeroed */
    void (*memory_give)(struct backend_context *c, void *memory);
    void (*copy_in)(struct backend_context *c, void *to, const void *host, size_t bytes);
    void (*copy_out)(struct backend_context *c, void *host, const void *from, size_t bytes);
    void (*zero)(struct backend_context *c, struct mat m, size_t rows, size_t cols);
    /* to = scale * from, between any two types */
    void (*convert)(struct backend_context *c, struct mat to, struct mat from, size_t rows,
                    size_t cols, float scale);
    /* to += scale * from; `to` is float32 */
    void (*add)(struct backend_context *c, struct mat to, struct mat from, size_t rows, size_t cols,
                float scale);

    /* Copies between two contexts of one backend: to = from, and to += from. They run after all
     * that is queued in both contexts, and what is queued in both later runs after them. */
    void (*peer_copy)(struct backend_context *c, float *to, struct backend_context *other,
                      const float *from, size_t n);
    void (*peer_add)(struct backend_context *c, float *to, struct backend_context *other,
                     const float *from, size_t n);

    /* A batch with room for rows of these sizes; only tokens, rows and learned are read. */
    err (*batch_open)(struct backend_batch **out, struct backend_context *c,
                      const struct batch_rows *most);
    void (*batch_set)(struct backend_context *c, struct backend_batch *b,
                      const struct batch_rows *rows);
    /* nll (learned), host: the negative log likelihoods that head_loss() has computed. */
    void (*batch_nll)(struct backend_context *c, double *nll, const struct backend_batch *b);
    void (*batch_close)(struct backend_batch *b); /* accepts NULL */
    /* Calls work(user), which queues operations, or runs again what an earlier call with this key
     * has recorded. Equal keys must mean equal calls, apart from the contents of the batch and of
     * device memory. work() must not take or give memory, nor call an operation that reads or
     * writes host memory (copy_in, batch_nll, adamw ...). Memory given back later is no problem:
     * the work is then recorded again. *record starts as NULL and belongs to one context. */
    void (*repeat)(struct backend_context *c, struct backend_record **record, uint64_t key,
                   void (*work)(void *user), void *user);
    void (*record_close)(struct backend_record *record); /* accepts NULL; before close() */

    err (*weight_pack)(struct backend_weight **out, struct backend_context *c,
                       const struct weight_source *source);
    void (*weight_close)(struct backend_weight *w); /* accepts NULL */
    /* to (tokens, k) = the rows id of W */
    void (*embed)(struct backend_context *c, struct mat to, const struct backend_weight *w,
                  const struct backend_batch *b);

    /* Columns that x, and dy, of a linear operation with factors of this width need to their right
     * beyond k, and n. linear() and linear_back() may write there. */
    size_t (*low_rank_room)(const struct backend_context *c, size_t width);
    /* The modules' columns of H are in the order of the modules and leave no gap. `w` stays open
     * until low_rank_close(). */
    err (*low_rank_open)(struct backend_low_rank **out, struct backend_context *c,
                         struct backend_weight *w, const struct low_rank_module *module,
                         size_t modules);
    void (*low_rank_close)(struct backend_low_rank *l); /* accepts NULL */
    /* Values from the host, read before it returns. Makes s B R where there is an R. */
    void (*low_rank_load)(struct backend_context *c, struct backend_low_rank *l, size_t module,
                          const struct low_rank_values *values);
    /* The factors that train, from the trained block on the device. */
    void (*low_rank_set)(struct backend_context *c, struct backend_low_rank *const *all,
                         size_t count, const float *value);

    /* y (rows, n) = x (rows, k) W^T + bias + low-rank part [+ y]. Sets l->h. The low-rank part is
     * left out with l NULL. All buffers have room up to the next multiple of BACKEND_ROWS rows; the
     * values of the additional rows are undefined. */
    void (*linear)(struct backend_context *c, struct mat y, struct mat x,
                   const struct backend_weight *w, const struct low_rank_site *l,
                   const struct backend_batch *b, size_t rows, bool add);
    /* H alone, for a layer whose product is not needed again. */
    void (*low_rank_shrink)(struct backend_context *c, const struct low_rank_site *l, struct mat x,
                            const struct backend_batch *b);
    /* dx (rows, k) = dy (rows, n) W + low-rank part. Sets l->g and l->p, also with dx.data NULL. */
    void (*linear_back)(struct backend_context *c, struct mat dx, struct mat dy,
                        const struct backend_weight *w, const struct low_rank_site *l,
                        const struct backend_batch *b, size_t rows);
    /* Adds the gradients of the uses; h, g and p as linear() and linear_back() left them. */
    void (*low_rank_gradient)(struct backend_context *c, const struct low_rank_site *l,
                              struct mat dy, struct mat x, const struct backend_batch *b);
    /* Softmax cross-entropy of hidden (rows, d) through a head W (vocab, d) for the learned tokens
     * first .. first + rows - 1 of the batch. Their negative log likelihoods are kept in the batch.
     * Sets dhidden (rows, d) to the gradient unless its data is NULL. Both are exactly 0 where the
     * target is -1, for an entry that only fills the list. */
    void (*head_loss)(struct backend_context *c, struct mat dhidden, struct mat hidden,
                      const struct backend_weight *w, struct backend_batch *b, size_t first,
                      size_t rows);
    /* learned_take: row i of `to` = row index[first + i] of `from`. learned_add: row index[first +
     * i] of `to` += row i of `from`. Sizes (rows, cols). */
    void (*learned_take)(struct backend_context *c, struct mat to, struct mat from,
                         const struct backend_batch *b, size_t first, size_t rows, size_t cols);
    void (*learned_add)(struct backend_context *c, struct mat to, struct mat from,
                        const struct backend_batch *b, size_t first, size_t rows, size_t cols);

    /* y = x / rms(x) * weight; inv (rows, groups) keeps 1 / rms of each vector. copy = x unless its
     * data is NULL. */
    void (*norm)(struct backend_context *c, struct mat y, float *inv, struct mat copy, struct mat x,
                 const float *weight, const struct norm_shape *s);
    /* dx += gradient of norm() at its input x; with `set`, dx = gradient, and dx may be dy.
     * narrow = dx unless its data is NULL. */
    void (*norm_back)(struct backend_context *c, struct mat dx, struct mat narrow, struct mat dy,
                      struct mat x, const float *inv, const float *weight,
                      const struct norm_shape *s, bool set);
    void (*rope)(struct backend_context *c, struct mat to, struct mat from,
                 const struct rope_shape *s, const struct backend_batch *b); /* to may be from */
    void (*attention)(struct backend_context *c, const struct attention_tensors *t,
                      const struct attention_shape *s, const struct backend_batch *b);
    /* Sets grad.q, grad.k and grad.v from grad.out; t is as attention() left it. */
    void (*attention_back)(struct backend_context *c, const struct attention_tensors *grad,
                           const struct attention_tensors *t, const struct attention_shape *s,
                           const struct backend_batch *b);
    /* Appends the new token's key and value to the cache of each row, then attends to it. q, k, v
     * and out have `rows` rows; row[] is host memory, read before it returns. */
    void (*attention_decode)(struct backend_context *c, const struct attention_tensors *t,
                             const struct decode_row *row, size_t rows,
                             const struct attention_shape *s);
    /* gate: h = activation(gate) * up. gate_back: sets dgate and dup from dh and then sets dh to h
     * again. dgate may be gate, and dup may be up. */
    void (*gate)(struct backend_context *c, struct mat h, struct mat gate, struct mat up,
                 const struct gate_shape *s);
    void (*gate_back)(struct backend_context *c, struct mat dgate, struct mat dup, struct mat dh,
                      struct mat gate, struct mat up, const struct gate_shape *s);

    /* One step. norm2[0] (host) = the sum of the squared gradients, before clipping, after the
     * proximal term was added to `gradient`; norm2[1] = |value - start|^2 before the step, with
     * prox > 0 only. If norm2[0] is not finite, nothing else changes. */
    void (*adamw)(struct backend_context *c, double norm2[2], const struct optimizer *o,
                  const struct adamw *a);
};

extern const struct backend backend_cpu;
/* The threads that backend_cpu takes if asked for so many; 0: all that this process may use. */
int backend_threads(int asked);
/* Whether the machine has an NVIDIA driver, or FEDLORA_CUDA names a library: then a GPU that is not
 * used deserves a word. */
bool backend_expects_gpu(void);
enum { BACKEND_WHY_BYTES = 640 };
/* Opens a device. name: "cpu", "cuda", "cuda:N" or "auto" (also NULL), which is the GPU 0 if it is
 * usable, else the CPU; `why` then says why no GPU is used, and is empty otherwise. The CUDA
 * backend is the library libfedlora_cuda.so, looked for at the path in the environment variable
 * FEDLORA_CUDA, beside the program and in the loader's folders. ERR_INPUT if there is no such
 * device. */
err backend_open(const struct backend **out, struct backend_context **c, const char *name,
                 const struct backend_options *o, char why[BACKEND_WHY_BYTES]);

/* The devices of a list: "cuda:0,cuda:1", "cuda:all", or one name of backend_open(). ERR_INPUT for
 * a device that is named twice, and for a list with a device that is not cuda:N. */
enum { BACKEND_DEVICES_MAX = 16, BACKEND_NAME_BYTES = 16 };
struct backend_list {
    char name[BACKEND_DEVICES_MAX][BACKEND_NAME_BYTES];
    size_t count; /* at least 1 */
};
err backend_list_set(struct backend_list *out, const char *names);

/* The library exports these. The build must be equal to that of the program, because both must
 * agree on every struct of this header. */
#define BACKEND_EXPORT __attribute__((visibility("default")))
BACKEND_EXPORT extern const struct backend backend_cuda;
BACKEND_EXPORT extern const char backend_cuda_build[];

#endif
