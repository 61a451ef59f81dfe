/* Combining adapters against PEFT's own numbers (tests/golden/agg, made by
 * tests/oracle/peft_cat.py) and against plain dense sums. */
#include "agg/combine/combine.h"

#include "base/file.h"
#include "base/rng.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char dir[SUPPORT_PATH_BYTES];
static char golden[3][SUPPORT_PATH_BYTES];
static const char *const paths[] = {golden[0], golden[1], golden[2]};
static const double weights[] = {5, 2, 3};

static void begin(void)
{
    support_dir_make(dir);
    support_source(golden[0], sizeof golden[0], "tests/golden/agg/a");
    support_source(golden[1], sizeof golden[1], "tests/golden/agg/b");
    support_source(golden[2], sizeof golden[2], "tests/golden/agg/c");
}

static void end(void)
{
    support_dir_remove(dir);
}
TestSuite(combine, .init = begin, .fini = end);

static const char *at(const char *name)
{
    static char path[32][SUPPORT_PATH_BYTES + 64];
    static int next;
    char *out = path[next++ % 32];
    snprintf(out, sizeof path[0], "%s/%s", dir, name);
    return out;
}

static struct combine_options options(const char *method)
{
    return (struct combine_options){.method = method_find(method),
                                    .path = paths,
                                    .weight = weights,
                                    .count = 3,
                                    .scratch = at("scratch")};
}

/* Every module's change against PEFT's, made by add_weighted_adapter(combination_type="cat"). */
static void check_golden(const char *family, bool turned)
{
    struct combine c = {0};
    struct safetensors expect = {0};
    char name[64], path[SUPPORT_PATH_BYTES];
    struct combine_options o = options("flora");
    for (int k = 0; k < 3; k++) {
        snprintf(name, sizeof name, "tests/golden/%s/%c", family, 'a' + k);
        support_source(golden[k], sizeof golden[k], name);
    }
    snprintf(name, sizeof name, "tests/golden/%s/expect.safetensors", family);
    support_source(path, sizeof path, name);
    ok(safetensors_open(&expect, path));
    ok(combine_open(&c, &o));
    cr_expect_eq(c.meta.fan_in_fan_out, turned);
    cr_assert_eq(c.count, expect.count);
    for (size_t i = 0; i < c.count; i++) {
        const struct adapter_file_module *m = &c.module[i];
        const struct tensor *want = safetensors_find(&expect, m->name);
        cr_assert_not_null(want, "%s", m->name);
        float *got = calloc(want->count, sizeof *got);
        cr_assert_eq(want->shape[0], m->d_out);
        cr_assert_eq(want->shape[1], m->d_in);
        for (size_t row = 0; row < m->d_out; row++)
            for (size_t l = 0; l < m->rank; l++)
                for (size_t col = 0; col < m->d_in; col++)
                    got[row * m->d_in + col] += (float)m->scale *
                                                m->factor[1].f32[row * m->rank + l] *
                                                m->factor[0].f32[l * m->d_in + col];
        cr_expect_lt(support_distance(got, want->data, want->count), 1e-6, "%s", m->name);
        free(got);
    }
    combine_close(&c);
    safetensors_close(&expect);
}

Test(combine, is_what_peft_says_of_adapters_of_different_ranks_scales_and_targets)
{
    check_golden("agg", false);
}

Test(combine, is_what_peft_says_of_layers_that_store_their_weight_transposed)
{
    check_golden("agg-conv", true);
}

