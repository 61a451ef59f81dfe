/* The low-rank products with x and dy on tensor cores, in bfloat16 with float32 sums:
 *
 *   H = drop(x) A^T    G_m = dy_m b    P_m = dy_m B      tiles of 32 tokens; sums over k, or n
 *   dA += G^T drop(x)  dB += s dy^T (H R^T)  dR          sums over tokens, in chunks
 *
 * Both are limited by memory, so that each tile of x or dy is read for as many columns of the
 * narrow side as there are, up to 64. Tiles are copied in the background into two buffers in turn.
 * Their rows have 8 values more than they need, so that ldmatrix reads eight of them from different
 * banks. A thread holds the parts of a product that mma.m16n8k16 gives it: of each 16 x 8, rows
 * lane / 4 and lane / 4 + 8, columns 2 (lane % 4) and the next one.
 *
 * Dropout sets the values of a fragment to zero; the factor 1 / (1 - probability) is applied to the
 * sum, because it would be rounded in bfloat16. */
#include "kernels/cuda/cuda_low_rank.cuh"

static constexpr unsigned THREADS = 128;
static constexpr unsigned PAD = 8;

bool low_rank_mma_shapes(const struct backend_low_rank *l)
{
    bool good = l->a.type == DTYPE_BF16 && l->k % 8 == 0 && l->k > 0;
    for (uint32_t i = 0; i < l->modules; i++)
        good = good && l->view[i].m.row % 8 == 0 && l->view[i].m.rows % 8 == 0;
    return good;
}
bool low_rank_mma_aligned(struct mat x)
{
    return x.type == DTYPE_BF16 && ((uintptr_t)x.data | x.ld * sizeof(bf16)) % 16 == 0;
}

/* The mask of a module without its factor. */
static __device__ __forceinline__ struct drop zeros_of(const struct mask &mask, uint32_t place)
{
    struct drop d = drop_of(mask, place);
    d.mask.keep = 1.0f;
    return d;
}
static __device__ __forceinline__ float factor_of(const struct mask &mask)
{
    return mask.scalars ? 1.0f / (1.0f - mask.scalars->dropout) : 1.0f;
}
/* Two values of a fragment; low_at, high_at: their numbers among those of the use. */
static __device__ __forceinline__ unsigned dropped_pair(const struct drop &d, unsigned pair,
                                                        size_t low_at, size_t high_at)
{
    return pack_bf16(formula_masked(d.mask, low_half(pair), low_at),
                     formula_masked(d.mask, high_half(pair), high_at));
}

/* ---- Shrink */

static constexpr unsigned ROWS = 32; /* tokens of a block; two of its warps share 16 */
static constexpr unsigned DEPTH = 128, DEPTH_LD = DEPTH + PAD;

/* Columns of H, G or P. Without dropout H is one product for all modules; else tiles do not cross
 * from the trained columns of a module into those of its carry, which has no dropout. */
struct shrink_part {
    enum shrink kind;
    uint32_t module; /* or ALL_MODULES */
    uint32_t first, end;
    bool drops;
};

static __host__ __device__ __forceinline__ bool
next_part(struct shrink_part *p, const struct modules &all, uint32_t number, bool back, bool drops)
{
    *p = {back ? SHRINK_G : SHRINK_H, ALL_MODULES, 0, (uint32_t)all.padded, false};
    if (!back && !drops) return number == 0;
    if (number >= 2 * all.count) return false;
    const struct low_rank_module &m = all.view[number / 2].m;
    bool second = number % 2;
    p->module = number / 2;
    if (back) {
        p->end = padded_width(m);
        if (second) *p = {SHRINK_P, number / 2, 0, m.small ? m.rank : 0, false};
    } else {
        p->first = second ? m.rank : 0;
        p->end = second ? m.width : m.rank;
        p->drops = !second;
    }
    return true;
}

