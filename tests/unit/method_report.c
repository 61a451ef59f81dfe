/* The norms of a round's report, for every method, against dense float64 sums of the updates. */
#include "agg/round/method_options.h"

#include "tests/support/method_changes.h"

#include <math.h>
#include <unistd.h>

TestSuite(method_report, .init = make_dir, .fini = remove_dir);

static const unsigned by_name[MEMBERS] = {1, 3, 2, 0}; /* alpha, bravo, charlie, delta */
static const double no_more = 1e-7; /* of the state's norm: an error below it need not be exact */

/* The change made by a member. A truncated member trained without the rest of the pair. */
static void changed(double *D, const struct method *m, unsigned t, unsigned k)
{
    if (!m->truncates) {
        change_of(D, m, t, k);
        return;
    }
    memset(D, 0, ALL * sizeof *D);
    struct adapter_file update = {0};
    ok(adapter_file_open(&update, at("update", k)));
    for (size_t i = 0; i < MODULES; i++) {
        if (!adapter_file_find(&update, modules[i].name)) continue;
        add_member(D + i * SIZE, at("state", t), at("update", k), NULL, i, 1, true);
        add_member(D + i * SIZE, at("state", t), at("state", t), NULL, i, -1, false);
    }
    adapter_file_close(&update);
}

static double size_of(const double *x, size_t n)
{
    double sum = 0;
    for (size_t j = 0; j < n; j++)
        sum += x[j] * x[j];
    return sqrt(sum);
}

struct dense {
    double change[ALL], error[ALL], after[ALL];
};

/* Of methods and rules that take a mean of members' changes, with the report's weights. */
static void sum_densely(struct dense *d, const struct method *m, unsigned t,
                        const struct method_report *report)
{
    static double D[ALL];
    const char *frozen = m->frozen ? at("frozen", 0) : NULL;
    memset(d, 0, sizeof *d);
    for (unsigned k = 0; k < MEMBERS; k++) {
        double p = weights[by_name[k]] / total_weight;
        if (report->member_count) p = report->member[k].weight;
        changed(D, m, t, by_name[k]);
        for (size_t j = 0; j < ALL; j++)
            d->change[j] += p * D[j];
    }
    published(d->error, m, t);
    for (size_t j = 0; j < ALL; j++)
        d->error[j] -= d->change[j];
    for (size_t i = 0; i < MODULES; i++)
        add(d->after + i * SIZE, at("state", t + 1), i, 1, frozen);
}

static void expect_norms(const struct method_report_row *row, const struct dense *d, size_t from,
                         size_t n, const char *what)
{
    double change = size_of(d->change + from, n), error = size_of(d->error + from, n),
           state = size_of(d->after + from, n);
    cr_expect(fabs(row->update_norm - change) < 1e-6 * change, "%s, %s: change %.9g, dense %.9g",
              what, row->module, row->update_norm, change);
    cr_expect(fabs(row->error - error) < 1e-5 * error + no_more * state,
              "%s, %s: error %.9g, dense %.9g (state %g)", what, row->module, row->error, error,
              state);
    cr_expect(fabs(row->state_norm - state) < 1e-6 * state, "%s, %s: state %.9g, dense %.9g", what,
              row->module, row->state_norm, state);
}

/* A rule by value has no weights: the round's change is what was published, to float32. */
static void expect_by_value(const struct method_report_row *row, const struct method *m, unsigned t,
                            size_t i)
{
    static double D[ALL];
    published(D, m, t);
    double change = size_of(D + i * SIZE, SIZE);
    cr_expect(fabs(row->update_norm - change) < 1e-5 * change, "%s: %.9g, dense %.9g", m->name,
              row->update_norm, change);
    cr_expect_lt(row->error, 1e-6 * row->state_norm);
}

