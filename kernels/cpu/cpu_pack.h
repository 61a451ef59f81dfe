/* The layouts in which oneDNN reads the right operand of a product. They are written here and not
 * by oneDNN, so that all threads of a parallel region can write an operand together.
 *
 * The blocked layout is for the products with AVX-512. An operand (depth, width) is divided into
 * panels of PACK_WIDTH columns, and a panel into tiles of 16 rows (float32) or 32 rows (bfloat16).
 * A tile is 16 rows of 32-bit words, one word for each column: one float32 value, or the bfloat16
 * values of two rows. Rows and columns beyond the operand are zero. The tiles of a panel follow
 * each other, and so do the panels. The plain layout is row-major without padding.
 *
 * For W (n, k) the forward operand is W^T (k, n) and the backward operand is W (n, k). Each is
 * written from a few rows of W at a time, and the backward one can also be made from the forward
 * one. The functions are pure. Calls for different groups or blocks write different memory. */
#ifndef KERNELS_CPU_CPU_PACK_H
#define KERNELS_CPU_CPU_PACK_H

#include "base/dtype.h"

#include <stdbool.h>
#include <stddef.h>

enum { PACK_ROWS = 16, PACK_WIDTH = 64 };

bool pack_can_block(void); /* the processor has AVX-512, which the blocked layout needs */

struct pack_shape {  /* of W (n, k) */
    enum dtype type; /* DTYPE_F32 or DTYPE_BF16 */
    size_t n, k;
    bool blocked;
};
size_t pack_bytes(const struct pack_shape *s, bool back);

/* Groups of PACK_ROWS rows of W in an operand, those of its padding included. */
size_t pack_groups(const struct pack_shape *s, bool back);
/* Distance between the rows given to pack_rows(), in values. */
size_t pack_ld(const struct pack_shape *s);
/* Writes rows PACK_ROWS * group, ... of W into an operand. `rows` (PACK_ROWS, pack_ld) has the type
 * of the operand, and zeros for rows and columns beyond W. */
void pack_rows(void *to, const struct pack_shape *s, bool back, const void *rows, size_t group);

/* The backward operand is made from the forward one in so many independent blocks. */
size_t pack_blocks(const struct pack_shape *s);
void pack_turn(void *back, const struct pack_shape *s, const void *forward, size_t block);

#endif
