/* Products of operands that are not packed, for the low-rank part. Columns of the result are
 * divided into panels and rows into blocks. Each element is one sum over k in order, so it does not
 * depend on the number of threads. A transposed left operand (a^T b) has to be copied, so the
 * narrower side becomes the left one; if that is b, the result is stored transposed. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_tile.h"
#include "kernels/cpu/cpu_vector.h"

#include <omp.h>

enum { PANELS_BYTES = 512 << 10, CHUNK = 128, CHUNKS_FROM = 512, GROUP = 64, AHEAD = 32 };

struct work {
    struct product_shape p; /* m and n after a possible exchange of the sides */
    struct mat out, left, right;
    bool left_turned, right_turned, store_turned;
    enum dtype type;
    size_t panels, blocks, block, depth, panel_bytes; /* block: rows of one */
};

CPU_INLINE void store_rows(struct mat out, const float *tile, const struct product_shape *p,
                           size_t rows, size_t n)
{
    float old[TILE_WIDTH], buffer[TILE_WIDTH];
    float alpha = p->alpha;
    for (size_t i = 0; i < rows; i++, tile += TILE_WIDTH) {
        float *y = cpu_row_out(buffer, out, i, 0);
        if (p->add) {
            const float *z = cpu_row(old, out, i, 0, n);
            for (size_t j = 0; j < n; j++)
                y[j] = z[j] + alpha * tile[j];
        } else {
            for (size_t j = 0; j < n; j++)
                y[j] = alpha * tile[j];
        }
        cpu_row_done(out, i, 0, y, n);
    }
}

CPU_CLONES static void store(struct mat out, const float *tile, const struct product_shape *p,
                             size_t rows, size_t n)
{
    if (n == TILE_WIDTH) /* a constant length gives vector code without a loop */
        store_rows(out, tile, p, rows, TILE_WIDTH);
    else if (n == 16)
        store_rows(out, tile, p, rows, 16);
    else
        store_rows(out, tile, p, rows, n);
}

static void store_turned(struct mat out, const float *tile, const struct product_shape *p,
                         size_t rows, size_t n)
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
    size_t rows = w->p.m - row < w->block ? w->p.m - row : w->block;
    size_t n = w->p.n - col < TILE_WIDTH ? w->p.n - col : TILE_WIDTH;
    size_t most = w->store_turned ? TILE_WIDTH : TILE_ROWS;
    struct tile_shape s = {.type = w->type, .width = tile_width(n), .depth = w->depth};
    s.ldc = TILE_WIDTH;
    if (w->out.type == DTYPE_F32 && w->p.alpha == 1.0f && n == s.width && !w->store_turned) {
        s.rows = rows; /* the kernel writes straight into the result */
        s.ldc = w->out.ld;
        s.add = w->p.add;
        tile_run(mat_at(w->out, row, col).data, left, panel, &s);
        return;
    }
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

static size_t panel_columns(const struct work *w, size_t panel)
{
    size_t col = panel * TILE_WIDTH;
    return w->p.n - col < TILE_WIDTH ? w->p.n - col : TILE_WIDTH;
}

static void pack(const struct work *w, char *to, size_t panel)
{
    size_t col = panel * TILE_WIDTH;
    struct mat from = w->right_turned ? mat_at(w->right, col, 0) : mat_at(w->right, 0, col);
    tile_panel(to, w->type, from, w->right_turned, w->p.k, panel_columns(w, panel));
}

static struct tile_left load(const struct work *w, char *buffer, size_t block)
{
    size_t row = block * w->block, rows = w->p.m - row < w->block ? w->p.m - row : w->block;
    struct mat from = w->left_turned ? mat_at(w->left, 0, row) : mat_at(w->left, row, 0);
    return tile_rows(buffer, w->type, from, w->left_turned, rows, w->p.k);
}

/* Many rows: all panels are packed once, then blocks of rows run over them, so that the written
 * values lie together. */
static void run_rows(const struct work *w, char *panels, char *buffer)
{
#pragma omp for schedule(static)
    for (size_t i = 0; i < w->panels; i++)
        pack(w, panels + i * w->panel_bytes, i);
    tile_begin(w->type, w->depth);
#pragma omp for schedule(static)
    for (size_t block = 0; block < w->blocks; block++) {
        struct tile_left left = load(w, buffer, block);
        for (size_t i = 0; i < w->panels; i++)
            run_task(w, left, panels + i * w->panel_bytes, block * w->block, i * TILE_WIDTH);
    }
    tile_end(w->type);
}

/* Few rows and long sums: one panel after the other. */
static void run_columns(const struct work *w, char *panel, char *buffer)
{
    tile_begin(w->type, w->depth);
    size_t loaded = w->blocks; /* none yet */
    struct tile_left left = {0};
#pragma omp for schedule(static)
    for (size_t i = 0; i < w->panels; i++) {
        pack(w, panel, i);
        for (size_t block = 0; block < w->blocks; block++) {
            if (loaded != block) left = load(w, buffer, block);
            loaded = block;
            run_task(w, left, panel, block * w->block, i * TILE_WIDTH);
        }
    }
    tile_end(w->type);
}

/* Packs the rows row .. row + k - 1 of the panels from .. to - 1, a few rows of all panels at a
 * time, so that the processor can prefetch a wide operand. */
