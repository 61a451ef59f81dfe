/* Attention on tensor cores, for bfloat16 tensors with a head_dim of 64, 96 or 128 whose heads
 * start at multiples of 16 bytes. Products have bfloat16 operands and float32 sums; P and dS are
 * rounded to bfloat16 before they are multiplied.
 *
 * Shared memory has tiles of 64 or 128 tokens of one head. A block has four warps, and each warp
 * multiplies 16 rows, or twice 16, of the block's own tile with tiles of 64 tokens, which are
 * copied in the background into two buffers in turn. A thread holds the parts of a product that
 * mma.m16n8k16 gives it: of each 16 x 8, rows lane / 4 and lane / 4 + 8, columns 2 (lane % 4) and
 * the next one. */
#include "kernels/cuda/cuda_attention.cuh"

static constexpr unsigned WARPS = 4, THREADS = 32 * WARPS;
static constexpr unsigned TILE = 64;            /* tokens of a tile that is read in turn */
static constexpr unsigned PART = 32;            /* and those multiplied at a time */
static constexpr unsigned OWN = 16 * WARPS;     /* tokens of a block's tile in the backward pass */
static constexpr unsigned QUERIES = 32 * WARPS; /* and in the forward pass */
static constexpr float LOG2_E = 1.44269504f;

/* Chunk `even` + `odd` of a row: 16 bytes. The chunks of a row are exchanged, so that eight rows of
 * one chunk, and eight chunks of one row, lie in different banks. Rows of 96 values start at two
 * banks in turn; exchanging groups of four is enough for them, and keeps the chunk in its row. In
 * unrolled loops `even` is a constant, and so few different exchanges are kept in registers. */
template <unsigned HD>
static __device__ __forceinline__ bf16 *chunk_at(bf16 *tile, unsigned row, unsigned even,
                                                 unsigned odd)
{
    constexpr unsigned LOW = HD == 96 ? 3 : 7;
    unsigned turn = (odd ^ (HD == 96 ? row / 2 : row)) & LOW;
    return tile + row * HD + ((even & ~LOW) + ((even & LOW) ^ turn)) * 8;
}
/* Copies `rows` tokens from `at` on, of a head of the row p, in the background; zeros beyond the
 * end of the row. */
template <unsigned HD>
static __device__ __forceinline__ void load_tile(bf16 *tile, const struct rows8 &m,
                                                 const struct place &p, unsigned at, unsigned head,
                                                 unsigned rows)
{
    unsigned ld = (unsigned)m.ld;
    const bf16 *from = static_cast<const bf16 *>(m.data) + (size_t)p.first * ld + head * HD;
#pragma unroll 2
    for (unsigned i = threadIdx.x; i < rows * (HD / 8); i += THREADS) {
        unsigned row = i / (HD / 8), chunk = i % (HD / 8);
        bool valid = at + row < p.tokens;
        const bf16 *source = valid ? from + (size_t)(at + row) * ld + chunk * 8 : from;
        cp_async_16(chunk_at<HD>(tile, row, chunk & ~1u, chunk & 1), source, valid);
    }
}

/* The buffer with the keys from `at` on, and the values behind them, once they have arrived. Starts
 * to copy those of the next tile into the other buffer. */
template <unsigned HD>
static __device__ __forceinline__ bf16 *
next_keys(bf16 *buffers, unsigned turn, const struct attention_args &a, const struct place &p,
          unsigned at, unsigned end, unsigned kv)
{
    bf16 *next = buffers + (turn ^ 1) * 2 * TILE * HD;
    if (at + TILE < end) {
        load_tile<HD>(next, a.k, p, at + TILE, kv, TILE);
        load_tile<HD>(next + TILE * HD, a.v, p, at + TILE, kv, TILE);
    }
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    return buffers + turn * 2 * TILE * HD;
}

