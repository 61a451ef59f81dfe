/* The interface of a fuzz target: libFuzzer's entry function and the seed files. In the preset
 * "fuzz" the target is linked with libFuzzer. In the others it is linked with driver.c, which
 * mutates the seeds a fixed number of times, always in the same way; the test passes when no
 * call crashes. */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Paths relative to the source folder, NULL-terminated; absent files are left out. */
extern const char *const fuzz_seeds[];
extern const int fuzz_runs; /* mutations of each seed */

#endif