static __device__ __forceinline__ struct shrink_part
part_of(const struct modules &all, uint32_t tile, uint32_t cols, bool back, bool drops)
{
    struct shrink_part p;
    for (uint32_t i = 0; next_part(&p, all, i, back, drops); i++) {
        uint32_t tiles = tiles_of(p.end - p.first, cols);
        if (tile < tiles) {
            p.first += tile * cols;
            if (p.end - p.first > cols) p.end = p.first + cols;
            return p;
        }
        tile -= tiles;
    }
    return p;
}

/* One product as the kernel runs it: x (tokens, depth) at column `left`, and the factor, (cols,
 * depth), or (depth, cols) in the backward pass. */
struct shrink_work {
    const bf16 *factor;
    size_t ld, left, depth;
    uint32_t cols;
};

static __device__ __forceinline__ struct shrink_work work_of(const struct shrink_args &a,
                                                             const struct shrink_part &p)
{
    struct mat factor = a.all.a;
    struct shrink_work w = {NULL, 0, 0, a.all.k, p.end - p.first};
    size_t at = p.kind == SHRINK_H ? p.first * factor.ld : p.first;
    if (p.module != ALL_MODULES) {
        const struct module_view &v = a.all.view[p.module];
        factor = p.kind == SHRINK_H ? v.a : p.kind == SHRINK_G ? v.b : v.plain_b;
        if (p.kind != SHRINK_H) {
            w.left = v.m.row;
            w.depth = v.m.rows;
        }
    }
    w.factor = static_cast<const bf16 *>(factor.data) + at;
    w.ld = factor.ld;
    return w;
}

/* Copies a step of both operands from `at` on; zeros beyond their ends. */
template <unsigned COLS, bool BACK>
static __device__ __forceinline__ void load_step(bf16 *xs, bf16 *fs, const struct shrink_args &a,
                                                 const struct shrink_work &w, size_t row, size_t at)
{
    const bf16 *x = static_cast<const bf16 *>(a.x.data) + a.first * a.x.ld + w.left;
#pragma unroll 4
    for (unsigned i = threadIdx.x; i < ROWS * (DEPTH / 8); i += THREADS) {
        unsigned r = i / (DEPTH / 8), chunk = i % (DEPTH / 8) * 8;
        bool valid = row + r < a.tokens && at + chunk < w.depth;
        cp_async_16(xs + r * DEPTH_LD + chunk, valid ? x + (row + r) * a.x.ld + at + chunk : x,
                    valid);
    }
    constexpr unsigned LENGTH = BACK ? COLS : DEPTH, LINES = BACK ? DEPTH : COLS;
#pragma unroll 4
    for (unsigned i = threadIdx.x; i < LINES * (LENGTH / 8); i += THREADS) {
        unsigned line = i / (LENGTH / 8), chunk = i % (LENGTH / 8) * 8;
        bool valid =
            BACK ? at + line < w.depth && chunk < w.cols : line < w.cols && at + chunk < w.depth;
        const bf16 *from =
            w.factor + (BACK ? (at + line) * w.ld + chunk : (size_t)line * w.ld + at + chunk);
        cp_async_16(fs + line * (LENGTH + PAD) + chunk, valid ? from : w.factor, valid);
    }
}

/* The column of H, G or P for a column of a tile; false for those between modules. */
static __device__ __forceinline__ bool result_column(uint32_t *out, const struct modules &all,
                                                     const struct shrink_part &p, uint32_t col)
{
    uint32_t i = p.module, at = p.first + col;
    if (p.first + col >= p.end) return false;
    if (i == ALL_MODULES) {
        i = 0;
        while (at >= all.view[i].at + padded_width(all.view[i].m))
            i++;
        at -= all.view[i].at;
    }
    const struct low_rank_module &m = all.view[i].m;
    *out = m.col + at;
    return at < m.width;
}

/* Where a warp and a lane are in a block's tile: 16 tokens, and one half of each step. */
struct shrink_lane {
    size_t row;          /* the lane's first token, of the use */
    unsigned mine, half; /* the warp's first token and first place of a step */
};

