/* The table of the CPU backend, and its context and memory. */
#include "base/limits.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_vector.h"

#include <errno.h>
#include <omp.h>
#include <stdlib.h>

static void cpu_close(struct backend_context *c)
{
    if (!c) return;
    cpu_primitives_close(c->primitives);
    free(c->scratch);
    free(c);
}

static err cpu_open(struct backend_context **out, const struct backend_options *o)
{
    struct backend_context *c = calloc(1, sizeof *c);
    if (!c) return err_sys(ENOMEM, "engine");
    c->threads = o->threads > 0 ? o->threads : omp_get_num_procs();
    if (c->threads > LIMIT_THREADS) c->threads = LIMIT_THREADS;
    c->precision = o->precision;
    if (o->precision == DTYPE_NONE) c->precision = cpu_bf16_is_faster() ? DTYPE_BF16 : DTYPE_F32;
    err e = cpu_primitives_open(&c->primitives, c);
    if (err_is(e))
        cpu_close(c);
    else
        *out = c;
    return e;
}

static enum dtype cpu_precision(const struct backend_context *c)
{
    return c->precision;
}

static err cpu_check(struct backend_context *c)
{
    err e = c->first;
    c->first = ERR_NONE;
    return e;
}

static void cpu_profile(struct backend_profile *out, const struct backend_context *c)
{
    *out = c->profile;
}

/* calloc() gives large blocks whose pages cost memory only when they are used. It does not align to
 * 64 bytes, so the address of the whole block is stored just before the aligned one. */
static err cpu_memory_take(void *out, struct backend_context *c, size_t bytes)
{
    (void)c;
    char *whole = calloc(1, bytes + 128);
    if (!whole) return err_sys(ENOMEM, "engine: %zu bytes", bytes);
    char *memory = whole + 64 - (uintptr_t)whole % 64;
    if (memory - whole < (ptrdiff_t)sizeof(void *)) memory += 64;
    memcpy(memory - sizeof(void *), &whole, sizeof(void *));
    *(void **)out = memory;
    return ERR_NONE;
}

static void cpu_memory_give(struct backend_context *c, void *memory)
{
    (void)c;
    void *whole;
    memcpy(&whole, (char *)memory - sizeof(void *), sizeof(void *));
    free(whole);
}

static void cpu_copy_in(struct backend_context *c, void *to, const void *host, size_t bytes)
{
    (void)c;
    if (bytes) memcpy(to, host, bytes);
}

static void cpu_zero(struct backend_context *c, struct mat m, size_t rows, size_t cols)
{
    double since = cpu_clock();
    size_t size = m.type == DTYPE_F32 ? 4 : 2;
    for (size_t i = 0; i < rows; i++)
        memset(mat_at(m, i, 0).data, 0, cols * size);
    cpu_count(c, OP_COPY, since);
}

CPU_CLONES static void convert_row(struct mat to, struct mat from, size_t row, size_t cols,
                                   float scale)
{
    float in[CPU_CHUNK], out[CPU_CHUNK];
    for (size_t col = 0; col < cols; col += CPU_CHUNK) {
        size_t n = cols - col < CPU_CHUNK ? cols - col : CPU_CHUNK;
        const float *x = cpu_row(in, from, row, col, n);
        float *y = cpu_row_out(out, to, row, col);
        for (size_t i = 0; i < n; i++)
            y[i] = x[i] * scale;
        cpu_row_done(to, row, col, y, n);
    }
}

static void cpu_convert(struct backend_context *c, struct mat to, struct mat from, size_t rows,
                        size_t cols, float scale)
{
    double since = cpu_clock();
#pragma omp parallel for num_threads(c->threads) schedule(static) if (rows * cols > 65536)
    for (size_t i = 0; i < rows; i++)
        convert_row(to, from, i, cols, scale);
    cpu_count(c, OP_COPY, since);
}

