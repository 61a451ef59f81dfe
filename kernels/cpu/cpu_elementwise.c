/* Operations on single values: conversion, sums, masks, and rows by index. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_vector.h"

void cpu_zero(struct backend_context *c, struct mat m, size_t rows, size_t cols)
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

void cpu_convert(struct backend_context *c, struct mat to, struct mat from, size_t rows,
                 size_t cols, float scale)
{
    double since = cpu_clock();
#pragma omp parallel for num_threads(c->threads) schedule(static) if (rows * cols > 65536)
    for (size_t i = 0; i < rows; i++)
        convert_row(to, from, i, cols, scale);
    cpu_count(c, OP_COPY, since);
}

CPU_CLONES static void add_row(struct mat to, struct mat from, size_t cols, float scale)
{
    float in[CPU_CHUNK], old[CPU_CHUNK], out[CPU_CHUNK];
    for (size_t col = 0; col < cols; col += CPU_CHUNK) {
        size_t n = cols - col < CPU_CHUNK ? cols - col : CPU_CHUNK;
        const float *x = cpu_row(in, from, 0, col, n);
        const float *z = cpu_row(old, to, 0, col, n);
        float *y = cpu_row_out(out, to, 0, col);
        for (size_t i = 0; i < n; i++)
            y[i] = z[i] + scale * x[i];
        cpu_row_done(to, 0, col, y, n);
    }
}

void cpu_add(struct backend_context *c, struct mat to, struct mat from, size_t rows, size_t cols,
             float scale)
{
    double since = cpu_clock();
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (size_t i = 0; i < rows; i++)
        add_row(mat_at(to, i, 0), mat_at(from, i, 0), cols, scale);
    cpu_count(c, OP_COPY, since);
}

/* x becomes cap tanh(x scale / cap). */
CPU_CLONES void cpu_cap(float *x, size_t n, float scale, float cap)
{
    float inside = scale / cap;
    for (size_t i = 0; i < n; i++)
        x[i] = cap * formula_tanh(x[i] * inside);
}

void cpu_learned_take(struct backend_context *c, struct mat to, struct mat from,
                      const struct backend_batch *b, size_t first, size_t rows, size_t cols)
{
    double since = cpu_clock();
    const uint32_t *index = b->rows.index + first;
    for (size_t i = 0; i < rows; i++)
        convert_row(mat_at(to, i, 0), mat_at(from, index[i], 0), 0, cols, 1.0f);
    cpu_count(c, OP_COPY, since);
}

void cpu_learned_add(struct backend_context *c, struct mat to, struct mat from,
                     const struct backend_batch *b, size_t first, size_t rows, size_t cols)
{
    double since = cpu_clock();
    const uint32_t *index = b->rows.index + first;
    for (size_t i = 0; i < rows; i++)
        add_row(mat_at(to, index[i], 0), mat_at(from, i, 0), cols, 1.0f);
    cpu_count(c, OP_COPY, since);
}

CPU_CLONES static void dropout_row(struct mat to, struct mat from, size_t row, size_t cols,
                                   const struct formula_mask *mask)
{
    float in[CPU_CHUNK], out[CPU_CHUNK];
    for (size_t col = 0; col < cols; col += CPU_CHUNK) {
        size_t n = cols - col < CPU_CHUNK ? cols - col : CPU_CHUNK;
        const float *x = cpu_row(in, from, row, col, n);
        float *y = cpu_row_out(out, to, row, col);
        for (size_t i = 0; i < n; i++)
            y[i] = formula_masked(*mask, x[i], row * cols + col + i);
        cpu_row_done(to, row, col, y, n);
    }
}

void cpu_dropout(struct backend_context *c, struct mat to, struct mat from, size_t rows,
                 size_t cols, const struct formula_mask *mask)
{
    double since = cpu_clock();
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (size_t i = 0; i < rows; i++)
        dropout_row(to, from, i, cols, mask);
    cpu_count(c, OP_LOW_RANK, since);
}
