/* Checks and measures a GPU with the backend that --device cuda uses (libfedlora_cuda.so beside the
 * program, or FEDLORA_CUDA).
 *
 *   cuda_check version                    device, driver, CUDA, build
 *   cuda_check ceilings [tiny]            bandwidth of a copy, rates of products
 *   cuda_check digest FILE [write]        results of kernels, bit for bit against those of the CPU
 *   cuda_check parity [small] [NAME...]   operations against float64: tests/parity/operations*.c
 *   cuda_check rows|repeat|graph... [MODEL]   the same bits alone, again, and recorded
 *   cuda_check golden [DIR [NAME...]]     the golden cases below DIR, which has tests/golden/cases
 *   cuda_check time [tiny] [MODEL...]     time of each operation, and its share of the limit
 *
 * The exit status is 1 if a check failed, 2 for wrong arguments or without a GPU. */
#include "bench/gpu/check.h"
#include "kernels/quant.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* tests/support/operations.h takes its backend from here; the main() of plain.c has this name. */
const struct backend *operations_backend;
int plain_main(int argc, char **argv);

void check_must(err e)
{
    if (!err_is(e)) return;
    printf("cuda_check: %s\n", e.text);
    exit(2);
}

bool check_has(const struct check_arguments *a, const char *word)
{
    for (int i = 0; i < a->count; i++)
        if (!strcmp(a->text[i], word)) return true;
    return false;
}

/* ---- Tensors */
enum { HELD_MAX = 1024 };
static struct {
    void *memory[HELD_MAX], *host[HELD_MAX];
    struct backend_weight *weight[HELD_MAX];
    struct backend_batch *batch[HELD_MAX];
    size_t memories, hosts, weights, batches;
} held;

static void *host_take(size_t bytes)
{
    void *memory = held.hosts < HELD_MAX ? calloc(1, bytes ? bytes : 1) : NULL;
    if (!memory) check_must(err_make(ERR_MACHINE, "no memory"));
    return held.host[held.hosts++] = memory;
}

void *check_take(size_t bytes)
{
    void *memory = NULL;
    if (held.memories == HELD_MAX) check_must(err_make(ERR_LIMIT, "too many tensors"));
    check_must(gpu->memory_take(&memory, gpu_context, bytes));
    return held.memory[held.memories++] = memory;
}

void check_free(void)
{
    check_must(gpu->check(gpu_context));
    for (size_t i = 0; i < held.batches; i++)
        gpu->batch_close(held.batch[i]);
    for (size_t i = 0; i < held.weights; i++)
        gpu->weight_close(held.weight[i]);
    for (size_t i = 0; i < held.memories; i++)
        gpu->memory_give(gpu_context, held.memory[i]);
    for (size_t i = 0; i < held.hosts; i++)
        free(held.host[i]);
    memset(&held, 0, sizeof held);
}

float *check_floats(size_t n, struct check_values v)
{
    float *out = host_take(n * sizeof *out);
    gpu_fill(out, n, v.whole ? v.bound + 1.0f : v.bound);
    for (size_t i = 0; v.whole && i < n; i++)
        out[i] = (float)(int)out[i];
    return out;
}

float *check_floats_device(size_t n, struct check_values v)
{
    float *out = check_take(n * sizeof *out);
    gpu->copy_in(gpu_context, out, check_floats(n, v), n * sizeof *out);
    return out;
}

/* Linear operations may write rows up to a multiple of BACKEND_ROWS. */
struct mat check_empty(enum dtype type, size_t rows, size_t cols)
{
    size_t room = (rows + BACKEND_ROWS) / BACKEND_ROWS * BACKEND_ROWS;
    struct mat m = {NULL, type, cols};
    m.data = check_take(room * cols * (type == DTYPE_F32 ? 4 : 2));
    return m;
}

/* Large tensors repeat a pool of values, because random numbers for all would take long. */
struct mat check_random(enum dtype type, size_t rows, size_t cols, struct check_values v)
{
    enum { POOL = 1 << 20 };
    struct mat to = check_empty(type, rows, cols);
    size_t n = rows * cols, size = type == DTYPE_F32 ? 4 : 2, pool = n < POOL ? n : POOL;
    struct mat from = {check_floats_device(pool, v), DTYPE_F32, pool};
    for (size_t at = 0; at < n; at += pool) {
        size_t part = n - at < pool ? n - at : pool;
        struct mat place = {(char *)to.data + at * size, type, part};
        gpu->convert(gpu_context, place, from, 1, part, 1.0f);
    }
    return to;
}

struct backend_weight *check_weight(size_t n, size_t k, struct check_values v, unsigned products)
{
    enum { POOL_ROWS = 1024 };
    size_t pool = n < POOL_ROWS ? n : POOL_ROWS;
    uint16_t *value = host_take(n * k * sizeof *value);
    const float *some = check_floats(pool * k, v);
    for (size_t i = 0; i < pool * k; i++)
        value[i] = bf16_from_f32(some[i]);
    for (size_t row = pool; row < n; row++)
        memcpy(value + row * k, value + row % pool * k, k * sizeof *value);
    struct weight_source s = {.n = n, .k = k, .parts = 1, .products = products};
    s.part[0] = (struct weight_part){value, DTYPE_BF16, (uint32_t)n, 0};
    if (held.weights == HELD_MAX) check_must(err_make(ERR_LIMIT, "too many weights"));
    struct backend_weight *w = NULL;
    check_must(gpu->weight_pack(&w, gpu_context, &s));
    return held.weight[held.weights++] = w;
}