static void pack_chunk(const struct work *w, char *panels, size_t row, size_t k, size_t from,
                       size_t to)
{
    size_t size = tile_size(w->type), bytes = CHUNK * TILE_WIDTH * size;
    for (size_t p = 0; p < CHUNK; p += AHEAD)
        for (size_t i = from; i < to; i++) {
            size_t n = panel_columns(w, i), width = tile_width(n);
            char *panel = panels + (i - from) * bytes + p * width * size;
            if (p < k)
                tile_panel(panel, w->type, mat_at(w->right, row + p, i * TILE_WIDTH), false,
                           k - p < AHEAD ? k - p : AHEAD, n);
            else
                memset(panel, 0, AHEAD * width * size);
        }
}

/* Long sums over the rows of both operands, with the narrow one on the left. Rows are processed in
 * chunks, so that each is read once from end to end; the sums of each panel are kept until the last
 * chunk. */
static void run_chunks(const struct work *w, size_t from, size_t to, float *sums, char *buffer)
{
    size_t m = w->p.m, size = tile_size(w->type), step = m * TILE_WIDTH;
    char *panels = buffer + (m * CHUNK * size + 63) / 64 * 64;
    struct tile_left left = {buffer, CHUNK};
    for (size_t row = 0; row < w->p.k; row += CHUNK) {
        size_t k = w->p.k - row < CHUNK ? w->p.k - row : CHUNK;
        memset(buffer, 0, m * CHUNK * size);
        tile_turn(buffer, CHUNK, w->type, mat_at(w->left, row, 0), m, k);
        pack_chunk(w, panels, row, k, from, to);
        struct tile_shape s = {.type = w->type, .rows = m, .depth = CHUNK, .ldc = TILE_WIDTH};
        s.add = row > 0;
        for (size_t i = from; i < to; i++) {
            s.width = tile_width(panel_columns(w, i));
            tile_run(sums + i * step, left, panels + (i - from) * CHUNK * TILE_WIDTH * size, &s);
        }
    }
    for (size_t i = from; i < to; i++)
        for (size_t row = 0; row < m; row += TILE_WIDTH) {
            size_t rows = m - row < TILE_WIDTH ? m - row : TILE_WIDTH, col = i * TILE_WIDTH;
            const float *tile = sums + i * step + row * TILE_WIDTH;
            if (w->store_turned)
                store_turned(mat_at(w->out, col, row), tile, &w->p, rows, panel_columns(w, i));
            else
                store(mat_at(w->out, row, col), tile, &w->p, rows, panel_columns(w, i));
        }
}

static void chunks(struct backend_context *c, const struct work *w)
{
    size_t size = tile_size(w->type), threads = (size_t)c->threads;
    size_t own = (w->p.m * CHUNK * size + 63) / 64 * 64 + GROUP * CHUNK * TILE_WIDTH * size;
    size_t sums = w->panels * w->p.m * TILE_WIDTH * sizeof(float);
    char *scratch = cpu_scratch(c, sums + threads * own);
    if (!scratch) return;
#pragma omp parallel num_threads(c->threads) if (w->p.m * w->p.n * w->p.k > 100000)
    {
        size_t me = (size_t)cpu_thread(), all = (size_t)omp_get_num_threads();
        size_t from = w->panels * me / all, to = w->panels * (me + 1) / all;
        tile_begin(w->type, CHUNK);
        for (size_t i = from; i < to; i += GROUP)
            run_chunks(w, i, to - i < GROUP ? to : i + GROUP, (float *)(void *)scratch,
                       scratch + sums + me * own);
        tile_end(w->type);
    }
}

void cpu_product(struct backend_context *c, struct mat out, struct mat a, struct mat b,
                 const struct product_shape *p)
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
    w.panel_bytes = (w.depth * TILE_WIDTH * tile_size(w.type) + 63) / 64 * 64;
    if (w.left_turned && p->k >= CHUNKS_FROM) {
        chunks(c, &w);
        cpu_count(c, OP_LOW_RANK, since);
        return;
    }
    bool by_rows = w.panels * w.panel_bytes <= PANELS_BYTES && w.p.m > TILE_ROWS;
    w.block = by_rows ? TILE_ROWS : 5 * TILE_ROWS;
    w.blocks = (w.p.m + w.block - 1) / w.block;
    bool copied = w.left_turned || w.left.type != w.type || w.depth != p->k;
    size_t rows = w.p.m < w.block ? w.p.m : w.block, threads = (size_t)c->threads;
    size_t left_bytes = copied ? (rows * w.depth * tile_size(w.type) + 127) / 64 * 64 : 0;
    size_t panels = (by_rows ? w.panels : threads) * w.panel_bytes;
    char *scratch = cpu_scratch(c, panels + threads * left_bytes);
    if (!scratch) return;
#pragma omp parallel num_threads(c->threads) if (p->m * p->n * p->k > 100000)
    {
        size_t me = (size_t)cpu_thread();
        char *buffer = scratch + panels + me * left_bytes;
        if (by_rows)
            run_rows(&w, scratch, buffer);
        else
            run_columns(&w, scratch + me * w.panel_bytes, buffer);
    }
    cpu_count(c, OP_LOW_RANK, since);
}
