/* Every method is compared with dense float64 sums of the updates, and the bytes of a state with
 * those from other orders of members and numbers of threads. */
#include "agg/round/method.h"

#include "tests/support/method_fixture.h"

#include <math.h>

TestSuite(method, .init = make_dir, .fini = remove_dir);

static bool same_bytes(const char *a, const char *b)
{
    struct digest x, y;
    ok(digest_of_file(&x, a));
    ok(digest_of_file(&y, b));
    return digest_equal(&x, &y);
}

Test(method, flora_carries_the_exact_weighted_sum_of_mixed_ranks_and_scales)
{
    struct contribution c[MEMBERS];
    struct method_next next;
    struct method_report report = run_round(method_find("flora"), c, &next);
    for (size_t i = 0; i < MODULES; i++) {
        double exact[SIZE] = {0}, off[SIZE];
        for (unsigned k = 0; k < MEMBERS; k++)
            add(exact, at("update", k), i, weights[k] / total_weight, NULL);
        memcpy(off, exact, sizeof off);
        add(off, at("state", 2), i, -1, NULL);
        cr_expect_lt(norm(off), 3e-7 * norm(exact), "module %zu: %g", i, norm(off) / norm(exact));
        for (size_t r = 0; r < report.count; r++) {
            if (strcmp(report.row[r].module, modules[i].name) != 0) continue;
            cr_expect(fabs(report.row[r].update_norm - norm(exact)) < 1e-12 * norm(exact));
            cr_expect(fabs(report.row[r].error - norm(off)) < 0.1 * norm(off));
            cr_expect_eq(report.row[r].sent, MEMBERS);
        }
    }
    struct bytes json = {.max = 1 << 20};
    ok(method_report_json(&json, &report));
    cr_expect(strstr((char *)json.data, "\"module\":\"model.layers.0.k_proj\""));
    bytes_close(&json);
    method_report_close(&report);
}

/* Two rounds, so that the second starts from a state of the first (and rolora trains A). */
Test(method, exact_methods_publish_the_weighted_mean_of_what_members_run)
{
    size_t methods = 0;
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        if (!m->exact || m->factors(1) & METHOD_R) continue;
        methods++;
        begin(m);
        for (unsigned t = 1; t <= 3; t++) {
            struct contribution c[MEMBERS];
            struct method_next next = gather_round(c, m, t);
            struct method_report report = {0};
            ok(next_reported(&report, m, at("state", t + 1), &next));
            for (size_t i = 0; i < MODULES; i++) {
                struct dense_round d = dense_round(m, t, i, false);
                cr_expect_lt(d.error, 3e-7 * norm(d.after), "%s, round %u, module %zu: %g", *name,
                             t, i, d.error / norm(d.after));
                cr_expect_gt(d.change, 0.01 * norm(d.after), "%s: nothing to see", *name);
                expect_row(&report, &d, i);
            }
            method_report_close(&report);
        }
    }
    cr_expect_geq(methods, 5);
}

Test(method, carry_error_bounds_what_is_dropped_and_is_reported)
{
    struct contribution c[MEMBERS];
    struct method_next next;
    struct method_report exact = run_round(method_find("flora"), c, &next), cut = {0};
    next.carry_error = 0.2;
    next.rounds = 2;
    ok(next_reported(&cut, method_find("flora"), at("state", 3), &next));
    cr_expect_lt(cut.total.rank, exact.total.rank);
    for (size_t r = 0; r < cut.count; r++) {
        double off[SIZE] = {0}, whole[SIZE] = {0};
        size_t i = 0;
        while (strcmp(modules[i].name, cut.row[r].module) != 0)
            i++;
        add(off, at("state", 2), i, 1, NULL);
        add(whole, at("state", 2), i, 1, NULL);
        add(off, at("state", 3), i, -1, NULL);
        cr_expect_leq(cut.row[r].dropped, 0.1 * norm(whole)); /* one of two rounds */
        cr_expect(fabs(norm(off) - cut.row[r].error) < 1e-5 * norm(whole));
    }
    struct adapter_file f = {0};
    cr_expect_gt(cut.total.dropped, 0);
    ok(adapter_file_open(&f, at("state", 3)));
    cr_expect(strstr(f.meta.dropped, "model.layers.0.q_proj"));
    cr_expect_eq(f.meta.round, 2);
    adapter_file_close(&f);
    method_report_close(&exact);
    method_report_close(&cut);
}

