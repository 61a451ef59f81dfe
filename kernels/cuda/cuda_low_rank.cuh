/* For the low-rank kernels: the factors of an adapter at one W on the device, and the masks of
 * dropout. */
#ifndef KERNELS_CUDA_CUDA_LOW_RANK_CUH
#define KERNELS_CUDA_CUDA_LOW_RANK_CUH

#include "kernels/cuda/cuda_vector.cuh"

/* A module, on the device. Its factors are (rank, k), (rows, rank) and (rank, rank).
 *
 * H has its columns without gaps. In memory the factors of each module begin at a multiple of eight
 * columns, `at`, so that they are aligned; the columns between modules are zero. */
struct module_view {
    struct low_rank_module m;
    uint32_t at;
    struct mat a;       /* (width, k): rows `at` and following of all A */
    struct mat b;       /* (rows, width): s B or s B R, and the carry */
    float *whole_b;     /* (rows, rank) with an R: B without scale, else NULL */
    struct mat plain_b; /* the same in bfloat16, which tensor cores multiply, or data NULL */
    float *r;           /* (rank, rank), or NULL */
};
static __host__ __device__ __forceinline__ uint32_t padded_width(const struct low_rank_module &m)
{
    return (m.width + 7) / 8 * 8;
}
struct backend_low_rank {
    struct backend_context *context;
    uint64_t number; /* of this object in its context, never used again */
    size_t n, k, width;
    size_t padded; /* width with the columns between modules */
    uint32_t modules;
    struct backend_weight *margin; /* A and all b are in the margin of this one, or NULL */
    bool small;                    /* a module has an R */
    bool tensor_cores;             /* shapes and types are those of the kernels on tensor cores */
    struct mat a;                  /* (padded, k): all A */
    struct module_view *view;      /* host */
    struct module_view *device;    /* the same on the device, in `block` */
    void *block;
};

/* The modules of one use, as kernels get them. */
struct modules {
    const struct module_view *view;
    uint32_t count;
    size_t k, width, padded;
    struct mat a; /* (padded, k) */
};

/* ---- Dropout */

struct mask {
    const struct batch_scalars *scalars; /* NULL: no dropout */
    size_t first;                        /* token of the use */
};

struct drop { /* the mask of one module */
    struct formula_mask mask;
    bool on;
};

static __device__ __forceinline__ struct drop drop_of(const struct mask &m, uint32_t place)
{
    struct drop d = {};
    d.on = m.scalars != NULL;
    if (d.on) d.mask = formula_mask_of(m.scalars->dropout, m.scalars->dropout_key, place, m.first);
    return d;
}

/* x (row, col) of a use, whose rows have `cols` values. */
static __device__ __forceinline__ float dropped(const struct drop &d, float x, size_t row,
                                                size_t cols, size_t col)
{
    return d.on ? formula_masked(d.mask, x, row * cols + col) : x;
}

/* ---- Shrink: products with the width of a rank, H, G and P */

enum shrink { SHRINK_H, SHRINK_G, SHRINK_P };
struct shrink_args {
    struct modules all;
    struct mat h, g, p;
    struct mat x; /* (tokens, k), or dy (tokens, n) */
    /* With data, (tokens, padded) gets H, or G, too, with zeros between the modules. */
    struct mat beside;
    size_t first, tokens;
    struct mask mask;
    bool back;
};

/* ---- Gradients: sums over tokens of a narrow matrix, of the width of a rank, and a wide one */

enum factor { FACTOR_A, FACTOR_B, FACTOR_R, FACTORS };
enum { WIDE = 128, ALL_MODULES = UINT32_MAX };

/* Tiles have `narrow` columns of the narrow side and WIDE of the other. `together`: the narrow
 * sides of all modules are one matrix for A, because they are multiplied by the same x. */
struct gradient_cut {
    uint32_t narrow, chunk; /* chunk: the tokens of one partial sum */
    bool together;
};
struct gradient_args {
    struct modules all;
    struct gradient_cut cut;
    struct mat h, g, p, x, dy;
    struct mat q; /* (tokens, width) H R^T of the use, where B and R are both there */
    size_t first, tokens;
    struct mask mask;
    float *gradient;
    const uint32_t *start; /* with a gradient for each row: their first tokens, else NULL */
    size_t stride;
    float *part; /* the tiles of all chunks, or NULL: a block adds up all its tokens */
};
struct gradient_tile {
    enum factor factor;
    uint32_t module;       /* or ALL_MODULES */
    uint32_t first, count; /* columns of the narrow side */
    size_t extent;         /* of the wide side */
};

static __host__ __device__ __forceinline__ uint32_t tiles_of(size_t cols, uint32_t each)
{
    return (uint32_t)((cols + each - 1) / each);
}

static __host__ __device__ __forceinline__ bool has_factor(const struct low_rank_module &m,
                                                           enum factor f)
{
    return m.rank && (m.trains >> f & 1) && (f != FACTOR_R || m.small);
}