/* Errors that are reported, against the plain dense recomputation of what was written. */
static struct combine checked(const struct combine_options *o)
{
    static int opened;
    char scratch[32];
    struct combine_options mine = *o;
    struct combine c = {0};
    struct adapter_file written = {0};
    snprintf(scratch, sizeof scratch, "open%d", opened++); /* several are open at once */
    mine.scratch = at(scratch);
    ok(combine_open(&c, &mine));
    ok(combine_write(&c, at("out"), true));
    ok(adapter_file_map_whole(&written, at("out")));
    for (size_t i = 0; i < c.count; i++) {
        const struct method_report_row *row = &c.report.row[i];
        struct combine_verified v;
        ok(combine_verify(&v, &c, i, &written));
        double error = v.error, norm = v.norm;
        cr_expect_str_eq(row->module, c.module[i].name);
        cr_expect(fabs(norm - row->update_norm) <= 1e-12 * norm + v.noise);
        cr_expect(fabs(error - row->error) <= 1e-3 * row->dropped + 1e-7 * norm + v.noise,
                  "%s: %g, %g", row->module, error, row->error);
    }
    adapter_file_close(&written);
    return c;
}

Test(combine, every_cut_costs_what_it_says)
{
    struct combine_options o = options("flora");
    struct combine whole = checked(&o), c;
    o.cut.rank_max = 3;
    c = checked(&o);
    cr_expect_eq(c.report.total.rank, 3);
    combine_close(&c);
    o.cut = (struct lowrank_cut){.error = 0.3};
    c = checked(&o);
    for (size_t i = 0; i < c.count; i++)
        cr_expect_leq(c.report.row[i].dropped, 0.3 * c.report.row[i].update_norm);
    cr_expect_lt(c.report.total.rank, whole.report.total.rank);
    combine_close(&c);
    o.cut = (struct lowrank_cut){.energy = 0.9};
    c = checked(&o);
    cr_expect_leq(c.report.total.dropped, sqrt(0.1) * c.report.total.update_norm);
    combine_close(&c);
    combine_close(&whole);
}

Test(combine, a_budget_of_bytes_is_kept_and_spent_better_than_evenly)
{
    struct combine_options o = options("flora");
    size_t even = 0, spent = 0;
    o.cut.rank_max = 4;
    struct combine fixed = checked(&o);
    for (size_t i = 0; i < fixed.count; i++)
        even += fixed.module[i].rank * (fixed.module[i].d_out + fixed.module[i].d_in) * 4;
    o.cut.rank_max = 0;
    o.bytes = even;
    struct combine budget = checked(&o);
    for (size_t i = 0; i < budget.count; i++)
        spent += budget.module[i].rank * (budget.module[i].d_out + budget.module[i].d_in) * 4;
    cr_expect_leq(spent, even);
    cr_expect_lt(budget.report.total.error, fixed.report.total.error);
    combine_close(&fixed);
    combine_close(&budget);
    o.bytes = 100;
    refused(combine_open(&budget, &o), ERR_INPUT, "100 bytes are too few for rank 1");
}

Test(combine, duplicates_and_threads_change_nothing)
{
    const char *const twice[] = {golden[1], golden[1], golden[1]};
    struct combine_options o = options("flora");
    struct combine one, three;
    o.path = twice;
    o.count = 1;
    one = checked(&o);
    o.count = 3;
    o.threads = 1;
    three = checked(&o);
    for (size_t i = 0; i < one.count; i++) {
        cr_expect_eq(one.module[i].rank, three.module[i].rank, "%s: rank %u and %u",
                     one.module[i].name, one.module[i].rank, three.module[i].rank);
        cr_expect(fabs(one.report.row[i].update_norm - three.report.row[i].update_norm) <
                  1e-12 * one.report.row[i].update_norm);
    }
    combine_close(&one);
    o.threads = 3;
    one = checked(&o);
    for (size_t i = 0; i < one.count; i++)
        cr_expect_arr_eq(one.module[i].factor[0].f32, three.module[i].factor[0].f32,
                         one.module[i].rank * one.module[i].d_in * sizeof(float));
    combine_close(&one);
    combine_close(&three);
}

