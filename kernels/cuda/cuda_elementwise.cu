/* The gated unit, copies and conversions, and rows chosen by the batch: the embedding and the
 * learned tokens. Each value is read once and written once, eight values a thread. */
#include "kernels/cuda/cuda_vector.cuh"

struct gate_args {
    struct rows8 h, gate, up; /* with gate_back: h is dh, which becomes h */
    struct rows8 dgate, dup;  /* gate_back */
    size_t rows, width;
};

static __global__ void __launch_bounds__(GROUP_THREADS) gate_kernel(struct gate_args a)
{
    size_t row, col;
    if (!group_place(&row, &col, a.rows, a.width)) return;
    float g[8], u[8], h[8];
    load8(g, a.gate, row, col, a.width - col);
    load8(u, a.up, row, col, a.width - col);
#pragma unroll
    for (int i = 0; i < 8; i++)
        h[i] = g[i] * (1.0f / (1.0f + formula_exp(-g[i]))) * u[i];
    store8(a.h, row, col, a.width - col, h);
}

/* silu'(g) = s + g s (1 - s), s = sigmoid(g) */
static __global__ void __launch_bounds__(GROUP_THREADS) gate_back_kernel(struct gate_args a)
{
    size_t row, col;
    if (!group_place(&row, &col, a.rows, a.width)) return;
    float g[8], u[8], d[8], dgate[8], dup[8], h[8];
    load8(g, a.gate, row, col, a.width - col);
    load8(u, a.up, row, col, a.width - col);
    load8(d, a.h, row, col, a.width - col);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float s = 1.0f / (1.0f + formula_exp(-g[i]));
        float silu = g[i] * s;
        dgate[i] = d[i] * u[i] * (s + silu * (1.0f - s));
        dup[i] = d[i] * silu;
        h[i] = silu * u[i];
    }
    store8(a.dgate, row, col, a.width - col, dgate);
    store8(a.dup, row, col, a.width - col, dup);
    store8(a.h, row, col, a.width - col, h);
}

static void gate_launch(struct backend_context *c, void (*kernel)(struct gate_args),
                        struct gate_args a, const struct gate_shape *s)
{
    dim3 grid;
    if (!group_grid(&grid, c, s->rows, s->width)) return;
    a.rows = s->rows;
    a.width = s->width;
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
