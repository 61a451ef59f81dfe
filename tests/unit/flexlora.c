/* flexlora: the published pair against the dense mean's own singular value decomposition. */
#include "agg/round/method.h"

#include "tests/support/method_fixture.h"

#include <lapacke.h>

TestSuite(flexlora, .init = make_dir, .fini = remove_dir);

/* sqrt(sum_{i > q} s_i^2) of the leading (m, n) of x. */
static double tail_of(const double *x, size_t i, uint32_t q)
{
    uint32_t m = modules[i].d_out, n = modules[i].d_in;
    double a[SIZE], s[OUT], super[OUT], sum = 0;
    memcpy(a, x, sizeof a);
    cr_assert_eq(LAPACKE_dgesvd(LAPACK_ROW_MAJOR, 'N', 'N', (int)m, (int)n, a, (int)n, s, NULL,
                                (int)m, NULL, (int)n, super),
                 0);
    for (uint32_t j = q; j < m; j++)
        sum += s[j] * s[j];
    return sqrt(sum);
}

Test(flexlora, publishes_the_best_pair_of_the_runs_rank_and_reports_the_tail)
{
    const struct method *m = method_find("flexlora");
    const uint32_t few[MEMBERS] = {2, 5, 3, 6};
    memcpy(ranks, few, sizeof few);
    begin(m);
    for (unsigned t = 1; t <= 3; t++) { /* from the second round on, what is not trained counts */
        struct contribution c[MEMBERS];
        struct method_next next = gather_round(c, m, t);
        struct method_report report = {0};
        struct adapter_file s = {0};
        ok(next_reported(&report, m, at("state", t + 1), &next));
        ok(adapter_file_open(&s, at("state", t + 1)));
        for (size_t i = 0; i < MODULES; i++) {
            struct dense_round d = dense_round(m, t, i, false);
            const struct adapter_file_module *x = adapter_file_find(&s, modules[i].name);
            double tail = tail_of(d.exact, i, 6);
            cr_expect_gt(tail, 0.01 * norm(d.exact));
            cr_expect(fabs(d.error - tail) < 1e-6 * norm(d.exact), "%.9g, tail %.9g", d.error,
                      tail);
            cr_expect(fabs(row_of(&report, i)->dropped - tail) < 1e-9 * norm(d.exact));
            expect_row(&report, &d, i);
            cr_expect_eq(x->rank, 6);
            cr_expect_float_eq(x->scale, 2, 0);
            for (size_t a = 0; a < 6; a++)
                for (size_t b = 0; b < 6; b++) {
                    double sum = 0;
                    for (size_t j = 0; j < x->d_in; j++)
                        sum += (double)x->factor[0].f32[a * x->d_in + j] *
                               (double)x->factor[0].f32[b * x->d_in + j];
                    cr_expect(fabs(sum - (a == b)) < 1e-6, "A is V^T");
                }
        }
        adapter_file_close(&s);
        method_report_close(&report);
    }
}

/* Every member trains what it is given at its own scale and changes nothing: the slices fit. */
Test(flexlora, slices_of_any_rank_put_back_untouched_give_the_same_model)
{
    const struct method *m = method_find("flexlora");
    struct contribution c[MEMBERS];
    const uint32_t few[MEMBERS] = {2, 5, 3, 6};
    memcpy(ranks, few, sizeof few);
    struct method_next next;
    struct method_report report = run_round(m, c, &next), again = {0};
    struct adapter_file s = {0};
    ok(adapter_file_open(&s, at("state", 2)));
    for (unsigned k = 0; k < MEMBERS; k++) {
        struct adapter_file_module x[MODULES];
        float *copy[MODULES];
        const struct adapter_file_meta meta = {.kind = ADAPTER_FILE_UPDATE,
                                               .method = "flexlora",
                                               .base = base,
                                               .run = "r1",
                                               .round = 2,
                                               .rank = few[k],
                                               .alpha = 2 * few[k]};
        for (size_t i = 0; i < MODULES; i++) {
            const struct adapter_file_module *from = &s.module[i];
            copy[i] = calloc((size_t)from->d_out * few[k], sizeof(float));
            for (size_t row = 0; row < from->d_out; row++)
                memcpy(copy[i] + row * few[k], from->factor[1].f32 + row * 6,
                       few[k] * sizeof(float));
            x[i] = *from;
            x[i].rank = few[k];
            x[i].factor[0].rows = few[k];
            x[i].factor[1] =
                (struct adapter_file_factor){.f32 = copy[i], .rows = from->d_out, .cols = few[k]};
        }
        ok(adapter_file_write(at("update", k), &meta, x, MODULES, true));
        for (size_t i = 0; i < MODULES; i++)
            free(copy[i]);
    }
    next.state_path = at("state", 2);
    ok(next_reported(&again, m, at("state", 3), &next));
    for (size_t i = 0; i < MODULES; i++) {
        struct dense_round d = dense_round(m, 2, i, false);
        cr_expect_lt(distance(d.before, d.after), 1e-6 * norm(d.before), "%g",
                     distance(d.before, d.after));
    }
    cr_expect_lt(again.total.update_norm, 1e-6 * again.total.state_norm);
    adapter_file_close(&s);
    method_report_close(&report);
    method_report_close(&again);
}

