/* The coordinator under load: N members on this machine submit updates of SmolLM2-135M's shapes
 * over TLS, round after round, without training. Prints seconds per round, bytes, the time of
 * a report that one more connection sends all the while, and the peak memory of the coordinator.
 *
 *   bench_coordinator [--members 64] [--rank 32] [--rounds 2] [--layers 30] [--method flora]
 *
 * Rank 32 on all seven projections of 30 layers is a 39 MB update. */
#include "base/file.h"
#include "base/text.h"
#include "tests/support/fake_federation.h"
#include "tests/support/fake_member.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LAYERS = 30, PROJECTIONS = 7, MODULES = LAYERS * PROJECTIONS, MEMBERS_MAX = 2048 };
enum { NUMBER_MEMBERS, NUMBER_RANK, NUMBER_ROUNDS, NUMBER_LAYERS, NUMBERS };
enum { AT_ONCE = 32, PAUSE_US = 2000, REPORT_PAUSE_US = 20000, REPORTS_MAX = 100000 };

static struct method_module module[MODULES];
static char names[MODULES][64];

static void fill_base(struct fake_base *base, long layers)
{
    static const struct {
        const char *name;
        uint32_t d_out, d_in;
    } shape[PROJECTIONS] = {{"self_attn.q_proj", 576, 576}, {"self_attn.k_proj", 192, 576},
                            {"self_attn.v_proj", 192, 576}, {"self_attn.o_proj", 576, 576},
                            {"mlp.gate_proj", 1536, 576},   {"mlp.up_proj", 1536, 576},
                            {"mlp.down_proj", 576, 1536}};
    for (int i = 0; i < MODULES; i++) {
        snprintf(names[i], sizeof names[i], "model.layers.%d.%s", i / PROJECTIONS,
                 shape[i % PROJECTIONS].name);
        module[i] = (struct method_module){names[i], shape[i % PROJECTIONS].d_out,
                                           shape[i % PROJECTIONS].d_in};
    }
    *base = (struct fake_base){digest_of("bench", 5), module, (size_t)layers * PROJECTIONS};
}

static err create(const struct fake_federation *f, const struct fake_base *base, const char *method,
                  const long number[NUMBERS])
{
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    struct fake_member ops;
    struct fake_options options = {
        .server = f->address, .certs = f->certs, .id = "ops", .base = base};
    config.name = "bench";
    config.method = (char *)(uintptr_t)method;
    config.rounds = (uint32_t)number[2];
    config.rank = (uint32_t)number[1];
    TRY(fake_open(&ops, &options));
    err e = fake_create_run(&ops, &config, (size_t)number[0]);
    fake_close(&ops);
    return e;
}

static err print_rounds(const struct fake_federation *f, const struct fake_base *base)
{
    struct fake_member ops;
    struct fake_options options = {
        .server = f->address, .certs = f->certs, .id = "ops", .base = base};
    Fedlora__V1__RunStatus *status = NULL;
    TRY(fake_open(&ops, &options));
    err e = fake_status(&status, &ops, "bench");
    for (size_t i = 0; !err_is(e) && i < status->n_history; i++) {
        const Fedlora__V1__RoundStatus *r = status->history[i];
        printf("round %u: %.2f s, of which %.2f s combining %u updates; state %.1f MB\n", r->round,
               (double)r->took_ms / 1e3, (double)r->aggregate_ms / 1e3, r->updates,
               (double)r->state_size / 1e6);
    }
    message_free(status);
    fake_close(&ops);
    return e;
}

struct reporter { /* a member that reports again and again */
    struct fake_options options;
    pthread_t thread;
    atomic_bool ends;
    size_t count, failed;
    double ms[REPORTS_MAX];
};

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void *reporter_main(void *argument)
{
    struct reporter *r = argument;
    struct fake_member m;
    Fedlora__V1__ReportRequest request = FEDLORA__V1__REPORT_REQUEST__INIT;
    Fedlora__V1__HelloReply *reply = NULL;
    request.round = 1;
    if (err_is(fake_open(&m, &r->options))) return NULL;
    r->failed += err_is(fake_hello(&reply, &m));
    message_free(reply);
    while (!atomic_load(&r->ends) && r->count < REPORTS_MAX) {
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        r->failed += err_is(fake_report(&m, &request));
        clock_gettime(CLOCK_MONOTONIC, &to);
        r->ms[r->count++] =
            (double)(to.tv_sec - from.tv_sec) * 1e3 + (double)(to.tv_nsec - from.tv_nsec) / 1e6;
        usleep(REPORT_PAUSE_US);
    }
    fake_close(&m);
    return NULL;
}

