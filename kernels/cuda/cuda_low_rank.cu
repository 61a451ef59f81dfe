/* The low-rank parts of linear operations and their gradients, for any ranks and types, in float32
 * on the ordinary arithmetic units.
 *
 * The factors of an adapter at one W are stored as the products need them: all A one below the
 * other, and for each module b = s B, or s B R, with the carry beside it. Then
 *
 *   H = drop(x) A^T     y_m += H_m b^T     G_m = dy_m b     P_m = dy_m B     dx += drop(G A)
 *
 * Each value is one sum in a fixed order by one thread, so the bits of a row do not depend on the
 * other rows. Sums over tokens are taken in chunks of 2,048 from the first token on, and the sums of
 * the chunks are added in order. */
#include "kernels/cuda/cuda.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* A module, on the device. Its factors are (rank, k), (rows, rank) and (rank, rank). */
struct module_view {
    struct low_rank_module m;
    struct mat a;   /* (width, k): the rows of this module in all A */
    struct mat b;   /* (rows, width): s B or s B R, and the carry */
    float *whole_b; /* (rows, rank) with an R: B without scale, else NULL */
    float *r;       /* (rank, rank), or NULL */
};
struct backend_low_rank {
    struct backend_context *context;
    uint64_t number; /* of this object in its context, never used again */
    size_t n, k, width;
    uint32_t modules;
    bool small;                 /* a module has an R */
    struct module_view *view;   /* host */
    struct module_view *device; /* the same on the device, in `block` */
    void *block;
};

/* The modules of one use, as kernels get them. */
struct modules {
    const struct module_view *view;
    uint32_t count;
    size_t k;
};

static __device__ __forceinline__ float load(const struct mat &m, size_t row, size_t col)
{
    size_t i = row * m.ld + col;
    return m.type == DTYPE_F32 ? static_cast<const float *>(m.data)[i]
                               : bf16_float(static_cast<const bf16 *>(m.data)[i]);
}
static __device__ __forceinline__ void store(const struct mat &m, size_t row, size_t col, float v)
{
    size_t i = row * m.ld + col;
    if (m.type == DTYPE_F32)
        static_cast<float *>(m.data)[i] = v;
    else
        static_cast<bf16 *>(m.data)[i] = float_bf16(v);
}

/* ---- Dropout. Each value has a 32-bit random number from its place and the key of the mask (the
 * finalizer of splitmix64), so the backward pass needs no stored mask. Each module has its own
 * mask; the multiplication by an odd constant spreads small numbers over all bits. The row is
 * counted from the first token of the use. */
struct mask {
    const struct batch_scalars *scalars; /* NULL: no dropout */
    size_t first;                        /* token of the use */
};

struct drop { /* the mask of one module */
    uint64_t key, threshold;
    float keep;
    bool on;
};

static __device__ __forceinline__ struct drop drop_of(const struct mask &m, uint32_t place)
{
    struct drop d = {0, 0, 1.0f, m.scalars != NULL};
    if (!d.on) return d;
    d.key = (m.scalars->dropout_key ^ ((uint64_t)place + 1) * 0xd1342543de82ef95u) +
            (uint64_t)m.first * 0x632be59bd9b4e019u;
    d.threshold = (uint64_t)((double)m.scalars->dropout * 4294967296.0);
    d.keep = 1.0f / (1.0f - m.scalars->dropout);
    return d;
}

static __device__ __forceinline__ float dropped(const struct drop &d, float x, size_t row,
                                                size_t cols, size_t col)
{
    if (!d.on) return x;
    uint64_t z = d.key + ((uint64_t)row * cols + col + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z >> 32) < d.threshold ? 0.0f : x * d.keep;
}

/* ---- Shrink: products with the width of a rank, H, G and P */

enum shrink { SHRINK_H, SHRINK_G, SHRINK_P };
enum { SHRINK_THREADS = 128, SHRINK_ROWS = 64, NARROW = 16, SHRINK_STEP = 32 };

struct shrink_args {
    struct modules all;
    struct mat h, g, p;
    struct mat x; /* (tokens, k), or dy (tokens, n) */
    size_t first, tokens;
    struct mask mask;
    bool back;
};
/* Columns [first, first + cols) of one module. */
struct shrink_tile {
    enum shrink kind;
    uint32_t module, first, cols;
};

static __host__ __device__ __forceinline__ uint32_t narrow_tiles(uint32_t cols)
{
    return (cols + NARROW - 1) / NARROW;
}

/* Tiles do not cross from the trained columns into those of the carry, which has no dropout. */
static __host__ __device__ __forceinline__ uint32_t shrink_tiles(const struct low_rank_module &m,
                                                                 bool back)
{
    return narrow_tiles(m.rank) * (back && m.small ? 2 : 1) + narrow_tiles(m.width - m.rank);
}