Test(method, fedit_publishes_the_mean_of_factors_and_reports_the_covariance_it_loses)
{
    struct contribution c[MEMBERS];
    struct method_next next;
    struct method_report report = run_round(method_find("fedit"), c, &next);
    struct adapter_file u[MEMBERS] = {0}, s = {0};
    ok(adapter_file_open(&s, at("state", 2)));
    for (unsigned k = 0; k < MEMBERS; k++)
        ok(adapter_file_open(&u[k], at("update", k)));
    for (size_t i = 0; i < report.count; i++) {
        const struct adapter_file_module *m = &s.module[i];
        double covariance[SIZE] = {0}, scale = 8.0 / 4;
        double A[4 * IN] = {0}, B[OUT * 4] = {0};
        for (unsigned k = 0; k < MEMBERS; k++) {
            for (size_t j = 0; j < 4 * m->d_in; j++)
                A[j] += weights[k] / total_weight * u[k].module[i].factor[0].f32[j];
            for (size_t j = 0; j < 4 * m->d_out; j++)
                B[j] += weights[k] / total_weight * u[k].module[i].factor[1].f32[j];
        }
        for (size_t j = 0; j < 4 * m->d_in; j++)
            cr_expect_eq(m->factor[0].f32[j], (float)A[j]);
        for (size_t j = 0; j < 4 * m->d_out; j++)
            cr_expect_eq(m->factor[1].f32[j], (float)B[j]);
        for (unsigned k = 0; k < MEMBERS; k++)
            for (size_t row = 0; row < m->d_out; row++)
                for (size_t col = 0; col < m->d_in; col++)
                    for (size_t l = 0; l < 4; l++)
                        covariance[row * m->d_in + col] +=
                            scale * weights[k] / total_weight *
                            (u[k].module[i].factor[1].f32[row * 4 + l] - B[row * 4 + l]) *
                            (u[k].module[i].factor[0].f32[l * m->d_in + col] -
                             A[l * m->d_in + col]);
        cr_expect(fabs(report.row[i].error - norm(covariance)) < 1e-6 * norm(covariance),
                  "%.12g, covariance %.12g", report.row[i].error, norm(covariance));
        cr_expect_gt(report.row[i].error, 0);
    }
    for (unsigned k = 0; k < MEMBERS; k++)
        adapter_file_close(&u[k]);
    adapter_file_close(&s);
    method_report_close(&report);
}

