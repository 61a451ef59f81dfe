/* Rounds with unusual contributions, for every method: members with other modules, members that
 * are counted twice, that learned nothing, or that are absent. */
#include "agg/round/method.h"

#include "tests/support/method_changes.h"

#include <math.h>

TestSuite(method_next, .init = make_dir, .fini = remove_dir);

/* Member k's update of round t, for the first `count` modules. */
static void send_some(const struct method *m, unsigned k, uint32_t t, size_t count, bool zero)
{
    struct sender x = member_sender(m, k, t);
    x.zero = zero;
    x.modules = count;
    send(at("update", k), &x);
}

static void close_round(const struct method *m, uint32_t t, const struct contribution *c,
                        size_t count)
{
    struct method_report report = {0};
    struct method_next next = {.state_path = at("state", t),
                               .frozen_path = m->frozen ? at("frozen", 0) : NULL,
                               .contribution = c,
                               .count = count};
    ok(method_next(&report, m, at("state", t + 1), &next));
    method_report_close(&report);
}

static void first_round(const struct method *m)
{
    struct contribution c[MEMBERS];
    begin(m);
    gather_round(c, m, 1);
    close_round(m, 1, c, MEMBERS);
}

static double size_of(const double *x)
{
    return sqrt(inner(x, x));
}

static double away(const double *x, const double *y)
{
    double sum = 0;
    for (size_t j = 0; j < ALL; j++)
        sum += (x[j] - y[j]) * (x[j] - y[j]);
    return sqrt(sum);
}

/* One member adapts the first module only, one has learned nothing (B is zero), one is absent.
 * Ranks, alpha and rsLoRA differ if the method allows it. */
Test(method_next, what_is_published_is_the_mean_of_those_who_delivered)
{
    static double want[ALL], is[ALL], D[ALL];
    size_t methods = 0;
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        if (!m->exact) continue;
        methods++;
        first_round(m);
        send_some(m, 0, 2, 1, false);
        send_some(m, 1, 2, MODULES, true);
        send_some(m, 3, 2, MODULES, false);
        const struct contribution c[] = {sent("m0", 3, at("update", 0)),
                                         sent("m1", 1, at("update", 1)),
                                         sent("m3", 6, at("update", 3))};
        const double share[] = {0.3, 0.1, 0, 0.6};
        close_round(m, 2, c, 3);
        memset(want, 0, sizeof want);
        for (unsigned k = 0; k < MEMBERS; k++) {
            if (k == 2) continue;
            change_of(D, m, 2, k);
            for (size_t j = 0; j < ALL; j++)
                want[j] += share[k] * D[j];
        }
        published(is, m, 2);
        cr_expect_lt(away(is, want), 1e-5 * size_of(want), "%s: %g", *name,
                     away(is, want) / size_of(want));
    }
    cr_expect_geq(methods, 6);
}

Test(method_next, a_member_that_comes_twice_weighs_twice)
{
    static double once[ALL], twice[ALL];
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        struct contribution c[MEMBERS];
        if (m->keeps) continue; /* the published B is zero */
        first_round(m);
        gather_round(c, m, 2);
        c[1].weight = 4;
        close_round(m, 2, c, 2);
        published(once, m, 2);
        const struct contribution both[] = {c[0], sent("one", 2, c[1].path),
                                            sent("two", 2, c[1].path)};
        close_round(m, 2, both, 3);
        published(twice, m, 2);
        cr_expect_lt(away(once, twice), 1e-5 * size_of(once), "%s: %g", *name,
                     away(once, twice) / size_of(once));
    }
}

Test(method_next, a_module_nobody_sent_stays_bit_for_bit)
{
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        struct adapter_file before = {0}, after = {0};
        struct contribution c[2];
        size_t kept = 0, moved = 0;
        first_round(m);
        for (unsigned k = 0; k < 2; k++) {
            send_some(m, k, 2, 2, false);
            c[k] = sent(member_names[k], weights[k], at("update", k));
        }
        close_round(m, 2, c, 2);
        ok(adapter_file_open(&before, at("state", 2)));
        ok(adapter_file_open(&after, at("state", 3)));
        for (size_t i = 0; i < MODULES; i++) {
            const struct adapter_file_module *a = adapter_file_find(&before, modules[i].name);
            const struct adapter_file_module *b = adapter_file_find(&after, modules[i].name);
            for (int r = 0; r < ADAPTER_FILE_ROLES; r++) {
                const struct adapter_file_factor *x = &a->factor[r], *y = &b->factor[r];
                size_t n = (size_t)x->rows * x->cols;
                bool same = x->rows == y->rows && x->cols == y->cols &&
                            (n == 0 || memcmp(x->f32, y->f32, n * sizeof(float)) == 0);
                if (i == 2) cr_expect(same, "%s: role %d has changed", *name, r);
                kept += i == 2 && n > 0;
                moved += i != 2 && !same;
            }
        }
        cr_expect(kept > 0 && moved > 0, "%s: nothing to tell apart", *name);
        adapter_file_close(&before);
        adapter_file_close(&after);
    }
}

/* The largest rank of the cohort is above every dimension of a module, and so is the stack's. */
Test(method_next, ranks_above_a_modules_size_lose_nothing)
{
    static double want[ALL], is[ALL], D[ALL];
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        struct contribution c[MEMBERS];
        if (!m->exact || !m->fresh) continue;
        cr_assert_gt(ranks[MEMBERS - 1], modules[2].d_in);
        begin(m);
        gather_round(c, m, 1);
        close_round(m, 1, c, MEMBERS);
        memset(want, 0, sizeof want);
        for (unsigned k = 0; k < MEMBERS; k++) {
            change_of(D, m, 1, k);
            for (size_t j = 0; j < ALL; j++)
                want[j] += weights[k] / total_weight * D[j];
        }
        published(is, m, 1);
        cr_expect_lt(away(is, want), 1e-6 * size_of(want));
        struct adapter_file s = {0};
        ok(adapter_file_open(&s, at("state", 2)));
        for (size_t i = 0; i < s.count; i++)
            cr_expect_leq(s.module[i].carry_rank, s.module[i].d_out);
        adapter_file_close(&s);
    }
}

Test(method_next, one_id_with_two_updates_is_refused)
{
    const struct method *m = method_find("flora");
    struct contribution c[MEMBERS];
    struct method_report report = {0};
    begin(m);
    struct method_next next = gather_round(c, m, 1);
    c[1].member = c[0].member;
    refused(method_next(&report, m, at("state", 2), &next), ERR_INPUT,
            "has two updates in one round");
    cr_expect(!file_exists(at("state", 2)));
}
