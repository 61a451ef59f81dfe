/* The bound on updates' norms: against dense changes, and what it refuses. */
#include "agg/round/method_bound.h"

#include "tests/support/method_changes.h"

#include <math.h>

TestSuite(method_bound, .init = make_dir, .fini = remove_dir);

static const unsigned by_name[MEMBERS] = {1, 3, 2, 0}; /* alpha, bravo, charlie, delta */

/* The contributions of round 2, and what the bound says of them, by the members' ids. */
struct checked {
    struct contribution c[MEMBERS];
    struct method_next next;
    struct method_bound bound[MEMBERS];
    double median;
};

static void second_round(struct checked *out, const struct method *m)
{
    struct method_report report = {0};
    struct method_start start = begin(m);
    ok(method_start(m, at("state", 1), &start));
    struct method_next next = gather_round(out->c, m, 1);
    ok(method_next(&report, m, at("state", 2), &next));
    method_report_close(&report);
    out->next = gather_round(out->c, m, 2);
}

static void check(struct checked *x, const struct method *m, double ratio, double reference)
{
    const struct method_bound_options options = {.ratio = ratio, .reference = reference};
    ok(method_bound(x->bound, &x->median, m, &x->next, &options));
}

/* Multiplies each factor that the member sent, in the first module or in all. */
static void multiply(unsigned member, float by, bool first)
{
    struct adapter_file u = {0};
    struct arena arena = {0};
    ok(adapter_file_open(&u, at("update", member)));
    for (size_t i = 0; i < (first ? 1 : u.count); i++)
        for (int r = 0; r < 3; r++) {
            struct adapter_file_factor *f = &u.module[i].factor[r];
            size_t n = (size_t)f->rows * f->cols;
            float *x = NULL;
            if (n) ok(arena_take(&x, &arena, n, sizeof *x));
            for (size_t j = 0; j < n; j++)
                x[j] = fmaxf(-3e38F, fminf(3e38F, f->f32[j] * by));
            if (n) f->f32 = x;
        }
    ok(adapter_file_write(at("many", member), &u.meta, u.module, u.count, true));
    adapter_file_close(&u);
    arena_close(&arena);
    cr_assert_eq(rename(at("many", member), at("update", member)), 0);
}

Test(method_bound, norms_are_those_of_the_dense_changes)
{
    static double D[ALL];
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        struct checked x;
        if (m->truncates || m->keeps) continue;
        second_round(&x, m);
        check(&x, m, 1000, 0);
        double sorted[MEMBERS];
        for (unsigned k = 0; k < MEMBERS; k++) {
            change_of(D, m, 2, by_name[k]);
            double want = sqrt(inner(D, D));
            cr_expect(fabs(x.bound[k].norm - want) < 1e-9 * want, "%s: %g, dense %g", m->name,
                      x.bound[k].norm, want);
            cr_expect_str_eq(x.bound[k].why, "", "%s: an ordinary update", m->name);
            sorted[k] = x.bound[k].norm;
        }
        for (int i = 0; i < MEMBERS; i++)
            for (int j = 0; j + 1 < MEMBERS; j++)
                if (sorted[j] > sorted[j + 1]) {
                    double y = sorted[j];
                    sorted[j] = sorted[j + 1], sorted[j + 1] = y;
                }
        cr_expect_eq(x.median, sorted[1]);
    }
}

static void expect_refused(const struct checked *x, const struct method *m, size_t member,
                           const char *part)
{
    for (size_t k = 0; k < x->next.count; k++) {
        cr_expect_eq(*x->bound[k].why != 0, k == member, "%s, %s: \"%s\"", m->name,
                     x->next.contribution[k].member, x->bound[k].why);
        if (k == member)
            cr_expect(strstr(x->bound[k].why, part), "%s: %s", m->name, x->bound[k].why);
    }
}

Test(method_bound, refuses_what_is_far_larger_than_the_others)
{
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        struct checked x;
        second_round(&x, m);
        multiply(by_name[2], 1e5F, /*first*/ false);
        check(&x, m, 1000, 0);
        expect_refused(&x, m, 2, "has norm");
        check(&x, m, 1e12, 0);
        cr_expect_str_eq(x.bound[2].why, "", "%s: within a larger bound", m->name);
        second_round(&x, m);
        multiply(by_name[2], 1e5F, /*first*/ true);
        check(&x, m, 1000, 0);
        expect_refused(&x, m, 2, "");
    }
}

/* The largest numbers that are finite, from the only member and from one of two. */
Test(method_bound, refuses_what_overflows_float32_with_any_number_of_members)
{
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        struct checked x;
        second_round(&x, m);
        multiply(by_name[0], 1e38F, /*first*/ true);
        for (unsigned i = 0; i < MEMBERS; i++)
            if (strcmp(x.c[i].member, "alpha") == 0) {
                struct contribution swap = x.c[0];
                x.c[0] = x.c[i], x.c[i] = swap;
            }
        for (x.next.count = 1; x.next.count <= 2; x.next.count++) {
            check(&x, m, 1000, 0);
            cr_expect(strstr(x.bound[0].why, "too large for float32"), "%s", x.bound[0].why);
            if (x.next.count == 2) cr_expect_str_eq(x.bound[1].why, "");
        }
    }
}

Test(method_bound, few_updates_are_compared_with_earlier_rounds)
{
    const struct method *m = method_find("flora");
    struct checked x;
    second_round(&x, m);
    check(&x, m, 1000, 0);
    double norm = x.bound[0].norm;
    x.next.count = 1;
    check(&x, m, 1000, 0);
    cr_expect_str_eq(x.bound[0].why, "", "nothing to compare with");
    check(&x, m, 1000, x.bound[0].norm / 999);
    cr_expect_str_eq(x.bound[0].why, "");
    check(&x, m, 1000, x.bound[0].norm / 1001);
    cr_expect(strstr(x.bound[0].why, "its change has norm"), "%s", x.bound[0].why);
    cr_expect_eq(x.median, 0, "nothing is left");
    x.next.count = 2;
    check(&x, m, 1000, 0);
    double less = fmin(x.bound[0].norm, x.bound[1].norm);
    double more = fmax(x.bound[0].norm, x.bound[1].norm);
    for (size_t k = 0; k < 2; k++) {
        check(&x, m, 1.001 * more / less, 0);
        cr_expect_str_eq(x.bound[k].why, "", "the smaller of two is compared with");
        check(&x, m, 0.999 * more / less, 0);
        cr_expect_eq(*x.bound[k].why != 0, x.bound[k].norm == more, "%s", x.bound[k].why);
    }
    x.next.count = MEMBERS;
    check(&x, m, 1000, norm / 1e9);
    cr_expect_str_eq(x.bound[0].why, "", "the round itself is enough");
}
