/* An untrusted RunConfig, and Hellos of members for it, go the way of CreateRun and Hello. The
 * input is a RunConfig and Hellos, each after its size in two bytes. An accepted
 * configuration is stored, loaded and completed to the same bytes, its round machine starts, and
 * every accepted member has a rank and a scale. */
#include "coordinator/run/bounds.h"
#include "coordinator/run/round.h"
#include "coordinator/run/run_config.h"
#include "coordinator/run/run_privacy.h"
#include "proto/message.h"
#include "tests/fuzz/fuzz.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const fuzz_seeds[] = {"tests/fuzz/seeds/run_hello.flora.bin",
                                  "tests/fuzz/seeds/run_hello.fedsb.bin",
                                  "tests/fuzz/seeds/run_hello.private.bin", NULL};
const int fuzz_runs = 2500;

typedef Fedlora__V1__RunConfig config_t;
typedef Fedlora__V1__HelloRequest hello_t;

static void must(bool yes)
{
    if (!yes) abort();
}

static bool take(const uint8_t **part, size_t *part_size, const uint8_t **data, size_t *size)
{
    if (*size < 2) return false;
    size_t wanted = (size_t)(*data)[0] | (size_t)(*data)[1] << 8, left = *size - 2;
    *part = *data + 2;
    *part_size = wanted < left ? wanted : left;
    *data = *part + *part_size;
    *size = left - *part_size;
    return true;
}

/* A coordinator that restarts reads and completes the configuration that it has stored. */
static void reload(const config_t *config)
{
    struct bytes first = {.max = 64u << 20}, second = {.max = 64u << 20};
    config_t *again = NULL;
    must(!err_is(message_pack(&first, &config->base)));
    must(!err_is(
        message_unpack(&again, &fedlora__v1__run_config__descriptor, first.data, first.size)));
    must(!err_is(run_config_complete(again)));
    must(!err_is(message_pack(&second, &again->base)));
    must(first.size == second.size && !memcmp(first.data, second.data, first.size));
    bytes_close(&first);
    bytes_close(&second);
    message_free(again);
}

static void start_rounds(const config_t *config)
{
    struct round_rules rules = {.rounds = config->rounds,
                                .quorum = config->quorum,
                                .deadline_ms = config->deadline_ms,
                                .late_rounds = run_config_late_rounds(config),
                                .drawn = config->cohort,
                                .cohort = config->cohort,
                                .retry_ms = 1};
    const char **id = calloc(config->n_members + 1, sizeof *id);
    struct round round = {0};
    must(id);
    for (size_t i = 0; i < config->n_members; i++)
        id[i] = config->members[i]->id;
    err e = round_init(&round, &rules, id, config->n_members);
    must(!err_is(e) || e.kind == ERR_INPUT); /* a member may be named twice */
    if (!err_is(e)) {
        (void)round_apply(&round, &(struct round_event){.kind = ROUND_ON_BEGIN, .now_ms = 1});
        (void)round_apply(&round, &(struct round_event){.kind = ROUND_ON_SHAPES, .now_ms = 2});
        round_close(&round);
    }
    free(id);
}

static void join_member(const config_t *config, const char *id, const hello_t *hello)
{
    uint32_t rank = 0;
    if (err_is(run_config_rank(&rank, config, id, hello->rank))) return;
    must(rank >= 1 && rank <= LIMIT_RANK);
    double alpha = run_config_alpha(config, id, rank);
    must(isfinite(alpha) && alpha > 0);
    double weight = run_config_weight(config, id, hello->examples);
    must(isfinite(weight) && weight >= 0);
    (void)run_config_rslora(config, id);
}

static void join(hello_t **modules, const config_t *config, const hello_t *hello)
{
    if (err_is(bounds_check(&hello->base))) return;
    must(hello->n_modules >= 1 && hello->n_modules <= LIMIT_MODULES);
    if (!*modules) {
        if (err_is(run_config_modules(modules, config, hello))) return;
        must(!err_is(run_config_same_modules(*modules, hello, "your")));
        must((*modules)->n_modules <= hello->n_modules);
    } else if (err_is(run_config_same_modules(*modules, hello, "your")))
        return;
    for (size_t i = 0; i < config->n_members && i < 8; i++) {
        join_member(config, config->members[i]->id, hello);
        for (size_t k = 0; k < (*modules)->n_modules && k < 8; k++)
            (void)run_config_adapts(config, config->members[i]->id, (*modules)->modules[k]->name);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *part;
    size_t part_size;
    config_t *config = NULL;
    hello_t *modules = NULL, *hello = NULL;
    if (!take(&part, &part_size, &data, &size)) return 0;
    if (err_is(message_unpack(&config, &fedlora__v1__run_config__descriptor, part, part_size)))
        return 0;
    if (err_is(run_config_create(config))) goto out;
    reload(config);
    start_rounds(config);
    while (take(&part, &part_size, &data, &size)) {
        if (err_is(
                message_unpack(&hello, &fedlora__v1__hello_request__descriptor, part, part_size)))
            continue;
        join(&modules, config, hello);
        message_free(hello);
        hello = NULL;
    }
out:
    message_free(modules);
    message_free(config);
    return 0;
}
