/* Aggregation: means of many updates against plain copying in the same run, whole rounds with their
 * peak memory (each in a process of its own), and recompression against the dense SVD.
 *
 *   bench_agg [--dir DIR] [--updates 64] [--rank 32] [--dense 2048] [--threads N]
 *
 * Updates are of SmolLM2-135M's 210 modules; at rank 32 one is 39 MB. --dense: the side of the
 * dense SVD that is timed; its time at other shapes is scaled by min^2 max. */
#include "agg/lowrank.h"
#include "agg/method.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/rng.h"
#include "base/text.h"

#include <lapacke.h>
#include <omp.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char base_digest[] =
    "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
enum { LAYERS = 30, KINDS = 7, MODULES = LAYERS * KINDS };
static const struct {
    const char *name;
    uint32_t d_out, d_in;
} kinds[KINDS] = {{"self_attn.q_proj", 576, 576}, {"self_attn.k_proj", 192, 576},
                  {"self_attn.v_proj", 192, 576}, {"self_attn.o_proj", 576, 576},
                  {"mlp.gate_proj", 1536, 576},   {"mlp.up_proj", 1536, 576},
                  {"mlp.down_proj", 576, 1536}};

static struct method_module modules[MODULES];
static char names[MODULES][64];
static const char *dir = "/tmp/fedlora-bench-agg";
static size_t updates = 64;
static uint32_t rank = 32;
static size_t dense_side = 2048;
static int threads;

static void must(err e)
{
    if (err_is(e)) fprintf(stderr, "bench_agg: %s\n", e.text);
    REQUIRE(!err_is(e));
}

static double now(void)
{
    return (double)text_now_ms() / 1000;
}

static void path_of(char out[LIMIT_PATH_BYTES], const char *what, size_t n)
{
    snprintf(out, LIMIT_PATH_BYTES, "%s/%s.%zu", dir, what, n);
}

static void make_modules(void)
{
    for (size_t i = 0; i < MODULES; i++) {
        snprintf(names[i], sizeof names[i], "model.layers.%zu.%s", i / KINDS,
                 kinds[i % KINDS].name);
        modules[i] =
            (struct method_module){names[i], kinds[i % KINDS].d_out, kinds[i % KINDS].d_in};
    }
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

/* Updates differ in where in one random block they begin. */
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

/* The child: one round, timed, with its peak memory. */
static int round_main(const char *method, bool no_report)
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
                               .no_report = no_report,
                               .threads = threads};
    double t = now();
    must(method_next(&report, method_find(method), after, &next));
    t = now() - t;
    printf("%-7s%-12s %6.2f s  %6.2f GB/s of updates", method, no_report ? " (mean only)" : "", t,
           (double)bytes / 1e9 / t);
    print_memory();
    if (!no_report)
        printf("  rank %u, relative error %.1e", report.total.rank,
               report.total.error / report.total.update_norm);
    printf("\n");
    method_report_close(&report);
    free(c);
    free(path);
    free(member);
    return 0;
}

extern char **environ;

static void spawn_round(char *self, const char *method, bool no_report)
{
    char count[32], r[32], t[32];
    snprintf(count, sizeof count, "%zu", updates);
    snprintf(r, sizeof r, "%u", rank);
    snprintf(t, sizeof t, "%d", threads);
    char *args[] = {self,
                    "--dir",
                    (char *)(uintptr_t)dir,
                    "--updates",
                    count,
                    "--rank",
                    r,
                    "--threads",
                    t,
                    "--round",
                    (char *)(uintptr_t)method,
                    no_report ? "--no-report" : NULL,
                    NULL};
    pid_t child;
    int status = 1;
    fflush(stdout);
    if (posix_spawn(&child, "/proc/self/exe", NULL, NULL, args, environ) != 0 ||
        waitpid(child, &status, 0) != child || status != 0)
        must(err_make(ERR_MACHINE, "the round of %s failed", method));
}

/* Bytes copied a second, all threads together. */
static double copy_rate(void)
{
    size_t n = 256u << 20;
    char *from = malloc(n), *to = malloc(n);
    double best = 0;
    if (!from || !to) must(err_make(ERR_MACHINE, "no memory"));
    memset(from, 1, n);
    memset(to, 2, n);
    for (int round = 0; round < 5; round++) {
        double t = now();
        for (int again = 0; again < 4; again++) {
#pragma omp parallel for num_threads(threads)
            for (int part = 0; part < threads; part++)
                memcpy(to + n / (size_t)threads * (size_t)part,
                       from + n / (size_t)threads * (size_t)part, n / (size_t)threads);
        }
        double rate = 4.0 * (double)n / (now() - t);
        if (rate > best) best = rate;
    }
    free(from);
    free(to);
    return best;
}

/* ---- recompression ---- */

