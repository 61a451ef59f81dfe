/* The processor of this machine, for reports and for the record of a run. */
#ifndef BASE_PROCESSOR_H
#define BASE_PROCESSOR_H

#include <stddef.h>

/* For example "Intel(R) Xeon(R) Platinum 8480+", or "unknown processor". */
void processor_name(char *out, size_t bytes);

#endif