static __device__ __forceinline__ struct shrink_tile shrink_tile_of(const struct shrink_args &a,
                                                                    uint32_t tile)
{
    uint32_t i = 0;
    while (tile >= shrink_tiles(a.all.view[i].m, a.back))
        tile -= shrink_tiles(a.all.view[i++].m, a.back);
    const struct low_rank_module &m = a.all.view[i].m;
    uint32_t trained = narrow_tiles(m.rank), carry = narrow_tiles(m.width - m.rank);
    struct shrink_tile t = {a.back ? SHRINK_G : SHRINK_H, i, 0, 0};
    uint32_t end = m.rank;
    if (tile < trained) {
        t.first = tile * NARROW;
    } else if (tile < trained + carry) {
        t.first = m.rank + (tile - trained) * NARROW;
        end = m.width;
    } else {
        t.kind = SHRINK_P;
        t.first = (tile - trained - carry) * NARROW;
    }
    t.cols = end - t.first < NARROW ? end - t.first : (uint32_t)NARROW;
    return t;
}

/* Element (col, i) of the factor, with i along the sum. */
static __device__ __forceinline__ float shrink_factor(const struct module_view &v, enum shrink kind,
                                                      size_t col, size_t i)
{
    if (kind == SHRINK_H) return load(v.a, col, i);
    return kind == SHRINK_G ? load(v.b, i, col) : v.whole_b[i * v.m.rank + col];
}

/* 64 tokens and 16 columns; each thread has 4 tokens and 2 columns. */
__global__ void __launch_bounds__(SHRINK_THREADS, 6) shrink_kernel(struct shrink_args a)
{
    SHARED(float, xs, SHRINK_ROWS *(SHRINK_STEP + 1));
    SHARED(float, fs, NARROW *(SHRINK_STEP + 1));
    struct shrink_tile tile = shrink_tile_of(a, blockIdx.y);
    const struct module_view &v = a.all.view[tile.module];
    struct mask mask = a.mask;
    if (tile.kind != SHRINK_H || tile.first >= v.m.rank) mask.scalars = NULL;
    struct drop drop = drop_of(mask, v.m.place);
    size_t depth = a.back ? v.m.rows : a.all.k, left = a.back ? v.m.row : 0;
    size_t row = (size_t)blockIdx.x * SHRINK_ROWS;
    unsigned tx = threadIdx.x % 8, ty = threadIdx.x / 8;
    float sum[4][2] = {};
    for (size_t i = 0; i < depth; i += SHRINK_STEP) {
        for (unsigned e = threadIdx.x; e < SHRINK_ROWS * SHRINK_STEP; e += SHRINK_THREADS) {
            size_t t = row + e / SHRINK_STEP, at = i + e % SHRINK_STEP;
            float x = 0.0f;
            if (t < a.tokens && at < depth)
                x = dropped(drop, load(a.x, a.first + t, left + at), t, depth, at);
            xs[e / SHRINK_STEP * (SHRINK_STEP + 1) + e % SHRINK_STEP] = x;
        }
        /* Neighbouring threads read neighbouring values: along the sum for A, across it for B. */
        for (unsigned e = threadIdx.x; e < NARROW * SHRINK_STEP; e += SHRINK_THREADS) {
            unsigned col = a.back ? e % NARROW : e / SHRINK_STEP;
            unsigned at = a.back ? e / NARROW : e % SHRINK_STEP;
            float f = 0.0f;
            if (col < tile.cols && i + at < depth)
                f = shrink_factor(v, tile.kind, tile.first + col, i + at);
            fs[col * (SHRINK_STEP + 1) + at] = f;
        }
        __syncthreads();
        for (unsigned at = 0; at < SHRINK_STEP; at++) {
            float f0 = fs[tx * (SHRINK_STEP + 1) + at], f1 = fs[(tx + 8) * (SHRINK_STEP + 1) + at];
#pragma unroll
            for (unsigned k = 0; k < 4; k++) {
                float x = xs[(ty + 16 * k) * (SHRINK_STEP + 1) + at];
                sum[k][0] += x * f0;
                sum[k][1] += x * f1;
            }
        }
        __syncthreads();
    }
    struct mat to = tile.kind == SHRINK_H ? a.h : tile.kind == SHRINK_G ? a.g : a.p;
#pragma unroll
    for (unsigned k = 0; k < 4; k++)
#pragma unroll
        for (unsigned j = 0; j < 2; j++) {
            size_t t = row + ty + 16 * k, col = tx + 8 * j;
            if (t < a.tokens && col < tile.cols)
                store(to, a.first + t, v.m.col + tile.first + col, sum[k][j]);
        }
}

/* ---- Expand: products over the width of a rank, into y or dx */

enum { EXPAND_THREADS = 256, EXPAND_TILE = 64, EXPAND_STEP = 16 };

struct expand_args {
    struct modules all; /* count 0: only bias and old values */
    struct mat to;      /* (tokens, cols): y, or dx */
    struct mat h;       /* H, or G */
    const float *bias;  /* (cols), or NULL */
    size_t first, tokens, cols;
    struct mask mask;
    bool back, add;
};

/* Adds the product with the factor's columns [first, first + count) to sum, for the tile at (row,
 * col). With y, the columns outside of the module get zeros. */