/* sum += the warp's half of a step, whose first place is `at`. */
template <unsigned COLS, bool BACK>
static __device__ __forceinline__ void
multiply_step(float sum[COLS / 8][4], bf16 *x, bf16 *f, const struct shrink_work &w,
              const struct drop &drop, const struct shrink_lane &l, size_t at)
{
    constexpr unsigned F_LD = (BACK ? COLS : DEPTH) + PAD;
    unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (unsigned i = 0; i < DEPTH / 2; i += 16) {
        unsigned left[4], k = l.half + i;
        ldmatrix_x4(left, x + (l.mine + lane % 16) * DEPTH_LD + k + lane / 16 * 8);
        if (drop.on) {
#pragma unroll
            for (unsigned e = 0; e < 4; e++) {
                size_t t = l.row + e % 2 * 8;
                size_t place = t * w.depth + at + k + e / 2 * 8 + lane % 4 * 2;
                left[e] = dropped_pair(drop, left[e], place, place + 1);
            }
        }
#pragma unroll
        for (unsigned n = 0; n < COLS; n += 16) {
            if (n >= w.cols) continue;
            unsigned right[4];
            if (BACK)
                ldmatrix_x4(right, f + (k + lane / 8 % 2 * 8 + lane % 8) * F_LD + n + lane / 16 * 8,
                            true);
            else
                ldmatrix_x4(right,
                            f + (n + lane / 16 * 8 + lane % 8) * F_LD + k + lane / 8 % 2 * 8);
            mma_16816(sum[n / 8], left, right);
            mma_16816(sum[n / 8 + 1], left, right + 2);
        }
    }
}

/* Adds the sums of both halves, which meet in shared memory, and writes them. */
template <unsigned COLS>
static __device__ __forceinline__ void
store_sums(const struct shrink_args &a, const struct shrink_part &p, const struct shrink_lane &l,
           const float sum[COLS / 8][4], float *halves, float factor)
{
    halves += l.mine * 2 + threadIdx.x % 32;
#pragma unroll
    for (unsigned i = 0; i < COLS / 2; i++)
        if (l.half) halves[i * 64] = sum[i / 4][i % 4];
    __syncthreads();
    if (l.half) return;
    struct mat to = p.kind == SHRINK_H ? a.h : p.kind == SHRINK_G ? a.g : a.p;
    bool beside = a.beside.data && p.kind != SHRINK_P;
    uint32_t left = p.first + (p.module == ALL_MODULES ? 0 : a.all.view[p.module].at);
#pragma unroll
    for (unsigned i = 0; i < COLS / 2; i++) {
        size_t t = l.row + i / 2 % 2 * 8;
        uint32_t in_tile = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2, col;
        float v = (sum[i / 4][i % 4] + halves[i * 64]) * factor;
        if (t >= a.tokens) continue;
        if (result_column(&col, a.all, p, in_tile)) store1(to, a.first + t, col, v);
        if (beside && p.first + in_tile < p.end) store1(a.beside, a.first + t, left + in_tile, v);
    }
}

/* 32 tokens and COLS columns. Warps 0 and 1 sum over the first half of each step, 2 and 3 over the
 * second, so that twice as many blocks share the memory of a short batch. */
template <unsigned COLS, bool BACK>
static __global__ void __launch_bounds__(THREADS, 4) shrink_mma_kernel(struct shrink_args a)
{
    constexpr unsigned X_SIZE = ROWS * DEPTH_LD;
    constexpr unsigned F_SIZE = BACK ? DEPTH * (COLS + PAD) : COLS * DEPTH_LD;
    DYNAMIC_SHARED(bf16, shared);
    bf16 *xs = shared, *fs = shared + 2 * X_SIZE;
    struct shrink_part p = part_of(a.all, blockIdx.y, COLS, BACK, !BACK && a.mask.scalars);
    struct shrink_work w = work_of(a, p);
    struct mask mask = a.mask;
    if (!p.drops) mask.scalars = NULL;
    struct drop drop = zeros_of(mask, p.drops ? a.all.view[p.module].m.place : 0);
    size_t row = (size_t)blockIdx.x * ROWS;
    unsigned warp = threadIdx.x / 32, mine = warp % 2 * 16, turn = 0;
    struct shrink_lane l = {row + mine + threadIdx.x % 32 / 4, mine, warp / 2 * (DEPTH / 2)};
    float sum[COLS / 8][4] = {};
    load_step<COLS, BACK>(xs, fs, a, w, row, 0);
    cp_async_commit();
    for (size_t at = 0; at < w.depth; at += DEPTH, turn ^= 1) {
        unsigned then = turn ^ 1;
        if (at + DEPTH < w.depth)
            load_step<COLS, BACK>(xs + then * X_SIZE, fs + then * F_SIZE, a, w, row, at + DEPTH);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        multiply_step<COLS, BACK>(sum, xs + turn * X_SIZE, fs + turn * F_SIZE, w, drop, l, at);
        __syncthreads(); /* the buffer is free */
    }
    cp_async_wait<0>();
    store_sums<COLS>(a, p, l, sum, reinterpret_cast<float *>(shared), factor_of(mask));
}

