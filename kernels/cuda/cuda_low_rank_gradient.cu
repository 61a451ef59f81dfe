/* Gradients of low-rank factors. Sums over tokens are taken in chunks of 2,048 from the first token
 * of the use or of the row, and the sums of the chunks are added in order, so results have the same
 * bits each time, and those of a row do not depend on the other rows. */
#include "kernels/cuda/cuda_low_rank.cuh"

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
    if (f == FACTOR_A) return load1(a.g, t, m.col + col);
    if (f == FACTOR_R) return load1(a.p, t, m.col + col);
    return m.small ? a.q[(t - a.first) * a.width + m.col + col] : load1(a.h, t, m.col + col);
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
                    w = dropped(drop, load1(a.x, at, c), at - a.first, a.all.k, c);
                else
                    w = tile.factor == FACTOR_B ? load1(a.dy, at, m.row + c)
                                                : load1(a.h, at, m.col + c);
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

/* Block (wide tile, narrow tile, chunk or row). The chunks of a row are added by one block; those
 * of a whole use go to a.part, and gradient_sum_kernel() adds them in the same order. */
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
            sum += v.r[(col - v.m.col) * v.m.rank + j] * load1(h, first + t, v.m.col + j);
        q[e] = sum;
    }
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
