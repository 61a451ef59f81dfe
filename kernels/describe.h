/* The processor and the libraries that compute on it, in words: for reports, and for the record of
 * a run, as equal bytes are promised for one processor type and one set of library versions. */
#ifndef KERNELS_DESCRIBE_H
#define KERNELS_DESCRIBE_H

#include <stddef.h>

void describe_processor(char *out,
                        size_t bytes); /* "Intel(R) Xeon(R) ...", or "unknown processor" */
/* "oneDNN 2.6.0 avx512_core_amx, OpenBLAS 0.3.21 SkylakeX, glibc 2.36": with what each makes of the
 * processor. */
void describe_libraries(char *out, size_t bytes);

#endif