void shrink_mma(struct backend_context *c, const struct shrink_args *a,
                const struct backend_low_rank *l)
{
    struct modules all = a->all;
    struct shrink_part p;
    uint32_t widest = 0, tiles = 0;
    all.view = l->view;
    for (uint32_t i = 0; next_part(&p, all, i, a->back, !a->back && a->mask.scalars); i++)
        widest = p.end - p.first > widest ? p.end - p.first : widest;
    unsigned cols = widest <= 16 ? 16 : 64;
    for (uint32_t i = 0; next_part(&p, all, i, a->back, !a->back && a->mask.scalars); i++)
        tiles += tiles_of(p.end - p.first, cols);
    dim3 grid((unsigned)((a->tokens + ROWS - 1) / ROWS), tiles);
    size_t factor = a->back ? DEPTH * (cols + PAD) : cols * DEPTH_LD;
    size_t shared = 2 * (ROWS * DEPTH_LD + factor) * sizeof(bf16);
    if (a->back && cols == 16)
        launch((shrink_mma_kernel<16, true>), grid, dim3(THREADS), shared, c->stream, *a);
    else if (a->back)
        launch((shrink_mma_kernel<64, true>), grid, dim3(THREADS), shared, c->stream, *a);
    else if (cols == 16)
        launch((shrink_mma_kernel<16, false>), grid, dim3(THREADS), shared, c->stream, *a);
    else
        launch((shrink_mma_kernel<64, false>), grid, dim3(THREADS), shared, c->stream, *a);
}

/* ---- Gradients */

static constexpr unsigned STEP = 64; /* tokens at a time */
static constexpr unsigned WIDE_LD = WIDE + PAD;

/* Tokens of a chunk. A narrow W has few tiles, so that short chunks give blocks to all processors.
 * With a wide one the partial sums would take much memory. */
enum { SHORT_CHUNK = 512, LONG_CHUNK = 2048, WIDE_EXTENT = GRADIENT_WIDE };

/* Tiles of 16 columns are for factors that have not more. */
struct gradient_cut gradient_mma_cut_of(size_t extent, size_t columns, bool together)
{
    uint32_t chunk = extent < WIDE_EXTENT ? SHORT_CHUNK : LONG_CHUNK;
    return {columns <= 16 ? 16u : 64u, chunk, together};
}

struct gradient_cut gradient_mma_cut(const struct backend_low_rank *l, bool dropout)
{
    size_t widest = 0, together = 0, extent = l->k;
    for (uint32_t i = 0; i < l->modules; i++) {
        const struct low_rank_module *m = &l->view[i].m;
        widest = m->rank > widest ? m->rank : widest;
        extent = m->rows > extent ? m->rows : extent;
        if (has_factor(*m, FACTOR_A)) together = l->width;
    }
    if (!dropout && together > widest) widest = together;
    return gradient_mma_cut_of(extent, widest, !dropout);
}

/* Copies tokens [at, end), at most STEP, and columns [0, cols) of COLS from column `col` on; zeros
 * beyond them. A column may have any place among those of H, so that rows may not be aligned. */