/* Three adapters of q (6, 8) and k (6, 8) of these ranks, all of scale 2. */
static struct combine_options small_options(const char *method, uint32_t r1, uint32_t r2,
                                            uint32_t r3)
{
    static char path[3][SUPPORT_PATH_BYTES + 64];
    static const char *list[] = {path[0], path[1], path[2]};
    const uint32_t rank[] = {r1, r2, r3};
    struct combine_options o = options(method);
    for (int k = 0; k < 3; k++) {
        struct adapter_file_module m[2];
        float x[2][256];
        for (int i = 0; i < 2; i++) {
            struct rng rng;
            rng_init(&rng, "test", (uint64_t)k, i ? "q" : "k", 0);
            rng_fill_uniform(&rng, x[i], 256, 1);
            m[i] = (struct adapter_file_module){
                .name = i ? "q" : "k", .rank = rank[k], .alpha = 2.0 * rank[k]};
            m[i].factor[0] = (struct adapter_file_factor){.f32 = x[i], .rows = rank[k], .cols = 8};
            m[i].factor[1] =
                (struct adapter_file_factor){.f32 = x[i] + 128, .rows = 6, .cols = rank[k]};
        }
        snprintf(path[k], sizeof path[k], "%s/small%d", dir, k);
        ok(adapter_file_write_peft(path[k], &(struct adapter_file_meta){0}, m, 2, true));
    }
    o.path = list;
    return o;
}

Test(combine, averaging_factors_needs_one_rank_and_scale_and_says_what_it_loses)
{
    struct combine_options o = options("fedit");
    struct combine c = {0};
    refused(combine_open(&c, &o), ERR_INPUT, "rslora differs");
    const char *const ranks[] = {golden[0], golden[2]};
    o.path = ranks;
    o.count = 2;
    refused(combine_open(&c, &o), ERR_INPUT, "a mean of factors needs rank 4 at scale 2");
    o = small_options("fedit", 4, 4, 4);
    c = checked(&o);
    cr_expect_gt(c.report.total.error, 0.01 * c.report.total.update_norm);
    cr_expect_eq(c.module[0].alpha, 8);
    combine_close(&c);
    o.cut.rank_max = 1;
    refused(combine_open(&c, &o), ERR_INPUT, "nothing to cut");
}

Test(combine, every_method_reports_what_a_dense_recomputation_finds)
{
    size_t tried = 0;
    for (const char *const *name = method_names(); *name; name++) {
        const struct method_aggregate *a = &method_find(*name)->aggregate;
        struct combine_options o = small_options(*name, 4, 4, 4);
        struct combine c = {0};
        if (a->way == METHOD_AGGREGATE_RUN_ONLY) {
            refused(combine_open(&c, &o), ERR_INPUT, a->text);
            continue;
        }
        c = checked(&o);
        bool exact = a->way == METHOD_AGGREGATE_SUM && a->cut == METHOD_AGGREGATE_CUT_NONE;
        cr_expect((c.report.total.error < 1e-6 * c.report.total.update_norm) == exact, "%s: %g",
                  *name, c.report.total.error);
        combine_close(&c);
        tried++;
    }
    cr_expect_geq(tried, 7);
}

Test(combine, fedex_of_different_ranks_is_refused_with_what_to_use)
{
    struct combine_options o = small_options("fedex", 4, 2, 4);
    struct combine c = {0};
    refused(combine_open(&c, &o), ERR_INPUT,
            "rank 2 at scale 2, expected rank 4 at scale 2: fedex needs one for all (flora gives");
}

Test(combine, flexlora_keeps_the_largest_rank_or_with_a_carry_all)
{
    struct combine_options o = small_options("flexlora", 4, 1, 2);
    const char *const carry[] = {"tail=carry"};
    struct method_options options;
    struct combine c = checked(&o);
    for (size_t i = 0; i < c.count; i++)
        cr_expect_eq(c.module[i].rank, 4);
    cr_expect_gt(c.report.total.dropped, 0.01 * c.report.total.update_norm);
    combine_close(&c);
    ok(method_options_parse(&options, o.method, carry, 1));
    o.options = &options;
    c = checked(&o);
    for (size_t i = 0; i < c.count; i++)
        cr_expect_eq(c.module[i].rank, 6); /* of 7, but d_out is 6 */
    cr_expect_lt(c.report.total.error, 1e-6 * c.report.total.update_norm);
    combine_close(&c);
}

