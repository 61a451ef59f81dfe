/* The operations that the engine needs from a compute device: one constant table of functions per
 * device. kernels/cpu is the reference implementation; any other backend must agree with it.
 *
 * Tensors are row-major views of memory from memory_take(), float32 or bfloat16 (enum dtype); `ld`
 * is the distance between rows in elements. Pointers marked "host" are ordinary memory of the
 * caller. Sums accumulate in float32. Operations return nothing, because a GPU does not know of a
 * failure when the call returns: the context keeps the first failure and check() reports it.
 * Results have the same bits for any number of threads. One thread at a time calls a context;
 * packed weights are immutable and may be shared by contexts.
 *
 * Order of use: open, weight_pack ..., any operations, check, weight_close ..., close. */
#ifndef KERNELS_BACKEND_H
#define KERNELS_BACKEND_H

#include "base/dtype.h"
#include "base/err.h"

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

struct backend_context; /* threads, scratch, cached primitives, the first failure */
struct backend_weight;  /* a frozen W (n, k), packed for its products */

struct backend_options {
    enum dtype precision; /* DTYPE_F32 or DTYPE_BF16; DTYPE_NONE: bf16 if it is faster there */
    int threads;          /* 0: as many as the machine has */
};

/* Buffers of linear() hold a multiple of BACKEND_ROWS rows. The result of a float32 row does not
 * depend on the other rows of the call, bit for bit: in linear() if there are at least BACKEND_FEW
 * rows, in linear_back() and head_loss() always. */
enum { BACKEND_ROWS = 64, BACKEND_FEW = 8 };
enum { BACKEND_FORWARD = 1, BACKEND_BACKWARD = 2 };
struct weight_source { /* W (n, k), read row by row */
    size_t n, k;
    void (*rows)(float *out /* (count, k) */, const void *user, size_t row, size_t count);
    const void *user;
    const float *bias; /* (n), or NULL */
    unsigned products; /* BACKEND_FORWARD, BACKEND_BACKWARD or both */
};

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

struct norm_shape { /* a row is `groups` vectors of `width` values, one after the other */
    size_t rows, groups, width;
    float eps;
};
struct rope_shape {
    size_t rows, heads, head_dim;
    const uint32_t *position; /* (rows), host */
    const float *cos, *sin;   /* (positions, head_dim / 2) */
    bool back;                /* rotate by minus the angle, which is the transpose */
};
/* Tokens of all rows lie one after the other; row i has the tokens start[i] .. start[i + 1] - 1. */
struct attention_shape {
    const uint32_t *start; /* (rows + 1), host */
    uint32_t rows, heads, kv_heads, head_dim;
    uint32_t window; /* positions that a token sees, its own included; 0: all before it */
};
struct attention_tensors {
    struct mat q, k, v; /* (tokens, heads*head_dim), (tokens, kv_heads*head_dim) twice */
    struct mat out;     /* (tokens, heads*head_dim) */
    float *lse;         /* (tokens, heads) log of the sum of exponentials; backward reads it */
};
struct decode_row {          /* the cache of one sequence for one new token */
    struct mat keys, values; /* (positions, kv_heads*head_dim), with those of the new token */
    uint32_t positions;
};
struct head_loss {
    size_t rows;
    const int32_t *target; /* (rows), host */
    double *nll;           /* (rows), host: out */
    float gradient_scale;  /* factor of each row's negative log likelihood in the gradient */
};
struct dropout {
    size_t rows, cols;
    float probability; /* kept values are divided by 1 - probability */
    uint64_t key;      /* the same key gives the same mask, forward and backward */
};
struct adamw {
    double lr, beta1, beta2, eps, weight_decay; /* formula of PyTorch: decoupled weight decay */
    uint64_t step;                              /* from 1 */
    double gradient_scale;                      /* factor of the gradient, for clipping */
};

struct backend {
    const char *name;
    err (*open)(struct backend_context **out, const struct backend_options *options);
    void (*close)(struct backend_context *c);
    /* Type of activations and packed weights. */
    enum dtype (*precision)(const struct backend_context *c);
    /* The first failure since the last check. */
    err (*check)(struct backend_context *c);
    void (*profile)(struct backend_profile *out, const struct backend_context *c);

