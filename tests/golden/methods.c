/* Rounds of flexlora, florist, lora-fair and fedex against NumPy's dense definitions
 * (tests/golden/methods, made by make.py there). */
#include "agg/adapter/flatten.h"
#include "agg/round/method.h"
#include "base/json.h"
#include "base/safetensors.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MEMBERS = 3, MODULES = 3, SIZE = 40 * 40 };

static const struct method_module modules[MODULES] = {
    {"layers.0.k_proj", 12, 30}, {"layers.0.q_proj", 30, 30}, {"layers.1.down_proj", 24, 40}};
static char dir[SUPPORT_PATH_BYTES], state[2][SUPPORT_PATH_BYTES + 32];
static struct safetensors expect;

static void open_expected(void)
{
    char path[SUPPORT_PATH_BYTES];
    support_dir_make(dir);
    support_source(path, sizeof path, "tests/golden/methods/expect.safetensors");
    ok(safetensors_open(&expect, path));
}

static void close_expected(void)
{
    safetensors_close(&expect);
    support_dir_remove(dir);
}

TestSuite(methods, .init = open_expected, .fini = close_expected);

/* One round with the updates NAME.0 to NAME.2; state[1] is what comes out. */
static struct method_report run(const char *method, const char *name, uint32_t rank,
                                const char *option)
{
    static char path[MEMBERS][SUPPORT_PATH_BYTES];
    const struct method *m = method_find(method);
    struct contribution c[MEMBERS] = {{"a", 3, path[0]}, {"b", 1, path[1]}, {"c", 2, path[2]}};
    struct method_start start = {
        .run = "golden",
        .base = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
        .seed = 1,
        .rank = rank,
        .alpha = 2 * rank,
        .module = modules,
        .module_count = MODULES,
        .option = &option,
        .option_count = option != NULL};
    struct method_next next = {.state_path = state[0], .contribution = c, .count = MEMBERS};
    struct method_report report = {0};
    for (int k = 0; k < MEMBERS; k++) {
        char part[64];
        (void)snprintf(part, sizeof part, "tests/golden/methods/%s.%d.safetensors", name, k);
        support_source(path[k], sizeof path[k], part);
    }
    for (int t = 0; t < 2; t++)
        (void)snprintf(state[t], sizeof state[t], "%s/state.%d", dir, t + 1);
    ok(method_start(m, state[0], &start));
    ok(method_next(&report, m, state[1], &next));
    return report;
}

/* The expected matrix: two float32 a number, the second being what the first has lost. */
static size_t expected(double *out, const char *method, const char *name, const char *suffix)
{
    char key[128];
    (void)snprintf(key, sizeof key, "%s.%s%s", method, name, suffix);
    const struct tensor *t = safetensors_find(&expect, key);
    cr_assert_not_null(t, "%s", key);
    size_t n = t->count / 2;
    float x[2 * SIZE];
    cr_assert_leq(t->size, sizeof x);
    memcpy(x, t->data, t->size);
    for (size_t i = 0; i < n; i++)
        out[i] = (double)x[i] + (double)x[n + i];
    return n;
}

static double distance(const double *x, const double *y, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (x[i] - y[i]) * (x[i] - y[i]);
    return sqrt(sum);
}

static void check(const char *method)
{
    static const double zero[SIZE];
    struct adapter_file s = {0};
    ok(adapter_file_open(&s, state[1]));
    for (size_t i = 0; i < MODULES; i++) {
        struct lowrank_term term[2];
        double want[SIZE] = {0}, got[SIZE] = {0};
        const struct adapter_file_module *m = adapter_file_find(&s, modules[i].name);
        struct lowrank_stack stack = {
            .m = m->d_out, .n = m->d_in, .term = term, .count = flatten_terms(term, m)};
        size_t n = expected(want, method, modules[i].name, "");
        ok(lowrank_add_dense(got, &stack));
        cr_expect_lt(distance(want, got, n), 3e-7 * distance(want, zero, n), "%s, %s: %g", method,
                     modules[i].name, distance(want, got, n) / distance(want, zero, n));
    }
    adapter_file_close(&s);
}

Test(methods, flexlora_publishes_numpys_leading_singular_vectors)
{
    struct method_report report = run("flexlora", "mixed", 6, NULL);
    check("flexlora");
    method_report_close(&report);
}

Test(methods, florist_keeps_what_numpy_keeps_of_each_module)
{
    char path[SUPPORT_PATH_BYTES];
    json_t *json;
    struct method_report report = run("florist", "fresh", 6, "energy=0.995");
    support_source(path, sizeof path, "tests/golden/methods/expect.json");
    ok(json_open(&json, path, 1 << 16));
    check("florist");
    for (size_t i = 0; i < MODULES; i++)
        cr_expect_eq(report.row[i].rank,
                     json_integer_value(
                         json_object_get(json_object_get(json, "florist"), report.row[i].module)));
    json_decref(json);
    method_report_close(&report);
}

Test(methods, lora_fair_solves_numpys_least_squares)
{
    struct method_report report = run("lora-fair", "same", 4, NULL);
    struct adapter_file s = {0};
    check("lora-fair");
    ok(adapter_file_open(&s, state[1]));
    for (size_t i = 0; i < MODULES; i++) {
        const struct adapter_file_module *m = adapter_file_find(&s, modules[i].name);
        double want[SIZE];
        size_t n = expected(want, "lora-fair", modules[i].name, ".B");
        for (size_t j = 0; j < n; j++)
            cr_expect(fabs(m->factor[ADAPTER_FILE_B].f32[j] - want[j]) < 1e-7);
    }
    adapter_file_close(&s);
    method_report_close(&report);
}

Test(methods, fedex_adds_up_to_numpys_mean_and_residual)
{
    struct method_report report = run("fedex", "same", 4, NULL);
    check("fedex");
    method_report_close(&report);
}
