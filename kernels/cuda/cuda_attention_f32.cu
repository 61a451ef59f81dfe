/* Attention in float32 arithmetic for every head_dim up to 256; tensors are float32 or bfloat16. It
 * is the reference for the kernels on tensor cores, and serves the shapes that they do not know.
 *
 * A block computes with tiles of 64 x 64. Its 256 threads are arranged as 16 x 16, and a thread has
 * a part of 4 x 4: rows y .. y + 3 and columns x .. x + 3. */
#include "kernels/cuda/cuda_attention.cuh"

static constexpr unsigned TILE = 64, THREADS = 256;
static constexpr unsigned DEPTH = 32; /* values of head_dim in shared memory at a time */

/* Up to 64 tokens of one head: tokens [token, token + have), columns from `col` on. */
struct tile {
    struct rows8 m;
    size_t token, col;
    unsigned have, head_dim;
};
static __device__ __forceinline__ struct tile tile_of(const struct rows8 &m,
                                                      const struct attention_args &a,
                                                      const struct place &p, unsigned at,
                                                      unsigned head)
{
    unsigned left = p.tokens - at;
    return {m, (size_t)p.first + at, (size_t)head * a.head_dim, left < TILE ? left : TILE,
            a.head_dim};
}

static __device__ __forceinline__ void load_or_zero(float v[8], const struct tile &t, unsigned i,
                                                    unsigned at)
{
#pragma unroll
    for (int j = 0; j < 8; j++)
        v[j] = 0.0f;
    if (i < t.have && at < t.head_dim) load8(v, t.m, t.token + i, t.col + at, t.head_dim - at);
}
/* stage (DEPTH, 64) = values [at, at + DEPTH) of the tile, transposed. Neighbouring threads have
 * neighbouring tokens, so that they write to different banks. */
static __device__ __forceinline__ void load_turned(float *stage, const struct tile &t, unsigned at)
{
    unsigned i = threadIdx.x % TILE, group = threadIdx.x / TILE * 8;
    float v[8];
    load_or_zero(v, t, i, at + group);
#pragma unroll
    for (int j = 0; j < 8; j++)
        stage[(group + j) * TILE + i] = v[j];
}
/* stage (64, 64) = values [at, at + 64) of the tile. Unrolled, its values would not fit into the
 * registers of the gradient of the keys. */
static __device__ __forceinline__ void load_plain(float *stage, const struct tile &t, unsigned at)
{
#pragma unroll 1
    for (unsigned n = threadIdx.x; n < TILE * TILE / 8; n += THREADS) {
        unsigned i = n / (TILE / 8), group = n % (TILE / 8) * 8;
        float v[8];
        load_or_zero(v, t, i, at + group);
        float4 *to = reinterpret_cast<float4 *>(stage + i * TILE + group);
        to[0] = {v[0], v[1], v[2], v[3]};
        to[1] = {v[4], v[5], v[6], v[7]};
    }
}

/* s += a b^T */
static __device__ __forceinline__ void outer_product(float s[4][4], float4 a, float4 b)
{
    float left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            s[i][j] = multiply_add(left[i], right[j], s[i][j]);
}

/* s = this thread's part of a b^T. Tokens beyond the end of the row count as zeros. */
static __device__ __forceinline__ void scores(float s[4][4], float *stage, const struct tile &a,
                                              const struct tile &b)
{
    unsigned x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 4;
#pragma unroll
    for (int i = 0; i < 16; i++)
        s[i / 4][i % 4] = 0.0f;
    for (unsigned at = 0; at < a.head_dim; at += DEPTH) {
        __syncthreads(); /* the stage is free */
        load_turned(stage, a, at);
        load_turned(stage + DEPTH * TILE, b, at);
        __syncthreads();
        if (y >= a.have || x >= b.have) continue;
        unsigned depth = a.head_dim - at < DEPTH ? a.head_dim - at : DEPTH;
#pragma unroll 4
        for (unsigned d = 0; d < depth; d++)
            outer_product(s, *reinterpret_cast<const float4 *>(stage + d * TILE + y),
                          *reinterpret_cast<const float4 *>(stage + (DEPTH + d) * TILE + x));
    }
}

