/* Norms and rotation. Memory bandwidth limits them, so a vector is read once and kept in registers.
 * A vector belongs to one warp if it has at most 1,024 values, and to one block if it is longer;
 * the order of its sum depends on its width alone. */
#include "kernels/cuda/cuda_vector.cuh"

enum {
    KEPT = 4,                  /* groups of eight values that a thread keeps */
    WARPS = 4,                 /* of a block whose warps have a vector each */
    WARP_WIDTH = 32 * KEPT * 8 /* most values of a vector for one warp */
};

struct norm_args {
    struct rows8 y, copy, x;         /* norm */
    struct rows8 dx, narrow, dy;     /* norm_back, which reads x too */
    struct rows8 weight;             /* (width) */
    float *inv;                      /* (rows, groups) */
    unsigned vectors, groups, width; /* vectors = rows * groups */
    float eps;
    bool set;
};

/* The vector of this thread, false if there is none, and the thread's place among the THREADS of
 * the vector. A warp leaves as a whole, so its collectives still have all lanes. */
template <int THREADS>
static __device__ __forceinline__ bool own_vector(unsigned *vector, unsigned *place,
                                                  const struct norm_args &a)
{
    *vector = THREADS == 32 ? blockIdx.x * WARPS + threadIdx.x / 32 : blockIdx.x;
    *place = threadIdx.x % THREADS;
    return *vector < a.vectors;
}

template <int THREADS>
static __global__ void __launch_bounds__(THREADS == 32 ? 32 * WARPS : THREADS)
    norm_kernel(struct norm_args a)
{
    unsigned vector, place;
    if (!own_vector<THREADS>(&vector, &place, a)) return;
    size_t row = vector / a.groups, first = (size_t)(vector % a.groups) * a.width;
    float x[KEPT][8] = {}, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        unsigned at = (place + i * THREADS) * 8;
        if (at >= a.width) break;
        load8(x[i], a.x, row, first + at, a.width - at);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum += x[i][j] * x[i][j];
    }
    float scale = 1.0f / sqrtf(threads_sum<THREADS>(sum) / (float)a.width + a.eps);
    if (place == 0) a.inv[vector] = scale;
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        unsigned at = (place + i * THREADS) * 8;
        if (at >= a.width) break;
        float w[8], y[8];
        load8(w, a.weight, 0, at, a.width - at);
#pragma unroll
        for (int j = 0; j < 8; j++)
            y[j] = x[i][j] * scale * w[j];
        if (a.copy.data) store8(a.copy, row, first + at, a.width - at, x[i]);
        store8(a.y, row, first + at, a.width - at, y);
    }
}

/* With n = inv * x and y = n * w: dx = inv * (w dy - n * mean(n w dy)). */
template <int THREADS>
static __global__ void __launch_bounds__(THREADS == 32 ? 32 * WARPS : THREADS)
    norm_back_kernel(struct norm_args a)
{
    unsigned vector, place;
    if (!own_vector<THREADS>(&vector, &place, a)) return;
    size_t row = vector / a.groups, first = (size_t)(vector % a.groups) * a.width;
    float x[KEPT][8] = {}, wdy[KEPT][8] = {}, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        unsigned at = (place + i * THREADS) * 8;
        if (at >= a.width) break;
        float w[8];
        load8(x[i], a.x, row, first + at, a.width - at);
        load8(wdy[i], a.dy, row, first + at, a.width - at);
        load8(w, a.weight, 0, at, a.width - at);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            wdy[i][j] *= w[j];
            sum += x[i][j] * wdy[i][j];
        }
    }
    float inv = a.inv[vector], mean = threads_sum<THREADS>(sum) / (float)a.width * inv * inv;
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        unsigned at = (place + i * THREADS) * 8;
        if (at >= a.width) break;
        float dx[8];
#pragma unroll
        for (int j = 0; j < 8; j++)
            dx[j] = inv * (wdy[i][j] - x[i][j] * mean);
        if (!a.set) {
            float old[8];
            load8(old, a.dx, row, first + at, a.width - at);
#pragma unroll
            for (int j = 0; j < 8; j++)
                dx[j] += old[j];
        }
        store8(a.dx, row, first + at, a.width - at, dx);
        if (a.narrow.data) store8(a.narrow, row, first + at, a.width - at, dx);
    }
}

/* Fills in the sizes. False if there is nothing to do, or if a vector does not fit in the registers
 * of the largest block. */
static bool norm_sizes(struct norm_args *a, struct backend_context *c, const struct norm_shape *s)
{
    enum { WIDEST = 512 * KEPT * 8, VECTORS = 1 << 30 };
    bool fits = s->width <= WIDEST && s->rows * s->groups <= VECTORS;
    if (!fits)
        cuda_fail(c, err_make(ERR_LIMIT,
                              "cuda: norm of %zu x %zu vectors of %zu values, expected "
                              "at most %d vectors of %d values",
                              s->rows, s->groups, s->width, VECTORS, WIDEST));
    a->vectors = (unsigned)(s->rows * s->groups);
    a->groups = (unsigned)s->groups;
    a->width = (unsigned)s->width;
    a->eps = s->eps;
    return fits && a->vectors > 0 && a->width > 0;
}

