/* The low-rank parts of linear operations. Each value is one sum in a fixed order, so the bits of a
 * row do not depend on the other rows. */
#include "kernels/cuda/cuda_low_rank.cuh"

/* ---- Shrink, for all types and shapes */

enum { SHRINK_THREADS = 128, SHRINK_ROWS = 64, SHRINK_STEP = 32 };
enum { NARROW = 16 }; /* columns of a block */
static __host__ __device__ __forceinline__ uint32_t narrow_tiles(uint32_t cols)
{
    return tiles_of(cols, NARROW);
}
/* Columns [first, first + cols) of one module. */
struct shrink_tile {
    enum shrink kind;
    uint32_t module, first, cols;
};

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
    if (kind == SHRINK_H) return load1(v.a, col, i);
    return kind == SHRINK_G ? load1(v.b, i, col) : v.whole_b[i * v.m.rank + col];
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
                x = dropped(drop, load1(a.x, a.first + t, left + at), t, depth, at);
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
    bool beside = a.beside.data && tile.kind != SHRINK_P;
    bool last = tile.first + tile.cols == v.m.width; /* sets the columns between modules */
#pragma unroll
    for (unsigned k = 0; k < 4; k++) {
        size_t t = row + ty + 16 * k;
        if (t >= a.tokens) continue;
#pragma unroll
        for (unsigned j = 0; j < 2; j++) {
            uint32_t col = tile.first + tx + 8 * j;
            if (tx + 8 * j >= tile.cols) continue;
            store1(to, a.first + t, v.m.col + col, sum[k][j]);
            if (beside) store1(a.beside, a.first + t, v.at + col, sum[k][j]);
        }
        if (beside && last && v.m.width + tx < padded_width(v.m))
            store1(a.beside, a.first + t, v.at + v.m.width + tx, 0.0f);
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
                h = load1(a.h, a.first + t, v.m.col + first + i + at);
            hs[e / EXPAND_STEP * (EXPAND_STEP + 1) + at] = h;
        }
        for (unsigned e = threadIdx.x; e < EXPAND_TILE * EXPAND_STEP; e += EXPAND_THREADS) {
            unsigned at = a.back ? e / EXPAND_TILE : e % EXPAND_STEP;
            unsigned c = a.back ? e % EXPAND_TILE : e / EXPAND_STEP;
            size_t j = col + c;
            float f = 0.0f;
            if (i + at < count && j < a.cols) {
                if (a.back)
                    f = load1(v.a, first + i + at, j);
                else if (j >= v.m.row && j < (size_t)v.m.row + v.m.rows)
                    f = load1(v.b, j - v.m.row, first + i + at);
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
            sum[k][j] = inside && a.add ? load1(a.to, a.first + t, c) : 0.0f;
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
            if (t < a.tokens && c < a.cols) store1(a.to, a.first + t, c, sum[k][j]);
        }
}

/* ---- Operations */

static void shrink(struct backend_context *c, const struct low_rank_site *l, struct mat x,
                   struct mat beside, const struct backend_batch *b, bool back)
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
        a.beside = beside;
        a.first = u->first;
        a.tokens = u->tokens;
        a.mask = mask_of(b, u);
        a.back = back;
        if (u->factors->tensor_cores && low_rank_mma_aligned(x)) {
            shrink_mma(c, &a, u->factors);
            continue;
        }
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

/* Columns of the margin of W that the product needs; 0: the plain path. `edge`: the columns of x or
 * dy before the margin. */
static size_t margin_of(const struct low_rank_site *l, const struct backend_weight *w, struct mat x,
                        size_t edge, const struct backend_batch *b, size_t rows)
{
    const struct low_rank_use *only = NULL;
    for (size_t i = 0; i < l->uses; i++) {
        if (!active(&l->use[i])) continue;
        if (only) return 0;
        only = &l->use[i];
    }
    if (!only || only->factors->margin != w || (b && b->now.dropout > 0.0f)) return 0;
    /* A short batch has more rows, with results that nothing reads. */
    bool whole = only->tokens >= rows || (b && only->tokens == b->now.tokens);
    bool room = x.type == w->packed.type && x.ld >= edge + only->factors->padded;
    return only->first == 0 && whole && room ? only->factors->padded : 0;
}

struct cuda_applied cuda_low_rank_forward(struct backend_context *c, struct mat y, struct mat x,
                                          const struct backend_weight *w,
                                          const struct low_rank_site *l,
                                          const struct backend_batch *b, size_t rows, bool add)
{
    struct cuda_applied done = {false, 0};
    bool any = any_active(l);
    if (any) {
        done.margin = margin_of(l, w, x, w->k, b, rows);
        shrink(c, l, x, done.margin ? mat_at(x, 0, w->k) : mat{}, b, false);
    }
    bool plain = any && !done.margin;
    if (!rows || (!plain && !w->bias)) return done;
    struct expand_args a = {};
    a.to = y;
    if (plain) a.h = l->h;
    a.bias = w->bias;
    a.cols = w->n;
    a.add = add;
    expand_all(c, a, plain ? l : NULL, b, rows);
    done.set = true;
    return done;
}

struct cuda_applied cuda_low_rank_back(struct backend_context *c, struct mat dx, struct mat dy,
                                       const struct backend_weight *w,
                                       const struct low_rank_site *l, const struct backend_batch *b,
                                       size_t rows)
{
    struct cuda_applied done = {false, 0};
    if (!any_active(l)) return done;
    if (dx.data) done.margin = margin_of(l, w, dy, w->n, b, rows);
    shrink(c, l, dy, done.margin ? mat_at(dy, 0, w->n) : mat{}, b, true);
    if (!dx.data || done.margin) return done;
    struct expand_args a = {};
    a.to = dx;
    a.h = l->g;
    a.cols = w->k;
    a.back = true;
    expand_all(c, a, l, b, rows);
    done.set = true;
    return done;
}

void cuda_low_rank_shrink(struct backend_context *c, const struct low_rank_site *l, struct mat x,
                          const struct backend_batch *b)
{
    double since = cuda_begin(c);
    shrink(c, l, x, {}, b, false);
    cuda_done(c, OP_LOW_RANK, since);
}