/* Two rounds; in the second a member leaves a module out. */
static void expect_report(const struct method *m, const char *option)
{
    static struct dense d;
    char what[96];
    bool by_value = option && (strstr(option, "median") || strstr(option, "trimmed"));
    if (m->keeps) return; /* tests/unit/fedsa.c */
    snprintf(what, sizeof what, "%s %s", m->name, option ? option : "");
    extra_option = option;
    begin(m);
    for (unsigned t = 1; t <= 2; t++) {
        struct contribution c[MEMBERS];
        struct method_next next = gather_round(c, m, t);
        struct method_report report = {0};
        struct sender some = member_sender(m, 1, t);
        some.modules = 2;
        if (t == 2) send(at("update", 1), &some);
        next.memory_path = t > 1 && access(at("memory", t), F_OK) == 0 ? at("memory", t) : NULL;
        next.memory_out = at("memory", t + 1);
        next.carry_error = t == 2 ? 0.05 : 0;
        ok(next_reported(&report, m, at("state", t + 1), &next));
        for (size_t i = 0; i < MODULES && by_value; i++)
            expect_by_value(row_of(&report, i), m, t, i);
        if (!by_value) {
            sum_densely(&d, m, t, &report);
            for (size_t i = 0; i < MODULES; i++)
                expect_norms(row_of(&report, i), &d, i * SIZE, SIZE, what);
            expect_norms(&report.total, &d, 0, ALL, what);
        }
        cr_expect_eq(row_of(&report, 2)->sent, t == 2 ? MEMBERS - 1 : MEMBERS);
        method_report_close(&report);
        unlink(at("memory", t));
    }
    unlink(at("memory", 3));
}

static void expect_with(const char *const *options)
{
    for (const char *const *name = method_names(); *name; name++)
        for (const char *const *option = options; *option; option++) {
            struct method_options parsed;
            const struct method *m = method_find(*name);
            if (!err_is(method_options_parse(&parsed, m, option, 1))) expect_report(m, *option);
        }
}

Test(method_report, norms_of_every_method_are_those_of_the_dense_matrices)
{
    for (const char *const *name = method_names(); *name; name++)
        expect_report(method_find(*name), NULL);
    static const char *const options[] = {"tail=carry", "energy=0.5", "fair_solve=cosine", NULL};
    expect_with(options);
}

Test(method_report, norms_follow_the_weights_of_a_robust_rule)
{
    static const char *const options[] = {"robust=norm",   "robust=krum",    "robust=geometric",
                                          "robust=median", "robust=trimmed", NULL};
    expect_with(options);
}

Test(method_report, the_error_is_against_the_mean_whatever_a_server_optimizer_does)
{
    static const char *const options[] = {"server=fedavgm", "server=fedadam", "server=fedyogi",
                                          "server=fedadagrad", NULL};
    expect_with(options);
}

/* Replaces A and B in a file by factors that are neither orthogonal nor of length one. */
static void skew(const char *path)
{
    struct adapter_file f = {0};
    ok(adapter_file_open(&f, path));
    for (size_t i = 0; i < f.count; i++)
        for (int r = ADAPTER_FILE_A; r <= ADAPTER_FILE_B; r++) {
            struct adapter_file_factor *x = &f.module[i].factor[r];
            size_t n = (size_t)x->rows * x->cols;
            if (!x->f32) continue;
            float *skewed = calloc(n, sizeof *skewed);
            for (size_t j = 0; j < n; j++)
                skewed[j] = 1.5f * x->f32[j] + 0.1f * x->f32[(j * 7 + 3) % n];
            x->f32 = skewed;
        }
    ok(adapter_file_write(path, &f.meta, f.module, f.count, true));
    for (size_t i = 0; i < f.count; i++)
        for (int r = ADAPTER_FILE_A; r <= ADAPTER_FILE_B; r++)
            free((void *)(uintptr_t)f.module[i].factor[r].f32);
    adapter_file_close(&f);
}

/* Frozen factors that another program made. */
static void begin_skewed(const struct method *m)
{
    struct method_start start = begin(m);
    struct digest digest;
    skew(at("frozen", 0));
    ok(digest_of_file(&digest, at("frozen", 0)));
    digest_text(frozen_digest, &digest);
    start.frozen_path = at("frozen", 0);
    start.frozen_digest = frozen_digest;
    ok(method_start(m, at("state", 1), &start));
}

