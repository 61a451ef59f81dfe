/* What a fuzz target gives: libFuzzer's entry, and the files it starts from. With clang,
 *   clang -fsanitize=fuzzer,address,undefined tests/fuzz/NAME.c LIBRARIES
 * makes a fuzzer of it; linked with driver.c it is a test program that mutates the seeds a fixed
 * number of times, always the same way, and checks nothing but that the target returns. */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Paths from the source folder, NULL-terminated; those that are absent are left out. */
extern const char *const fuzz_seeds[];
extern const int fuzz_runs; /* mutations of each seed */

#endif
