/* Makes the operands of the tile kernel, panels and left rows, from row-major tensors
 * (cpu_tile.h). */
#include "kernels/cpu/cpu_tile.h"
#include "kernels/cpu/cpu_vector.h"

CPU_CLONES static void narrow(uint16_t *restrict to, const float *restrict from, size_t n)
{
    for (size_t j = 0; j < n; j++)
        to[j] = cpu_bf16(from[j]);
}

/* n values of a row in the type of the kernel: in place, or converted into buffer. */
static const void *typed(void *buffer, enum dtype type, struct mat m, size_t row, size_t col,
                         size_t n)
{
    if (m.type == type) return mat_at(m, row, col).data;
    if (type == DTYPE_F32) return cpu_row(buffer, m, row, col, n);
    narrow(buffer, mat_at(m, row, col).data, n);
    return buffer;
}

CPU_INLINE void interleave(uint32_t *restrict to, const uint16_t *x, const uint16_t *y, size_t n)
{
    for (size_t j = 0; j < n; j++)
        to[j] = (uint32_t)x[j] | (uint32_t)y[j] << 16;
}

/* Interleaves pairs of bfloat16 rows: (p, j) is next to (p + 1, j). */
CPU_CLONES static void interleave_rows(uint32_t *restrict panel, struct mat from, size_t pairs,
                                       size_t n)
{
    const uint16_t *x = from.data;
    for (size_t p = 0; p < pairs; p++, x += 2 * from.ld, panel += tile_width(n))
        if (n == TILE_WIDTH)
            interleave(panel, x, x + from.ld, TILE_WIDTH);
        else if (n == 16)
            interleave(panel, x, x + from.ld, 16);
        else
            interleave(panel, x, x + from.ld, n);
}

static void panel_pairs(uint32_t *panel, struct mat from, size_t k, size_t n, size_t width)
{
    static const uint16_t zero[TILE_WIDTH];
    uint16_t low[TILE_WIDTH], high[TILE_WIDTH];
    size_t p = 0;
    if (from.type == DTYPE_BF16 && (n == TILE_WIDTH || (n == 16 && width == 16))) {
        interleave_rows(panel, from, k / 2, n);
        p = k / 2 * 2;
    }
    for (; p < tile_depth(k); p += 2) {
        uint32_t *to = panel + p / 2 * width;
        const uint16_t *x = p < k ? typed(low, DTYPE_BF16, from, p, 0, n) : zero;
        const uint16_t *y = p + 1 < k ? typed(high, DTYPE_BF16, from, p + 1, 0, n) : zero;
        interleave(to, x, y, n);
        if (n < width) memset(to + n, 0, (width - n) * 4);
    }
}

static void panel_floats(float *panel, struct mat from, size_t k, size_t n, size_t width)
{
    float buffer[TILE_WIDTH];
    memset(panel + k * width, 0, (tile_depth(k) - k) * width * 4);
    for (size_t p = 0; p < k; p++) {
        memcpy(panel + p * width, typed(buffer, DTYPE_F32, from, p, 0, n), n * 4);
        if (n < width) memset(panel + p * width + n, 0, (width - n) * 4);
    }
}

/* Columns of the panel are rows of `from`, so neighbouring values of a row go to different lines of
 * the panel. Units have four bytes (a float or a pair of bfloat16). 16 lines are written at a time,
 * so that they stay in the first cache. */
CPU_CLONES static void spread_units(uint32_t *restrict panel,
                                    const uint32_t *const line[TILE_WIDTH], size_t units,
                                    size_t width)
{
    for (size_t u = 0; u < units; u += 16) {
        size_t most = units - u < 16 ? units - u : 16;
        for (size_t j = 0; j < width; j++)
            for (size_t i = 0; i < most; i++)
                panel[(u + i) * width + j] = line[j][u + i];
    }
}

static void panel_turned(void *panel, enum dtype type, struct mat from, size_t k, size_t n,
                         size_t width)
{
    size_t per = type == DTYPE_F32 ? 1 : 2, depth = tile_depth(k);
    for (size_t first = 0; first < depth; first += CPU_CHUNK / 8) {
        _Alignas(64) uint32_t rows[TILE_WIDTH][CPU_CHUNK / 8];
        size_t count = depth - first < CPU_CHUNK / 8 ? depth - first : CPU_CHUNK / 8;
        const uint32_t *line[TILE_WIDTH];
        for (size_t j = 0; j < width; j++) {
            size_t have = j >= n || first >= k ? 0 : k - first < count ? k - first : count;
            if (have < count) memset(rows[j], 0, count * 4 / per);
            if (have) {
                const void *x = typed(rows[j], type, from, j, first, have);
                if (x != rows[j]) memcpy(rows[j], x, have * tile_size(type));
            }
            line[j] = rows[j];
        }
        spread_units((uint32_t *)panel + first / per * width, line, count / per, width);
    }
}

static void any_panel(void *panel, enum dtype type, struct mat from, bool turned, size_t k,
                      size_t n, size_t width)
{
    if (turned)
        panel_turned(panel, type, from, k, n, width);
    else if (type == DTYPE_F32)
        panel_floats(panel, from, k, n, width);
    else
        panel_pairs(panel, from, k, n, width);
}

void tile_panel(void *panel, enum dtype type, struct mat from, bool turned, size_t k, size_t n)
{
    any_panel(panel, type, from, turned, k, n, tile_width(n));
}
void tile_panel_wide(void *panel, enum dtype type, struct mat from, bool turned, size_t k, size_t n)
{
    any_panel(panel, type, from, turned, k, n, TILE_WIDTH);
}

void tile_turn(void *to, size_t ld, enum dtype type, struct mat from, size_t rows, size_t k)
{
    for (size_t p = 0; p < k; p++)
        for (size_t first = 0; first < rows; first += CPU_CHUNK) {
            uint32_t line[CPU_CHUNK];
            size_t n = rows - first < CPU_CHUNK ? rows - first : CPU_CHUNK;
            const void *x = typed(line, type, from, p, first, n);
            for (size_t i = 0; i < n && type == DTYPE_F32; i++)
                ((float *)to)[(first + i) * ld + p] = ((const float *)x)[i];
            for (size_t i = 0; i < n && type != DTYPE_F32; i++)
                ((uint16_t *)to)[(first + i) * ld + p] = ((const uint16_t *)x)[i];
        }
}

struct tile_left tile_rows(void *buffer, enum dtype type, struct mat from, bool turned, size_t rows,
                           size_t k)
{
    size_t depth = tile_depth(k), size = tile_size(type);
    if (turned) {
        memset(buffer, 0, rows * depth * size);
        tile_turn(buffer, depth, type, from, rows, k);
        return (struct tile_left){buffer, depth};
    }
    if (from.type == type && depth == k) return (struct tile_left){from.data, from.ld};
    for (size_t i = 0; i < rows; i++) {
        char *to = (char *)buffer + i * depth * size;
        for (size_t col = 0; col < k; col += CPU_CHUNK) {
            size_t n = k - col < CPU_CHUNK ? k - col : CPU_CHUNK;
            const void *x = typed(to + col * size, type, from, i, col, n);
            if (x != to + col * size) memcpy(to + col * size, x, n * size);
        }
        memset(to + k * size, 0, (depth - k) * size);
    }
    return (struct tile_left){buffer, depth};
}
