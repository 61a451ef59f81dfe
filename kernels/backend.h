/* What the engine asks of a processor: one const table of operations, a CPU one now, others as
 * files.
 *
 * Tensors are row-major views of memory the backend gave out (memory_take), of float32 or bfloat16
 * (enum dtype); `ld` is the distance between rows in elements. `T *host` pointers are the caller's
 * ordinary memory. Accumulation is always float32. Operations return nothing: the context remembers
 * the first failure and check() reports it, as a GPU could not know earlier. Results do not depend
 * on the number of threads, bit for bit. One thread calls a context at a time; packed weights are
 * immutable and may be shared by contexts.
 *
 * Order of use: open, weight_pack..., then any operations, check, weight_close..., close.
 * Operations land in kernels/cpu first, written to be read; any other backend must agree with them.
 */
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
/* The same view moved by rows and columns. */
static inline struct mat mat_at(struct mat m, size_t row, size_t col)
{
    size_t size = m.type == DTYPE_F32 ? sizeof(float) : sizeof(uint16_t);
    m.data = (char *)m.data + (row * m.ld + col) * size;
    return m;
}

enum backend_op { /* where the time goes */
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
                  OP_COUNT
};
const char *backend_op_name(enum backend_op op); /* "linear", "linear.back", ... */
struct backend_profile {
    double seconds[OP_COUNT];
    uint64_t calls[OP_COUNT];
};

struct backend_context; /* threads, scratch, cached primitives, the first failure */
struct backend_weight;  /* a frozen W (n, k), packed for its products */

struct backend_options {
    enum dtype
        precision; /* DTYPE_F32, DTYPE_BF16, or DTYPE_NONE: bf16 where the processor has it */
    int threads;   /* 0: all of the machine's */
};

/* Buffers of linear() hold a multiple of BACKEND_ROWS rows. From BACKEND_FEW rows on, and in
 * linear_back() and head_loss() always, what comes of a float32 row has the same bits whatever rows
 * are beside it. */
enum { BACKEND_ROWS = 64, BACKEND_FEW = 8 };
enum { BACKEND_FORWARD = 1, BACKEND_BACKWARD = 2 };
struct weight_source { /* W (n, k) = its parts one below the other */
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

struct norm_shape { /* each row holds `groups` vectors of `width`, one after the other */
    size_t rows, groups, width;
    float eps;
};
struct rope_shape {
    size_t rows, heads, head_dim;
    const uint32_t *position; /* (rows), host */
    const float *cos, *sin;   /* (positions, head_dim / 2) */
    bool back;                /* rotate by minus the angle: the transpose */
};
/* Tokens of several rows lie one after the other: those of row i are start[i] .. start[i + 1]. */
struct attention_shape {
    const uint32_t *start; /* (rows + 1), host */
    uint32_t rows, heads, kv_heads, head_dim;
    uint32_t window; /* 0: none; else positions seen, the token's own counted */
};
struct attention_tensors {
    struct mat q, k, v; /* (tokens, heads*head_dim), (tokens, kv_heads*head_dim) twice */
    struct mat out;     /* (tokens, heads*head_dim) */
    float *lse;         /* (tokens, heads): log of the sum of exponentials; backward reads it */
};
struct decode_row {          /* one new token of one sequence, and the cache that sees it */
    struct mat keys, values; /* (positions, kv_heads*head_dim), the new token's included */
    uint32_t positions;
};
struct head_loss {
    size_t rows;
    const int32_t *target; /* (rows), host */
    double *nll;           /* (rows), host: out */
    float gradient_scale;  /* of every row's negative log likelihood */
};
struct dropout {
    size_t rows, cols;
    float probability; /* kept values are divided by 1 - probability */
    uint64_t key;      /* one mask: the same key gives the same mask, forward and backward */
};
struct adamw {
    double lr, beta1, beta2, eps, weight_decay; /* decoupled decay, bias correction: as PyTorch */
    uint64_t step;                              /* from 1 */
    double gradient_scale;                      /* clipping: the gradient is multiplied by it */
};

struct backend {
    const char *name;
    err (*open)(struct backend_context **out, const struct backend_options *options);
    void (*close)(struct backend_context *c);
    enum dtype (*precision)(
        const struct backend_context *c);    /* of activations and packed weights */
    err (*check)(struct backend_context *c); /* the first failure since the last check */
    void (*profile)(struct backend_profile *out, const struct backend_context *c);