/* One small member alone: the pair has its rank, and the other rows are still there to train. */
Test(flexlora, rows_that_nothing_uses_keep_something_to_train_from)
{
    const struct method *m = method_find("flexlora");
    const uint32_t few[MEMBERS] = {2, 5, 3, 6};
    struct contribution c[MEMBERS];
    struct method_report report = {0};
    struct adapter_file was = {0}, is = {0};
    memcpy(ranks, few, sizeof few);
    begin(m);
    struct method_next next = gather_round(c, m, 1);
    next.count = 1;
    ok(next_reported(&report, m, at("state", 2), &next));
    ok(adapter_file_open(&was, at("state", 1)));
    ok(adapter_file_open(&is, at("state", 2)));
    for (size_t i = 0; i < MODULES; i++) {
        const struct adapter_file_module *p = &was.module[i], *q = &is.module[i];
        cr_expect_arr_eq(p->factor[0].f32 + 2 * p->d_in, q->factor[0].f32 + 2 * p->d_in,
                         4 * p->d_in * sizeof(float));
        for (size_t row = 0; row < q->d_out; row++)
            for (size_t j = 0; j < 6; j++)
                cr_expect((q->factor[1].f32[row * 6 + j] != 0) == (j < 2));
        cr_expect_lt(row_of(&report, i)->error, 1e-6 * row_of(&report, i)->update_norm);
    }
    adapter_file_close(&was);
    adapter_file_close(&is);
    method_report_close(&report);
}

Test(flexlora, a_members_own_scale_is_refused)
{
    const struct method *m = method_find("flexlora");
    struct contribution c[MEMBERS];
    struct method_report report = {0};
    struct sender x = {.method = "flexlora", .member = "delta", .round = 1, .rank = 4, .alpha = 64};
    begin(m);
    struct method_next next = gather_round(c, m, 1);
    send(at("update", 0), &x); /* the run's alpha over its own rank */
    refused(method_next(&report, m, at("state", 2), &next), ERR_INPUT,
            "rank 4 at scale 16, but a mean of factors needs rank up to 32 at scale 2");
}

Test(flexlora, with_the_tail_carried_every_round_is_exact)
{
    const struct method *m = method_find("flexlora");
    const uint32_t few[MEMBERS] = {2, 5, 3, 6};
    memcpy(ranks, few, sizeof few);
    extra_option = "tail=carry";
    begin(m);
    for (unsigned t = 1; t <= 3; t++) {
        struct contribution c[MEMBERS];
        struct method_next next = gather_round(c, m, t);
        struct method_report report = {0};
        struct adapter_file s = {0};
        ok(next_reported(&report, m, at("state", t + 1), &next));
        ok(adapter_file_open(&s, at("state", t + 1)));
        for (size_t i = 0; i < MODULES; i++) {
            struct dense_round d = dense_round(m, t, i, false);
            cr_expect_lt(d.error, 3e-7 * norm(d.after), "%g", d.error / norm(d.after));
            expect_row(&report, &d, i);
            cr_expect_gt(s.module[i].carry_rank, 0);
            cr_expect_eq(s.module[i].rank, 6);
        }
        adapter_file_close(&s);
        method_report_close(&report);
    }
}

/* A rank above the modules' own sizes cuts nothing; and a member counted twice is
 * the same member. */
Test(flexlora, a_rank_larger_than_a_module_and_duplicates_are_no_trouble)
{
    const struct method *m = method_find("flexlora");
    begin(m); /* rank 32, modules of 8 to 24 rows */
    for (unsigned t = 1; t <= 2; t++) {
        struct contribution c[MEMBERS];
        struct method_next next = gather_round(c, m, t);
        struct method_report report = {0};
        if (t == 2) /* all send what the last has sent, which trained everything */
            for (unsigned k = 0; k < MEMBERS - 1; k++)
                c[k].path = c[MEMBERS - 1].path;
        ok(next_reported(&report, m, at("state", t + 1), &next));
        for (size_t i = 0; i < MODULES; i++) {
            struct dense_round d = dense_round(m, t, i, false);
            double one[SIZE] = {0};
            if (t == 2) add(one, c[MEMBERS - 1].path, i, 1, NULL);
            double off = distance(d.after, t == 1 ? d.exact : one);
            cr_expect_lt(off, 3e-7 * norm(d.after), "%g", off / norm(d.after));
        }
        method_report_close(&report);
    }
}

Test(flexlora, with_rslora_a_slices_alpha_goes_by_the_root_of_its_rank)
{
    const struct method *m = method_find("flexlora");
    const uint32_t few[MEMBERS] = {2, 5, 3, 6};
    struct method_start start = start_of(6, 12);
    struct adapter_file state = {0};
    struct contribution c[MEMBERS];
    struct method_report report = {0};
    start.rslora = true;
    ok(method_start(m, at("state", 1), &start));
    memcpy(ranks, few, sizeof few);
    struct method_next next = gather_round(c, m, 1);
    ok(adapter_file_map(&state, at("state", 1)));
    for (unsigned k = 0; k < MEMBERS; k++) {
        struct sender x = {.method = "flexlora",
                           .member = member_names[k],
                           .round = 1,
                           .rank = few[k],
                           .alpha = 12 * sqrt(few[k] / 6.0),
                           .rslora = true,
                           .seed = k};
        struct method_expect expect = {.state = &state,
                                       .member = member_names[k],
                                       .round = 1,
                                       .rank = few[k],
                                       .alpha = x.alpha,
                                       .rslora = true};
        send(at("update", k), &x);
        ok(method_check_update(m, at("update", k), &expect));
    }
    ok(next_reported(&report, m, at("state", 2), &next));
    for (size_t i = 0; i < MODULES; i++) {
        struct dense_round d = dense_round(m, 1, i, false);
        cr_expect(fabs(d.error - tail_of(d.exact, i, 6)) < 1e-6 * norm(d.exact));
        expect_row(&report, &d, i);
    }
    adapter_file_close(&state);
    method_report_close(&report);
}