template <unsigned COLS>
static __device__ __forceinline__ void load_rows(bf16 *tile, const struct mat &m, size_t col,
                                                 size_t cols, size_t at, size_t end)
{
    const bf16 *from = static_cast<const bf16 *>(m.data) + col;
    if (((uintptr_t)from | m.ld * sizeof(bf16)) % 16 == 0) {
#pragma unroll 4
        for (unsigned i = threadIdx.x; i < STEP * (COLS / 8); i += THREADS) {
            unsigned row = i / (COLS / 8), chunk = i % (COLS / 8) * 8;
            bool valid = at + row < end && chunk < cols;
            cp_async_16(tile + row * (COLS + PAD) + chunk,
                        valid ? from + (at + row) * m.ld + chunk : from, valid);
        }
        return;
    }
#pragma unroll 4
    for (unsigned i = threadIdx.x; i < STEP * COLS; i += THREADS) {
        unsigned row = i / COLS, c = i % COLS;
        bool valid = at + row < end && c < cols;
        tile[row * (COLS + PAD) + c] = valid ? from[(at + row) * m.ld + c] : (bf16)0;
    }
}

/* The two operands of a tile, and the token that their first row belongs to. */
struct sides {
    struct mat narrow, wide;
    size_t narrow_col, wide_col, narrow_first;
};

static __device__ __forceinline__ struct sides sides_of(const struct gradient_args &a,
                                                        const struct gradient_tile &t)
{
    size_t wide = (size_t)blockIdx.x * WIDE;
    if (t.module == ALL_MODULES) return {a.g, a.x, t.first, wide, 0};
    const struct low_rank_module &m = a.all.view[t.module].m;
    size_t narrow = (size_t)m.col + t.first;
    if (t.factor == FACTOR_A) return {a.g, a.x, narrow, wide, 0};
    if (t.factor == FACTOR_R) return {a.p, a.h, narrow, m.col + wide, 0};
    if (m.small) return {a.q, a.dy, narrow, m.row + wide, a.first};
    return {a.h, a.dy, narrow, m.row + wide, 0};
}

/* sum += the product of STEP tokens of both sides. Each warp has 32 wide columns. `place`: the
 * number of the lane's first value of x for dropout. */
template <unsigned NARROW>
static __device__ __forceinline__ void
multiply_tokens(float sum[NARROW / 16][4][4], bf16 *narrow, bf16 *wide, uint32_t count,
                const struct drop &drop, size_t place, size_t cols)
{
    constexpr unsigned N_LD = NARROW + PAD;
    unsigned lane = threadIdx.x % 32, mine = threadIdx.x / 32 * 32;
#pragma unroll
    for (unsigned k = 0; k < STEP; k += 16) {
        unsigned right[2][4];
        bf16 *from = wide + (k + lane / 8 % 2 * 8 + lane % 8) * WIDE_LD + mine + lane / 16 * 8;
#pragma unroll
        for (unsigned n = 0; n < 2; n++) {
            ldmatrix_x4(right[n], from + n * 16, true);
            if (!drop.on) continue;
#pragma unroll
            for (unsigned e = 0; e < 4; e++) {
                size_t at = place + (k + e % 2 * 8) * cols + n * 16 + e / 2 * 8;
                right[n][e] = dropped_pair(drop, right[n][e], at, at + cols);
            }
        }
        from = narrow + (k + lane / 16 * 8 + lane % 8) * N_LD + lane / 8 % 2 * 8;
#pragma unroll
        for (unsigned m = 0; m < NARROW / 16; m++) {
            if (m * 16 >= count) continue;
            unsigned left[4];
            ldmatrix_x4(left, from + m * 16, true);
#pragma unroll
            for (unsigned n = 0; n < 4; n++)
                mma_16816(sum[m][n], left, right[n / 2] + n % 2 * 2);
        }
    }
}

