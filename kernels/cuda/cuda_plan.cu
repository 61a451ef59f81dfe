/* Facts about a device and a context: its precision and profile, the memory that is taken, and that
 * would be taken, and whether rows depend on each other. */
#include "kernels/cuda/cuda.h"

#include <stdlib.h>

int cuda_devices(void)
{
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
    (void)cudaGetLastError(); /* opening a device reports it */
    return count;
}

void cuda_profile(struct backend_profile *out, const struct backend_context *c)
{
    *out = c->profile;
}

enum dtype cuda_precision(const struct backend_context *c)
{
    return c->precision;
}

bool cuda_rows_alone(const struct backend_context *c)
{
    return !c->rows_depend;
}

bool cuda_taken_room(struct backend_context *c)
{
    if (c->takes < c->takes_most) return true;
    size_t most = 2 * c->takes_most + 64;
    void *more = realloc(c->taken, most * sizeof *c->taken);
    if (!more) return false;
    c->taken = (struct cuda_room *)more;
    c->takes_most = most;
    return true;
}

void cuda_taken_remove(struct backend_context *c, const void *memory)
{
    for (size_t i = c->takes; i > 0; i--)
        if (c->taken[i - 1].data == memory) {
            c->taken[i - 1] = c->taken[--c->takes];
            return;
        }
}

uint64_t cuda_memory_free(struct backend_context *c)
{
    size_t available = 0, all = 0;
    cuda_begin(c);
    bool known = cuda_good(c, cudaMemGetInfo(&available, &all), "asking for the free memory");
    return known ? available : UINT64_MAX;
}

uint64_t cuda_memory_held(const struct backend_context *c)
{
    uint64_t held = 0;
    for (size_t i = 0; i < c->takes; i++)
        held += c->taken[i].bytes;
    return held;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Operations share one scratch block. Packing has used it too, and it never becomes smaller. */
uint64_t cuda_scratch_bytes(const struct backend_context *c, const struct backend_need *need)
{
    size_t shared = larger(c->scratch.bytes, cuda_head_bytes(need->vocab, need->head_rows));
    shared = larger(shared, cuda_gradient_bytes(c, need));
    shared = larger(shared, need->tokens * need->heads * sizeof(float)); /* attention_back() */
    struct batch_rows most = {};
    most.tokens = need->tokens;
    most.rows = need->rows;
    most.learned = need->learned;
    return shared + cuda_batch_bytes(&most) + cuda_products_bytes(c->products) +
           cuda_set_bytes(c->set) + CUDA_SUMS * sizeof(double);
}
