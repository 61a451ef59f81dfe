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
