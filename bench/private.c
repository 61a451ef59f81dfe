/* Compares training with example-level privacy with training without it. It trains R of fed-sb, of
 * rank 64, on all seven projections of the given model, with four rows of 512 tokens (2,048 tokens)
 * per step.
 *
 *   bench_private --base PATH [--private] [--rank N] [--steps N] [--threads N]
 *
 * Prints one line of JSON: tokens per second (median of the steps after the first) and the peak
 * resident memory. The sampling rate is 1, so every record takes part in every step and both sides
 * do the same work. */
#include "base/rng.h"
#include "engine/train/train_private.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { ROWS = 4, LENGTH = 512, STEPS_MAX = 1000 };

static int32_t ids[ROWS][LENGTH];
static struct data_row row[ROWS];
static double seconds[STEPS_MAX];

static void must(err e)
{
    if (!err_is(e)) return;
    fprintf(stderr, "bench_private: %s\n", e.text);
    exit(1);
}

static bool keep(void *user, const struct train_step *s)
{
    (void)user;
    if (s->step < STEPS_MAX) seconds[s->step] = s->seconds;
    return true;
}

static int ascending(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static void open_adapter(struct adapter *ad, const struct arch *a, uint32_t rank)
{
    static struct adapter_spec spec[LIMIT_MODULES];
    struct rng rng;
    size_t count = 0;
    for (uint32_t layer = 0; layer < a->layers; layer++)
        for (int kind = 0; kind < MODULE_UNFUSED; kind++)
            spec[count++] = (struct adapter_spec){.layer = layer,
                                                  .kind = (enum module_kind)kind,
                                                  .rank = rank,
                                                  .small_matrix = true,
                                                  .scale = 1.0};
    must(adapter_open(ad, a, spec, count, ADAPTER_R));
    rng_init(&rng, "bench", 1, "factors", 0);
    for (size_t i = 0; i < ad->count; i++) {
        rng_fill_uniform(&rng, ad->module[i].a, (size_t)rank * ad->module[i].d_in, 0.1);
        rng_fill_uniform(&rng, ad->module[i].b, (size_t)ad->module[i].d_out * rank, 0.1);
    }
}

static void fill_rows(struct dataset *data, uint32_t vocab)
{
    struct rng rng;
    rng_init(&rng, "bench", 1, "rows", 0);
    for (int i = 0; i < ROWS; i++) {
        for (int t = 0; t < LENGTH; t++)
            ids[i][t] = (int32_t)rng_below(&rng, vocab);
        row[i] = (struct data_row){.id = ids[i], .label = ids[i], .count = LENGTH};
    }
    *data = (struct dataset){.row = row, .count = ROWS};
    data->tokens = data->learned = (uint64_t)ROWS * LENGTH;
}

int main(int argc, char **argv)
{
    struct engine_options engine = {.precision = DTYPE_NONE};
    struct train_options o;
    const char *base = NULL;
    bool private = false;
    uint32_t rank = 64;
    train_defaults(&o);
    o.steps = 6;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--private"))
        private = true;
        else if (!strcmp(argv[i], "--base") && i + 1 < argc) base = argv[++i];
        else if (!strcmp(argv[i], "--rank") && i + 1 < argc) rank =
            (uint32_t)strtoul(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--steps") && i + 1 < argc) o.steps =
            strtoul(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--threads") && i + 1 < argc) engine.threads =
            (int)strtol(argv[++i], NULL, 10);
        else base = NULL, i = argc;
    }
    if (!base || o.steps < 2 || o.steps > STEPS_MAX) {
        fprintf(stderr, "usage: bench_private --base PATH [--private] [--rank N] [--steps N] "
                        "[--threads N]\n");
        return 2;
    }
    struct model model;
    struct engine *e;
    struct adapter ad;
    struct dataset data;
    struct train_result result;
    struct rusage usage;
    must(model_open(&model, base));
    must(engine_open(&e, &model, &engine));
    model_drop_pages(&model);
    open_adapter(&ad, &model.arch, rank);
    fill_rows(&data, model.arch.vocab);
    o.batch = ROWS;
    o.on_step = keep;
    struct train_private_options p = {.train = &o, .sampling = 1.0, .noise = 1.0, .clip = 0.1};
    must(private ? train_private_run(&result, &ad, e, &data, &p)
                 : train_run(&result, &ad, e, &data, &o));
    qsort(seconds + 1, o.steps - 1, sizeof *seconds, ascending);
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"private\":%s,\"rank\":%u,\"tokens_per_second\":%.1f,\"peak_mib\":%.1f}\n",
           private ? "true" : "false", rank, ROWS * LENGTH / seconds[1 + (o.steps - 1) / 2],
           (double)usage.ru_maxrss / 1024.0);
    adapter_close(&ad);
    engine_close(e);
    model_close(&model);
    return 0;
}