    err (*memory_take)(void *out /* T ** */, struct backend_context *c, size_t bytes); /* zeroed */
    void (*memory_give)(struct backend_context *c, void *memory);
    void (*copy_in)(struct backend_context *c, void *to, const void *host, size_t bytes);
    void (*copy_out)(struct backend_context *c, void *host, const void *from, size_t bytes);
    void (*zero)(struct backend_context *c, struct mat m, size_t rows, size_t cols);
    /* to = scale * from, whatever the types */
    void (*convert)(struct backend_context *c, struct mat to, struct mat from, size_t rows,
                    size_t cols, float scale);
    void (*add)(struct backend_context *c, struct mat to, struct mat from, size_t rows,
                size_t cols);
    /* Row i of `to` = row index[i] of `from` (host index); scatter_add: row index[i] of `to` += row
     * i of `from`, no index twice. */
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
     * buffers hold rows up to the next multiple of BACKEND_ROWS; what the extra ones get means
     * nothing. */
    void (*linear)(struct backend_context *c, struct mat y, struct mat x,
                   const struct backend_weight *w, size_t rows, bool add);
    void (*linear_back)(struct backend_context *c, struct mat dx, struct mat dy,
                        const struct backend_weight *w, size_t rows, bool add);
    /* Softmax cross-entropy of hidden (rows, d) through a head W (vocab, d), by slices: logits
     * never exist whole. With dhidden.data (rows, d): the gradient, else the loss alone. */
    void (*head_loss)(struct backend_context *c, struct mat dhidden, struct mat hidden,
                      const struct backend_weight *w, const struct head_loss *loss);
    /* Small products of plain operands: the low-rank part. */
    void (*product)(struct backend_context *c, struct mat out, struct mat a, struct mat b,
                    const struct product_shape *p);

    /* y = x / rms(x) * weight, one inverse rms a vector in inv (rows, groups). */
    void (*norm)(struct backend_context *c, struct mat y, float *inv, struct mat x,
                 const float *weight, const struct norm_shape *s);
    /* dx += the gradient through norm, x its input (or, with `set`, dx = it). */
    void (*norm_back)(struct backend_context *c, struct mat dx, struct mat dy, struct mat x,
                      const float *inv, const float *weight, const struct norm_shape *s, bool set);
    void (*rope)(struct backend_context *c, struct mat to, struct mat from,
                 const struct rope_shape *s); /* to may be from */
    void (*attention)(struct backend_context *c, const struct attention_tensors *t,
                      const struct attention_shape *s);
    /* grad.q, .k, .v from grad.out; t as attention() left it. */
    void (*attention_back)(struct backend_context *c, const struct attention_tensors *grad,
                           const struct attention_tensors *t, const struct attention_shape *s);
    void (*attention_decode)(struct backend_context *c, struct mat out, struct mat q,
                             const struct decode_row *row, const struct attention_shape *s);
    /* h (rows, width) = silu(gate) * up;  back: dgate, dup from dh, and dh becomes h. dgate may be
     * gate, dup may be up. */
    void (*gate)(struct backend_context *c, struct mat h, struct mat gate, struct mat up,
                 size_t rows, size_t width);
    void (*gate_back)(struct backend_context *c, struct mat dgate, struct mat dup, struct mat dh,
                      struct mat gate, struct mat up, size_t rows, size_t width);

    void (*sum_squares)(struct backend_context *c, double *out, const float *x, size_t n);
    void (*adamw)(struct backend_context *c, float *value, float *first, float *second,
                  const float *gradient, size_t n, const struct adamw *a);
};

extern const struct backend backend_cpu;
/* "cpu", "cuda" or "cuda:n", "auto"; ERR_INPUT for a device that is not there. */
err backend_find(const struct backend **out, const char *device);

#endif
