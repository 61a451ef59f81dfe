/* Shared by the kernels of attention: their arguments, and the tiles into which rows are cut.
 *
 *   forward    S = Q K^T, P = softmax(scale S), O = P V; lse = log(sum exp) is kept. The softmax
 *              is online (FlashAttention-2, Dao 2023): the keys come in tiles, and the sums are
 *              scaled down when a larger score appears
 *   backward   P = exp(scale S - lse), dP = dO V^T, dS = scale P (dP - rowsum(O dO));
 *              dQ = dS K, dK = dS^T Q, dV = P^T dO
 *   with a cap, S becomes tanh(inner S), and dS has the factor inner (1 - tanh^2)
 *
 * A block has a tile of queries of a head (forward and dQ) or of keys of a key-value head (dK and
 * dV), so that each result has one writer. Tiles are counted from the first token of the row, and
 * their sizes are constants. Therefore the bits of a row do not depend on its neighbours. */
#ifndef KERNELS_CUDA_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_CUDA_ATTENTION_CUH

#include "kernels/cuda/cuda_vector.cuh"

#include <cmath>

struct attention_args {
    struct rows8 q, k, v, out;     /* (tokens, heads head_dim), k and v with kv_heads */
    struct rows8 dq, dk, dv, dout; /* backward */
    float *lse, *delta;            /* (tokens, heads); delta = rowsum(O dO) */
    const uint32_t *start;         /* (rows + 1) */
    unsigned tokens, rows, heads, kv_heads, head_dim, window;
    float scale, inner; /* as cuda_attention_scale() gives them */
};
typedef void attention_kernel(struct attention_args);

/* The kernels that multiply in float32, for all shapes, and those on tensor cores, for the shapes
 * that attention_mma_known() accepts. The first kernel of a backward pass writes a.delta, which the
 * second reads. */
void attention_f32_forward(struct backend_context *c, const struct attention_args *a);
void attention_f32_back(struct backend_context *c, const struct attention_args *a);
bool attention_mma_known(const struct attention_args *a, bool back);
void attention_mma_forward(struct backend_context *c, const struct attention_args *a);
void attention_mma_back(struct backend_context *c, const struct attention_args *a);

/* A tile of a row: tokens from `at` on, of the row that begins with token `first`. */
struct place {
    unsigned first, tokens, at;
};

/* Tile number t of the batch, with SIZE tokens. A row gets as many numbers as there are multiples
 * of SIZE between its ends, and one more. They are enough for any position of the row, so that
 * start[] alone gives the row of a tile. False if the number is not used. */
template <unsigned SIZE>
static __device__ __forceinline__ bool find_place(struct place *p, const struct attention_args &a,
                                                  unsigned t)
{
    unsigned low = 0, high = a.rows; /* the row is in [low, high) */
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (a.start[middle] / SIZE + middle <= t)
            low = middle;
        else
            high = middle;
    }
    p->first = a.start[low];
    p->tokens = a.start[low + 1] - p->first;
    p->at = (t - p->first / SIZE - low) * SIZE;
    return p->at < p->tokens;
}
/* The grid of all tiles and heads. */
static inline dim3 tile_grid(const struct attention_args *a, unsigned size, unsigned heads)
{
    return dim3(a->tokens / size + a->rows, heads);
}

static __device__ __forceinline__ bool sees(const struct attention_args &a, unsigned query,
                                            unsigned key)
{
    return key <= query && (a.window == 0 || query - key < a.window);
}
/* The first of the tiles of SIZE keys that query `query` or a later one sees. */
template <unsigned SIZE>
static __device__ __forceinline__ unsigned first_key(const struct attention_args &a, unsigned query)
{
    return a.window && query + 1 > a.window ? (query + 1 - a.window) / SIZE * SIZE : 0;
}
/* The queries that see a key up to `last` are below this. */
static __device__ __forceinline__ unsigned end_query(const struct attention_args &a,
                                                     const struct place &p, unsigned last)
{
    return a.window && p.tokens - last > a.window ? last + a.window : p.tokens;
}
/* The factor that a cap gives to the gradient of a score, whose tanh() is t. */
static __device__ __forceinline__ float cap_slope(const struct attention_args &a, float t)
{
    return (1.0f - t * t) * a.inner;
}
#endif