Test(method, fed_sb_adds_each_members_change_in_its_own_block)
{
    struct contribution c[MEMBERS];
    struct method_next next;
    const struct method *m = method_find("fed-sb");
    struct method_report report = run_round(m, c, &next), again = {0};
    for (int round = 1; round <= 2; round++) { /* from zero, then from what the first left */
        for (size_t i = 0; i < MODULES; i++) {
            double exact[SIZE] = {0}, off[SIZE] = {0};
            struct adapter_file s = {0}, f = {0};
            ok(adapter_file_open(&s, at("state", (unsigned)round)));
            ok(adapter_file_open(&f, at("frozen", 0)));
            const struct adapter_file_module *old = adapter_file_find(&s, modules[i].name);
            const struct adapter_file_module *ab = adapter_file_find(&f, modules[i].name);
            uint32_t r = old->rank;
            for (unsigned k = 0; k < MEMBERS; k++) {
                struct adapter_file u = {0};
                ok(adapter_file_open(&u, at("update", k)));
                const struct adapter_file_module *x = adapter_file_find(&u, modules[i].name);
                for (size_t row = 0; row < modules[i].d_out; row++)
                    for (size_t col = 0; col < modules[i].d_in; col++)
                        for (size_t a = 0; a < x->rank; a++)
                            for (size_t b = 0; b < x->rank; b++)
                                exact[row * modules[i].d_in + col] +=
                                    weights[k] / total_weight * ab->factor[1].f32[row * r + a] *
                                    ((double)x->factor[2].f32[a * x->rank + b] -
                                     old->factor[2].f32[a * r + b]) *
                                    ab->factor[0].f32[b * modules[i].d_in + col];
                adapter_file_close(&u);
            }
            memcpy(off, exact, sizeof off);
            add(off, at("state", (unsigned)round), i, 1, at("frozen", 0));
            add(off, at("state", (unsigned)round + 1), i, -1, at("frozen", 0));
            cr_expect_lt(norm(off), 2e-7 * norm(exact), "%g", norm(off) / norm(exact));
            const struct method_report *rep = round == 1 ? &report : &again;
            for (size_t j = 0; j < rep->count; j++)
                if (strcmp(rep->row[j].module, modules[i].name) == 0)
                    cr_expect(fabs(rep->row[j].update_norm - norm(exact)) < 1e-6 * norm(exact));
            adapter_file_close(&s);
            adapter_file_close(&f);
        }
        if (round == 2) break;
        for (unsigned k = 0; k < MEMBERS; k++) {
            struct sender x = {.method = "fed-sb",
                               .member = c[k].member,
                               .frozen = frozen_digest,
                               .round = 2,
                               .rank = 3 * (MEMBERS - k),
                               .seed = 50 + k};
            send(at("update", k), &x);
        }
        next.state_path = at("state", 2);
        ok(next_reported(&again, m, at("state", 3), &next));
    }
    method_report_close(&report);
    method_report_close(&again);
}

static void expect_same_bytes(const struct method *m)
{
    struct contribution c[MEMBERS], other[MEMBERS];
    struct method_next next;
    struct method_report a = run_round(m, c, &next), b = {0};
    for (int k = 0; k < MEMBERS; k++)
        other[k] = c[(k + 1) % MEMBERS];
    for (int threads = 1; threads <= 3; threads++) {
        next.threads = threads;
        next.contribution = threads % 2 ? other : c;
        ok(next_reported(&b, m, at("other", (unsigned)threads), &next));
        cr_expect(same_bytes(at("state", 2), at("other", (unsigned)threads)), "%s, %d threads",
                  m->name, threads);
        method_report_close(&b);
    }
    for (int k = 0; k < MEMBERS; k++) /* weights are shares: any unit will do */
        other[k].weight *= 4;
    ok(next_reported(&b, m, at("other", 9), &next));
    cr_expect(same_bytes(at("state", 2), at("other", 9)), "%s, other unit", m->name);
    method_report_close(&a);
    method_report_close(&b);
}

Test(method, the_same_bytes_come_of_any_order_and_any_number_of_threads)
{
    static const char *const with[][2] = {
        {"flexlora", "tail=carry"}, {"florist", "bytes=4000"}, {"lora-fair", "fair_solve=cosine"}};
    for (const char *const *name = method_names(); *name; name++)
        expect_same_bytes(method_find(*name));
    for (size_t i = 0; i < sizeof with / sizeof *with; i++) {
        extra_option = with[i][1];
        expect_same_bytes(method_find(with[i][0]));
    }
}