Test(method_report, frozen_factors_count_as_orthonormal_only_where_they_are)
{
    static struct dense d;
    for (const char *const *name = method_names(); *name; name++)
        for (int skewed = 0; skewed < 2; skewed++) {
            const struct method *m = method_find(*name);
            struct method_report_frozen known = {0};
            struct method_report_options options = {.frozen = &known};
            if (!m->frozen) continue;
            extra_option = NULL;
            begin(m);
            if (skewed) begin_skewed(m);
            for (unsigned t = 1; t <= 2; t++) {
                struct contribution c[MEMBERS];
                struct method_report report = {0};
                struct method_next next = gather_round(c, m, t);
                ok(method_next(&report, m, at("state", t + 1), &next));
                ok(method_report_make(&report, m, at("state", t + 1), &next, &options));
                cr_expect_eq(known.orthonormal, !skewed);
                cr_expect_str_eq(known.digest, frozen_digest);
                sum_densely(&d, m, t, &report);
                for (size_t i = 0; i < MODULES; i++)
                    expect_norms(row_of(&report, i), &d, i * SIZE, SIZE, m->name);
                method_report_close(&report);
            }
        }
}

/* fedsvd publishes on new axes, so its own error is only rounding. A published pair that is wrong
 * shows that every part of the formula counts. */
Test(method_report, the_error_of_a_wrong_pair_on_new_axes_is_that_of_the_dense_matrices)
{
    static struct dense d;
    const struct method *m = method_find("fedsvd");
    const struct method_report_options options = {0};
    struct contribution c[MEMBERS];
    struct method_report report = {0};
    extra_option = NULL;
    begin(m);
    struct method_next next = gather_round(c, m, 1);
    ok(method_next(&report, m, at("state", 2), &next));
    skew(at("state", 2));
    ok(method_report_make(&report, m, at("state", 2), &next, &options));
    sum_densely(&d, m, 1, &report);
    for (size_t i = 0; i < MODULES; i++) {
        expect_norms(row_of(&report, i), &d, i * SIZE, SIZE, m->name);
        cr_expect_gt(row_of(&report, i)->error, 0.1 * row_of(&report, i)->state_norm);
    }
    method_report_close(&report);
}

Test(method_report, does_not_depend_on_the_number_of_threads)
{
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        struct contribution c[MEMBERS];
        struct method_next next;
        struct bytes json[3] = {{0}};
        struct method_report report = run_round(m, c, &next);
        method_report_close(&report);
        for (int threads = 1; threads <= 3; threads++) {
            const struct method_report_options options = {.directions = true, .threads = threads};
            struct bytes *text = &json[threads - 1];
            text->max = 1 << 20;
            ok(method_next(&report, m, at("state", 2), &next));
            ok(method_report_make(&report, m, at("state", 2), &next, &options));
            ok(method_report_json(text, &report));
            cr_expect_str_eq((char *)text->data, (char *)json[0].data, "%s", *name);
            method_report_close(&report);
        }
        for (int i = 0; i < 3; i++)
            bytes_close(&json[i]);
    }
}

struct patience {
    int asked, until;
};

static bool no_longer(void *context)
{
    struct patience *p = context;
    return ++p->asked > p->until;
}

Test(method_report, gives_way_between_modules_and_stays_as_it_was)
{
    const struct method *m = method_find("fedit");
    struct contribution c[MEMBERS];
    struct method_report report = {0};
    begin(m);
    struct method_next next = gather_round(c, m, 1);
    ok(method_next(&report, m, at("state", 2), &next));
    for (int until = 0; until <= MODULES; until++) {
        struct patience p = {.until = until};
        const struct method_report_options options = {
            .directions = true, .give_way = no_longer, .context = &p, .threads = 1};
        err e = method_report_make(&report, m, at("state", 2), &next, &options);
        if (until == MODULES) {
            ok(e);
            cr_expect(report.measured && report.total.update_norm > 0);
            break;
        }
        cr_expect_eq(e.kind, ERR_STOPPED, "%s", e.text);
        cr_expect_eq(p.asked, until + 1);
        cr_expect(!report.measured && report.total.update_norm == 0);
        for (size_t i = 0; i < report.count; i++)
            cr_expect(report.row[i].update_norm == 0 && report.row[i].sent == MEMBERS);
    }
    method_report_close(&report);
}

Test(method_report, another_rounds_state_is_refused)
{
    const struct method *m = method_find("fedit");
    const struct method_report_options options = {0};
    struct contribution c[MEMBERS];
    struct method_report report = {0};
    begin(m);
    struct method_next next = gather_round(c, m, 1);
    ok(method_next(&report, m, at("state", 2), &next));
    refused(method_report_make(&report, m, at("state", 1), &next, &options), ERR_INPUT,
            "expected the state after round 1");
    cr_expect_not(report.measured);
    method_report_close(&report);
}