static void norm_launch(struct backend_context *c, const struct norm_args *a, bool back)
{
    double since = cuda_begin(c);
    void (*one_warp)(struct norm_args) = back ? norm_back_kernel<32> : norm_kernel<32>;
    void (*small_block)(struct norm_args) = back ? norm_back_kernel<128> : norm_kernel<128>;
    void (*large_block)(struct norm_args) = back ? norm_back_kernel<512> : norm_kernel<512>;
    if (a->width <= WARP_WIDTH)
        launch(one_warp, dim3((a->vectors + WARPS - 1) / WARPS), dim3(32 * WARPS), 0, c->stream,
               *a);
    else if (a->width <= 4 * WARP_WIDTH)
        launch(small_block, dim3(a->vectors), dim3(128), 0, c->stream, *a);
    else
        launch(large_block, dim3(a->vectors), dim3(512), 0, c->stream, *a);
    cuda_done(c, OP_NORM, since);
}

void cuda_norm(struct backend_context *c, struct mat y, float *inv, struct mat copy, struct mat x,
               const float *weight, const struct norm_shape *s)
{
    struct norm_args a = {};
    if (!norm_sizes(&a, c, s)) return;
    a.y = rows8_of(y, s->width);
    a.copy = rows8_of(copy, s->width);
    a.x = rows8_of(x, s->width);
    a.weight = rows8_vector(weight);
    a.inv = inv;
    norm_launch(c, &a, false);
}

void cuda_norm_back(struct backend_context *c, struct mat dx, struct mat narrow, struct mat dy,
                    struct mat x, const float *inv, const float *weight, const struct norm_shape *s,
                    bool set)
{
    struct norm_args a = {};
    if (!norm_sizes(&a, c, s)) return;
    a.dx = rows8_of(dx, s->width);
    a.narrow = rows8_of(narrow, s->width);
    a.dy = rows8_of(dy, s->width);
    a.x = rows8_of(x, s->width);
    a.weight = rows8_vector(weight);
    a.inv = const_cast<float *>(inv); /* norm_back_kernel() only reads it */
    a.set = set;
    norm_launch(c, &a, true);
}

struct rope_args {
    struct rows8 to, from, cosine, sine; /* cosine, sine (positions, half) */
    const uint32_t *position;            /* (rows) */
    unsigned rows, heads, head_dim, half;
    unsigned rest; /* values behind the 2 half that rotate, to copy from each head; 0 in place */
    float sign;
};

/* One warp a row. A thread rotates eight pairs (i, i + half) of a head at a time and reads both
 * halves before it writes, so `to` may be `from`. */
static __global__ void __launch_bounds__(32 * WARPS) rope_kernel(struct rope_args a)
{
    unsigned row = blockIdx.x * WARPS + threadIdx.x / 32, groups = (a.half + 7) / 8;
    if (row >= a.rows) return;
    size_t position = a.position[row];
    for (unsigned i = threadIdx.x % 32; i < a.heads * groups; i += 32) {
        unsigned at = i % groups * 8, have = a.half - at;
        size_t col = (size_t)(i / groups) * a.head_dim + at;
        float x[8], y[8], cosine[8], sine[8], left[8], right[8];
        load8(x, a.from, row, col, have);
        load8(y, a.from, row, col + a.half, have);
        load8(cosine, a.cosine, position, at, have);
        load8(sine, a.sine, position, at, have);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            left[j] = x[j] * cosine[j] - y[j] * (a.sign * sine[j]);
            right[j] = y[j] * cosine[j] + x[j] * (a.sign * sine[j]);
        }
        store8(a.to, row, col, have, left);
        store8(a.to, row, col + a.half, have, right);
    }
    groups = (a.rest + 7) / 8;
    for (unsigned i = threadIdx.x % 32; i < a.heads * groups; i += 32) {
        unsigned at = i % groups * 8;
        size_t col = (size_t)(i / groups) * a.head_dim + 2 * a.half + at;
        float x[8];
        load8(x, a.from, row, col, a.rest - at);
        store8(a.to, row, col, a.rest - at, x);
    }
}

void cuda_rope(struct backend_context *c, struct mat to, struct mat from,
               const struct rope_shape *s, const struct backend_batch *b)
{
    size_t half = rope_dim(s) / 2;
    struct rope_args a = {};
    REQUIRE(2 * half <= s->head_dim);
    if (s->rows == 0 || s->heads == 0 || half == 0) return;
    a.to = rows8_of(to, half | s->head_dim);
    a.from = rows8_of(from, half | s->head_dim);
    a.cosine = rows8_of({const_cast<float *>(s->cos), DTYPE_F32, half}, half);
    a.sine = rows8_of({const_cast<float *>(s->sin), DTYPE_F32, half}, half);
    a.position = b->position;
    a.rows = (unsigned)s->rows;
    a.heads = (unsigned)s->heads;
    a.head_dim = (unsigned)s->head_dim;
    a.half = (unsigned)half;
    a.rest = to.data == from.data ? 0 : (unsigned)(s->head_dim - 2 * half);
    a.sign = s->back ? -1.0f : 1.0f;
    double since = cuda_begin(c);
    launch(rope_kernel, dim3((a.rows + WARPS - 1) / WARPS), dim3(32 * WARPS), 0, c->stream, a);
    cuda_done(c, OP_ROPE, since);
}