/* Tile number `number`, with count 0 behind the last one. */
static __host__ __device__ __forceinline__ struct gradient_tile
gradient_tile_of(const struct modules &all, const struct gradient_cut &cut, uint32_t number)
{
    bool any = false;
    for (uint32_t i = 0; i < all.count && cut.together; i++)
        any |= has_factor(all.view[i].m, FACTOR_A);
    uint32_t common = any ? tiles_of(all.width, cut.narrow) : 0;
    struct gradient_tile t = {FACTOR_A, ALL_MODULES, number * cut.narrow, 0, all.k};
    size_t cols = all.width;
    bool found = number < common;
    number -= common;
    for (uint32_t i = 0; i < all.count && !found; i++)
        for (int f = cut.together ? FACTOR_B : FACTOR_A; f < FACTORS && !found; f++) {
            const struct low_rank_module &m = all.view[i].m;
            if (!has_factor(m, (enum factor)f)) continue;
            uint32_t tiles = tiles_of(m.rank, cut.narrow);
            found = number < tiles;
            cols = m.rank;
            t = {(enum factor)f, i, number * cut.narrow, 0,
                 f == FACTOR_A   ? all.k
                 : f == FACTOR_B ? m.rows
                                 : m.rank};
            number -= tiles;
        }
    if (found) t.count = (uint32_t)(cols - t.first < cut.narrow ? cols - t.first : cut.narrow);
    return t;
}

/* Where the values of a narrow column of a tile lie in a gradient: the first one, and the distance
 * to that of the next wide column. False for a column that does not train. */
static __device__ __forceinline__ bool gradient_place(size_t *at, size_t *step,
                                                      const struct modules &all,
                                                      const struct gradient_tile &t,
                                                      uint32_t narrow)
{
    if (narrow >= t.count) return false;
    uint32_t i = t.module, col = t.first + narrow;
    if (i == ALL_MODULES) {
        i = 0;
        while (col >= all.view[i].m.col + all.view[i].m.width)
            i++;
        col -= all.view[i].m.col;
    }
    const struct low_rank_module &m = all.view[i].m;
    if (col >= m.rank || !has_factor(m, t.factor)) return false;
    *at = t.factor == FACTOR_A   ? m.a_at + col * all.k
          : t.factor == FACTOR_B ? m.b_at + col
                                 : m.r_at + (size_t)col * m.rank;
    *step = t.factor == FACTOR_B ? m.rank : 1;
    return true;
}

/* The place of a block's tile among the partial sums. */
static __device__ __forceinline__ float *gradient_part(const struct gradient_args &a,
                                                       uint32_t chunk)
{
    size_t tile = ((size_t)chunk * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    return a.part + tile * a.cut.narrow * WIDE;
}

/* The tokens [from, end) of a block: a row, a chunk, or all. */
static __device__ __forceinline__ void gradient_tokens(size_t *from, size_t *end,
                                                       const struct gradient_args &a)
{
    *from = a.first;
    *end = a.first + a.tokens;
    if (a.start) {
        *from = a.start[blockIdx.z];
        *end = a.start[blockIdx.z + 1];
    } else if (a.part) {
        *from += (size_t)blockIdx.z * a.cut.chunk;
        if (*end - *from > a.cut.chunk) *end = *from + a.cut.chunk;
    }
}

/* ---- cuda_low_rank_mma.cu: both on tensor cores, in bfloat16 */

/* Whether factors of these shapes can use them. Nothing else but the alignment of x and dy decides,
 * so that the bits of a row do not depend on the other rows. */
bool low_rank_mma_shapes(const struct backend_low_rank *l);
bool low_rank_mma_aligned(struct mat x);
void shrink_mma(struct backend_context *c, const struct shrink_args *a,
                const struct backend_low_rank *l);
/* The cut for a wide and a narrow side of so many columns. From GRADIENT_WIDE on chunks are
 * longer. */
enum { GRADIENT_WIDE = 4096 };
struct gradient_cut gradient_mma_cut_of(size_t extent, size_t columns, bool together);
struct gradient_cut gradient_mma_cut(const struct backend_low_rank *l, bool dropout);
void gradient_mma(struct backend_context *c, const struct gradient_args *a, dim3 grid);

/* ---- Host: a use as kernels get it */

static inline bool active(const struct low_rank_use *u)
{
    return u->factors && u->tokens && u->factors->width;
}

static inline struct modules modules_of(const struct low_rank_use *u)
{
    const struct backend_low_rank *l = u->factors;
    return {l->device, l->modules, l->k, l->width, l->padded, l->a};
}

static inline struct mask mask_of(const struct backend_batch *b, const struct low_rank_use *u)
{
    return {b && b->now.dropout > 0.0f ? b->scalars : NULL, u->first};
}
#endif
