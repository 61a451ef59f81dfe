/* Small products of plain operands: the low-rank part. Columns of the result go by panels, rows by
 * blocks; every element is one sum over k in order, whoever computes it. A turned left operand (a^T
 * b) must be copied, so of the two sides the narrow one becomes it and the result is stored turned
 * where that is b. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_tile.h"
#include "kernels/cpu/cpu_vector.h"

enum { BLOCK = 5 * TILE_ROWS };

struct work {
    struct product p; /* m, n as computed */
    struct mat out, left, right;
    bool left_turned, right_turned, store_turned;
    enum dtype type;
    size_t panels, blocks, depth;
    size_t panel_bytes, left_bytes;
};

CPU_CLONES static void store(struct mat out, const float *tile, const struct product *p,
                             size_t rows, size_t n)
{
    float old[TILE_WIDTH], buffer[TILE_WIDTH];
    for (size_t i = 0; i < rows; i++) {
        const float *z = cpu_row(old, out, i, 0, p->add ? n : 0);
        float *y = cpu_row_out(buffer, out, i, 0);
        if (p->add)
            for (size_t j = 0; j < n; j++)
                y[j] = z[j] + p->alpha * tile[i * TILE_WIDTH + j];
        else
            for (size_t j = 0; j < n; j++)
                y[j] = p->alpha * tile[i * TILE_WIDTH + j];
        cpu_row_done(out, i, 0, y, n);
    }
}

static void store_turned(struct mat out, const float *tile, const struct product *p, size_t rows,
                         size_t n)
{
    float line[TILE_WIDTH * TILE_ROWS];
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < rows; i++)
            line[j * TILE_WIDTH + i] = tile[i * TILE_WIDTH + j];
    store(out, line, p, n, rows);
}

static void run_task(const struct work *w, struct tile_left left, const void *panel, size_t row,
                     size_t col)
{
    float tile[TILE_ROWS * TILE_WIDTH];
    size_t rows = w->p.m - row < BLOCK ? w->p.m - row : BLOCK;
    size_t n = w->p.n - col < TILE_WIDTH ? w->p.n - col : TILE_WIDTH;
    size_t most = w->store_turned ? TILE_WIDTH : TILE_ROWS;
    struct tile_shape s = {.type = w->type, .width = tile_width(n), .depth = w->depth};
    s.ldc = TILE_WIDTH;
    for (size_t i = 0; i < rows; i += most) {
        struct tile_left part = left;
        part.data = (const char *)left.data + i * left.ld * tile_size(w->type);
        s.rows = rows - i < most ? rows - i : most;
        tile_run(tile, part, panel, &s);
        if (w->store_turned)
            store_turned(mat_at(w->out, col, row + i), tile, &w->p, s.rows, n);
        else
            store(mat_at(w->out, row + i, col), tile, &w->p, s.rows, n);
    }
}

static void run_share(const struct work *w, char *scratch)
{
    char *panel = scratch, *buffer = scratch + w->panel_bytes;
    size_t packed = w->panels, loaded = w->blocks; /* neither yet */
    struct tile_left left = {0};
    tile_begin(w->type, w->depth);
#pragma omp for schedule(static)
    for (size_t task = 0; task < w->panels * w->blocks; task++) {
        size_t row = task % w->blocks * BLOCK, col = task / w->blocks * TILE_WIDTH;
        size_t rows = w->p.m - row < BLOCK ? w->p.m - row : BLOCK;
        size_t n = w->p.n - col < TILE_WIDTH ? w->p.n - col : TILE_WIDTH;
        if (packed != task / w->blocks)
            tile_panel(panel, w->type,
                       w->right_turned ? mat_at(w->right, col, 0) : mat_at(w->right, 0, col),
                       w->right_turned, w->p.k, n);
        packed = task / w->blocks;
        if (loaded != task % w->blocks)
            left = tile_rows(buffer, w->type,
                             w->left_turned ? mat_at(w->left, 0, row) : mat_at(w->left, row, 0),
                             w->left_turned, rows, w->p.k);
        loaded = task % w->blocks;
        run_task(w, left, panel, row, col);
    }
    tile_end(w->type);
}

void cpu_product(struct backend_context *c, struct mat out, struct mat a, struct mat b,
                 const struct product *p)
{
    double since = cpu_clock();
    if (!p->m || !p->n) return;
    struct work w = {.p = *p, .out = out, .left = a, .right = b};
    w.left_turned = p->kind == PRODUCT_TN;
    w.right_turned = p->kind == PRODUCT_NT;
    if (w.left_turned && p->m > p->n) {
        w.left = b;
        w.right = a;
        w.p.m = p->n;
        w.p.n = p->m;
        w.store_turned = true;
    }
    bool narrow = a.type == DTYPE_BF16 || b.type == DTYPE_BF16;
    w.type = tile_type(narrow ? DTYPE_BF16 : DTYPE_F32);
    w.depth = tile_depth(p->k);
    w.panels = (w.p.n + TILE_WIDTH - 1) / TILE_WIDTH;
    w.blocks = (w.p.m + BLOCK - 1) / BLOCK;
    w.panel_bytes = (w.depth * TILE_WIDTH * tile_size(w.type) + 63) / 64 * 64;
    bool copied = w.left_turned || w.left.type != w.type || w.depth != p->k;
    size_t rows = w.p.m < BLOCK ? w.p.m : BLOCK;
    w.left_bytes = copied ? (rows * w.depth * tile_size(w.type) + 127) / 64 * 64 : 0;
    size_t own = w.panel_bytes + w.left_bytes;
    char *scratch = cpu_scratch(c, (size_t)c->threads * own);
    if (!scratch) return;
#pragma omp parallel num_threads(c->threads) if (p->m * p->n * p->k > 100000)
    run_share(&w, scratch + (size_t)cpu_thread() * own);
    cpu_count(c, OP_LOW_RANK, since);
}
