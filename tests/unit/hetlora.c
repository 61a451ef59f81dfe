/* hetlora: padding and weights against plain loops. */
#include "agg/round/method.h"

#include "tests/support/method_fixture.h"

TestSuite(hetlora, .init = make_dir, .fini = remove_dir);

enum { R = 8 };

/* The definition, member by member: A and B of module i, padded with zeros to the state's rank. */
static void by_loops(double *A /* (R, IN) */, double *B /* (OUT, R) */, size_t i, size_t members)
{
    double w[MEMBERS], sum = 0;
    for (unsigned k = 0; k < members; k++) {
        double product[SIZE] = {0};
        add(product, at("update", k), i, 1, NULL);
        w[k] = weights[k] * norm(product);
        sum += w[k];
    }
    for (unsigned k = 0; k < members; k++) {
        struct adapter_file u = {0};
        ok(adapter_file_open(&u, at("update", k)));
        const struct adapter_file_module *x = adapter_file_find(&u, modules[i].name);
        for (size_t l = 0; l < x->rank; l++) {
            for (size_t j = 0; j < x->d_in; j++)
                A[l * IN + j] += w[k] / sum * x->factor[0].f32[l * x->d_in + j];
            for (size_t j = 0; j < x->d_out; j++)
                B[j * R + l] += w[k] / sum * x->factor[1].f32[j * x->rank + l];
        }
        adapter_file_close(&u);
    }
}

Test(hetlora, pads_with_zeros_and_weighs_by_the_norms_of_the_products)
{
    const struct method *m = method_find("hetlora");
    const uint32_t few[MEMBERS] = {2, 5, 3, R};
    memcpy(ranks, few, sizeof few);
    begin(m);
    for (unsigned t = 1; t <= 2; t++) {
        struct contribution c[MEMBERS];
        struct method_next next = gather_round(c, m, t);
        struct method_report report = {0};
        struct adapter_file s = {0};
        ok(next_reported(&report, m, at("state", t + 1), &next));
        ok(adapter_file_open(&s, at("state", t + 1)));
        for (size_t i = 0; i < MODULES; i++) {
            const struct adapter_file_module *x = adapter_file_find(&s, modules[i].name);
            double A[R * IN] = {0}, B[OUT * R] = {0};
            by_loops(A, B, i, MEMBERS);
            for (size_t l = 0; l < R; l++) {
                for (size_t j = 0; j < x->d_in; j++)
                    cr_expect(fabs(x->factor[0].f32[l * x->d_in + j] - A[l * IN + j]) < 1e-7);
                for (size_t j = 0; j < x->d_out; j++)
                    cr_expect(fabs(x->factor[1].f32[j * R + l] - B[j * R + l]) < 1e-7);
            }
            struct dense_round d = dense_round(m, t, i, /*gone*/ true);
            expect_row(&report, &d, i);
            cr_expect_gt(row_of(&report, i)->error, 0.1 * row_of(&report, i)->update_norm);
        }
        adapter_file_close(&s);
        method_report_close(&report);
    }
}

Test(hetlora, a_member_that_pruned_itself_is_taken_at_its_new_rank)
{
    const struct method *m = method_find("hetlora");
    const uint32_t few[MEMBERS] = {2, 5, 3, R};
    struct adapter_file state = {0};
    struct sender x = {.method = "hetlora", .member = "a", .round = 1, .rank = 4, .alpha = 8};
    struct method_expect expect = {
        .state = &state, .member = "a", .round = 1, .rank = 5, .alpha = 10};
    memcpy(ranks, few, sizeof few);
    begin(m); /* rank 8, scale 2 */
    ok(adapter_file_map(&state, at("state", 1)));
    send(at("update", 0), &x);
    ok(method_check_update(m, at("update", 0), &expect));
    x.rank = 6;
    x.alpha = 12;
    send(at("update", 0), &x);
    refused(method_check_update(m, at("update", 0), &expect), ERR_INPUT,
            "lora_A.weight: shape (6, 24), expected (5, 24)");
    x.rank = 4;
    x.alpha = 10; /* of the rank it had */
    send(at("update", 0), &x);
    refused(method_check_update(m, at("update", 0), &expect), ERR_INPUT,
            "rank 4 at scale 2.5, expected the state's scale 2");
    adapter_file_close(&state);
}

Test(hetlora, with_nothing_to_weigh_by_the_state_stays)
{
    struct method_report report = expect_a_stays("hetlora", 32);
    method_report_close(&report);
}

/* Members of other modules only: the state's pair counts with their weight, by its own norm. */
Test(hetlora, a_silent_member_counts_with_the_states_pair)
{
    const struct method *m = method_find("hetlora");
    const uint32_t few[MEMBERS] = {2, 5, 3, R};
    struct contribution c[MEMBERS];
    struct method_next next;
    memcpy(ranks, few, sizeof few);
    struct method_report report = run_round(m, c, &next), again = {0};
    struct adapter_file was = {0}, is = {0}, u = {0};
    struct sender x = {
        .method = "hetlora", .member = "alpha", .round = 2, .rank = 5, .alpha = 10, .modules = 1};
    next = gather_round(c, m, 2);
    next.count = 2; /* delta sends all, alpha the first module only */
    send(at("update", 1), &x);
    ok(next_reported(&again, m, at("state", 3), &next));
    ok(adapter_file_open(&was, at("state", 2)));
    ok(adapter_file_open(&is, at("state", 3)));
    ok(adapter_file_open(&u, at("update", 0)));
    const struct adapter_file_module *p = adapter_file_find(&was, modules[1].name);
    const struct adapter_file_module *q = adapter_file_find(&is, modules[1].name);
    const struct adapter_file_module *own = adapter_file_find(&u, modules[1].name);
    double sent_product[SIZE] = {0}, old_product[SIZE] = {0};
    add(sent_product, at("update", 0), 1, 1, NULL);
    add(old_product, at("state", 2), 1, 1, NULL);
    double a = weights[0] * norm(sent_product), b = weights[1] * norm(old_product);
    for (size_t l = 0; l < R; l++)
        for (size_t j = 0; j < p->d_in; j++) {
            double mine = l < 2 ? own->factor[0].f32[l * p->d_in + j] : 0;
            double want = (a * mine + b * p->factor[0].f32[l * p->d_in + j]) / (a + b);
            cr_expect(fabs(q->factor[0].f32[l * p->d_in + j] - want) < 1e-6);
        }
    adapter_file_close(&was);
    adapter_file_close(&is);
    adapter_file_close(&u);
    method_report_close(&report);
    method_report_close(&again);
}