    err (*memory_take)(void *out /* T ** */, struct backend_context *c, size_t bytes); /* zeroed */
    void (*memory_give)(struct backend_context *c, void *memory);
    void (*copy_in)(struct backend_context *c, void *to, const void *host, size_t bytes);
    void (*copy_out)(struct backend_context *c, void *host, const void *from, size_t bytes);
    void (*zero)(struct backend_context *c, struct mat m, size_t rows, size_t cols);
    /* to = scale * from, between any two types */
    void (*convert)(struct backend_context *c, struct mat to, struct mat from, size_t rows,
                    size_t cols, float scale);
    void (*add)(struct backend_context *c, struct mat to, struct mat from, size_t rows,
                size_t cols);
    /* gather: row i of `to` = row index[i] of `from`. scatter_add: row index[i] of `to` += row i of
     * `from`, with no index twice. The index is in host memory. */
    void (*gather)(struct backend_context *c, struct mat to, struct mat from, const uint32_t *index,
                   size_t rows, size_t cols);
    void (*scatter_add)(struct backend_context *c, struct mat to, struct mat from,
                        const uint32_t *index, size_t rows, size_t cols);
    void (*dropout)(struct backend_context *c, struct mat to, struct mat from,
                    const struct dropout *d);

    err (*weight_pack)(struct backend_weight **out, struct backend_context *c,
                       const struct weight_source *source);
    void (*weight_close)(struct backend_weight *w);
    /* y (rows, n) = x (rows, k) W^T + bias [+ y];  dx (rows, k) = dy (rows, n) W [+ dx]. All
     * buffers have room up to the next multiple of BACKEND_ROWS rows; the values of the additional
     * rows are undefined. */
    void (*linear)(struct backend_context *c, struct mat y, struct mat x,
                   const struct backend_weight *w, size_t rows, bool add);
    void (*linear_back)(struct backend_context *c, struct mat dx, struct mat dy,
                        const struct backend_weight *w, size_t rows, bool add);
    /* Softmax cross-entropy of hidden (rows, d) through a head W (vocab, d), in slices of the
     * vocabulary, so that the logits (rows, vocab) need no memory. Sets dhidden (rows, d) to the
     * gradient unless its data is NULL. */
    void (*head_loss)(struct backend_context *c, struct mat dhidden, struct mat hidden,
                      const struct backend_weight *w, const struct head_loss *loss);
    /* Products of operands that are not packed, for the low-rank part. */
    void (*product)(struct backend_context *c, struct mat out, struct mat a, struct mat b,
                    const struct product_shape *p);

    /* y = x / rms(x) * weight; inv (rows, groups) keeps 1 / rms of each vector. */
    void (*norm)(struct backend_context *c, struct mat y, float *inv, struct mat x,
                 const float *weight, const struct norm_shape *s);
    /* dx += gradient of norm() at its input x; with `set`, dx = gradient. */
    void (*norm_back)(struct backend_context *c, struct mat dx, struct mat dy, struct mat x,
                      const float *inv, const float *weight, const struct norm_shape *s, bool set);
    void (*rope)(struct backend_context *c, struct mat to, struct mat from,
                 const struct rope_shape *s); /* in place if to is from */
    void (*attention)(struct backend_context *c, const struct attention_tensors *t,
                      const struct attention_shape *s);
    /* Sets grad.q, grad.k and grad.v from grad.out; t is as attention() left it. */
    void (*attention_back)(struct backend_context *c, const struct attention_tensors *grad,
                           const struct attention_tensors *t, const struct attention_shape *s);
    void (*attention_decode)(struct backend_context *c, struct mat out, struct mat q,
                             const struct decode_row *row, const struct attention_shape *s);
    /* gate: h (rows, width) = silu(gate) * up. gate_back: sets dgate and dup from dh and then sets
     * dh to h again. dgate may be gate, and dup may be up. */
    void (*gate)(struct backend_context *c, struct mat h, struct mat gate, struct mat up,
                 size_t rows, size_t width);
    void (*gate_back)(struct backend_context *c, struct mat dgate, struct mat dup, struct mat dh,
                      struct mat gate, struct mat up, size_t rows, size_t width);

    void (*sum_squares)(struct backend_context *c, double *out, const float *x, size_t n);
    void (*adamw)(struct backend_context *c, float *value, float *first, float *second,
                  const float *gradient, size_t n, const struct adamw *a);
};

extern const struct backend backend_cpu;
/* device: "cpu", "cuda", "cuda:N" or "auto" (also NULL). ERR_INPUT if there is no such device. */
err backend_find(const struct backend **out, const char *device);

#endif
