/* What a function writes to standard output or standard error. */
#ifndef TESTS_SUPPORT_CAPTURE_H
#define TESTS_SUPPORT_CAPTURE_H

#include <stddef.h>

/* fd 1 or 2. The text, zero-terminated, cut to `bytes`; it must fit a pipe (64 KiB). */
void capture(char *out, size_t bytes, int fd, void (*write)(void));

#endif
