/* Measures aggregation. One run compares the speed of copies (memory to memory, and the files of
 * the updates from the page cache to memory) with that of means and stacks of the same updates.
 * Then it measures whole rounds and their peak memory, each in a separate process.
 * bench/recompress.c measures recompression.
 *
 *   bench_agg [--dir DIR] [--updates 64] [--rank 66] [--threads N]
 *
 * An update has the 210 modules of SmolLM2-135M; at rank 66 it has 80 MB. Copies, means and stacks
 * take turns, so that other work on the machine slows all of them. */
#include "agg/algebra/lowrank.h"
#include "agg/round/method_round.h"
#include "base/file.h"
#include "base/rng.h"
#include "base/text.h"
#include "bench/modules.h"

#include <fcntl.h>
#include <omp.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char base_digest[] =
    "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

static struct method_module modules[MODULES];
static char names[MODULES][64];
static const char *dir = "/tmp/fedlora-bench-agg";
static size_t updates = 64;
static uint32_t rank = 66;
static int threads;

static void must(err e)
{
    if (err_is(e)) fprintf(stderr, "bench_agg: %s\n", e.text);
    REQUIRE(!err_is(e));
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void path_of(char out[LIMIT_PATH_BYTES], const char *what, size_t n)
{
    snprintf(out, LIMIT_PATH_BYTES, "%s/%s.%zu", dir, what, n);
}

static float *random_floats(size_t n, uint64_t seed)
{
    struct rng rng;
    float *x = aligned_alloc(64, (n * sizeof *x + 63) / 64 * 64);
    if (!x) must(err_make(ERR_MACHINE, "no memory"));
    rng_init(&rng, "bench", seed, "", 0);
    rng_fill_uniform(&rng, x, n, 0.05);
    return x;
}

/* All updates are windows of one random block, at different offsets. */
static void make_update(size_t k, const char *method, const float *block)
{
    static struct adapter_file_module m[MODULES];
    char path[LIMIT_PATH_BYTES], member[32];
    snprintf(member, sizeof member, "m%zu", k);
    struct adapter_file_meta meta = {.kind = ADAPTER_FILE_UPDATE,
                                     .run = "bench",
                                     .method = method,
                                     .base = base_digest,
                                     .member = member,
                                     .round = 1,
                                     .rank = rank,
                                     .alpha = 2.0 * rank};
    for (size_t i = 0; i < MODULES; i++) {
        const float *x = block + (k * 977 + i * 131) % 65536;
        m[i] = (struct adapter_file_module){.name = names[i], .rank = rank};
        m[i].factor[0] =
            (struct adapter_file_factor){.f32 = x, .rows = rank, .cols = modules[i].d_in};
        m[i].factor[1] =
            (struct adapter_file_factor){.f32 = x + 4096, .rows = modules[i].d_out, .cols = rank};
    }
    path_of(path, "update", k);
    must(adapter_file_write(path, &meta, m, MODULES, true));
}

static struct method_start start_of(void)
{
    return (struct method_start){.run = "bench",
                                 .base = base_digest,
                                 .rank = rank,
                                 .alpha = 2.0 * rank,
                                 .module = modules,
                                 .module_count = MODULES};
}

static void print_memory(void)
{
    char line[256];
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, "VmHWM:", 6) == 0)
            printf("  peak memory %.0f MB", strtod(line + 6, NULL) / 1e3 * 1.024);
    if (f) fclose(f);
}

/* Runs in the child process: one round, its time and its peak memory. */
static int round_main(const char *method)
{
    struct contribution *c = calloc(updates, sizeof *c);
    char(*path)[LIMIT_PATH_BYTES] = calloc(updates, sizeof *path);
    char(*member)[32] = calloc(updates, sizeof *member), state[LIMIT_PATH_BYTES],
    after[LIMIT_PATH_BYTES];
    struct method_report report = {0};
    size_t bytes = 0;
    if (!c || !path || !member) return 1;
    path_of(state, method, 1);
    path_of(after, method, 2);
    for (size_t k = 0; k < updates; k++) {
        struct file_map map = {0};
        path_of(path[k], "update", k);
        snprintf(member[k], sizeof member[k], "m%zu", k);
        c[k] = (struct contribution){member[k], 1 + (double)(k % 3), path[k]};
        must(file_map_open(&map, path[k]));
        bytes += map.size;
        file_map_close(&map);
    }
    struct method_next next = {.state_path = state,
                               .contribution = c,
                               .count = updates,
                               .carry_error = 1e-4,
                               .rounds = 3,
                               .threads = threads};
    double t = now();
    must(method_next(&report, method_find(method), after, &next));
    t = now() - t;
    printf("  %-6s %3zu members %8.2f s  %6.2f GB/s of updates", method, updates, t,
           (double)bytes / 1e9 / t);
    print_memory();
    printf("\n");
    method_report_close(&report);
    free(c);
    free(path);
    free(member);
    return 0;
}