static __device__ __forceinline__ void cap_scores(float s[4][4], const struct attention_args &a)
{
#pragma unroll
    for (int i = 0; i < 16; i++)
        s[i / 4][i % 4] = formula_tanh(s[i / 4][i % 4] * a.inner);
}

/* Four values of weights (column of the scores, rows y .. y + 3) in shared memory. Groups of four
 * are exchanged within a column, so that neighbouring threads write to different banks. */
static __device__ __forceinline__ float4 *weight_at(float *weights, unsigned column, unsigned y)
{
    unsigned group = (y / 4) ^ (column / 4);
    return reinterpret_cast<float4 *>(weights + column * TILE + group * 4);
}
static __device__ __forceinline__ void store_weights(float *weights, const float s[4][4])
{
    unsigned x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 4;
#pragma unroll
    for (int j = 0; j < 4; j++)
        *weight_at(weights, x + j, y) = {s[0][j], s[1][j], s[2][j], s[3][j]};
}

/* out += weights (64, 64) b (64, head_dim); a thread has rows y .. y + 3 and columns x .. x + 3 of
 * each 64 columns. Weights of tokens beyond the end of the row are zeros. `rows`: of `out`. */
template <int COLS>
static __device__ __forceinline__ void accumulate(float out[COLS][4][4], float *weights,
                                                  float *stage, const struct tile &b, unsigned rows)
{
    unsigned x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 4;
#pragma unroll
    for (int c = 0; c < COLS; c++) {
        __syncthreads(); /* the weights are written, and the stage is free */
        load_plain(stage, b, c * TILE);
        __syncthreads();
        if (y >= rows || c * TILE + x >= b.head_dim) continue;
#pragma unroll 1
        for (unsigned i = 0; i < b.have; i += 4)
#pragma unroll
            for (unsigned j = i; j < i + 4; j++)
                outer_product(out[c], *weight_at(weights, j, y),
                              *reinterpret_cast<const float4 *>(stage + j * TILE + x));
    }
}

/* Writes the thread's part of a tile, with row i multiplied by factor[i]. */
template <int COLS>
static __device__ __forceinline__ void
store_part(const struct tile &t, const float part[COLS][4][4], const float factor[4])
{
    unsigned x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 4;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int c = 0; c < COLS; c++) {
            unsigned at = c * TILE + x;
            if (y + i >= t.have || at >= t.head_dim) continue;
            float v[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                v[j] = part[c][i][j] * factor[i];
            store4(t.m, t.token + y + i, t.col + at, t.head_dim - at, v);
        }
}

/* The largest of the values that the 16 threads of the same rows have. */
static __device__ __forceinline__ float across_max(float v)
{
#pragma unroll
    for (int d = 8; d > 0; d >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
    return v;
}
static __device__ __forceinline__ float across_sum(float v)
{
#pragma unroll
    for (int d = 8; d > 0; d >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}

/* Longer rows of keys come first, because blocks are started in the order of their numbers. */
template <int COLS>
static __global__ void __launch_bounds__(THREADS, COLS > 2 ? 1 : 2)
    forward_kernel(struct attention_args a)
{
    SHARED(float4, stage4, TILE * TILE / 4);
    SHARED(float4, weights4, TILE * TILE / 4);
    float *stage = reinterpret_cast<float *>(stage4),
          *weights = reinterpret_cast<float *>(weights4);
    struct place p;
    if (!find_place<TILE>(&p, a, gridDim.x - 1 - blockIdx.x)) return;
    unsigned head = blockIdx.y, kv = head / (a.heads / a.kv_heads);
    unsigned x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 4;
    struct tile q = tile_of(a.q, a, p, p.at, head);
    float out[COLS][4][4] = {}, top[4], sum[4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++)
        top[i] = -INFINITY;
    for (unsigned at = first_key<TILE>(a, p.at); at < p.at + q.have; at += TILE) {
        float s[4][4];
        scores(s, stage, q, tile_of(a.k, a, p, at, kv));
        if (a.inner > 0.0f) cap_scores(s, a);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float largest = top[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                s[i][j] = sees(a, p.at + y + i, at + x + j) ? s[i][j] * a.scale : -INFINITY;
                largest = fmaxf(largest, s[i][j]);
            }
            largest = across_max(largest);
            float less = largest == -INFINITY ? 0.0f : largest; /* no key seen yet */
            float keep = formula_exp(top[i] - less), part = 0.0f;
            top[i] = largest;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                s[i][j] = formula_exp(s[i][j] - less);
                part += s[i][j];
            }
            sum[i] = sum[i] * keep + part;
#pragma unroll
            for (int n = 0; n < COLS * 4; n++)
                out[n / 4][i][n % 4] *= keep;
        }
        store_weights(weights, s);
        accumulate<COLS>(out, weights, stage, tile_of(a.v, a, p, at, kv), q.have);
    }
    float factor[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float total = across_sum(sum[i]);
        factor[i] = 1.0f / total;
        if (x == 0 && y + i < q.have)
            a.lse[(q.token + y + i) * a.heads + head] = top[i] + logf(total);
    }
    store_part<COLS>(tile_of(a.out, a, p, p.at, head), out, factor);
}

