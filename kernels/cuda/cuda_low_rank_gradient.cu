/* Gradients of low-rank factors. Sums over tokens are taken in chunks of a fixed length from the
 * first token of the use or of the row, and the sums of the chunks are added in order, so results
 * have the same bits each time, and those of a row do not depend on the other rows. */
#include "kernels/cuda/cuda_low_rank.cuh"

enum { GRADIENT_THREADS = 128, NARROW = 16, GRADIENT_STEP = 16, CHUNK = 2048 };

static __device__ __forceinline__ float narrow_value(const struct gradient_args &a,
                                                     const struct low_rank_module &m, enum factor f,
                                                     size_t t, uint32_t col)
{
    if (f == FACTOR_A) return load1(a.g, t, m.col + col);
    if (f == FACTOR_R) return load1(a.p, t, m.col + col);
    return m.small ? load1(a.q, t - a.first, m.col + col) : load1(a.h, t, m.col + col);
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
    struct gradient_tile tile = gradient_tile_of(a.all, a.cut, blockIdx.y);
    size_t col = (size_t)blockIdx.x * WIDE, from, end;
    if (col >= tile.extent) return;
    const struct low_rank_module &m = a.all.view[tile.module].m;
    struct drop drop = drop_of(a.mask, m.place);
    gradient_tokens(&from, &end, a);
    float total[4][4] = {};
    for (size_t t = from; t < end; t += CHUNK)
        gradient_chunk(total, ns, ws, a, tile, drop, t, end - t < CHUNK ? end : t + CHUNK);
    float scale = tile.factor == FACTOR_A ? 1.0f : m.scale;
    float *part = a.part ? gradient_part(a, blockIdx.z) : NULL;
    float *gradient = a.gradient + (a.start ? blockIdx.z * a.stride : 0);
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        unsigned narrow = threadIdx.x / 32 + 4 * i;
        size_t place = 0, step = 0;
        bool trains = gradient_place(&place, &step, a.all, tile, narrow);
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            unsigned wide = threadIdx.x % 32 + 32 * j;
            if (part)
                part[narrow * WIDE + wide] = scale * total[i][j];
            else if (trains && col + wide < tile.extent)
                gradient[place + (col + wide) * step] += scale * total[i][j];
        }
    }
}

/* Block (wide tile, narrow tile, four narrow columns); each thread has a wide one. The columns that
 * lie together in dB are stored by one thread. */
enum { SUM_COLUMNS = 4 };
__global__ void __launch_bounds__(WIDE) gradient_sum_kernel(struct gradient_args a, uint32_t chunks)
{
    struct gradient_tile tile = gradient_tile_of(a.all, a.cut, blockIdx.y);
    size_t col = (size_t)blockIdx.x * WIDE + threadIdx.x;
    if (col >= tile.extent) return;
#pragma unroll
    for (unsigned i = 0; i < SUM_COLUMNS; i++) {
        unsigned narrow = blockIdx.z * SUM_COLUMNS + i;
        size_t place = 0, step = 0;
        if (!gradient_place(&place, &step, a.all, tile, narrow)) continue;
        float total = 0.0f;
        for (uint32_t z = 0; z < chunks; z++)
            total += gradient_part(a, z)[narrow * WIDE + threadIdx.x];
        a.gradient[place + col * step] += total;
    }
}

/* q = H R^T of the modules with an R, one value a thread. */
__global__ void __launch_bounds__(GRADIENT_THREADS)
    small_kernel(struct mat q, struct modules all, struct mat h, size_t first, size_t tokens)
{
    size_t e = (size_t)blockIdx.x * GRADIENT_THREADS + threadIdx.x;
    size_t t = e / all.width, col = e % all.width;
    if (t >= tokens) return;
    for (uint32_t i = 0; i < all.count; i++) {
        const struct module_view &v = all.view[i];
        if (!v.m.small || col < v.m.col || col >= (size_t)v.m.col + v.m.rank) continue;
        float sum = 0.0f;
        for (uint32_t j = 0; j < v.m.rank; j++)
            sum += v.r[(col - v.m.col) * v.m.rank + j] * load1(h, first + t, v.m.col + j);
        store1(q, t, col, sum);
    }
}