extern char **environ;

static void spawn_round(char *self, const char *method)
{
    char count[32], r[32], t[32];
    snprintf(count, sizeof count, "%zu", updates);
    snprintf(r, sizeof r, "%u", rank);
    snprintf(t, sizeof t, "%d", threads);
    char *args[] = {
        self, "--dir",   (char *)(uintptr_t)dir,    "--updates", count, "--rank", r, "--threads",
        t,    "--round", (char *)(uintptr_t)method, NULL};
    pid_t child;
    int status = 1;
    fflush(stdout);
    if (posix_spawn(&child, "/proc/self/exe", NULL, NULL, args, environ) != 0 ||
        waitpid(child, &status, 0) != child || status != 0)
        must(err_make(ERR_MACHINE, "the round of %s failed", method));
}

/* ---- copies, means and stacks ---- */

enum { TURNS = 5, PIECE = 1 << 20, COPIED = 512 << 20 };

struct rate { /* bytes per second in each turn */
    double turn[TURNS];
    int count;
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median over all turns. With `other`, the median of the ratios of two rates of the same
 * turn. */
static double beside(const struct rate *r, const struct rate *other)
{
    double ratio[TURNS];
    for (int i = 0; i < TURNS; i++)
        ratio[i] = r->turn[i] / (other ? other->turn[i] : 1);
    qsort(ratio, TURNS, sizeof *ratio, by_value);
    return ratio[TURNS / 2];
}

static void print_rate(const char *what, const struct rate *r, const struct rate *memory,
                       const struct rate *files)
{
    printf("  %-40s %6.2f GB/s", what, beside(r, NULL) / 1e9);
    if (memory)
        printf("   %4.0f %% of memory's, %4.0f %% of the files'", 100 * beside(r, memory),
               100 * beside(r, files));
    printf("\n");
}

static void add_turn(struct rate *r, double bytes, double begun)
{
    r->turn[r->count++] = bytes / (now() - begun);
}

/* Copies memory to memory, more than the caches hold. */
static void copy_memory(struct rate *rate, char *to, const char *from)
{
    double t = now();
#pragma omp parallel for num_threads(threads)
    for (size_t at = 0; at < COPIED; at += PIECE)
        memcpy(to + at, from + at, PIECE);
    add_turn(rate, COPIED, t);
}

/* Copies the file of every update from the page cache to one place in memory. */
static void copy_files(struct rate *rate, char *to, size_t bytes)
{
    double t = now();
    for (size_t k = 0; k < updates; k++) {
        char path[LIMIT_PATH_BYTES];
        path_of(path, "update", k);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) must(err_make(ERR_MACHINE, "%s: gone", path));
#pragma omp parallel for num_threads(threads)
        for (size_t at = 0; at < bytes; at += PIECE)
            if (pread(fd, to + at, bytes - at < PIECE ? bytes - at : PIECE, (off_t)at) < 0) abort();
        close(fd);
    }
    add_turn(rate, (double)(bytes * updates), t);
}

struct open_updates {
    struct adapter_file *file; /* (updates) */
    double bytes;
};

static void open_all(struct open_updates *u)
{
    u->file = calloc(updates, sizeof *u->file);
    if (!u->file) must(err_make(ERR_MACHINE, "no memory"));
    for (size_t k = 0; k < updates; k++) {
        char path[LIMIT_PATH_BYTES];
        path_of(path, "update", k);
        must(adapter_file_map(&u->file[k], path));
        u->bytes += (double)u->file[k].tensors.map.size;
    }
}

static void close_all(struct open_updates *u)
{
    for (size_t k = 0; k < updates; k++)
        adapter_file_close(&u->file[k]);
    free(u->file);
}

static void drop_update(const struct method_round *round, size_t k)
{
    adapter_file_drop(&((const struct adapter_file *)round->files)[k]);
}

/* Computes the means of A and B of one module in memory. */
static void mean_module(const struct open_updates *u, const double *p, size_t i)
{
    const struct adapter_file_module *update[LIMIT_MEMBERS];
    struct method_options none = {0};
    struct method_round round = {.update = update,
                                 .p = p,
                                 .count = updates,
                                 .options = &none,
                                 .server_lr = 1,
                                 .done = drop_update,
                                 .files = u->file};
    for (size_t k = 0; k < updates; k++)
        update[k] = adapter_file_find(&u->file[k], modules[i].name);
    round.module = update[0];
    for (int r = ADAPTER_FILE_A; r <= ADAPTER_FILE_B; r++) {
        const struct adapter_file_factor *x = &update[0]->factor[r];
        float *out = malloc((size_t)x->rows * x->cols * sizeof *out);
        if (!out) must(err_make(ERR_MACHINE, "no memory"));
        must(method_mean(out, &round, (enum adapter_file_role)r, (size_t)x->rows * x->cols));
        free(out);
    }
}

