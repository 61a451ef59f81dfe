/* Small products of plain operands, in float32 arithmetic: the low-rank part. Columns of the result
 * go by panels of 32; a panel of b is copied side by side (k, 32), then blocks of rows of a run
 * down it in registers. Every element is one sum over k in order, whoever computes it. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_vector.h"

enum { PANEL = 32, BLOCK = 12, ROWS = 192 };

struct operand { /* element (i, k) of a is data[i * row + k * col] */
    const float *data;
    size_t row, col;
};

/* tile (BLOCK, PANEL) = a (rows, k) panel (k, PANEL) */
typedef void (*tile_function)(float *tile, struct operand a, const float *panel, size_t rows,
                              size_t k);

CPU_CLONES static void tile_any(float *restrict tile, struct operand a, const float *restrict panel,
                                size_t rows, size_t k)
{
    for (size_t i = 0; i < rows; i++) {
        float sum[PANEL] = {0};
        for (size_t p = 0; p < k; p++) {
            float x = a.data[i * a.row + p * a.col];
            for (int j = 0; j < PANEL; j++)
                sum[j] += x * panel[p * PANEL + j];
        }
        memcpy(tile + i * PANEL, sum, sizeof sum);
    }
}

static void pack_panel(float *panel, struct mat b, const struct product *p, size_t col)
{
    size_t n = p->n - col < PANEL ? p->n - col : PANEL;
    if (n < PANEL) memset(panel, 0, p->k * PANEL * sizeof(float));
    if (p->kind == PRODUCT_NT) {
        float buffer[CPU_CHUNK];
        for (size_t j = 0; j < n; j++)
            for (size_t k = 0; k < p->k; k += CPU_CHUNK) {
                size_t count = p->k - k < CPU_CHUNK ? p->k - k : CPU_CHUNK;
                const float *from = cpu_row(buffer, b, col + j, k, count);
                for (size_t i = 0; i < count; i++)
                    panel[(k + i) * PANEL + j] = from[i];
            }
        return;
    }
    for (size_t k = 0; k < p->k; k++) {
        float buffer[PANEL];
        memcpy(panel + k * PANEL, cpu_row(buffer, b, k, col, n), n * sizeof(float));
    }
}

CPU_CLONES static void store_tile(struct mat out, const float *tile, const struct product *p,
                                  size_t rows, size_t n)
{
    float old[PANEL], buffer[PANEL];
    for (size_t i = 0; i < rows; i++) {
        const float *z = cpu_row(old, out, i, 0, n);
        float *y = cpu_row_out(buffer, out, i, 0);
        if (p->add)
            for (size_t j = 0; j < n; j++)
                y[j] = z[j] + p->alpha * tile[i * PANEL + j];
        else
            for (size_t j = 0; j < n; j++)
                y[j] = p->alpha * tile[i * PANEL + j];
        cpu_row_done(out, i, 0, y, n);
    }
}

/* Rows of a as float32 side by side, where they are not already. */
static struct operand operand_rows(float *buffer, struct mat a, const struct product *p, size_t row,
                                   size_t rows)
{
    bool turned = p->kind == PRODUCT_TN;
    if (a.type == DTYPE_F32) {
        const float *data = a.data;
        return turned ? (struct operand){data + row, 1, a.ld}
                      : (struct operand){data + row * a.ld, a.ld, 1};
    }
    size_t lines = turned ? p->k : rows, count = turned ? rows : p->k;
    for (size_t i = 0; i < lines; i++)
        for (size_t j = 0; j < count; j += CPU_CHUNK) {
            size_t n = count - j < CPU_CHUNK ? count - j : CPU_CHUNK;
            if (turned)
                cpu_row(buffer + i * count + j, a, i, row + j, n);
            else
                cpu_row(buffer + i * count + j, a, row + i, j, n);
        }
    return turned ? (struct operand){buffer, 1, count} : (struct operand){buffer, count, 1};
}

void cpu_product(struct backend_context *c, struct mat out, struct mat a, struct mat b,
                 const struct product *p)
{
    double since = cpu_clock();
    size_t panels = (p->n + PANEL - 1) / PANEL, blocks = (p->m + ROWS - 1) / ROWS;
    size_t own = p->k * (PANEL + (a.type == DTYPE_F32 ? 0 : ROWS)); /* floats a thread needs */
    float *scratch = cpu_scratch(c, (size_t)c->threads * own * sizeof(float));
    if (!scratch || !p->m || !p->n) return;
    size_t tasks = panels * blocks;
#pragma omp parallel num_threads(c->threads) if (p->m * p->n * p->k > 100000)
    {
        float *panel = scratch + (size_t)cpu_thread() * own;
        float tile[BLOCK * PANEL];
        size_t packed = panels, loaded = blocks; /* neither yet */
        struct operand rows_of_a = {0};
#pragma omp for schedule(static)
        for (size_t task = 0; task < tasks; task++) {
            size_t block = task / panels, col = task % panels * PANEL, row = block * ROWS;
            size_t rows = p->m - row < ROWS ? p->m - row : ROWS;
            size_t n = p->n - col < PANEL ? p->n - col : PANEL;
            if (packed != col / PANEL) pack_panel(panel, b, p, col);
            packed = col / PANEL;
            if (loaded != block) rows_of_a = operand_rows(panel + p->k * PANEL, a, p, row, rows);
            loaded = block;
            for (size_t i = 0; i < rows; i += BLOCK) {
                size_t count = rows - i < BLOCK ? rows - i : BLOCK;
                struct operand part = rows_of_a;
                part.data += i * part.row;
                tile_any(tile, part, panel, count, p->k);
                store_tile(mat_at(out, row + i, col), tile, p, count, n);
            }
        }
    }
    cpu_count(c, OP_LOW_RANK, since);
}
