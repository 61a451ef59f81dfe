/* Captures the output that a function writes to standard output or standard error. */
#ifndef TESTS_SUPPORT_CAPTURE_H
#define TESTS_SUPPORT_CAPTURE_H

#include <stddef.h>

/* Calls the function and stores its output of `fd` (1 or 2) in `out`, zero-terminated and cut to
 * `bytes`. The output must fit a pipe (64 KiB), because it is read only after the function has
 * returned. */
void capture(char *out, size_t bytes, int fd, void (*write)(void));

#endif
