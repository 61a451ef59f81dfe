/* The subcommands of cuda_check. Each prints its results line by line and returns the number of
 * checks that failed, or -1 for arguments that it does not know. */
#ifndef BENCH_GPU_CHECK_H
#define BENCH_GPU_CHECK_H

#include "bench/gpu/gpu.h"

struct check_arguments { /* without the name of the subcommand */
    char **text;
    int count;
};
int check_digest(const struct check_arguments *a);   /* check_digest.c */
int check_same(const struct check_arguments *a);     /* check_rows.c */
int check_ceilings(const struct check_arguments *a); /* check_time.c */
int check_time(const struct check_arguments *a);

/* Whether one of the arguments is this word. */
bool check_has(const struct check_arguments *a, const char *word);
/* Ends the program with a message after an error. */
void check_must(err e);

/* ---- Tensors on the device. They are freed by check_free(), all at once. */
void *check_take(size_t bytes);
void check_free(void);
/* Uniform values in [-bound, bound); with `whole`, integers in [-bound, bound], so that sums of
 * products of them are exact in any order. */
struct check_values {
    float bound;
    bool whole;
};
struct mat check_random(enum dtype type, size_t rows, size_t cols, struct check_values v);
struct mat check_empty(enum dtype type, size_t rows, size_t cols); /* zeros */
float *check_floats(size_t n, struct check_values v);              /* on the host */
float *check_floats_device(size_t n, struct check_values v);
/* A weight of bfloat16 values in the precision of gpu_context. */
struct backend_weight *check_weight(size_t n, size_t k, struct check_values v, unsigned products);
/* Rows of equal length. Each token is learned and has random ids below `vocab`. */
struct backend_batch *check_batch(size_t rows, size_t length, uint32_t vocab, float dropout);
/* Bytes (rows, cols) of a tensor without its margins, in host memory that check_free() frees. */
void *check_bytes(const struct mat *m, size_t rows, size_t cols);

#endif