static double time_dense(size_t side)
{
    float *x = random_floats(side * side, 5);
    double *a = malloc(side * side * 8), *u = malloc(side * side * 8), *v = malloc(side * side * 8);
    double *s = malloc(side * 8);
    if (!a || !u || !v || !s) must(err_make(ERR_MACHINE, "no memory"));
    for (size_t i = 0; i < side * side; i++)
        a[i] = (double)x[i];
    double t = now();
    if (LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'S', (int)side, (int)side, a, (int)side, s, u, (int)side,
                       v, (int)side) != 0)
        must(err_make(ERR_MACHINE, "dgesdd failed"));
    t = now() - t;
    free(x);
    free(a);
    free(u);
    free(v);
    free(s);
    return t;
}

static double time_recompress(uint32_t m, uint32_t n, uint32_t *q, double *error)
{
    static const uint32_t ranks[] = {64, 32, 16, 16, 8, 8, 4, 4, 4, 4};
    enum { CLIENTS = sizeof ranks / sizeof *ranks };
    struct lowrank_term term[CLIENTS];
    float *block = random_floats((size_t)(m + n) * 160, m), *x = block;
    for (size_t k = 0; k < CLIENTS; x += (size_t)(m + n) * ranks[k], k++)
        term[k] =
            (struct lowrank_term){.c = 0.1, .B = x, .A = x + (size_t)m * ranks[k], .r = ranks[k]};
    struct lowrank_stack s = {.m = m, .n = n, .term = term, .count = CLIENTS};
    struct lowrank_svd svd = {0};
    double tail, rounding, t = now();
    must(lowrank_svd_open(&svd, &s, CLIENTS));
    lowrank_cut(q, &tail, &svd, &(struct lowrank_cut){.energy = 0.9999});
    float *B = malloc((size_t)m * *q * 4), *A = malloc((size_t)n * *q * 4);
    if (!A || !B) must(err_make(ERR_MACHINE, "no memory"));
    must(lowrank_split(B, A, &rounding, &svd, *q, LOWRANK_BALANCED));
    t = now() - t;
    *error = tail / svd.norm;
    lowrank_svd_close(&svd);
    free(block);
    free(A);
    free(B);
    return t;
}

static void recompression(void)
{
    static const uint32_t shape[][2] = {
        {576, 576}, {1536, 576}, {2048, 2048}, {4096, 4096}, {11008, 4096}};
    int before = lowrank_begin();
    double dense = time_dense(dense_side), side = (double)dense_side;
    printf("\nrecompression of ten clients, ranks 64 to 4 (R = 160), to 0.9999 of the energy; one "
           "thread\n");
    printf("  dense SVD (dgesdd) of %zu x %zu: %.2f s; at other shapes scaled by min^2 max\n",
           dense_side, dense_side, dense);
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) {
        uint32_t m = shape[i][0], n = shape[i][1], q;
        double error, least = m < n ? m : n, most = m < n ? n : m;
        double t = time_recompress(m, n, &q, &error);
        double scaled = dense * least * least * most / (side * side * side);
        printf("  %5u x %-5u %8.4f s  rank %3u, error %.1e   dense %8.2f s%s  %6.0f times\n", m, n,
               t, q, error, scaled, m == dense_side && n == dense_side ? "         " : " (scaled)",
               scaled / t);
    }
    lowrank_end(before);
}

int main(int argc, char **argv)
{
    const char *one = NULL;
    bool no_report = false;
    threads = omp_get_max_threads();
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        int64_t n = 0;
        if (strcmp(argv[i], "--no-report") == 0) {
            no_report = true;
            continue;
        }
        if (strcmp(argv[i], "--dir") == 0)
            dir = value;
        else if (strcmp(argv[i], "--round") == 0)
            one = value;
        else {
            must(text_parse_int(&n, value, 1, 1 << 20));
            if (strcmp(argv[i], "--updates") == 0)
                updates = (size_t)n;
            else if (strcmp(argv[i], "--rank") == 0)
                rank = (uint32_t)n;
            else if (strcmp(argv[i], "--dense") == 0)
                dense_side = (size_t)n;
            else if (strcmp(argv[i], "--threads") == 0)
                threads = (int)n;
            else
                must(
                    err_make(ERR_INPUT, "%s: not an option; see the head of bench/agg.c", argv[i]));
        }
        i++;
    }
    make_modules();
    if (one) return round_main(one, no_report);
    must(file_make_dirs(dir));
    static const char *const methods[] = {"fedit", "flora"};
    float *block = random_floats(1 << 20, 1);
    double copy = copy_rate();
    printf("%d threads; plain copying %.2f GB/s\n", threads, copy / 1e9);
    printf("a round of %zu updates of rank %u, SmolLM2-135M, 210 modules:\n", updates, rank);
    for (size_t m = 0; m < 2; m++) {
        char path[LIMIT_PATH_BYTES];
        struct method_start start = start_of();
        for (size_t k = 0; k < updates; k++)
            make_update(k, methods[m], block);
        path_of(path, methods[m], 1);
        must(method_start(method_find(methods[m]), path, &start));
        if (m == 0) spawn_round(argv[0], methods[m], true);
        spawn_round(argv[0], methods[m], false);
    }
    free(block);
    recompression();
    return 0;
}