Test(method, a_hundred_rounds_of_carry_are_one_direct_sum)
{
    const struct method *m = method_find("flora");
    struct method_start start = start_of(4, 8);
    static double exact[MODULES][SIZE];
    ok(method_start(m, at("state", 1), &start));
    for (unsigned t = 1; t <= 100; t++) {
        struct sender x = {
            .method = "flora", .member = "a", .round = t, .rank = 2, .alpha = 4, .seed = t};
        struct method_report report = {0};
        send(at("update", 0), &x);
        x = (struct sender){
            .method = "flora", .member = "b", .round = t, .rank = 5, .alpha = 2, .seed = t};
        send(at("update", 1), &x);
        struct contribution c[] = {{"a", 1, at("update", 0)}, {"b", 2, at("update", 1)}};
        struct method_next next = {
            .state_path = at("state", t), .contribution = c, .count = 2, .rounds = 100};
        ok(next_reported(&report, m, at("state", t + 1), &next));
        for (size_t i = 0; i < MODULES; i++)
            for (unsigned k = 0; k < 2; k++)
                add(exact[i], at("update", k), i, (k + 1) / 3.0, NULL);
        method_report_close(&report);
    }
    for (size_t i = 0; i < MODULES; i++) {
        double size = norm(exact[i]);
        add(exact[i], at("state", 101), i, -1, NULL);
        cr_expect_lt(norm(exact[i]), 1e-5 * size, "%g", norm(exact[i]) / size);
    }
}

/* Methods that also publish a pair: the sum of the exact changes of all rounds. */
Test(method, a_hundred_rounds_of_pair_and_carry_are_the_sum_of_their_changes)
{
    static const char *const names[] = {"fedex", "flexlora", "florist"};
    static const char *const words[] = {NULL, "tail=carry", "energy=1"};
    static const uint32_t few[MEMBERS] = {1, 2, 2, 3};
    memcpy(ranks, few, sizeof few);
    for (size_t n = 0; n < 3; n++) {
        const struct method *m = method_find(names[n]);
        double sum[SIZE] = {0};
        extra_option = words[n];
        begin(m);
        for (unsigned t = 1; t <= 100; t++) {
            struct contribution c[MEMBERS];
            struct method_next next = gather_round(c, m, t);
            struct method_report report = {0};
            ok(next_reported(&report, m, at("state", t + 1), &next));
            struct dense_round d = dense_round(m, t, 1, false);
            for (size_t j = 0; j < SIZE; j++)
                sum[j] += d.exact[j] - d.before[j];
            method_report_close(&report);
            if (t < 100) continue;
            cr_expect_lt(distance(sum, d.after), 1e-5 * norm(d.after), "%s: %g", names[n],
                         distance(sum, d.after) / norm(d.after));
        }
    }
}

Test(method, all_rounds_together_drop_no_more_than_carry_error)
{
    const struct method *m = method_find("flora");
    struct method_start start = start_of(4, 8);
    static double exact[MODULES][SIZE];
    ok(method_start(m, at("state", 1), &start));
    for (unsigned t = 1; t <= 8; t++) {
        struct sender x = {
            .method = "flora", .member = "a", .round = t, .rank = 3, .alpha = 4, .seed = t};
        struct method_report report = {0};
        send(at("update", 0), &x);
        struct contribution c[] = {{"a", 1, at("update", 0)}};
        struct method_next next = {.state_path = at("state", t),
                                   .contribution = c,
                                   .count = 1,
                                   .carry_error = 0.2,
                                   .rounds = t % 2 ? 8 : 0};
        ok(next_reported(&report, m, at("state", t + 1), &next));
        for (size_t i = 0; i < MODULES; i++)
            add(exact[i], at("update", 0), i, 1, NULL);
        method_report_close(&report);
    }
    struct adapter_file last = {0};
    ok(adapter_file_open(&last, at("state", 9)));
    for (size_t i = 0; i < MODULES; i++) {
        double carry[SIZE] = {0}, size;
        add(carry, at("state", 9), i, 1, NULL);
        size = norm(carry);
        for (size_t j = 0; j < SIZE; j++)
            carry[j] -= exact[i][j];
        cr_expect_leq(norm(carry), 0.2 * size, "%g", norm(carry) / size);
        cr_expect_gt(norm(carry), 0.01 * size, "nothing was dropped: the test tests nothing");
    }
    adapter_file_close(&last);
}

