/* Compares the cost of the report of a round with the cost of the round itself, for every method
 * and the 210 modules of SmolLM2-135M, on one thread. It is measured in seconds of processor time,
 * so that waiting for the disk and other work on the machine do not count.
 *
 *   bench_reports [--dir DIR] [--members 10] [--rank 32] [--core 64] [METHOD...]
 *
 * --rank is the rank of the members' adapters, and --core the rank of R for methods that train only
 * R. The report is measured without directions, which only every few rounds have, and then with
 * them. */
#include "agg/round/method.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/rng.h"
#include "base/text.h"
#include "bench/modules.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char base_digest[] =
    "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
enum { MEMBERS_MAX = 256, BLOCK = 1 << 20 };

struct bench {
    const char *dir;
    size_t members;
    uint32_t rank, core;
    struct method_module module[MODULES];
    char name[MODULES][64];
    float *block; /* (BLOCK) random; factors are windows of it */
};

static void must(err e)
{
    if (err_is(e)) fprintf(stderr, "bench_reports: %s\n", e.text);
    REQUIRE(!err_is(e));
}

static double processor_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void path_of(char out[LIMIT_PATH_BYTES], const struct bench *b, const char *what, size_t n)
{
    snprintf(out, LIMIT_PATH_BYTES, "%s/%s.%zu", b->dir, what, n);
}

static void make_block(struct bench *b)
{
    struct rng rng;
    b->block = malloc(BLOCK * sizeof *b->block);
    if (!b->block) must(err_make(ERR_MACHINE, "no memory"));
    rng_init(&rng, "bench", 1, "", 0);
    rng_fill_uniform(&rng, b->block, BLOCK, 0.05);
}

/* The factors of all members are windows of the block, at different offsets. */
static void make_update(const struct bench *b, const struct method *method, uint32_t rank,
                        const char *frozen, size_t k)
{
    static struct adapter_file_module m[MODULES];
    char path[LIMIT_PATH_BYTES], member[32];
    snprintf(member, sizeof member, "m%zu", k);
    const struct adapter_file_meta meta = {.kind = ADAPTER_FILE_UPDATE,
                                           .run = "bench",
                                           .method = method->name,
                                           .base = base_digest,
                                           .frozen = frozen,
                                           .member = member,
                                           .round = 1,
                                           .rank = rank,
                                           .alpha = rank};
    for (size_t i = 0; i < MODULES; i++) {
        const float *x = b->block + (k * 977 + i * 131) % 65536;
        uint32_t rows[] = {rank, b->module[i].d_out, rank},
                 cols[] = {b->module[i].d_in, rank, rank};
        m[i] = (struct adapter_file_module){.name = b->name[i], .rank = rank};
        for (size_t f = 0; f < 3; f++)
            if (method->factors(1) & 1u << f)
                m[i].factor[f] = (struct adapter_file_factor){
                    .f32 = x + 4096 * f, .rows = rows[f], .cols = cols[f]};
    }
    path_of(path, b, "update", k);
    must(adapter_file_write(path, &meta, m, MODULES, true));
}

struct figures {
    double combining, report, directions, error;
};

