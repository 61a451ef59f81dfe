/* The gated unit, copies and conversions, and rows chosen by the batch: the embedding and the
 * learned tokens. Each value is read once and written once, eight values a thread. */
#include "kernels/cuda/cuda_vector.cuh"

struct gate_args {
    struct rows8 h, gate, up; /* with gate_back: h is dh, which becomes h */
    struct rows8 dgate, dup;  /* gate_back */
    size_t rows, width;
    enum activation activation;
};

/* The activation, and its derivative. */
template <enum activation A>
static __device__ __forceinline__ float activate(float *derivative, float g)
{
    if (A == ACTIVATION_GELU_TANH) return formula_gelu(derivative, g);
    float s = 1.0f / (1.0f + formula_exp(-g)), silu = g * s;
    *derivative = s + silu * (1.0f - s);
    return silu;
}

/* The activation is constant in the loops over values, so that they take no more registers than
 * with SiLU alone. */
template <enum activation A>
static __device__ __forceinline__ void gated(float h[8], const float g[8], const float u[8])
{
    float derivative;
#pragma unroll
    for (int i = 0; i < 8; i++)
        h[i] = activate<A>(&derivative, g[i]) * u[i];
}
static __global__ void __launch_bounds__(GROUP_THREADS) gate_kernel(struct gate_args a)
{
    size_t row, col;
    if (!group_place(&row, &col, a.rows, a.width)) return;
    float g[8], u[8], h[8];
    load8(g, a.gate, row, col, a.width - col);
    load8(u, a.up, row, col, a.width - col);
    if (a.activation == ACTIVATION_SILU)
        gated<ACTIVATION_SILU>(h, g, u);
    else
        gated<ACTIVATION_GELU_TANH>(h, g, u);
    store8(a.h, row, col, a.width - col, h);
}

/* g, u and d become dgate, dup and h. */
template <enum activation A>
static __device__ __forceinline__ void gated_back(float g[8], float u[8], float d[8])
{
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float derivative, y = activate<A>(&derivative, g[i]), dh = d[i];
        g[i] = dh * u[i] * derivative;
        d[i] = y * u[i];
        u[i] = dh * y;
    }
}
static __global__ void __launch_bounds__(GROUP_THREADS) gate_back_kernel(struct gate_args a)
{
    size_t row, col;
    if (!group_place(&row, &col, a.rows, a.width)) return;
    float g[8], u[8], d[8];
    load8(g, a.gate, row, col, a.width - col);
    load8(u, a.up, row, col, a.width - col);
    load8(d, a.h, row, col, a.width - col);
    if (a.activation == ACTIVATION_SILU)
        gated_back<ACTIVATION_SILU>(g, u, d);
    else
        gated_back<ACTIVATION_GELU_TANH>(g, u, d);
    store8(a.dgate, row, col, a.width - col, g);
    store8(a.dup, row, col, a.width - col, u);
    store8(a.h, row, col, a.width - col, d);
}

static void gate_launch(struct backend_context *c, void (*kernel)(struct gate_args),
                        struct gate_args a, const struct gate_shape *s)
{
    dim3 grid;
    if (!group_grid(&grid, c, s->rows, s->width)) return;
    a.rows = s->rows;
    a.width = s->width;
    a.activation = s->activation;
    double since = cuda_begin(c);
    launch(kernel, grid, dim3(GROUP_THREADS), 0, c->stream, a);
    cuda_done(c, OP_GATE, since);
}

void cuda_gate(struct backend_context *c, struct mat h, struct mat gate, struct mat up,
               const struct gate_shape *s)
{
    struct gate_args a = {};
    a.h = rows8_of(h, 8);
    a.gate = rows8_of(gate, 8);
    a.up = rows8_of(up, 8);
    gate_launch(c, gate_kernel, a, s);
}

void cuda_gate_back(struct backend_context *c, struct mat dgate, struct mat dup, struct mat dh,
                    struct mat gate, struct mat up, const struct gate_shape *s)
{
    struct gate_args a = {};
    a.h = rows8_of(dh, 8);
    a.gate = rows8_of(gate, 8);
    a.up = rows8_of(up, 8);
    a.dgate = rows8_of(dgate, 8);
    a.dup = rows8_of(dup, 8);
    gate_launch(c, gate_back_kernel, a, s);
}