struct backend_batch *check_batch(size_t rows, size_t length, uint32_t vocab, float dropout)
{
    size_t tokens = rows * length;
    int32_t *id = host_take(tokens * 4), *target = host_take(tokens * 4);
    uint32_t *start = host_take((rows + 1) * 4), *position = host_take(tokens * 4);
    uint32_t *index = host_take(tokens * 4), x = 99;
    for (size_t i = 0; i < tokens; i++) {
        x = x * 1664525u + 1013904223u;
        id[i] = (int32_t)((x >> 8) % vocab);
        target[i] = (int32_t)((x >> 9) % vocab);
        position[i] = (uint32_t)(i % length);
        index[i] = (uint32_t)i;
    }
    for (size_t i = 0; i <= rows; i++)
        start[i] = (uint32_t)(i * length);
    struct batch_rows r = {.tokens = tokens,
                           .rows = rows,
                           .learned = tokens,
                           .id = id,
                           .start = start,
                           .position = position,
                           .index = index,
                           .target = target,
                           .gradient_scale = 0.5f,
                           .dropout = dropout,
                           .dropout_key = 42};
    struct backend_batch *b = NULL;
    if (held.batches == HELD_MAX) check_must(err_make(ERR_LIMIT, "too many batches"));
    check_must(gpu->batch_open(&b, gpu_context, &r));
    gpu->batch_set(gpu_context, b, &r);
    return held.batch[held.batches++] = b;
}

void *check_bytes(const struct mat *m, size_t rows, size_t cols)
{
    size_t size = m->type == DTYPE_F32 ? 4 : 2;
    char *out = host_take(rows * cols * size), *all = host_take(rows * m->ld * size);
    gpu->copy_out(gpu_context, all, m->data, rows ? ((rows - 1) * m->ld + cols) * size : 0);
    check_must(gpu->check(gpu_context));
    for (size_t i = 0; i < rows; i++)
        memcpy(out + i * cols * size, all + i * m->ld * size, cols * size);
    return out;
}

/* ---- Subcommands of this file */
static int version(const struct check_arguments *a)
{
    (void)a;
    printf("fedlora " FEDLORA_VERSION ", backend %s, build " FEDLORA_BACKEND_BUILD "%s\n",
           gpu->name, gpu_is_emulated() ? "; emulated on the CPU, so times mean nothing" : "");
    if (gpu_name()[0]) printf("device  %s\n", gpu_name());
    return 0;
}

/* Runs the tests whose names contain one of the words. */
static int run_tests(const char *const *word, int words)
{
    enum { WORDS_MAX = 64 };
    char *argument[WORDS_MAX] = {(char *)(uintptr_t) "cuda_check"};
    int count = 1;
    for (int i = 0; i < words && count < WORDS_MAX; i++)
        argument[count++] = (char *)(uintptr_t)word[i];
    return plain_main(count, argument);
}

/* compute-sanitizer makes kernels 10 to 100 times slower, so `small` leaves out large tensors. */
static int parity(const struct check_arguments *a)
{
    static const char *const every[] = {"operations/", "operations_"};
    static const char *const small[] = {
        "operations/",       "operations_elementwise/", "/linear_",  "/embed_",
        "needs_no_gradient", "/modules_of_different",   "/dropout_", "/load_",
        "/set_takes_",       "/a_row_does_not_",        "/decode_"};
    bool less = check_has(a, "small");
    if (a->count > less) return run_tests((const char *const *)a->text + less, a->count - less);
    return less ? run_tests(small, sizeof small / sizeof small[0]) : run_tests(every, 2);
}

static int golden(const struct check_arguments *a)
{
    static const char *const every[] = {"engine/"};
    if (a->count && chdir(a->text[0])) check_must(err_sys(errno, "%s", a->text[0]));
    if (access("tests/golden/cases", R_OK)) check_must(err_sys(errno, "tests/golden/cases"));
    if (a->count > 1) return run_tests((const char *const *)a->text + 1, a->count - 1);
    return run_tests(every, 1);
}

static const struct {
    const char *name;
    int (*run)(const struct check_arguments *a);
} command[] = {
    {"version", version},  {"ceilings", check_ceilings}, {"digest", check_digest},
    {"parity", parity},    {"rows", check_same},         {"repeat", check_same},
    {"graph", check_same}, {"golden", golden},           {"time", check_time},
};

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0); /* each line is there when the program is killed */
    for (size_t i = 0; argc > 1 && i < sizeof command / sizeof command[0]; i++) {
        if (strcmp(command[i].name, argv[1]) != 0) continue;
        struct check_arguments a = {argv + 2, argc - 2};
        if (command[i].run == check_same) a = (struct check_arguments){argv + 1, argc - 1};
        check_must(gpu_open("cuda"));
        operations_backend = gpu;
        setenv("FEDLORA_TEST_DEVICE", "cuda", 1);
        int failed = command[i].run(&a);
        if (failed >= 0) return failed > 0;
    }
    fprintf(stderr,
            "usage: cuda_check version|ceilings|digest FILE|parity|rows|repeat|graph|golden|time"
            " [tiny|small|write] [NAME...]\n");
    return 2;
}