static __device__ __forceinline__ void expand_columns(float sum[4][4], float *hs, float *fs,
                                                      const struct expand_args &a,
                                                      const struct module_view &v, size_t row,
                                                      size_t col, uint32_t first, uint32_t count)
{
    unsigned tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    for (uint32_t i = 0; i < count; i += EXPAND_STEP) {
        for (unsigned e = threadIdx.x; e < EXPAND_TILE * EXPAND_STEP; e += EXPAND_THREADS) {
            unsigned at = e % EXPAND_STEP;
            size_t t = row + e / EXPAND_STEP;
            float h = 0.0f;
            if (t < a.tokens && i + at < count)
                h = load(a.h, a.first + t, v.m.col + first + i + at);
            hs[e / EXPAND_STEP * (EXPAND_STEP + 1) + at] = h;
        }
        for (unsigned e = threadIdx.x; e < EXPAND_TILE * EXPAND_STEP; e += EXPAND_THREADS) {
            unsigned at = a.back ? e / EXPAND_TILE : e % EXPAND_STEP;
            unsigned c = a.back ? e % EXPAND_TILE : e / EXPAND_STEP;
            size_t j = col + c;
            float f = 0.0f;
            if (i + at < count && j < a.cols) {
                if (a.back)
                    f = load(v.a, first + i + at, j);
                else if (j >= v.m.row && j < (size_t)v.m.row + v.m.rows)
                    f = load(v.b, j - v.m.row, first + i + at);
            }
            fs[at * (EXPAND_TILE + 1) + c] = f;
        }
        __syncthreads();
#pragma unroll 4
        for (unsigned at = 0; at < EXPAND_STEP; at++)
#pragma unroll
            for (unsigned k = 0; k < 4; k++)
#pragma unroll
                for (unsigned j = 0; j < 4; j++)
                    sum[k][j] += hs[(ty + 16 * k) * (EXPAND_STEP + 1) + at] *
                                 fs[at * (EXPAND_TILE + 1) + tx + 16 * j];
        __syncthreads();
    }
}

static __device__ __forceinline__ bool meets(const struct low_rank_module &m, size_t col)
{
    return col < (size_t)m.row + m.rows && m.row < col + EXPAND_TILE;
}

/* 64 tokens and 64 columns; each thread has 4 of both. */
__global__ void __launch_bounds__(EXPAND_THREADS, 2) expand_kernel(struct expand_args a)
{
    SHARED(float, hs, EXPAND_TILE *(EXPAND_STEP + 1));
    SHARED(float, fs, EXPAND_STEP *(EXPAND_TILE + 1));
    size_t col = (size_t)blockIdx.x * EXPAND_TILE, row = (size_t)blockIdx.y * EXPAND_TILE;
    unsigned tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float sum[4][4];
#pragma unroll
    for (unsigned k = 0; k < 4; k++)
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            size_t t = row + ty + 16 * k, c = col + tx + 16 * j;
            bool inside = t < a.tokens && c < a.cols;
            sum[k][j] = inside && a.add ? load(a.to, a.first + t, c) : 0.0f;
            if (inside && a.bias) sum[k][j] += a.bias[c];
        }
    for (uint32_t i = 0; i < a.all.count; i++) {
        const struct module_view &v = a.all.view[i];
        if (!a.back && !meets(v.m, col)) continue;
        float part[4][4] = {};
        expand_columns(part, hs, fs, a, v, row, col, 0, v.m.rank);
        if (a.back && a.mask.scalars) {
            struct drop drop = drop_of(a.mask, v.m.place);
#pragma unroll
            for (unsigned k = 0; k < 4; k++)
#pragma unroll
                for (unsigned j = 0; j < 4; j++)
                    part[k][j] =
                        dropped(drop, part[k][j], row + ty + 16 * k, a.cols, col + tx + 16 * j);
        }
        expand_columns(part, hs, fs, a, v, row, col, v.m.rank, v.m.width - v.m.rank);
#pragma unroll
        for (unsigned k = 0; k < 4; k++)
#pragma unroll
            for (unsigned j = 0; j < 4; j++)
                sum[k][j] += part[k][j];
    }
#pragma unroll
    for (unsigned k = 0; k < 4; k++)
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            size_t t = row + ty + 16 * k, c = col + tx + 16 * j;
            if (t < a.tokens && c < a.cols) store(a.to, a.first + t, c, sum[k][j]);
        }
}

/* ---- Gradients: sums over tokens of a narrow and a wide matrix */

enum { GRADIENT_THREADS = 128, WIDE = 128, GRADIENT_STEP = 16, CHUNK = 2048 };
enum factor { FACTOR_A, FACTOR_B, FACTOR_R, FACTORS };

struct gradient_args {
    struct modules all;
    struct mat h, g, p, x, dy;
    const float *q; /* (tokens, width) H R^T of the use, where B and R are both there */
    size_t width;   /* of q */
    size_t first, tokens;
    struct mask mask;
    float *gradient;
    const uint32_t *start; /* with a gradient for each row: their first tokens, else NULL */
    size_t stride;
    float *part; /* the tiles of all chunks, or NULL: there is one chunk a block */
};
struct gradient_tile {
    enum factor factor;
    uint32_t module, first, count; /* columns of the narrow side */
    size_t extent;                 /* of the wide side */
};