/* Row i of `to`, or row index[i] with `add`, from row index[i], or row i, of `from`. */
struct copy_args {
    struct rows8 to, from;
    const uint32_t *index; /* (rows), or NULL: i */
    size_t rows, cols;
    float scale;
    bool add;
};

static __global__ void __launch_bounds__(GROUP_THREADS) copy_kernel(struct copy_args a)
{
    size_t row, col;
    if (!group_place(&row, &col, a.rows, a.cols)) return;
    size_t other = a.index ? a.index[row] : row, have = a.cols - col;
    float v[8] = {};
    if (a.from.data) load8(v, a.from, a.add ? row : other, col, have);
    if (a.add) {
        float old[8];
        load8(old, a.to, other, col, have);
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = old[i] + a.scale * v[i];
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] *= a.scale;
    }
    store8(a.to, a.add ? other : row, col, have, v);
}

static void copy_launch(struct backend_context *c, struct mat to, struct mat from,
                        struct copy_args a)
{
    dim3 grid;
    if (!group_grid(&grid, c, a.rows, a.cols)) return;
    a.to = rows8_of(to, 8);
    a.from = rows8_of(from, 8);
    double since = cuda_begin(c);
    launch(copy_kernel, grid, dim3(GROUP_THREADS), 0, c->stream, a);
    cuda_done(c, OP_COPY, since);
}

void cuda_zero(struct backend_context *c, struct mat m, size_t rows, size_t cols)
{
    struct copy_args a = {};
    a.rows = rows;
    a.cols = cols;
    copy_launch(c, m, {}, a);
}

void cuda_convert(struct backend_context *c, struct mat to, struct mat from, size_t rows,
                  size_t cols, float scale)
{
    struct copy_args a = {};
    a.rows = rows;
    a.cols = cols;
    a.scale = scale;
    copy_launch(c, to, from, a);
}

void cuda_learned_take(struct backend_context *c, struct mat to, struct mat from,
                       const struct backend_batch *b, size_t first, size_t rows, size_t cols)
{
    struct copy_args a = {};
    a.index = b->index + first;
    a.rows = rows;
    a.cols = cols;
    a.scale = 1.0f;
    copy_launch(c, to, from, a);
}

/* The index is ascending, so that no row is added to twice. */
void cuda_learned_add(struct backend_context *c, struct mat to, struct mat from,
                      const struct backend_batch *b, size_t first, size_t rows, size_t cols)
{
    struct copy_args a = {};
    a.index = b->index + first;
    a.rows = rows;
    a.cols = cols;
    a.scale = 1;
    a.add = true;
    copy_launch(c, to, from, a);
}

void cuda_add(struct backend_context *c, struct mat to, struct mat from, size_t rows, size_t cols,
              float scale)
{
    struct copy_args a = {};
    a.rows = rows;
    a.cols = cols;
    a.scale = scale;
    a.add = true;
    copy_launch(c, to, from, a);
}

static __global__ void __launch_bounds__(GROUP_THREADS)
    cap_kernel(struct rows8 m, size_t rows, size_t cols, float cap)
{
    size_t row, col;
    if (!group_place(&row, &col, rows, cols)) return;
    float v[8];
    load8(v, m, row, col, cols - col);
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = cap * formula_tanh(v[i] / cap);
    store8(m, row, col, cols - col, v);
}
void cuda_cap(struct backend_context *c, struct mat m, size_t rows, size_t cols, float cap)
{
    dim3 grid;
    if (!group_grid(&grid, c, rows, cols)) return;
    launch(cap_kernel, grid, dim3(GROUP_THREADS), 0, c->stream, rows8_of(m, 8), rows, cols, cap);
}

/* The caller guarantees that ids are below n. */
void cuda_embed(struct backend_context *c, struct mat to, const struct backend_weight *w,
                const struct backend_batch *b)
{
    if (!w->packed.data) {
        double since = cuda_begin(c);
        cuda_dequantise_ids(c, to, w, b->id, b->now.tokens);
        cuda_done(c, OP_COPY, since);
        return;
    }
    struct copy_args a = {};
    a.index = reinterpret_cast<const uint32_t *>(b->id);
    a.rows = b->now.tokens;
    a.cols = w->k;
    a.scale = 1.0f;
    copy_launch(c, to, w->packed, a);
}