Test(method, nothing_changes_where_nobody_sent_or_trained)
{
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        struct contribution c[MEMBERS];
        struct method_next next;
        struct method_report report = run_round(m, c, &next), idle = {0};
        next.state_path = at("state", 2);
        next.count = 0;
        ok(next_reported(&idle, m, at("state", 3), &next));
        struct sender x = {.method = *name,
                           .member = "delta",
                           .frozen = m->frozen ? frozen_digest : NULL,
                           .round = 2,
                           .rank = 4,
                           .alpha = m->frozen ? 4 : 8,
                           .zero = true,
                           .modules = 2};
        send(at("zero", 0), &x);
        c[0].path = at("zero", 0);
        next.count = 1;
        method_report_close(&idle);
        ok(next_reported(&idle, m, at("state", 4), &next));
        for (size_t i = 0; i < MODULES; i++) {
            double before[SIZE] = {0}, after[SIZE] = {0};
            const char *frozen = m->frozen ? at("frozen", 0) : NULL;
            add(before, at("state", 2), i, 1, frozen);
            add(after, at("state", 3), i, 1, frozen);
            cr_expect_arr_eq(before, after, sizeof before, "%s: nobody delivered", *name);
            memset(after, 0, sizeof after);
            add(after, at("state", 4), i, 1, frozen);
            if (i == 2 || m->fresh) /* not sent; or B is zero */
                cr_expect_arr_eq(before, after, sizeof before, "%s: module %zu", *name, i);
        }
        method_report_close(&report);
        method_report_close(&idle);
    }
}

Test(method, a_member_without_a_module_has_learned_nothing_there)
{
    struct contribution c[2] = {{"a", 1, at("update", 0)}, {"b", 3, at("update", 1)}};
    struct method_start start = start_of(4, 8);
    struct method_report report = {0};
    const struct method *m = method_find("flora");
    struct sender x = {
        .method = "flora", .member = "a", .round = 1, .rank = 4, .alpha = 8, .seed = 1};
    ok(method_start(m, at("state", 1), &start));
    send(at("update", 0), &x);
    x.member = "b";
    x.modules = 1;
    send(at("update", 1), &x);
    c[0].path = at("update", 0);
    c[1].path = at("update", 1);
    struct method_next next = {.state_path = at("state", 1), .contribution = c, .count = 2};
    ok(next_reported(&report, m, at("state", 2), &next));
    double off[SIZE] = {0}, exact[SIZE] = {0};
    add(exact, at("update", 0), 1, 0.25, NULL);
    memcpy(off, exact, sizeof off);
    add(off, at("state", 2), 1, -1, NULL);
    cr_expect_lt(norm(off), 3e-7 * norm(exact));
    method_report_close(&report);
}

Test(method, begins_from_an_initial_adapter)
{
    struct adapter_file_module lora[MODULES] = {0};
    struct method_start start = start_of(4, 6);
    struct rng rng;
    rng_init(&rng, "initial", 1, "", 0);
    for (size_t i = 0; i < MODULES; i++) {
        float *v = malloc(4 * (OUT + IN) * sizeof *v);
        for (size_t j = 0; j < 4 * (OUT + IN); j++)
            v[j] = (float)rng_normal(&rng);
        lora[i] = (struct adapter_file_module){.name = modules[i].name, .rank = 4, .alpha = 6};
        lora[i].factor[0] =
            (struct adapter_file_factor){.f32 = v, .rows = 4, .cols = modules[i].d_in};
        lora[i].factor[1] =
            (struct adapter_file_factor){.f32 = v + 4 * IN, .rows = modules[i].d_out, .cols = 4};
    }
    ok(adapter_file_write_peft(at("peft", 0), &(struct adapter_file_meta){0}, lora, MODULES, true));
    for (size_t i = 0; i < MODULES; i++)
        free((void *)(uintptr_t)lora[i].factor[0].f32);
    start.initial_path = at("peft", 0);
    for (int flora = 0; flora < 2; flora++) {
        const struct method *m = method_find(flora ? "flora" : "fedit");
        ok(method_start(m, at("state", 1), &start));
        for (size_t i = 0; i < MODULES; i++) {
            double want[SIZE] = {0}, got[SIZE] = {0};
            add(want, at("peft", 0), i, 1, NULL);
            add(got, at("state", 1), i, 1, NULL);
            for (size_t j = 0; j < SIZE; j++)
                got[j] -= want[j];
            cr_expect_leq(norm(got), flora ? 3e-7 * norm(want) : 0);
        }
    }
    start.rank = 5;
    refused(method_start(method_find("fedit"), at("state", 1), &start), ERR_INPUT, "rank 5");
    refused(method_start(method_find("fed-sb"), at("x", 0), &start), ERR_INPUT,
            "no initial adapter");
}

