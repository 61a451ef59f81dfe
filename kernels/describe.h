/* The libraries that compute, as text for reports and for the record of a run: equal bytes are
 * promised only for one type of processor (base/processor.h) and one set of library versions. */
#ifndef KERNELS_DESCRIBE_H
#define KERNELS_DESCRIBE_H

#include <stddef.h>

/* For example "oneDNN 2.6.0 avx512_core_amx, OpenBLAS 0.3.21 SkylakeX, glibc 2.36": each version
 * with the instruction set that the library uses. */
void describe_libraries(char *out, size_t bytes);

#endif