static void run(struct figures *out, const struct bench *b, const struct method *method)
{
    static char path[MEMBERS_MAX][LIMIT_PATH_BYTES], member[MEMBERS_MAX][32];
    static struct contribution c[MEMBERS_MAX];
    char state[LIMIT_PATH_BYTES], after[LIMIT_PATH_BYTES], frozen[LIMIT_PATH_BYTES];
    char frozen_digest[DIGEST_TEXT_BYTES] = "";
    uint32_t rank = method->factors(1) & METHOD_R ? b->core : b->rank;
    struct method_start start = {.run = "bench",
                                 .base = base_digest,
                                 .rank = rank,
                                 .alpha = rank,
                                 .module = b->module,
                                 .module_count = MODULES};
    path_of(state, b, "state", 1);
    path_of(after, b, "state", 2);
    path_of(frozen, b, "frozen", 1);
    if (method->frozen) {
        struct digest digest;
        must(method_make_frozen(method, frozen, &start));
        must(digest_of_file(&digest, frozen));
        digest_text(frozen_digest, &digest);
        start.frozen_path = frozen;
        start.frozen_digest = frozen_digest;
    }
    must(method_start(method, state, &start));
    for (size_t k = 0; k < b->members; k++) {
        make_update(b, method, rank, method->frozen ? frozen_digest : NULL, k);
        path_of(path[k], b, "update", k);
        snprintf(member[k], sizeof member[k], "m%zu", k);
        c[k] = (struct contribution){member[k], 1 + (double)(k % 3), path[k]};
    }
    const struct method_next next = {.state_path = state,
                                     .frozen_path = method->frozen ? frozen : NULL,
                                     .contribution = c,
                                     .count = b->members,
                                     .carry_error = 1e-4,
                                     .rounds = 3,
                                     .threads = 1};
    struct method_report_frozen known = {0};
    struct method_report_options options = {.threads = 1, .frozen = &known};
    struct method_report report = {0};
    /* Runs once before the measurement, to fill the page cache and because the frozen factors are
     * known only from the second round on. */
    must(method_next(&report, method, after, &next));
    must(method_report_make(&report, method, after, &next, &options));
    method_report_close(&report);
    double t[4] = {processor_seconds()};
    must(method_next(&report, method, after, &next));
    t[1] = processor_seconds();
    must(method_report_make(&report, method, after, &next, &options));
    t[2] = processor_seconds();
    options.directions = true;
    must(method_report_make(&report, method, after, &next, &options));
    t[3] = processor_seconds();
    *out = (struct figures){t[1] - t[0], t[2] - t[1], t[3] - t[2],
                            report.total.error / report.total.update_norm};
    method_report_close(&report);
}

static void read_count(uint32_t *out, const char *text, int64_t most)
{
    int64_t n = 0;
    must(text_parse_int(&n, text ? text : "", 1, most));
    *out = (uint32_t)n;
}

int main(int argc, char **argv)
{
    static struct bench b = {
        .dir = "/tmp/fedlora-bench-reports", .members = 10, .rank = 32, .core = 64};
    const char *const *chosen = method_names();
    int i = 1;
    for (; i < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
        uint32_t members = 0;
        if (!strcmp(argv[i], "--dir") && argv[i + 1])
            b.dir = argv[i + 1];
        else if (!strcmp(argv[i], "--members"))
            read_count(&members, argv[i + 1], MEMBERS_MAX);
        else if (!strcmp(argv[i], "--rank"))
            read_count(&b.rank, argv[i + 1], 192);
        else if (!strcmp(argv[i], "--core"))
            read_count(&b.core, argv[i + 1], 192);
        else
            must(
                err_make(ERR_INPUT, "%s: not an option; see the head of bench/reports.c", argv[i]));
        if (members) b.members = members;
    }
    if (i < argc) chosen = (const char *const *)(argv + i);
    must(file_make_dirs(b.dir));
    make_modules(b.module, b.name);
    make_block(&b);
    printf("%zu members, rank %u (R: %u), %d modules, one thread, seconds of processor time\n\n",
           b.members, b.rank, b.core, (int)MODULES);
    printf("%-10s %10s %10s %8s %15s %15s\n", "method", "combining", "report", "ratio",
           "with directions", "relative error");
    for (; *chosen; chosen++) {
        const struct method *method = method_find(*chosen);
        struct figures f;
        if (!method) must(err_make(ERR_INPUT, "%s: no such method", *chosen));
        run(&f, &b, method);
        printf("%-10s %10.3f %10.3f %7.1fx %15.2f %15.1e\n", *chosen, f.combining, f.report,
               f.report / f.combining, f.directions, f.error);
        fflush(stdout);
    }
    free(b.block);
    return 0;
}