/* mean (64), shared: rowsum(O dO) of each query; also written to a.delta for the keys' kernel. Four
 * threads share a row. */
static __device__ __forceinline__ void row_means(float *mean, const struct attention_args &a,
                                                 const struct place &p, unsigned head)
{
    struct tile out = tile_of(a.out, a, p, p.at, head), dout = tile_of(a.dout, a, p, p.at, head);
    unsigned i = threadIdx.x / 4, part = threadIdx.x % 4;
    float sum = 0.0f;
    for (unsigned at = part * 8; at < a.head_dim; at += 32) {
        float left[8], right[8];
        load_or_zero(left, out, i, at);
        load_or_zero(right, dout, i, at);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum += left[j] * right[j];
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (part != 0) return;
    mean[i] = sum;
    if (i < out.have) a.delta[(out.token + i) * a.heads + head] = sum;
}

template <int COLS>
static __global__ void __launch_bounds__(THREADS, COLS > 1 ? 1 : 2)
    query_gradient_kernel(struct attention_args a)
{
    SHARED(float4, stage4, TILE * TILE / 4);
    SHARED(float4, weights4, TILE * TILE / 4);
    SHARED(float, mean, TILE);
    float *stage = reinterpret_cast<float *>(stage4),
          *weights = reinterpret_cast<float *>(weights4);
    struct place p;
    if (!find_place<TILE>(&p, a, gridDim.x - 1 - blockIdx.x)) return;
    unsigned head = blockIdx.y, kv = head / (a.heads / a.kv_heads);
    unsigned x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 4;
    struct tile q = tile_of(a.q, a, p, p.at, head), dout = tile_of(a.dout, a, p, p.at, head);
    float dq[COLS][4][4] = {}, lse[4];
    row_means(mean, a, p, head);
#pragma unroll
    for (int i = 0; i < 4; i++)
        lse[i] = y + i < q.have ? a.lse[(q.token + y + i) * a.heads + head] : 0.0f;
    for (unsigned at = first_key<TILE>(a, p.at); at < p.at + q.have; at += TILE) {
        struct tile k = tile_of(a.k, a, p, at, kv), v = tile_of(a.v, a, p, at, kv);
        float s[4][4], dp[4][4];
        scores(s, stage, q, k);
        scores(dp, stage, dout, v); /* its barriers also order row_means() before the next lines */
        if (a.inner > 0.0f) cap_scores(s, a);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                bool seen = y + i < q.have && sees(a, p.at + y + i, at + x + j);
                float weight = seen ? formula_exp(s[i][j] * a.scale - lse[i]) : 0.0f;
                dp[i][j] = weight * (dp[i][j] - mean[y + i]) * a.scale;
            }
#pragma unroll
        for (int i = 0; i < 16 && a.inner > 0.0f; i++)
            dp[i / 4][i % 4] *= cap_slope(a, s[i / 4][i % 4]);
        store_weights(weights, dp);
        accumulate<COLS>(dq, weights, stage, k, q.have);
    }
    float factor[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    store_part<COLS>(tile_of(a.dq, a, p, p.at, head), dq, factor);
}

/* Scores and dP of a tile of keys (rows) and one of queries become P and dS. */
struct pair { /* of tiles: their first tokens in the row */
    unsigned head, query, key;
};
template <bool CAP>
static __device__ __forceinline__ void key_weights(float s[4][4], float ds[4][4],
                                                   const struct attention_args &a,
                                                   const struct tile &q, struct pair at)
{
    unsigned x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 4;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        bool there = x + j < q.have;
        size_t of = (q.token + x + j) * a.heads + at.head;
        float lse = there ? a.lse[of] : 0.0f, mean = there ? a.delta[of] : 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bool seen = there && sees(a, at.query + x + j, at.key + y + i);
            float slope = CAP ? a.scale * cap_slope(a, s[i][j]) : a.scale;
            s[i][j] = seen ? formula_exp(s[i][j] * a.scale - lse) : 0.0f;
            ds[i][j] = s[i][j] * (ds[i][j] - mean) * slope;
        }
    }
}