static __host__ __device__ __forceinline__ bool has_factor(const struct low_rank_module &m,
                                                           enum factor f)
{
    return m.rank && (m.trains >> f & 1) && (f != FACTOR_R || m.small);
}

static __host__ __device__ __forceinline__ size_t wide_extent(const struct low_rank_module &m,
                                                              enum factor f, size_t k)
{
    return f == FACTOR_A ? k : f == FACTOR_B ? m.rows : m.rank;
}

static __device__ __forceinline__ struct gradient_tile gradient_tile_of(const struct modules &all,
                                                                        uint32_t tile)
{
    for (uint32_t i = 0; i < all.count; i++) {
        const struct low_rank_module &m = all.view[i].m;
        uint32_t tiles = narrow_tiles(m.rank);
        for (int f = 0; f < FACTORS; f++) {
            if (!has_factor(m, (enum factor)f)) continue;
            if (tile >= tiles) {
                tile -= tiles;
                continue;
            }
            uint32_t first = tile * NARROW;
            return {(enum factor)f, i, first,
                    m.rank - first < NARROW ? m.rank - first : (uint32_t)NARROW,
                    wide_extent(m, (enum factor)f, all.k)};
        }
    }
    return {FACTOR_A, 0, 0, 0, 0};
}

static __device__ __forceinline__ float narrow_value(const struct gradient_args &a,
                                                     const struct low_rank_module &m, enum factor f,
                                                     size_t t, uint32_t col)
{
    if (f == FACTOR_A) return load(a.g, t, m.col + col);
    if (f == FACTOR_R) return load(a.p, t, m.col + col);
    return m.small ? a.q[(t - a.first) * a.width + m.col + col] : load(a.h, t, m.col + col);
}

/* The place of value (narrow column, wide column) in a gradient. */
static __device__ __forceinline__ size_t gradient_at(const struct low_rank_module &m, enum factor f,
                                                     size_t k, size_t narrow, size_t wide)
{
    if (f == FACTOR_A) return m.a_at + narrow * k + wide;
    return f == FACTOR_B ? m.b_at + wide * m.rank + narrow : m.r_at + narrow * m.rank + wide;
}

/* total += the sum over tokens [from, end); each thread has 4 narrow and 4 wide columns. */
static __device__ __forceinline__ void
gradient_chunk(float total[4][4], float *ns, float *ws, const struct gradient_args &a,
               const struct gradient_tile &tile, const struct drop &drop, size_t from, size_t end)
{
    const struct low_rank_module &m = a.all.view[tile.module].m;
    size_t col = (size_t)blockIdx.x * WIDE;
    unsigned tx = threadIdx.x % 32, ty = threadIdx.x / 32;
    float sum[4][4] = {};
    for (size_t t = from; t < end; t += GRADIENT_STEP) {
        for (unsigned e = threadIdx.x; e < GRADIENT_STEP * NARROW; e += GRADIENT_THREADS) {
            size_t at = t + e / NARROW;
            unsigned c = e % NARROW;
            ns[e] = at < end && c < tile.count ? narrow_value(a, m, tile.factor, at, tile.first + c)
                                               : 0.0f;
        }
        for (unsigned e = threadIdx.x; e < GRADIENT_STEP * WIDE; e += GRADIENT_THREADS) {
            size_t at = t + e / WIDE, c = col + e % WIDE;
            float w = 0.0f;
            if (at < end && c < tile.extent) {
                if (tile.factor == FACTOR_A)
                    w = dropped(drop, load(a.x, at, c), at - a.first, a.all.k, c);
                else
                    w = tile.factor == FACTOR_B ? load(a.dy, at, m.row + c)
                                                : load(a.h, at, m.col + c);
            }
            ws[e] = w;
        }
        __syncthreads();
#pragma unroll 4
        for (unsigned at = 0; at < GRADIENT_STEP; at++)
#pragma unroll
            for (unsigned i = 0; i < 4; i++)
#pragma unroll
                for (unsigned j = 0; j < 4; j++)
                    sum[i][j] += ns[at * NARROW + ty + 4 * i] * ws[at * WIDE + tx + 32 * j];
        __syncthreads();
    }
#pragma unroll
    for (unsigned i = 0; i < 4; i++)
#pragma unroll
        for (unsigned j = 0; j < 4; j++)
            total[i][j] += sum[i][j];
}

/* Block (wide tile, narrow tile, chunk or row). The chunks of a row are added by one block; those of
 * a whole use go to a.part, and gradient_sum_kernel() adds them in the same order. */
