/* Helpers of the programs in tests/threads. They are plain programs, because Criterion and gRPC
 * cannot run under the thread sanitizer (preset "tsan"). A program returns 0 when its checks
 * hold; the sanitizer reports races. */
#ifndef TESTS_THREADS_THREADS_H
#define TESTS_THREADS_THREADS_H

#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>

/* Ends the program with the line of the first check that does not hold. */
#define CHECK(x)                                                                                   \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #x);                  \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static inline void check_ok(err e, const char *file, int line)
{
    if (!err_is(e)) return;
    fprintf(stderr, "%s:%d: %s\n", file, line, e.text);
    exit(1);
}
#define CHECK_OK(call) check_ok((call), __FILE__, __LINE__)

#endif