Test(combine, florist_keeps_its_energy_or_its_bytes)
{
    struct combine_options o = options("florist");
    const char *const words[] = {"energy=0.7", "bytes=3000"};
    struct method_options options;
    struct combine c = checked(&o);
    cr_expect_leq(c.report.total.dropped, sqrt(0.01) * c.report.total.update_norm);
    combine_close(&c);
    ok(method_options_parse(&options, o.method, words, 1));
    o.options = &options;
    c = checked(&o);
    cr_expect_leq(c.report.total.dropped, sqrt(0.3) * c.report.total.update_norm);
    cr_expect_gt(c.report.total.dropped, sqrt(0.02) * c.report.total.update_norm);
    combine_close(&c);
    ok(method_options_parse(&options, o.method, words + 1, 1));
    c = checked(&o);
    size_t spent = 0;
    for (size_t i = 0; i < c.count; i++)
        spent += c.module[i].rank * (c.module[i].d_out + c.module[i].d_in) * 4;
    cr_expect(spent <= 3000 && spent > 2500, "%zu bytes", spent);
    combine_close(&c);
}

Test(combine, hetlora_pads_and_weighs_by_norms_what_has_one_scale)
{
    struct combine_options o = small_options("hetlora", 4, 1, 2);
    struct combine c = checked(&o);
    for (size_t i = 0; i < c.count; i++)
        cr_expect_eq(c.module[i].rank, 4);
    cr_expect_gt(c.report.total.error, 0.01 * c.report.total.update_norm);
    combine_close(&c);
    o = options("hetlora");
    refused(combine_open(&c, &o), ERR_INPUT, "rslora differs");
}

Test(combine, the_stack_itself_is_of_the_ranks_sum_and_the_same_function)
{
    struct combine_options o = options("flora");
    o.stack = true;
    struct combine c = checked(&o);
    cr_expect_eq(c.report.total.rank, 16); /* down_proj: 9 and 7 */
    cr_expect_eq(c.report.total.error, 0);
    combine_close(&c);
    o.method = method_find("fedit");
    refused(combine_open(&c, &o), ERR_INPUT, "fedit keeps the rank of its adapters");
    o.method = method_find("flexlora");
    refused(combine_open(&c, &o), ERR_INPUT, "flexlora cannot give the stack");
}

Test(combine, what_cannot_be_combined_is_refused_by_name)
{
    struct combine_options o = options("fed-sb");
    struct combine c = {0};
    const double bad[] = {1, 0, 1};
    refused(combine_open(&c, &o), ERR_INPUT, "fed-sb combines small matrices");
    o = options("flora");
    o.weight = bad;
    refused(combine_open(&c, &o), ERR_INPUT, "weight 0");
    const char *const none[] = {golden[0], dir, golden[1]};
    o = options("flora");
    o.path = none;
    refused(combine_open(&c, &o), ERR_INPUT, "no PEFT adapter");
    struct adapter_file_module m = {
        .name = "model.layers.0.self_attn.q_proj", .rank = 1, .alpha = 1};
    float x[64] = {1};
    m.factor[0] = (struct adapter_file_factor){.f32 = x, .rows = 1, .cols = 8};
    m.factor[1] = (struct adapter_file_factor){.f32 = x, .rows = 6, .cols = 1};
    struct adapter_file_meta turned = {.fan_in_fan_out = true};
    ok(adapter_file_write_peft(at("other"), &(struct adapter_file_meta){0}, &m, 1, false));
    ok(adapter_file_write_peft(at("turned"), &turned, &m, 1, false));
    const char *const shapes[] = {golden[0], at("other"), golden[1]};
    o.path = shapes;
    refused(combine_open(&c, &o), ERR_INPUT, "model.layers.0.self_attn.q_proj is (");
    const char *const conv[] = {at("other"), at("turned"), at("other")};
    o.path = conv;
    refused(combine_open(&c, &o), ERR_INPUT, "fan_in_fan_out differs");
    x[3] = NAN;
    refused(adapter_file_write_peft(at("nan"), &(struct adapter_file_meta){0}, &m, 1, false),
            ERR_INPUT, "not finite");
    cr_expect_not(file_exists(at("nan")), "something was written");
}

