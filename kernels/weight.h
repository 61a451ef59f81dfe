/* Rows of a frozen weight as float32, from the parts in which the file has them. */
#ifndef KERNELS_WEIGHT_H
#define KERNELS_WEIGHT_H

#include "kernels/backend.h"

/* Rows row .. row + count - 1 of one part with k columns, in the row order of Hugging Face. */
void weight_part_rows(float *out /* (count, k) */, const struct weight_part *p, size_t k,
                      size_t row, size_t count);
/* The same of the whole W, whose rows may lie in several parts. */
void weight_source_rows(float *out /* (count, k) */, const struct weight_source *s, size_t row,
                        size_t count);

#endif