Test(method, fresh_factors_are_kept_apart_by_every_part_of_their_key)
{
    struct method_fresh key = {.seed = 1, .run = "r", .member = "m", .module = "q", .round = 2}, k;
    float a[4 * IN], b[4 * IN];
    double sum = 0;
    method_fresh_a(a, 4, IN, &key);
    method_fresh_a(b, 2, IN, &key);
    cr_expect_arr_eq(a, b, 2 * IN * sizeof *a, "rows are the same at any rank");
    for (int i = 0; i < 4 * IN; i++) {
        sum += a[i] * a[i];
        cr_expect(fabsf(a[i]) <= 1 / sqrtf(IN));
    }
    cr_expect(fabs(sum / (4 * IN) - 1.0 / (3 * IN)) < 0.2 / (3 * IN), "variance %g", sum);
    for (int part = 0; part < 5; part++) {
        k = key;
        if (part == 0) k.seed = 2;
        if (part == 1) k.run = "s";
        if (part == 2) k.member = "n";
        if (part == 3) k.module = "k";
        if (part == 4) k.round = 3;
        method_fresh_a(b, 4, IN, &k);
        cr_expect_neq(memcmp(a, b, sizeof a), 0, "part %d", part);
    }
}

Test(method, a_start_that_cannot_be_is_refused_by_name)
{
    const struct method *m = method_find("flora");
    struct method_start s = start_of(0, 8);
    refused(method_start(m, at("x", 0), &s), ERR_INPUT, "rank 0");
    s = start_of(4, 0);
    refused(method_start(m, at("x", 0), &s), ERR_INPUT, "alpha 0");
    s = start_of(4, 8), s.base = "12";
    refused(method_start(m, at("x", 0), &s), ERR_INPUT, "base digest");
    s = start_of(4, 8), s.module_count = 0;
    refused(method_start(m, at("x", 0), &s), ERR_INPUT, "0 modules");
    const struct method_module twice[] = {{"q", 4, 4}, {"q", 4, 4}};
    s = start_of(4, 8), s.module = twice, s.module_count = 2;
    refused(method_start(m, at("x", 0), &s), ERR_INPUT, "module q is given twice");
    s = frozen_start(12);
    s.rank = 8;
    refused(method_start(method_find("fed-sb"), at("x", 0), &s), ERR_INPUT,
            "rank 12, expected at most");
    s.frozen_path = NULL;
    refused(method_start(method_find("fed-sb"), at("x", 0), &s), ERR_INPUT, "not given");
    cr_expect_null(method_find("nonsense"));
}

Test(method, bases_of_fed_sb_never_exceed_a_modules_size)
{
    struct method_start s = frozen_start(12);
    struct adapter_file f = {0};
    ok(adapter_file_open(&f, s.frozen_path));
    cr_expect_eq(f.module[0].rank, 8); /* model.layers.0.k_proj is 8 x 24 */
    cr_expect_eq(f.module[1].rank, 12);
    ok(method_start(method_find("fed-sb"), at("state", 1), &s));
    adapter_file_close(&f);
    ok(adapter_file_open(&f, at("state", 1)));
    cr_expect_eq(f.module[0].rank, 8);
    cr_expect_float_eq(f.module[0].scale, 1, 0);
    cr_expect_str_eq(f.meta.frozen, frozen_digest);
    adapter_file_close(&f);
}