__global__ void __launch_bounds__(GRADIENT_THREADS, 4) gradient_kernel(struct gradient_args a)
{
    SHARED(float, ns, GRADIENT_STEP *NARROW);
    SHARED(float, ws, GRADIENT_STEP *WIDE);
    struct gradient_tile tile = gradient_tile_of(a.all, blockIdx.y);
    size_t col = (size_t)blockIdx.x * WIDE;
    if (col >= tile.extent) return;
    const struct low_rank_module &m = a.all.view[tile.module].m;
    struct drop drop = drop_of(a.mask, m.place);
    size_t from = a.first, end = a.first + a.tokens;
    if (a.start) {
        from = a.start[blockIdx.z];
        end = a.start[blockIdx.z + 1];
    } else if (a.part) {
        from += (size_t)blockIdx.z * CHUNK;
        end = end - from < CHUNK ? end : from + CHUNK;
    }
    float total[4][4] = {};
    for (size_t t = from; t < end; t += CHUNK)
        gradient_chunk(total, ns, ws, a, tile, drop, t, end - t < CHUNK ? end : t + CHUNK);
    float scale = tile.factor == FACTOR_A ? 1.0f : m.scale;
    float *part = a.part;
    if (part)
        part += (((size_t)blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) *
                (NARROW * WIDE);
    float *gradient = a.gradient + (a.start ? blockIdx.z * a.stride : 0);
#pragma unroll
    for (unsigned i = 0; i < 4; i++)
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            unsigned narrow = threadIdx.x / 32 + 4 * i, wide = threadIdx.x % 32 + 32 * j;
            if (part)
                part[narrow * WIDE + wide] = total[i][j];
            else if (narrow < tile.count && col + wide < tile.extent)
                gradient[gradient_at(m, tile.factor, a.all.k, tile.first + narrow, col + wide)] +=
                    scale * total[i][j];
        }
}

