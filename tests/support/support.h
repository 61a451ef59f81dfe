/* Helpers of all tests: paths, scratch folders, distances between float arrays, and checks of
 * errors. Every test program links it; it may use Criterion. */
#ifndef TESTS_SUPPORT_SUPPORT_H
#define TESTS_SUPPORT_SUPPORT_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>

enum { SUPPORT_PATH_BYTES = 4096 };

/* Fails the test at the caller's line when `call` returns an error. */
#define ok(call) support_ok((call), #call, __FILE__, __LINE__)
void support_ok(err e, const char *call, const char *file, int line);

/* Fails the test unless `call` fails with this kind and its text contains `part`. */
#define refused(call, kind, part) support_refused((call), (kind), (part), #call, __FILE__, __LINE__)
void support_refused(err e, enum err_kind kind, const char *part, const char *call,
                     const char *file, int line);

/* The path of ../shared/NAME from the source folder. Skips the test when it is absent;
 * the message has the name. */
void support_shared(char *out, size_t bytes, const char *name);
bool support_has_shared(const char *name);
/* The path of a file of this repository. */
void support_source(char *out, size_t bytes, const char *name);

/* The device that a test of the engine uses: "cpu", or FEDLORA_TEST_DEVICE. tests/run.sh runs the
 * programs that call this, or setup_engine(), once more with the CUDA backend on the CPU
 * (docs/cuda_on_cpu.md). */
const char *support_device(void);

/* Makes an empty folder under TMPDIR for this test alone; removes a folder and its content. */
void support_dir_make(char out[SUPPORT_PATH_BYTES]);
void support_dir_remove(const char *dir);

/* |got - want| / |want| in the Frobenius norm, summed in double; NaN anywhere gives infinity. */
double support_distance(const float *got, const float *want, size_t n);
/* The largest |got - want| over the largest |want|. */
double support_distance_max(const float *got, const float *want, size_t n);

#endif