static void print_reports(struct reporter *r)
{
    if (r->count == 0) return;
    qsort(r->ms, r->count, sizeof r->ms[0], by_size);
    printf("%zu reports, %zu failed: median %.2f ms, 99th percentile %.2f ms\n", r->count,
           r->failed, r->ms[r->count / 2], r->ms[r->count * 99 / 100]);
}

static err bench(const char *dir, const char *method, const long number[NUMBERS])
{
    static struct reporter reporter;
    static struct fake_joining joining[MEMBERS_MAX];
    static atomic_size_t greeted;
    struct fake_federation f = {0};
    struct fake_base base;
    fill_base(&base, number[NUMBER_LAYERS]);
    TRY(rpc_init());
    TRY(fake_federation_open(&f, dir, (int)number[0], "[log]\nlevel = warn\n"));
    TRY(fake_federation_start(&f));
    err e = create(&f, &base, method, number);
    if (err_is(e)) goto out;
    uint64_t began = text_now_ms(), up = 0, down = 0;
    const struct fake_options options = {.server = f.address,
                                         .certs = f.certs,
                                         .run = "bench",
                                         .base = &base,
                                         .rank = (uint32_t)number[1],
                                         .examples = 100,
                                         .give_up_ms = 300000,
                                         .wait_ms = 30000,
                                         .greeted = &greeted};
    reporter.options = options;
    reporter.options.id = "m0";
    if (pthread_create(&reporter.thread, NULL, reporter_main, &reporter) != 0) goto out;
    for (long i = 0; i < number[0]; i++) {
        fake_join_begin(&joining[i], (int)i, &options);
        /* Handshakes of thousands at once would time out in this process, which all members share,
         * and not in fedlorad. */
        while ((size_t)i >= atomic_load(&greeted) + AT_ONCE)
            usleep(PAUSE_US);
    }
    for (long i = 0; i < number[0]; i++) {
        err one = fake_join_end(&joining[i]);
        if (err_is(one)) e = one;
        up += joining[i].member.bytes_up;
        down += joining[i].member.bytes_down;
    }
    atomic_store(&reporter.ends, true);
    pthread_join(reporter.thread, NULL);
    if (err_is(e)) goto out;
    double seconds = (double)(text_now_ms() - began) / 1e3;
    e = print_rounds(&f, &base);
    print_reports(&reporter);
    printf("%s, %ld members, rank %ld: %.2f s a round over TLS, %.1f MB up and %.1f MB down a "
           "member and "
           "round, coordinator's peak memory %.1f MB (VmHWM)\n",
           method, number[0], number[1], seconds / (double)number[2],
           (double)up / 1e6 / (double)(number[0] * number[2]),
           (double)down / 1e6 / (double)(number[0] * number[2]),
           (double)fake_federation_peak_kb(&f) * 1024 / 1e6);
out:
    fake_federation_close(&f);
    return e;
}

int main(int argc, char **argv)
{
    long number[NUMBERS] = {64, 32, 2, LAYERS};
    const char *method = "flora", *flags[NUMBERS] = {"--members", "--rank", "--rounds", "--layers"};
    char dir[512], command[600];
    for (int i = 1; i + 1 < argc; i += 2) {
        for (int k = 0; k < NUMBERS; k++)
            if (!strcmp(argv[i], flags[k])) number[k] = strtol(argv[i + 1], NULL, 10);
        if (!strcmp(argv[i], "--method")) method = argv[i + 1];
    }
    if (number[0] < 1 || number[0] > MEMBERS_MAX || number[1] < 1 || number[2] < 1 ||
        number[NUMBER_LAYERS] < 1 || number[NUMBER_LAYERS] > LAYERS)
        return 2;
    const char *root = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%.400s/fedlora-bench-XXXXXX", root ? root : "/tmp");
    if (!mkdtemp(dir)) return 1;
    err e = bench(dir, method, number);
    if (err_is(e)) fprintf(stderr, "bench_coordinator: %s\n", e.text);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    if (system(command) != 0) fprintf(stderr, "%s stays\n", dir);
    return err_exit_code(e);
}