CPU_CLONES static void add_row(struct mat to, struct mat from, size_t cols)
{
    float in[CPU_CHUNK], old[CPU_CHUNK], out[CPU_CHUNK];
    for (size_t col = 0; col < cols; col += CPU_CHUNK) {
        size_t n = cols - col < CPU_CHUNK ? cols - col : CPU_CHUNK;
        const float *x = cpu_row(in, from, 0, col, n);
        const float *z = cpu_row(old, to, 0, col, n);
        float *y = cpu_row_out(out, to, 0, col);
        for (size_t i = 0; i < n; i++)
            y[i] = z[i] + x[i];
        cpu_row_done(to, 0, col, y, n);
    }
}

static void cpu_add(struct backend_context *c, struct mat to, struct mat from, size_t rows,
                    size_t cols)
{
    double since = cpu_clock();
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (size_t i = 0; i < rows; i++)
        add_row(mat_at(to, i, 0), mat_at(from, i, 0), cols);
    cpu_count(c, OP_COPY, since);
}

static void cpu_gather(struct backend_context *c, struct mat to, struct mat from,
                       const uint32_t *index, size_t rows, size_t cols)
{
    double since = cpu_clock();
    for (size_t i = 0; i < rows; i++)
        convert_row(mat_at(to, i, 0), mat_at(from, index[i], 0), 0, cols, 1.0f);
    cpu_count(c, OP_COPY, since);
}

static void cpu_scatter_add(struct backend_context *c, struct mat to, struct mat from,
                            const uint32_t *index, size_t rows, size_t cols)
{
    double since = cpu_clock();
    for (size_t i = 0; i < rows; i++)
        add_row(mat_at(to, index[i], 0), mat_at(from, i, 0), cols);
    cpu_count(c, OP_COPY, since);
}

/* Each value has a 32-bit random number from its place and the key of the mask (the finalizer of
 * splitmix64), so the backward pass needs no stored mask. */
CPU_CLONES static void dropout_row(struct mat to, struct mat from, size_t row,
                                   const struct dropout *d)
{
    float in[CPU_CHUNK], out[CPU_CHUNK];
    float keep = 1.0f / (1.0f - d->probability);
    uint64_t threshold = (uint64_t)((double)d->probability * 4294967296.0);
    for (size_t col = 0; col < d->cols; col += CPU_CHUNK) {
        size_t n = d->cols - col < CPU_CHUNK ? d->cols - col : CPU_CHUNK;
        const float *x = cpu_row(in, from, row, col, n);
        float *y = cpu_row_out(out, to, row, col);
        for (size_t i = 0; i < n; i++) {
            uint64_t z = d->key + (row * d->cols + col + i + 1) * 0x9e3779b97f4a7c15u;
            z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
            z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
            y[i] = (z >> 32) < threshold ? 0.0f : x[i] * keep;
        }
        cpu_row_done(to, row, col, y, n);
    }
}

static void cpu_dropout(struct backend_context *c, struct mat to, struct mat from,
                        const struct dropout *d)
{
    double since = cpu_clock();
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (size_t i = 0; i < d->rows; i++)
        dropout_row(to, from, i, d);
    cpu_count(c, OP_LOW_RANK, since);
}

const struct backend backend_cpu = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .precision = cpu_precision,
    .check = cpu_check,
    .profile = cpu_profile,
    .memory_take = cpu_memory_take,
    .memory_give = cpu_memory_give,
    .copy_in = cpu_copy_in,
    .copy_out = cpu_copy_in,
    .zero = cpu_zero,
    .convert = cpu_convert,
    .add = cpu_add,
    .gather = cpu_gather,
    .scatter_add = cpu_scatter_add,
    .dropout = cpu_dropout,
    .weight_pack = cpu_weight_pack,
    .weight_close = cpu_weight_close,
    .linear = cpu_linear,
    .linear_back = cpu_linear_back,
    .head_loss = cpu_head_loss,
    .product = cpu_product,
    .norm = cpu_norm,
    .norm_back = cpu_norm_back,
    .rope = cpu_rope,
    .attention = cpu_attention,
    .attention_back = cpu_attention_back,
    .attention_decode = cpu_attention_decode,
    .gate = cpu_gate,
    .gate_back = cpu_gate_back,
    .sum_squares = cpu_sum_squares,
    .adamw = cpu_adamw,
};
