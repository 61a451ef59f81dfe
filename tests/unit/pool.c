/* Small tasks that share passes give the state of tasks that are trained alone. */
#include "sim/pool.h"
#include "kernels/cpu/cpu.h"
#include "sim/simulate.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <unistd.h>

enum { CLIENTS = 14, ROWS = 40 };

static char dir[SUPPORT_PATH_BYTES];
static struct fleet fleet;

static void open_fleet(void)
{
    static const uint32_t ranks[] = {4, 2, 4};
    char base[SUPPORT_PATH_BYTES], rows[SUPPORT_PATH_BYTES + 32];
    support_source(base, sizeof base, "tests/models/llama");
    support_dir_make(dir);
    snprintf(rows, sizeof rows, "%s/rows.jsonl", dir);
    FILE *file = fopen(rows, "w");
    cr_assert_not_null(file);
    for (int i = 0; i < ROWS; i++) {
        fputs("{\"input_ids\": [", file);
        for (int t = 0; t < 5 + i * 7 % 23; t++)
            fprintf(file, "%s%d", t ? ", " : "", (i * 31 + t * t * 5) % 40);
        fputs("]}\n", file);
    }
    fclose(file);
    const struct fleet_options o = {.base = base,
                                    .train = rows,
                                    .split = {.kind = DEAL_IID, .members = CLIENTS, .seed = 3},
                                    .rank = ranks,
                                    .ranks = 3,
                                    .seq = 32};
    ok(fleet_open(&fleet, &o));
}

static enum dtype precision;

static struct simulate_result simulate(const char *method, size_t workers, bool alone)
{
    char out[SUPPORT_PATH_BYTES + 64], *targets[] = {"q", "v", "down"};
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    Fedlora__V1__Training training = FEDLORA__V1__TRAINING__INIT;
    struct simulate_result result = {0};
    snprintf(out, sizeof out, "%s/%s-%s-%zu-%d", dir, method, dtype_name(precision), workers,
             alone);
    training.steps = 3;
    training.batch = 1;
    training.seq = 32;
    training.lr = 1e-2;
    training.clip = 1;
    training.precision = precision == DTYPE_F32 ? "f32" : "bf16";
    training.schedule = "constant";
    config.name = "run";
    config.method = (char *)(uintptr_t)method;
    config.rounds = 2;
    config.rank = 4;
    config.targets = targets;
    config.n_targets = 3;
    config.training = &training;
    const struct simulate_options o = {
        .dir = out,
        .config = &config,
        .settings = "{}",
        .pool = {.workers = workers,
                 .engine = {.device = "cpu", .precision = precision, .threads = 1},
                 .alone = alone}};
    ok(simulate_run(&result, &fleet, &o));
    return result;
}

static void check(const char *method)
{
    struct simulate_result alone = simulate(method, 1, true);
    cr_expect_eq(alone.shared, 0);
    for (size_t workers = 1; workers <= 2; workers++) {
        struct simulate_result shared = simulate(method, workers, false);
        cr_expect(digest_equal(&shared.state, &alone.state), "%s, %zu workers", method, workers);
        if (precision == DTYPE_F32)
            cr_expect_gt(shared.shared, CLIENTS, "%s: %zu tasks shared passes", method,
                         shared.shared);
        cr_log_info("%s, %s: %zu tasks shared passes", method, dtype_name(precision),
                    shared.shared);
    }
}

/* flora's second round has a carry; flexlora's members have factors of two ranks. In bfloat16 some
 * processors share no passes. */
Test(pool, gives_the_same_state_with_shared_passes)
{
    open_fleet();
    precision = DTYPE_F32;
    check("flora");
    check("flexlora");
    precision = DTYPE_BF16;
    if (cpu_can_bf16()) check("flexlora");
    fleet_close(&fleet);
    support_dir_remove(dir);
}