/* Weights are used as given if one is negative, so these sums are known without another program. */
static struct combine difference(const char *second, double weight, bool stack)
{
    static const char *pair[2];
    static double by[2];
    struct combine_options o = options("flora");
    pair[0] = golden[0];
    pair[1] = second;
    by[0] = 1;
    by[1] = weight;
    o.path = pair;
    o.weight = by;
    o.count = 2;
    o.stack = stack;
    return checked(&o);
}

Test(combine, adapters_that_cancel_are_zero_and_nearly_cancelling_ones_are_not)
{
    struct combine c = difference(golden[0], -1, false);
    cr_expect_eq(c.report.total.rank, 1);
    cr_expect_eq(c.report.total.update_norm, 0);
    cr_expect_eq(c.report.total.error, 0);
    for (size_t i = 0; i < c.module[0].d_in; i++)
        cr_expect_eq(c.module[0].factor[0].f32[i], 0);
    combine_close(&c);
    c = difference(golden[0], -1, true);
    cr_expect_lt(c.report.total.update_norm, 1e-14);
    combine_close(&c);
    /* a new adapter, whose B is zero, adds nothing */
    struct adapter_file_module zero = {.name = "model.layers.0.self_attn.q_proj", .rank = 1};
    float none[64] = {0};
    zero.alpha = 1;
    zero.factor[0] = (struct adapter_file_factor){.f32 = none, .rows = 1, .cols = 24};
    zero.factor[1] = (struct adapter_file_factor){.f32 = none, .rows = 24, .cols = 1};
    ok(adapter_file_write_peft(at("zero"), &(struct adapter_file_meta){0}, &zero, 1, true));
    const char *const both[] = {golden[0], at("zero")};
    struct combine_options o = options("flora");
    o.path = both;
    o.count = 2;
    o.weight = NULL;
    c = checked(&o);
    cr_expect_eq(c.report.total.rank, 4);
    combine_close(&c);
    c = difference(golden[0], -0.5, false);
    double half = c.report.total.update_norm;
    combine_close(&c);
    c = difference(golden[0], -(1 - 1e-7), false);
    cr_expect(fabs(c.report.total.update_norm / half - 2e-7) < 1e-12, "%g",
              c.report.total.update_norm / half);
    cr_expect_eq(c.report.total.rank, 4);
    combine_close(&c);
}

Test(combine, a_negative_weight_needs_a_sum_of_changes)
{
    struct combine_options o = small_options("fedit", 4, 4, 4);
    static const double by[] = {1, 1, -0.5};
    struct combine c = {0};
    o.weight = by;
    refused(combine_open(&c, &o), ERR_INPUT, "a negative weight needs a method that adds changes");
}

Test(combine, adapters_of_bases_with_different_names_are_combined_only_if_asked)
{
    static const char *path[2] = {0};
    float x[16] = {1};
    struct combine_options o = options("flora");
    struct combine c = {0};
    for (int k = 0; k < 2; k++) {
        const struct adapter_file_meta meta = {.base_path = k ? "org/two" : "org/one"};
        struct adapter_file_module m = {.name = "q", .rank = 1, .alpha = 1};
        for (int r = 0; r < 2; r++)
            m.factor[r] =
                (struct adapter_file_factor){.f32 = x, .rows = r ? 8 : 1, .cols = r ? 1 : 8};
        path[k] = at(k ? "two" : "one");
        ok(adapter_file_write_peft(path[k], &meta, &m, 1, true));
    }
    o.path = path;
    o.count = 2;
    refused(combine_open(&c, &o), ERR_INPUT, "base_model_name_or_path \"org/two\", but ");
    o.any_base = true;
    ok(combine_open(&c, &o));
    cr_expect_str_eq(c.meta.base_path, "");
    combine_close(&c);
}