/* Writes a tile of partial sums, or adds it to the gradient. `col`: its first wide column. */
template <unsigned NARROW>
static __device__ __forceinline__ void
store_tile(const struct gradient_args &a, const struct gradient_tile &tile,
           const float sum[NARROW / 16][4][4], size_t col, float scale)
{
    unsigned lane = threadIdx.x % 32, mine = threadIdx.x / 32 * 32;
    float *part = a.part ? gradient_part(a, blockIdx.z) : NULL;
    float *gradient = a.gradient + (a.start ? blockIdx.z * a.stride : 0);
#pragma unroll
    for (unsigned m = 0; m < NARROW / 8; m++) { /* 8 narrow columns at a time */
        unsigned n = m * 8 + lane / 4;
        size_t place = 0, step = 0;
        if (n >= tile.count) continue;
        bool trains = gradient_place(&place, &step, a.all, tile, n);
#pragma unroll
        for (unsigned e = 0; e < 8; e++) {
            unsigned w = mine + e / 2 * 8 + lane % 4 * 2 + e % 2;
            float v = sum[m / 2][e / 2][m % 2 * 2 + e % 2] * scale;
            if (part)
                part[n * WIDE + w] = v;
            else if (trains && col + w < tile.extent)
                gradient[place + (col + w) * step] += v;
        }
    }
}

/* Block (wide tile, narrow tile, chunk or row) */
template <unsigned NARROW>
static __global__ void __launch_bounds__(THREADS, NARROW == 16 ? 4 : 3)
    gradient_mma_kernel(struct gradient_args a)
{
    constexpr unsigned N_SIZE = STEP * (NARROW + PAD), W_SIZE = STEP * WIDE_LD;
    DYNAMIC_SHARED(bf16, shared);
    bf16 *ns = shared, *ws = shared + 2 * N_SIZE;
    struct gradient_tile tile = gradient_tile_of(a.all, a.cut, blockIdx.y);
    size_t col = (size_t)blockIdx.x * WIDE, from, end;
    if (col >= tile.extent) return;
    size_t cols = tile.extent - col < WIDE ? tile.extent - col : (size_t)WIDE;
    struct sides s = sides_of(a, tile);
    struct mask mask = a.mask;
    if (tile.factor != FACTOR_A) mask.scalars = NULL;
    uint32_t module = tile.module == ALL_MODULES ? 0 : tile.module;
    struct drop drop = zeros_of(mask, a.all.view[module].m.place);
    gradient_tokens(&from, &end, a);
    unsigned lane = threadIdx.x % 32, turn = 0;
    size_t mine = col + threadIdx.x / 32 * 32 + lane / 4; /* the lane's first column of x */
    float sum[NARROW / 16][4][4] = {};
    load_rows<NARROW>(ns, s.narrow, s.narrow_col, tile.count, from - s.narrow_first,
                      end - s.narrow_first);
    load_rows<WIDE>(ws, s.wide, s.wide_col, cols, from, end);
    cp_async_commit();
    for (size_t at = from; at < end; at += STEP, turn ^= 1) {
        unsigned then = turn ^ 1;
        if (at + STEP < end) {
            load_rows<NARROW>(ns + then * N_SIZE, s.narrow, s.narrow_col, tile.count,
                              at + STEP - s.narrow_first, end - s.narrow_first);
            load_rows<WIDE>(ws + then * W_SIZE, s.wide, s.wide_col, cols, at + STEP, end);
        }
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        multiply_tokens<NARROW>(sum, ns + turn * N_SIZE, ws + turn * W_SIZE, tile.count, drop,
                                (at - a.first + lane % 4 * 2) * a.all.k + mine, a.all.k);
        __syncthreads(); /* the buffer is free */
    }
    cp_async_wait<0>();
    float scale = tile.factor == FACTOR_A ? factor_of(mask) : a.all.view[module].m.scale;
    store_tile<NARROW>(a, tile, sum, col, scale);
}

void gradient_mma(struct backend_context *c, const struct gradient_args *a, dim3 grid)
{
    size_t shared = 2 * STEP * (a->cut.narrow + PAD + WIDE_LD) * sizeof(bf16);
    if (a->cut.narrow == 16)
        launch((gradient_mma_kernel<16>), grid, dim3(THREADS), shared, c->stream, *a);
    else
        launch((gradient_mma_kernel<64>), grid, dim3(THREADS), shared, c->stream, *a);
}
