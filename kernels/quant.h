/* Frozen weights as they lie in files, to float32. Pure; `data` may be unaligned. Bit-exact with
 * ggml's own dequantisation (ggml-quants.c): x = d q, d q + m, and for the K formats d sc q - dmin
 * m, each product and sum in float32 in that order. */
#ifndef KERNELS_QUANT_H
#define KERNELS_QUANT_H

#include "base/dtype.h"

/* F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K, Q6_K. */
bool quant_known(enum dtype t);
/* n values of a known type to float32; n is a multiple of the type's block (32, K formats 256). */
void quant_to_f32(float *out /* (n) */, const void *data, enum dtype t, size_t n);

#endif