/* The blocks of a use's gradient: tiles of the widest factor, and of all narrow sides. */
static dim3 gradient_grid(const struct backend_low_rank *l, const struct gradient_cut *cut)
{
    size_t widest = 0;
    struct modules all = {l->view, l->modules, l->k, l->width, l->padded, l->a};
    dim3 grid(0, 0, 1);
    struct gradient_tile t;
    while ((t = gradient_tile_of(all, *cut, grid.y)).count) {
        widest = t.extent > widest ? t.extent : widest;
        grid.y++;
    }
    grid.x = (unsigned)((widest + WIDE - 1) / WIDE);
    return grid;
}

static void gradient(struct backend_context *c, const struct low_rank_use *u,
                     struct gradient_args a, const struct backend_batch *b)
{
    const struct backend_low_rank *l = u->factors;
    a.mask = mask_of(b, u);
    bool mma = l->tensor_cores && low_rank_mma_aligned(a.x) && low_rank_mma_aligned(a.dy);
    a.cut = {NARROW, CHUNK, false};
    if (mma) a.cut = gradient_mma_cut(l, a.mask.scalars != NULL);
    dim3 grid = gradient_grid(l, &a.cut);
    if (!grid.x || !grid.y) return;
    uint32_t chunks = u->rows ? 1 : tiles_of(u->tokens, a.cut.chunk);
    size_t tile = (size_t)grid.x * grid.y * a.cut.narrow * WIDE;
    size_t parts = chunks > 1 ? chunks * tile * sizeof(float) : 0;
    a.q = {NULL, l->a.type, cuda_padded(l->width)};
    size_t small = l->small ? u->tokens * a.q.ld * cuda_size(a.q.type) : 0;
    char *scratch = NULL;
    if (parts + small && !(scratch = (char *)cuda_scratch(c, parts + small))) return;
    a.all = modules_of(u);
    if (small) a.q.data = scratch + parts;
    a.first = u->first;
    a.tokens = u->tokens;
    a.gradient = u->gradient;
    a.start = u->rows ? b->start + u->row : NULL;
    a.stride = u->stride;
    a.part = parts ? (float *)(void *)scratch : NULL;
    if (small)
        launch(small_kernel,
               dim3((unsigned)((u->tokens * l->width + GRADIENT_THREADS - 1) / GRADIENT_THREADS)),
               dim3(GRADIENT_THREADS), 0, c->stream, a.q, a.all, a.h, u->first, u->tokens);
    grid.z = u->rows ? (unsigned)u->rows : chunks;
    if (mma)
        gradient_mma(c, &a, grid);
    else
        launch(gradient_kernel, grid, dim3(GRADIENT_THREADS), 0, c->stream, a);
    grid.z = a.cut.narrow / SUM_COLUMNS;
    if (parts) launch(gradient_sum_kernel, grid, dim3(WIDE), 0, c->stream, a, chunks);
}

/* Tiles of A for all modules together, and of B and R for up to three modules; and q. */
static size_t gradient_bytes(const struct backend_context *c, const struct backend_need *need,
                             size_t extent)
{
    struct gradient_cut cut = {NARROW, CHUNK, false};
    if (c->precision != DTYPE_F32) cut = gradient_mma_cut_of(extent, need->width, true);
    size_t chunks = need->each_row ? 1 : tiles_of(need->tokens, cut.chunk);
    size_t narrow = tiles_of(need->width, cut.narrow) + (c->precision == DTYPE_F32 ? 6 : 3);
    size_t tile = tiles_of(extent, WIDE) * narrow * cut.narrow * WIDE;
    return (chunks > 1 ? chunks * tile : 0) * sizeof(float) +
           need->tokens * cuda_padded(need->width) * cuda_size(c->precision);
}

/* A narrower site may need more, because its chunks are shorter. */
size_t cuda_gradient_bytes(const struct backend_context *c, const struct backend_need *need)
{
    size_t all = gradient_bytes(c, need, need->widest);
    size_t narrower = need->widest < GRADIENT_WIDE ? 0 : gradient_bytes(c, need, GRADIENT_WIDE - 1);
    return all > narrower ? all : narrower;
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