/* s = rows [first, first + 16 GROUPS) of `left` times 32 rows of `right`, transposed. */
template <unsigned HD, int GROUPS>
static __device__ __forceinline__ void scores(float s[GROUPS][PART / 8][4], bf16 *left,
                                              unsigned first, bf16 *right)
{
    unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (unsigned i = 0; i < GROUPS * PART / 2; i++)
        s[i / (PART / 2)][i / 4 % (PART / 8)][i % 4] = 0.0f;
#pragma unroll 2 /* more would take more registers than there are */
    for (unsigned i = 0; i < HD / 16; i++) {
        unsigned a[GROUPS][4];
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
            ldmatrix_x4(a[g], chunk_at<HD>(left, first + g * 16 + lane % 16, 2 * i, lane / 16));
#pragma unroll
        for (unsigned n = 0; n < PART / 16; n++) {
            unsigned b[4];
            ldmatrix_x4(
                b, chunk_at<HD>(right, n * 16 + lane / 16 * 8 + lane % 8, 2 * i, lane / 8 % 2));
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                mma_16816(s[g][2 * n], a[g], b);
                mma_16816(s[g][2 * n + 1], a[g], b + 2);
            }
        }
    }
}
/* An error of 2^-22 of the cap is enough here, because P is rounded to bfloat16. */
template <int GROUPS>
static __device__ __forceinline__ void cap_scores(float s[GROUPS][PART / 8][4],
                                                  const struct attention_args &a)
{
#pragma unroll
    for (unsigned i = 0; i < GROUPS * PART / 2; i++) {
        float *x = &s[i / (PART / 2)][i / 4 % (PART / 8)][i % 4];
        float e = exp2f_fast(*x * (a.inner * (2.0f * LOG2_E)));
        *x = 1.0f - 2.0f * reciprocal_fast(e + 1.0f);
    }
}
/* out += s (16 GROUPS, 32), rounded to bfloat16, times 32 rows of `right`. */
template <unsigned HD, int GROUPS>
static __device__ __forceinline__ void accumulate(float out[GROUPS][HD / 8][4],
                                                  const float s[GROUPS][PART / 8][4], bf16 *right)
{
    unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (unsigned i = 0; i < PART / 16; i++) {
        unsigned a[GROUPS][4];
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
#pragma unroll
            for (unsigned e = 0; e < 4; e++) {
                const float *part = s[g][2 * i + e / 2];
                a[g][e] = pack_bf16(part[e % 2 * 2], part[e % 2 * 2 + 1]);
            }
#pragma unroll
        for (unsigned n = 0; n < HD / 16; n++) {
            unsigned b[4];
            ldmatrix_x4(b,
                        chunk_at<HD>(right, i * 16 + lane / 8 % 2 * 8 + lane % 8, 2 * n, lane / 16),
                        true);
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                mma_16816(out[g][2 * n], a[g], b);
                mma_16816(out[g][2 * n + 1], a[g], b + 2);
            }
        }
    }
}

/* Writes 16 rows from `at` on, times factor[half], of a head of the row p. */
template <unsigned HD>
static __device__ __forceinline__ void
store_rows(const struct rows8 &m, const struct place &p, unsigned at, unsigned head,
           const float part[HD / 8][4], const float factor[2])
{
    unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (unsigned half = 0; half < 2; half++) {
        unsigned row = at + half * 8 + lane / 4;
        if (row >= p.tokens) continue;
        bf16 *to = static_cast<bf16 *>(m.data) + ((size_t)p.first + row) * m.ld + head * HD;
#pragma unroll
        for (unsigned n = 0; n < HD / 8; n++)
            *reinterpret_cast<unsigned *>(to + n * 8 + lane % 4 * 2) =
                pack_bf16(part[n][2 * half] * factor[half], part[n][2 * half + 1] * factor[half]);
    }
}

/* Whether the queries [query, query + queries) and the keys [key, key + keys) have a pair that is
 * seen, and one that is not. */
static __device__ __forceinline__ bool any_seen(const struct attention_args &a, unsigned query,
                                                unsigned queries, unsigned key, unsigned keys)
{
    return key < query + queries && (a.window == 0 || query < key + keys - 1 + a.window);
}
static __device__ __forceinline__ bool any_hidden(const struct attention_args &a, unsigned query,
                                                  unsigned queries, unsigned key, unsigned keys)
{
    return key + keys - 1 > query || (a.window && query + queries - 1 >= key + a.window);
}