static void stack_done(void *context, size_t term)
{
    adapter_file_drop(&((const struct adapter_file *)context)[term]);
}

/* Computes the stack [c_1 B_1 | ...], [A_1; ...] of one module in memory. */
static void stack_module(const struct open_updates *u, const double *p, size_t i, float *room)
{
    struct lowrank_term term[LIMIT_MEMBERS];
    struct lowrank_stack s = {.m = modules[i].d_out,
                              .n = modules[i].d_in,
                              .term = term,
                              .count = updates,
                              .done = stack_done,
                              .context = u->file};
    for (size_t k = 0; k < updates; k++) {
        const struct adapter_file_module *m = adapter_file_find(&u->file[k], modules[i].name);
        term[k] = (struct lowrank_term){.c = p[k] * m->scale,
                                        .B = m->factor[ADAPTER_FILE_B].f32,
                                        .A = m->factor[ADAPTER_FILE_A].f32,
                                        .r = m->rank};
    }
    lowrank_pair(room, room + (size_t)s.m * lowrank_total(&s), &s);
}

static void all_modules(struct rate *rate, const struct open_updates *u, bool stack)
{
    double p[LIMIT_MEMBERS], t = now();
    for (size_t k = 0; k < updates; k++)
        p[k] = 1.0 / (double)updates;
#pragma omp parallel num_threads(threads)
    {
        float *room = stack ? malloc(4096 * updates * rank * sizeof *room) : NULL;
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < MODULES; i++) {
            if (stack)
                stack_module(u, p, i, room);
            else
                mean_module(u, p, i);
        }
        free(room);
    }
    add_turn(rate, u->bytes, t);
}

static void copies_means_stacks(void)
{
    struct rate memory = {0}, files = {0}, mean = {0}, stack = {0};
    struct open_updates u = {0};
    open_all(&u);
    size_t bytes = u.file[0].tensors.map.size;
    char *from = malloc(COPIED), *to = malloc(COPIED);
    if (!from || !to || bytes > COPIED) must(err_make(ERR_MACHINE, "no memory"));
    memset(from, 1, COPIED);
    memset(to, 1, COPIED);
    for (int turn = 0; turn < TURNS; turn++) {
        copy_memory(&memory, to, from);
        copy_files(&files, to, bytes);
        all_modules(&mean, &u, false);
        all_modules(&stack, &u, true);
    }
    printf("%zu updates of %.1f MB, %d threads; medians of %d turns, taken one after the other\n",
           updates, (double)bytes / 1e6, threads, TURNS);
    print_rate("copying memory to memory", &memory, NULL, NULL);
    print_rate("copying the files, page cache to memory", &files, NULL, NULL);
    print_rate("means of A and B", &mean, &memory, &files);
    print_rate("stacks [c B | ...], [A; ...]", &stack, &memory, &files);
    free(from);
    free(to);
    close_all(&u);
}

static void read_options(const char **round_of, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        int64_t n = 0;
        if (strcmp(argv[i], "--dir") == 0)
            dir = value;
        else if (strcmp(argv[i], "--round") == 0)
            *round_of = value;
        else {
            must(text_parse_int(&n, value, 1, 1 << 20));
            if (strcmp(argv[i], "--updates") == 0)
                updates = (size_t)n;
            else if (strcmp(argv[i], "--rank") == 0)
                rank = (uint32_t)n;
            else if (strcmp(argv[i], "--threads") == 0)
                threads = (int)n;
            else
                must(
                    err_make(ERR_INPUT, "%s: not an option; see the head of bench/agg.c", argv[i]));
        }
        i++;
    }
}

static void make_updates(const char *method, const float *block)
{
    for (size_t k = 0; k < updates; k++)
        make_update(k, method, block);
}

/* Whole rounds with few and with many members. The peak memory must not grow with their number. */
static void rounds(char *self, const float *block)
{
    static const char *const methods[] = {"fedit", "flora"};
    size_t many = updates;
    printf("\nwhole rounds, state written and flushed:\n");
    for (size_t m = 0; m < 2; m++) {
        char path[LIMIT_PATH_BYTES];
        struct method_start start = start_of();
        make_updates(methods[m], block);
        path_of(path, methods[m], 1);
        must(method_start(method_find(methods[m]), path, &start));
        if (many > 8) updates = 8;
        spawn_round(self, methods[m]);
        updates = many;
        spawn_round(self, methods[m]);
    }
}

int main(int argc, char **argv)
{
    const char *one = NULL;
    threads = omp_get_max_threads();
    read_options(&one, argc, argv);
    make_modules(modules, names);
    if (one) return round_main(one);
    must(file_make_dirs(dir));
    float *block = random_floats(1 << 20, 1);
    make_updates("fedit", block);
    copies_means_stacks();
    rounds(argv[0], block);
    free(block);
    return 0;
}
