/* The small matrix kernel of low-rank products and attention: c (rows, width) = a (rows, k) panel
 * (k, width), accumulated in float32. It uses AMX or AVX-512 BF16 for bfloat16, and AVX-512, AVX2
 * or plain C for float32, as the processor has them. Without bfloat16 instructions, operands are
 * converted to float32.
 *
 * A panel is the right operand, copied so that its columns lie together: width 16 or 32 columns,
 * with element (p, j) at [p][j] for float32 and at [p / 2][j][p % 2] for bfloat16, and zeros beyond
 * k and beyond the last column. The left operand is row-major of the same type, in place or copied
 * by tile_rows(). k is always the padded k of tile_depth(). */
#ifndef KERNELS_CPU_CPU_TILE_H
#define KERNELS_CPU_CPU_TILE_H

#include "kernels/backend.h"

enum { TILE_WIDTH = 32, TILE_ROWS = 48 };

struct tile_left {
    const void *data; /* (rows, depth), in the type of the kernel */
    size_t ld;
};

enum dtype tile_type(enum dtype precision); /* type of the operands for this precision */
size_t tile_size(enum dtype type);          /* bytes of an element */
size_t tile_depth(size_t k);                /* k rounded up to the depth of panels */
static inline size_t tile_width(size_t n)
{
    return n <= 16 ? 16 : TILE_WIDTH;
}

/* A thread calls tile_begin() before and tile_end() after its calls of tile_run(). They configure
 * the AMX tiles for one depth, which also serves depths that are multiples of 32. */
void tile_begin(enum dtype type, size_t depth);
void tile_end(enum dtype type);

/* c is (rows, width) with row distance ldc; with `add` the product is added to c. */
struct tile_shape {
    enum dtype type;
    size_t rows, width, depth, ldc;
    bool add;
};
void tile_run(float *c, struct tile_left a, const void *panel, const struct tile_shape *s);

/* Makes a panel of n <= width columns from `from` (k, n), or with `turned` from its transpose (n,
 * k). */
void tile_panel(void *panel, enum dtype type, struct mat from, bool turned, size_t k, size_t n);
/* The same, always TILE_WIDTH columns wide; n may be 0. */
void tile_panel_wide(void *panel, enum dtype type, struct mat from, bool turned, size_t k,
                     size_t n);
/* Makes a left operand: in place if type and depth allow it, else copied to buffer (rows, depth).
 * With `turned`, `from` is (k, rows). */
struct tile_left tile_rows(void *buffer, enum dtype type, struct mat from, bool turned, size_t rows,
                           size_t k);
/* to (rows, k), with row distance ld, = transpose of from (k, rows). */
void tile_turn(void *to, size_t ld, enum dtype type, struct mat from, size_t rows, size_t k);

#endif