/* Scores of keys that are not seen become -infinity. `query`, `key`: of the first score. */
static __device__ __forceinline__ void hide(float s[PART / 8][4], const struct attention_args &a,
                                            unsigned query, unsigned key)
{
#pragma unroll
    for (unsigned i = 0; i < PART / 2; i++)
        if (!sees(a, query + i / 2 % 2 * 8, key + i / 4 * 8 + i % 2)) s[i / 4][i % 4] = -INFINITY;
}

/* The online softmax of 16 rows of scores: turns them into exponentials, and scales down what has
 * been summed. */
template <unsigned HD>
static __device__ __forceinline__ void soften(float s[PART / 8][4], float out[HD / 8][4],
                                              float top[2], float sum[2], float scale)
{
#pragma unroll
    for (unsigned half = 0; half < 2; half++) {
        float largest = top[half], part = 0.0f;
#pragma unroll
        for (unsigned n = 0; n < PART / 8; n++)
            largest = fmaxf(largest, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
        float less = largest == -INFINITY ? 0.0f : largest * scale; /* no key seen yet */
        float keep = exp2f_fast(top[half] * scale - less);          /* 1 without a larger score */
        top[half] = largest;
#pragma unroll
        for (unsigned i = 0; i < PART / 4; i++) {
            float *x = &s[i / 2][2 * half + i % 2];
            *x = exp2f_fast(multiply_add(*x, scale, -less));
            part += *x;
        }
        sum[half] = multiply_add(sum[half], keep, part);
#pragma unroll
        for (unsigned n = 0; n < HD / 8; n++) {
            out[n][2 * half] *= keep;
            out[n][2 * half + 1] *= keep;
        }
    }
}

/* Later tiles come first, because they have more keys and blocks are started in the order of their
 * numbers. */
template <unsigned HD>
static __global__ void __launch_bounds__(THREADS, 2) forward_kernel(struct attention_args a)
{
    DYNAMIC_SHARED(bf16, shared);
    bf16 *queries = shared, *buffers = shared + QUERIES * HD; /* two of K and V */
    struct place p;
    if (!find_place<QUERIES>(&p, a, gridDim.x - 1 - blockIdx.x)) return;
    unsigned head = blockIdx.y, kv = head / (a.heads / a.kv_heads), lane = threadIdx.x % 32;
    unsigned mine = threadIdx.x / 32 * 32, first = p.at + mine, row = first + lane / 4;
    unsigned begin = first_key<TILE>(a, p.at), end = min(p.at + QUERIES, p.tokens);
    float out[2][HD / 8][4] = {}, top[2][2], sum[2][2] = {};
    for (int i = 0; i < 4; i++)
        top[i / 2][i % 2] = -INFINITY;
    load_tile<HD>(queries, a.q, p, p.at, head, QUERIES);
    load_tile<HD>(buffers, a.k, p, begin, kv, TILE);
    load_tile<HD>(buffers + TILE * HD, a.v, p, begin, kv, TILE);
    cp_async_commit();
    for (unsigned at = begin, turn = 0; at < end; at += TILE, turn ^= 1) {
        bf16 *keys = next_keys<HD>(buffers, turn, a, p, at, end, kv);
#pragma unroll 1
        for (unsigned part = 0; part < TILE; part += PART) {
            if (!any_seen(a, first, 32, at + part, PART)) continue;
            float s[2][PART / 8][4];
            scores<HD, 2>(s, queries, mine, keys + part * HD);
            if (a.inner > 0.0f) cap_scores<2>(s, a);
            bool some = any_hidden(a, first, 32, at + part, PART);
#pragma unroll
            for (int g = 0; g < 2; g++) {
                if (some) hide(s[g], a, row + g * 16, at + part + lane % 4 * 2);
                soften<HD>(s[g], out[g], top[g], sum[g], a.scale * LOG2_E);
            }
            accumulate<HD, 2>(out, s, keys + (TILE + part) * HD);
        }
        __syncthreads(); /* the buffer is free */
    }
    cp_async_wait<0>();
#pragma unroll
    for (int g = 0; g < 2; g++) {
        float factor[2];
#pragma unroll
        for (unsigned half = 0; half < 2; half++) {
            unsigned query = row + g * 16 + half * 8;
            float total = sum[g][half];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            factor[half] = 1.0f / total;
            if (lane % 4 == 0 && query < p.tokens)
                a.lse[((size_t)p.first + query) * a.heads + head] =
                    top[g][half] * a.scale + logf(total);
        }
        store_rows<HD>(a.out, p, first + g * 16, head, out[g], factor);
    }
}

/* mean (64), shared: rowsum(O dO) of each query of the block; also written to a.delta. Two threads
 * share a row. */
template <unsigned HD>
static __device__ __forceinline__ void row_means(float *mean, const struct attention_args &a,
                                                 const struct place &p, unsigned head)
{
    unsigned i = threadIdx.x / 2, query = p.at + i;
    size_t token = (size_t)p.first + query;
    float sum = 0.0f;
    if (query < p.tokens)
        for (unsigned at = threadIdx.x % 2 * 8; at < HD; at += 16) {
            float left[8], right[8];
            load8(left, a.out, token, head * HD + at, 8);
            load8(right, a.dout, token, head * HD + at, 8);
#pragma unroll
            for (int j = 0; j < 8; j++)
                sum = multiply_add(left[j], right[j], sum);
        }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    if (threadIdx.x % 2 != 0) return;
    mean[i] = sum;
    if (query < p.tokens) a.delta[token * a.heads + head] = sum;
}

template <unsigned HD>
static __global__ void __launch_bounds__(THREADS, 2) query_gradient_kernel(struct attention_args a)
{
    DYNAMIC_SHARED(bf16, shared);
    SHARED(float, mean, OWN);
    bf16 *queries = shared, *douts = shared + OWN * HD, *buffers = shared + 2 * OWN * HD;
    struct place p;
    if (!find_place<OWN>(&p, a, gridDim.x - 1 - blockIdx.x)) return;
    unsigned head = blockIdx.y, kv = head / (a.heads / a.kv_heads), lane = threadIdx.x % 32;
    unsigned mine = threadIdx.x / 32 * 16, first = p.at + mine, row = first + lane / 4;
    unsigned begin = first_key<TILE>(a, p.at), end = min(p.at + OWN, p.tokens);
    float dq[1][HD / 8][4] = {}, lse[2];
    load_tile<HD>(queries, a.q, p, p.at, head, OWN);
    load_tile<HD>(douts, a.dout, p, p.at, head, OWN);
    load_tile<HD>(buffers, a.k, p, begin, kv, TILE);
    load_tile<HD>(buffers + TILE * HD, a.v, p, begin, kv, TILE);
    cp_async_commit();
    row_means<HD>(mean, a, p, head);
    for (unsigned half = 0; half < 2; half++) {
        unsigned query = row + half * 8;
        size_t token = (size_t)p.first + query;
        lse[half] = query < p.tokens ? a.lse[token * a.heads + head] * LOG2_E : 0.0f;
    }
    for (unsigned at = begin, turn = 0; at < end; at += TILE, turn ^= 1) {
        bf16 *keys = next_keys<HD>(buffers, turn, a, p, at, end, kv);
#pragma unroll 1
        for (unsigned part = 0; part < TILE; part += PART) {
            if (!any_seen(a, first, 16, at + part, PART)) continue;
            float s[1][PART / 8][4], ds[1][PART / 8][4];
            scores<HD, 1>(s, queries, mine, keys + part * HD);
            scores<HD, 1>(ds, douts, mine, keys + (TILE + part) * HD);
            if (a.inner > 0.0f) cap_scores<1>(s, a);
            bool some = any_hidden(a, first, 16, at + part, PART);
#pragma unroll
            for (unsigned i = 0; i < PART / 2; i++) {
                unsigned half = i / 2 % 2, key = at + part + i / 4 * 8 + lane % 4 * 2 + i % 2;
                float *d = &ds[0][i / 4][i % 4];
                float x = multiply_add(s[0][i / 4][i % 4], a.scale * LOG2_E, -lse[half]);
                *d = exp2f_fast(x) * (*d - mean[mine + lane / 4 + half * 8]) * a.scale;
                if (some && !sees(a, row + half * 8, key)) *d = 0.0f;
            }
#pragma unroll
            for (unsigned i = 0; i < PART / 2 && a.inner > 0.0f; i++)
                ds[0][i / 4][i % 4] *= cap_slope(a, s[0][i / 4][i % 4]);
            accumulate<HD, 1>(dq, ds, keys + part * HD);
        }
        __syncthreads(); /* the buffer is free */
    }
    cp_async_wait<0>();
    float factor[2] = {1.0f, 1.0f};
    store_rows<HD>(a.dq, p, first, head, dq[0], factor);
}

/* lse in powers of two, and delta, of 64 queries; zeros beyond the end of the row. */
static __device__ __forceinline__ void load_sums(float *lse, float *mean,
                                                 const struct attention_args &a,
                                                 const struct place &p, unsigned at, unsigned head)
{
    unsigned i = threadIdx.x % TILE;
    size_t of = ((size_t)p.first + at + i) * a.heads + head;
    bool valid = at + i < p.tokens;
    if (threadIdx.x < TILE)
        lse[i] = valid ? a.lse[of] * LOG2_E : 0.0f;
    else
        mean[i] = valid ? a.delta[of] : 0.0f;
}

/* Scores and dP of 16 keys (rows) and 32 queries become P and dS. */
struct pairs {
    const float *lse, *mean;     /* (32) */
    unsigned query, key, tokens; /* the first of each in the row, and the end of the row */
    bool some;                   /* are not seen */
};
template <bool CAP>
static __device__ __forceinline__ void key_weights(float s[PART / 8][4], float ds[PART / 8][4],
                                                   const struct attention_args &a,
                                                   const struct pairs &p)
{
#pragma unroll
    for (unsigned i = 0; i < PART / 2; i++) {
        unsigned of = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2, query = p.query + of;
        float *w = &s[i / 4][i % 4], *d = &ds[i / 4][i % 4];
        float slope = CAP ? a.scale * cap_slope(a, *w) : a.scale;
        *w = exp2f_fast(multiply_add(*w, a.scale * LOG2_E, -p.lse[of]));
        if (p.some && (query >= p.tokens || !sees(a, query, p.key + i / 2 % 2 * 8))) *w = 0.0f;
        *d = *w * (*d - p.mean[of]) * slope;
    }
}

/* Rows of the products are keys and columns are queries, so that the sums over queries need no
 * transposition. The loop goes through the tiles of queries of each head of the group. */
template <unsigned HD>
static __global__ void __launch_bounds__(THREADS, 2) key_gradient_kernel(struct attention_args a)
{
    DYNAMIC_SHARED(bf16, shared);
    SHARED(float, lses, 2 * TILE);
    SHARED(float, means, 2 * TILE);
    bf16 *keys = shared, *values = shared + OWN * HD, *buffers = shared + 2 * OWN * HD;
    struct place p;
    if (!find_place<OWN>(&p, a, blockIdx.x)) return;
    unsigned kv = blockIdx.y, group = a.heads / a.kv_heads, lane = threadIdx.x % 32;
    unsigned mine = threadIdx.x / 32 * 16, first = p.at + mine, row = first + lane / 4;
    unsigned end = end_query(a, p, min(p.at + OWN, p.tokens) - 1);
    unsigned tiles = (end - p.at + TILE - 1) / TILE;
    float dk[1][HD / 8][4] = {}, dv[1][HD / 8][4] = {};
    load_tile<HD>(keys, a.k, p, p.at, kv, OWN);
    load_tile<HD>(values, a.v, p, p.at, kv, OWN);
    load_tile<HD>(buffers, a.q, p, p.at, kv * group, TILE);
    load_tile<HD>(buffers + TILE * HD, a.dout, p, p.at, kv * group, TILE);
    load_sums(lses, means, a, p, p.at, kv * group);
    cp_async_commit();
    for (unsigned n = 0; n < tiles * group; n++) {
        unsigned turn = n % 2, at = p.at + n % tiles * TILE;
        bf16 *queries = buffers + turn * 2 * TILE * HD, *douts = queries + TILE * HD;
        if (n + 1 < tiles * group) {
            bf16 *next = buffers + (turn ^ 1) * 2 * TILE * HD;
            unsigned then = p.at + (n + 1) % tiles * TILE, head = kv * group + (n + 1) / tiles;
            load_tile<HD>(next, a.q, p, then, head, TILE);
            load_tile<HD>(next + TILE * HD, a.dout, p, then, head, TILE);
            load_sums(lses + (turn ^ 1) * TILE, means + (turn ^ 1) * TILE, a, p, then, head);
        }
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
#pragma unroll 1
        for (unsigned part = 0; part < TILE; part += PART) {
            if (!any_seen(a, at + part, PART, first, 16)) continue;
            float s[1][PART / 8][4], ds[1][PART / 8][4];
            scores<HD, 1>(s, keys, mine, queries + part * HD);
            scores<HD, 1>(ds, values, mine, douts + part * HD);
            struct pairs of = {lses + turn * TILE + part,
                               means + turn * TILE + part,
                               at + part,
                               row,
                               p.tokens,
                               false};
            of.some = at + part + PART > p.tokens || any_hidden(a, at + part, PART, first, 16);
            if (a.inner > 0.0f) {
                cap_scores<1>(s, a);
                key_weights<true>(s[0], ds[0], a, of);
            } else {
                key_weights<false>(s[0], ds[0], a, of);
            }
            accumulate<HD, 1>(dv, s, douts + part * HD);
            accumulate<HD, 1>(dk, ds, queries + part * HD);
        }
        __syncthreads(); /* the buffer is free */
    }
    cp_async_wait<0>();
    float factor[2] = {1.0f, 1.0f};
    store_rows<HD>(a.dk, p, first, kv, dk[0], factor);
    store_rows<HD>(a.dv, p, first, kv, dv[0], factor);
}

static bool fits(const struct rows8 &m)
{
    return !m.is_f32 && m.wide;
}
bool attention_mma_known(const struct attention_args *a, bool back)
{
    bool size = a->head_dim == 64 || a->head_dim == 96 || a->head_dim == 128;
    bool forward = fits(a->q) && fits(a->k) && fits(a->v) && fits(a->out);
    return size && forward &&
           (!back || (fits(a->dq) && fits(a->dk) && fits(a->dv) && fits(a->dout)));
}

/* Bytes of tiles with so many tokens together. */
static size_t tile_bytes(const struct attention_args *a, unsigned tokens)
{
    return (size_t)tokens * a->head_dim * sizeof(bf16);
}

void attention_mma_forward(struct backend_context *c, const struct attention_args *a)
{
    attention_kernel *kernel = a->head_dim == 64   ? forward_kernel<64>
                               : a->head_dim == 96 ? forward_kernel<96>
                                                   : forward_kernel<128>;
    launch(kernel, tile_grid(a, QUERIES, a->heads), dim3(THREADS),
           tile_bytes(a, QUERIES + 4 * TILE), c->stream, *a);
}

void attention_mma_back(struct backend_context *c, const struct attention_args *a)
{
    attention_kernel *queries = a->head_dim == 64   ? query_gradient_kernel<64>
                                : a->head_dim == 96 ? query_gradient_kernel<96>
                                                    : query_gradient_kernel<128>;
    attention_kernel *keys = a->head_dim == 64   ? key_gradient_kernel<64>
                             : a->head_dim == 96 ? key_gradient_kernel<96>
                                                 : key_gradient_kernel<128>;
    size_t shared = tile_bytes(a, 2 * OWN + 4 * TILE);
    launch(queries, tile_grid(a, OWN, a->heads), dim3(THREADS), shared, c->stream, *a);
    launch(keys, tile_grid(a, OWN, a->kv_heads), dim3(THREADS), shared, c->stream, *a);
}
