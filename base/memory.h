/* The memory that this process can still use. */
#ifndef BASE_MEMORY_H
#define BASE_MEMORY_H

#include <stdint.h>

/* Bytes that can be taken without swapping: MemAvailable of the kernel, or less if a control group
 * of the process has a limit. The page cache counts as available, because the kernel gives it back.
 * UINT64_MAX if the system does not tell. */
uint64_t memory_available(void);
/* The same for the system files below `root`; "" is the real system. */
uint64_t memory_available_under(const char *root);

#endif
