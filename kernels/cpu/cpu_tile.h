/* The small matrix kernel under low-rank products and attention: c (rows, width) = a (rows, k)
 * panel (k, width) in float32 accumulation, on whatever the processor has: AMX or AVX-512 BF16 for
 * bfloat16, AVX-512, AVX2 or plain C for float32. Where bfloat16 has no instructions, operands are
 * converted and float32 runs.
 *
 * A panel is the right operand copied side by side: width 16 or 32 columns, element (p, j) at
 * [p][j] as float32, or at [p / 2][j][p % 2] as bfloat16, with zeros where k or the columns end.
 * The left operand is row-major of the same type, in place or copied by tile_rows(). k is counted
 * padded: tile_depth(). */
#ifndef KERNELS_CPU_CPU_TILE_H
#define KERNELS_CPU_CPU_TILE_H

#include "kernels/backend.h"

enum { TILE_WIDTH = 32, TILE_ROWS = 48 };

struct tile_left {
    const void *data; /* (rows, depth), of the kernel's type */
    size_t ld;
};

enum dtype tile_type(enum dtype precision); /* what kernels of this precision run in */
size_t tile_size(enum dtype type);          /* bytes of an element */
size_t tile_depth(size_t k);                /* k rounded up to what panels hold */
static inline size_t tile_width(size_t n)
{
    return n <= 16 ? 16 : TILE_WIDTH;
}

/* A thread brackets its use of tile_run() with these: for one depth, or for multiples of 32 as
 * well. */
void tile_begin(enum dtype type, size_t depth);
void tile_end(enum dtype type);

/* c (rows, width), ld ldc; added to when `add`. */
struct tile_shape {
    enum dtype type;
    size_t rows, width, depth, ldc;
    bool add;
};
void tile_run(float *c, struct tile_left a, const void *panel, const struct tile_shape *s);

/* Panels from n <= width columns of b: `from` (k, n), or (n, k) when `turned`. */
void tile_panel(void *panel, enum dtype type, struct mat from, bool turned, size_t k, size_t n);
/* The same, always TILE_WIDTH wide (n may be 0). */
void tile_panel_wide(void *panel, enum dtype type, struct mat from, bool turned, size_t k,
                     size_t n);
/* Rows of a as a left operand: in place where type and depth allow, else copied to buffer (rows,
 * depth); `turned`: from is (k, rows). */
struct tile_left tile_rows(void *buffer, enum dtype type, struct mat from, bool turned, size_t rows,
                           size_t k);
/* to (rows, k), ld ld = from (k, rows) turned. */
void tile_turn(void *to, size_t ld, enum dtype type, struct mat from, size_t rows, size_t k);

#endif
