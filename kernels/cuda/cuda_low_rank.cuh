/* For the low-rank kernels: the factors of an adapter at one W on the device, and the masks of
 * dropout. */
#ifndef KERNELS_CUDA_CUDA_LOW_RANK_CUH
#define KERNELS_CUDA_CUDA_LOW_RANK_CUH

#include "kernels/cuda/cuda_vector.cuh"

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

/* Kernels take the narrow side of a product, of the width of a rank, in tiles of this many columns.
 * */
enum { NARROW = 16 };
static __host__ __device__ __forceinline__ uint32_t narrow_tiles(uint32_t cols)
{
    return (cols + NARROW - 1) / NARROW;
}

/* ---- Host: a use as kernels get it */

static inline bool active(const struct low_rank_use *u)
{
    return u->factors && u->tokens && u->factors->width;
}

static inline struct modules modules_of(const struct low_rank_use *u)
{
    return {u->factors->device, u->factors->modules, u->factors->k};
}

static inline struct mask mask_of(const struct backend_batch *b, const struct low_rank_use *u)
{
    return {b && b->now.dropout > 0.0f ? b->scalars : NULL, u->first};
}
#endif
