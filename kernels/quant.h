/* Frozen weights in their file formats, converted to float32. Pure functions; `data` may be
 * unaligned. Bit-exact with the dequantisation of ggml (ggml-quants.c): x = d q, x = d q + m, and
 * for the K formats x = d sc q - dmin m, where each product and sum is rounded to float32 in that
 * order. The formats IQ4 and MXFP4 take the value of q from a table. */
#ifndef KERNELS_QUANT_H
#define KERNELS_QUANT_H

#include "base/dtype.h"

/* True for F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS and MXFP4. */
bool quant_known(enum dtype t);
/* Converts n values of a known type; n is a multiple of the block of the type (32, K formats
 * and IQ4_XS 256). */
void quant_to_f32(float *out /* (n) */, const void *data, enum dtype t, size_t n);

#endif