__global__ void __launch_bounds__(GRADIENT_THREADS)
    gradient_sum_kernel(struct gradient_args a, uint32_t chunks)
{
    struct gradient_tile tile = gradient_tile_of(a.all, blockIdx.y);
    size_t col = (size_t)blockIdx.x * WIDE + threadIdx.x;
    if (col >= tile.extent) return;
    const struct low_rank_module &m = a.all.view[tile.module].m;
    float scale = tile.factor == FACTOR_A ? 1.0f : m.scale;
    for (unsigned narrow = 0; narrow < tile.count; narrow++) {
        float total = 0.0f;
        for (uint32_t z = 0; z < chunks; z++)
            total += a.part[(((size_t)z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) *
                                (NARROW * WIDE) +
                            narrow * WIDE + threadIdx.x];
        a.gradient[gradient_at(m, tile.factor, a.all.k, tile.first + narrow, col)] += scale * total;
    }
}

/* q = H R^T of the modules with an R, one value a thread. */
__global__ void __launch_bounds__(GRADIENT_THREADS)
    small_kernel(float *q, struct modules all, struct mat h, size_t first, size_t tokens,
                 size_t width)
{
    size_t e = (size_t)blockIdx.x * GRADIENT_THREADS + threadIdx.x;
    size_t t = e / width, col = e % width;
    if (t >= tokens) return;
    for (uint32_t i = 0; i < all.count; i++) {
        const struct module_view &v = all.view[i];
        if (!v.m.small || col < v.m.col || col >= (size_t)v.m.col + v.m.rank) continue;
        float sum = 0.0f;
        for (uint32_t j = 0; j < v.m.rank; j++)
            sum += v.r[(col - v.m.col) * v.m.rank + j] * load(h, first + t, v.m.col + j);
        q[e] = sum;
    }
}

/* ---- Setting factors */

enum { SET_THREADS = 256, SET_BLOCKS = 32 };

/* Sets the factors that are not NULL, from float32 values on the device. With an R, b = s B R is
 * made from the new values, or from those that are kept. No thread reads what another one writes. */
static __device__ __forceinline__ void set_module(const struct module_view &v, size_t k,
                                                  const float *a, const float *b, const float *r)
{
    size_t rank = v.m.rank, at = (size_t)blockIdx.x * SET_THREADS + threadIdx.x;
    size_t step = (size_t)SET_BLOCKS * SET_THREADS;
    for (size_t i = at; a && i < rank * k; i += step)
        store(v.a, i / k, i % k, a[i]);
    if (!v.m.small) {
        for (size_t i = at; b && i < v.m.rows * rank; i += step)
            store(v.b, i / rank, i % rank, b[i] * v.m.scale);
        return;
    }
    if (!b && !r) return;
    const float *from_b = b ? b : v.whole_b, *from_r = r ? r : v.r;
    for (size_t i = at; i < v.m.rows * rank; i += step) {
        float sum = 0.0f;
        for (size_t j = 0; j < rank; j++)
            sum += from_b[i / rank * rank + j] * from_r[j * rank + i % rank];
        store(v.b, i / rank, i % rank, sum * v.m.scale);
        if (b) v.whole_b[i] = b[i];
    }
    for (size_t i = at; r && i < rank * rank; i += step)
        v.r[i] = r[i];
}

__global__ void __launch_bounds__(SET_THREADS)
    set_one_kernel(struct module_view v, size_t k, const float *a, const float *b, const float *r)
{
    set_module(v, k, a, b, r);
}

struct set_entry {
    const struct module_view *view;
    size_t k;
};

__global__ void __launch_bounds__(SET_THREADS)
    set_all_kernel(const struct set_entry *entry, const float *value)
{
    const struct module_view &v = *entry[blockIdx.y].view;
    unsigned trains = v.m.rank ? v.m.trains : 0;
    set_module(v, entry[blockIdx.y].k, trains & LOW_RANK_A ? value + v.m.a_at : NULL,
               trains & LOW_RANK_B ? value + v.m.b_at : NULL,
               v.m.small && (trains & LOW_RANK_R) ? value + v.m.r_at : NULL);
}

/* The table of the last low_rank_set(); a training calls it with the same factors each time. */
struct cuda_set {
    uint64_t *number; /* (count) of the factors, in their order */
    size_t count, entries, room;
    struct set_entry *table; /* device */
};

void cuda_set_close(struct cuda_set *s)
{
    if (!s) return;
    (void)cudaFree(s->table);
    free(s->number);
    free(s);
}

static bool set_is(const struct cuda_set *s, struct backend_low_rank *const *all, size_t count)
{
    bool same = s->count == count;
    for (size_t i = 0; i < count && same; i++)
        same = s->number[i] == all[i]->number;
    return same;
}

static err set_build(struct backend_context *c, struct backend_low_rank *const *all, size_t count)
{
    struct cuda_set *s = c->set;
    size_t entries = 0, at = 0;
    s->count = 0;
    for (size_t i = 0; i < count; i++)
        entries += all[i]->modules;
    if (entries > s->room) {
        cuda_give(c, s->table);
        s->table = NULL;
        s->room = 0;
        TRY(cuda_take(&s->table, c, entries * sizeof *s->table));
        s->room = entries;
    }
    uint64_t *number = (uint64_t *)malloc((count + 1) * sizeof *number);
    struct set_entry *table = (struct set_entry *)malloc((entries + 1) * sizeof *table);
    if (!number || !table) {
        free(number);
        free(table);
        return err_sys(ENOMEM, "cuda");
    }
    for (size_t i = 0; i < count; i++) {
        number[i] = all[i]->number;
        for (uint32_t m = 0; m < all[i]->modules; m++)
            table[at++] = {all[i]->device + m, all[i]->k};
    }
    cuda_send(c, s->table, table, entries * sizeof *table);
    free(table);
    free(s->number);
    s->number = number;
    s->count = count;
    s->entries = entries;
    return ERR_NONE;
}

void cuda_low_rank_set(struct backend_context *c, struct backend_low_rank *const *all, size_t count,
                       const float *value)
{
    double since = cuda_begin(c);
    if (!c->set) c->set = (struct cuda_set *)calloc(1, sizeof *c->set);
    err e = c->set ? ERR_NONE : err_sys(ENOMEM, "cuda");
    if (c->set && !set_is(c->set, all, count)) e = set_build(c, all, count);
    if (err_is(e))
        cuda_fail(c, e);
    else if (c->set->entries)
        launch(set_all_kernel, dim3(SET_BLOCKS, (unsigned)c->set->entries), dim3(SET_THREADS), 0,
               c->stream, c->set->table, value);
    cuda_done(c, OP_LOW_RANK, since);
}

void cuda_low_rank_load(struct backend_context *c, struct backend_low_rank *l, size_t module,
                        const struct low_rank_values *values)
{
    double since = cuda_begin(c);
    REQUIRE(module < l->modules);
    const struct module_view *v = &l->view[module];
    size_t rank = v->m.rank, rows = v->m.rows, carry = v->m.width - rank;
    const struct {
        const float *host;
        size_t n;
    } part[] = {{values->a, rank * l->k},
                {values->b, rows * rank},
                {v->m.small ? values->r : NULL, rank * rank},
                {values->carry_a, carry * l->k},
                {values->carry_b, rows * carry}};
    size_t total = 0;
    for (size_t i = 0; i < 5; i++)
        total += part[i].host ? part[i].n : 0;
    float *staged = total ? (float *)cuda_scratch(c, total * sizeof(float)) : NULL, *at[5] = {};
    for (size_t i = 0; i < 5 && staged; i++) {
        if (!part[i].host || !part[i].n) continue;
        at[i] = staged;
        cuda_send(c, staged, part[i].host, part[i].n * sizeof(float));
        staged += part[i].n;
    }
    if (at[0] || at[1] || at[2])
        launch(set_one_kernel, dim3(SET_BLOCKS), dim3(SET_THREADS), 0, c->stream, *v, l->k, at[0],
               at[1], at[2]);
    if (at[3]) cuda_convert(c, mat_at(v->a, rank, 0), {at[3], DTYPE_F32, l->k}, carry, l->k, 1.0f);
    if (at[4]) cuda_convert(c, mat_at(v->b, 0, rank), {at[4], DTYPE_F32, carry}, rows, carry, 1.0f);
    cuda_done(c, OP_LOW_RANK, since);
}

/* ---- Opening */

/* Factors lie in memory of their own, so x and dy need no columns for them. */
size_t cuda_low_rank_room(const struct backend_context *c, size_t width)
{
    (void)c, (void)width;
    return 0;
}

void cuda_low_rank_close(struct backend_low_rank *l)
{
    if (!l) return;
    cuda_give(l->context, l->block);
    free(l->view);
    free(l);
}

/* Takes the next `bytes` of the block, which start at a multiple of 64 bytes. With a NULL block this
 * only counts. */
static void *place(char *block, size_t *at, size_t bytes)
{
    char *here = block ? block + *at : NULL;
    *at += (bytes + 63) / 64 * 64;
    return here;
}

static struct mat place_mat(char *block, size_t *at, enum dtype type, size_t rows, size_t cols)
{
    size_t ld = (cols + 7) / 8 * 8, size = type == DTYPE_F32 ? sizeof(float) : sizeof(bf16);
    return {place(block, at, rows * ld * size), type, ld};
}

static size_t place_all(struct backend_low_rank *l, char *block, enum dtype type)
{
    size_t at = 0;
    l->device = (struct module_view *)place(block, &at, l->modules * sizeof *l->device);
    struct mat a = place_mat(block, &at, type, l->width, l->k);
    for (uint32_t i = 0; i < l->modules; i++) {
        struct module_view *v = &l->view[i];
        v->a = block ? mat_at(a, v->m.col, 0) : a;
        v->b = place_mat(block, &at, type, v->m.rows, v->m.width);
        if (!v->m.small) continue;
        v->whole_b = (float *)place(block, &at, (size_t)v->m.rows * v->m.rank * sizeof(float));
        v->r = (float *)place(block, &at, (size_t)v->m.rank * v->m.rank * sizeof(float));
    }
    return at;
}

err cuda_low_rank_open(struct backend_low_rank **out, struct backend_context *c,
                       struct backend_weight *w, const struct low_rank_module *module,
                       size_t modules)
{
    cuda_begin(c);
    struct backend_low_rank *l = (struct backend_low_rank *)calloc(1, sizeof *l);
    if (!l) return err_sys(ENOMEM, "cuda");
    l->context = c;
    l->number = ++c->low_ranks;
    l->n = w->n;
    l->k = w->k;
    l->modules = (uint32_t)modules;
    l->view = (struct module_view *)calloc(modules + 1, sizeof *l->view);
    for (size_t i = 0; i < modules && l->view; i++) {
        l->view[i].m = module[i];
        REQUIRE(module[i].col == l->width && (size_t)module[i].row + module[i].rows <= w->n);
        l->width += module[i].width;
        l->small |= module[i].small;
    }
    err e = l->view ? ERR_NONE : err_sys(ENOMEM, "cuda");
    size_t bytes = l->view ? place_all(l, NULL, c->precision) : 0;
    if (!err_is(e)) e = cuda_take(&l->block, c, bytes);
    if (err_is(e)) {
        cuda_low_rank_close(l);
        return e;
    }
    place_all(l, (char *)l->block, c->precision);
    cuda_good(c, cudaMemsetAsync(l->block, 0, bytes, c->stream), "clearing factors");
    cuda_send(c, l->device, l->view, modules * sizeof *l->view);
    *out = l;
    return ERR_NONE;
}

/* ---- Operations */

static bool active(const struct low_rank_use *u)
{
    return u->factors && u->tokens && u->factors->width;
}

static struct modules modules_of(const struct low_rank_use *u)
{
    return {u->factors->device, u->factors->modules, u->factors->k};
}

static struct mask mask_of(const struct backend_batch *b, const struct low_rank_use *u)
{
    return {b && b->now.dropout > 0.0f ? b->scalars : NULL, u->first};
}

static void shrink(struct backend_context *c, const struct low_rank_site *l, struct mat x,
                   const struct backend_batch *b, bool back)
{
    for (size_t i = 0; i < l->uses; i++) {
        const struct low_rank_use *u = &l->use[i];
        if (!active(u)) continue;
        struct shrink_args a = {};
        a.all = modules_of(u);
        a.h = l->h;
        a.g = l->g;
        a.p = l->p;
        a.x = x;
        a.first = u->first;
        a.tokens = u->tokens;
        a.mask = mask_of(b, u);
        a.back = back;
        uint32_t tiles = 0;
        for (uint32_t m = 0; m < u->factors->modules; m++)
            tiles += shrink_tiles(u->factors->view[m].m, back);
        launch(shrink_kernel, dim3((unsigned)((u->tokens + SHRINK_ROWS - 1) / SHRINK_ROWS), tiles),
               dim3(SHRINK_THREADS), 0, c->stream, a);
    }
}

static void expand(struct backend_context *c, const struct expand_args *a)
{
    launch(expand_kernel,
           dim3((unsigned)((a->cols + EXPAND_TILE - 1) / EXPAND_TILE),
                (unsigned)((a->tokens + EXPAND_TILE - 1) / EXPAND_TILE)),
           dim3(EXPAND_THREADS), 0, c->stream, *a);
}

static bool any_active(const struct low_rank_site *l)
{
    bool any = false;
    for (size_t i = 0; l && i < l->uses; i++)
        any |= active(&l->use[i]);
    return any;
}

/* Sets all rows of a.to: the uses with factors get their part, and the tokens between them what is
 * left without one. */
static void expand_all(struct backend_context *c, struct expand_args a,
                       const struct low_rank_site *l, const struct backend_batch *b, size_t rows)
{
    size_t done = 0;
    for (size_t i = 0; i <= (l ? l->uses : 0); i++) {
        const struct low_rank_use *u = l && i < l->uses ? &l->use[i] : NULL;
        if (u && !active(u)) continue;
        a.all.count = 0;
        a.first = done;
        a.tokens = (u ? u->first : rows) - done;
        if (a.tokens && !(a.add && !a.bias)) expand(c, &a);
        if (!u) break;
        a.all = modules_of(u);
        a.first = u->first;
        a.tokens = u->tokens;
        a.mask = mask_of(b, u);
        expand(c, &a);
        done = u->first + u->tokens;
    }
}

bool cuda_low_rank_forward(struct backend_context *c, struct mat y, struct mat x,
                           const struct backend_weight *w, const struct low_rank_site *l,
                           const struct backend_batch *b, size_t rows, bool add)
{
    bool any = any_active(l);
    if (any) shrink(c, l, x, b, false);
    if (!rows || (!any && !w->bias)) return false;
    struct expand_args a = {};
    a.to = y;
    if (any) a.h = l->h;
    a.bias = w->bias;
    a.cols = w->n;
    a.add = add;
    expand_all(c, a, any ? l : NULL, b, rows);
    return true;
}

bool cuda_low_rank_back(struct backend_context *c, struct mat dx, struct mat dy,
                        const struct low_rank_site *l, const struct backend_batch *b, size_t rows,
                        size_t k)
{
    if (!any_active(l)) return false;
    shrink(c, l, dy, b, true);
    if (!dx.data) return false;
    struct expand_args a = {};
    a.to = dx;
    a.h = l->g;
    a.cols = k;
    a.back = true;
    expand_all(c, a, l, b, rows);
    return true;
}

void cuda_low_rank_shrink(struct backend_context *c, const struct low_rank_site *l, struct mat x,
                          const struct backend_batch *b)
{
    double since = cuda_begin(c);
    shrink(c, l, x, b, false);
    cuda_done(c, OP_LOW_RANK, since);
}

/* The blocks of a use's gradient: tiles of the widest factor, and of all narrow sides. */
static dim3 gradient_grid(const struct backend_low_rank *l)
{
    size_t widest = 0, narrow = 0;
    for (uint32_t i = 0; i < l->modules; i++)
        for (int f = 0; f < FACTORS; f++) {
            const struct low_rank_module *m = &l->view[i].m;
            if (!has_factor(*m, (enum factor)f)) continue;
            size_t extent = wide_extent(*m, (enum factor)f, l->k);
            widest = extent > widest ? extent : widest;
            narrow += narrow_tiles(m->rank);
        }
    return dim3((unsigned)((widest + WIDE - 1) / WIDE), (unsigned)narrow, 1);
}

static void gradient(struct backend_context *c, const struct low_rank_use *u,
                     struct gradient_args a, const struct backend_batch *b)
{
    const struct backend_low_rank *l = u->factors;
    dim3 grid = gradient_grid(l);
    if (!grid.x || !grid.y) return;
    uint32_t chunks = u->rows ? 1 : (uint32_t)((u->tokens + CHUNK - 1) / CHUNK);
    size_t tiles = chunks > 1 ? (size_t)chunks * grid.x * grid.y * NARROW * WIDE : 0;
    size_t small = l->small ? u->tokens * l->width : 0;
    float *scratch = NULL;
    if (tiles + small && !(scratch = (float *)cuda_scratch(c, (tiles + small) * sizeof(float))))
        return;
    a.all = modules_of(u);
    a.q = scratch ? scratch + tiles : NULL;
    a.width = l->width;
    a.first = u->first;
    a.tokens = u->tokens;
    a.mask = mask_of(b, u);
    a.gradient = u->gradient;
    a.start = u->rows ? b->start + u->row : NULL;
    a.stride = u->stride;
    a.part = tiles ? scratch : NULL;
    if (small)
        launch(small_kernel, dim3((unsigned)((small + GRADIENT_THREADS - 1) / GRADIENT_THREADS)),
               dim3(GRADIENT_THREADS), 0, c->stream, scratch + tiles, a.all, a.h, u->first,
               u->tokens, l->width);
    grid.z = u->rows ? (unsigned)u->rows : chunks;
    launch(gradient_kernel, grid, dim3(GRADIENT_THREADS), 0, c->stream, a);
    grid.z = 1;
    if (tiles) launch(gradient_sum_kernel, grid, dim3(GRADIENT_THREADS), 0, c->stream, a, chunks);
}

void cuda_low_rank_gradient(struct backend_context *c, const struct low_rank_site *l, struct mat dy,
                            struct mat x, const struct backend_batch *b)
{
    double since = cuda_begin(c);
    struct gradient_args a = {};
    a.h = l->h;
    a.g = l->g;
    a.p = l->p;
    a.x = x;
    a.dy = dy;
    for (size_t i = 0; i < l->uses; i++)
        if (active(&l->use[i]) && l->use[i].gradient) gradient(c, &l->use[i], a, b);
    cuda_done(c, OP_LOW_RANK, since);
}