/* Rows of the tiles are keys and columns are queries, so that the sums over queries run over the
 * columns of the weights. */
template <int COLS>
static __global__ void __launch_bounds__(THREADS, COLS > 1 ? 1 : 2)
    key_gradient_kernel(struct attention_args a)
{
    SHARED(float4, stage4, TILE * TILE / 4);
    SHARED(float4, weights4, TILE * TILE / 4);
    float *stage = reinterpret_cast<float *>(stage4),
          *weights = reinterpret_cast<float *>(weights4);
    struct place p;
    if (!find_place<TILE>(&p, a, blockIdx.x)) return;
    unsigned kv = blockIdx.y, group = a.heads / a.kv_heads;
    struct tile k = tile_of(a.k, a, p, p.at, kv), v = tile_of(a.v, a, p, p.at, kv);
    unsigned last = p.at + k.have - 1, end = end_query(a, p, last);
    float dk[COLS][4][4] = {}, dv[COLS][4][4] = {};
    for (unsigned head = kv * group; head < (kv + 1) * group; head++)
        for (unsigned at = p.at; at < end; at += TILE) {
            struct tile q = tile_of(a.q, a, p, at, head), dout = tile_of(a.dout, a, p, at, head);
            float s[4][4], ds[4][4];
            scores(s, stage, k, q);
            scores(ds, stage, v, dout);
            if (a.inner > 0.0f) {
                cap_scores(s, a);
                key_weights<true>(s, ds, a, q, {head, at, p.at});
            } else {
                key_weights<false>(s, ds, a, q, {head, at, p.at});
            }
            store_weights(weights, s);
            accumulate<COLS>(dv, weights, stage, dout, k.have);
            __syncthreads(); /* the weights have been read */
            store_weights(weights, ds);
            accumulate<COLS>(dk, weights, stage, q, k.have);
        }
    float factor[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    store_part<COLS>(tile_of(a.dk, a, p, p.at, kv), dk, factor);
    store_part<COLS>(tile_of(a.dv, a, p, p.at, kv), dv, factor);
}

/* By the number of 64 columns of a head: 1, 2, or up to 4. */
static attention_kernel *const forward_kernels[] = {forward_kernel<1>, forward_kernel<2>,
                                                    forward_kernel<4>};
static attention_kernel *const query_kernels[] = {
    query_gradient_kernel<1>, query_gradient_kernel<2>, query_gradient_kernel<4>};
static attention_kernel *const key_kernels[] = {key_gradient_kernel<1>, key_gradient_kernel<2>,
                                                key_gradient_kernel<4>};
static unsigned kernel_number(const struct attention_args *a)
{
    return a->head_dim <= TILE ? 0 : a->head_dim <= 2 * TILE ? 1 : 2;
}

void attention_f32_forward(struct backend_context *c, const struct attention_args *a)
{
    launch(forward_kernels[kernel_number(a)], tile_grid(a, TILE, a->heads), dim3(THREADS), 0,
           c->stream, *a);
}

void attention_f32_back(struct backend_context *c, const struct attention_args *a)
{
    launch(query_kernels[kernel_number(a)], tile_grid(a, TILE, a->heads), dim3(THREADS), 0,
           c->stream, *a);
    launch(key_kernels[kernel_number(a)], tile_grid(a, TILE, a->kv_heads), dim3(THREADS), 0,
           c->stream, *a);
}
