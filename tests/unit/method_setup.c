/* basis=gradient: two rounds of gradients give the frozen factors, and training starts
 * in round 3. */
#include "agg/round/method_options.h"

#include "tests/support/method_fixture.h"

#include <math.h>

TestSuite(method_setup, .init = make_dir, .fini = remove_dir);

enum { RANK = 6, INNER = 2 }; /* every member's gradient has rank 2, their mean at most 6 */

static const char *const words[] = {"basis=gradient"};

static struct method_start gradient_start(void)
{
    struct method_start s = start_of(RANK, 12);
    s.option = words;
    s.option_count = 1;
    return s;
}

/* Member k's dense gradient of module i. */
static void gradient_of(double *G, size_t i, unsigned k)
{
    struct rng rng;
    double U[OUT * INNER], V[INNER * IN];
    rng_init(&rng, "gradient", i, "", k);
    for (size_t j = 0; j < modules[i].d_out * INNER; j++)
        U[j] = rng_normal(&rng);
    for (size_t j = 0; j < INNER * modules[i].d_in; j++)
        V[j] = rng_normal(&rng);
    for (size_t row = 0; row < modules[i].d_out; row++)
        for (size_t col = 0; col < modules[i].d_in; col++) {
            double sum = 0;
            for (size_t l = 0; l < INNER; l++)
                sum += U[row * INNER + l] * V[l * modules[i].d_in + col];
            G[row * modules[i].d_in + col] = sum;
        }
}

/* dL/dB = s G A^T or dL/dA = s B^T G at the state's factors; the member's own alpha makes s. */
static void send_gradient(const char *path, const char *method, unsigned t, unsigned k,
                          double alpha)
{
    struct adapter_file s = {0};
    struct adapter_file_module m[MODULES] = {0};
    struct adapter_file_meta meta = {.kind = ADAPTER_FILE_UPDATE,
                                     .run = "r1",
                                     .method = method,
                                     .base = base,
                                     .member = member_names[k],
                                     .round = t,
                                     .alpha = alpha};
    ok(adapter_file_open(&s, at("state", t)));
    for (size_t i = 0; i < MODULES; i++) {
        static double G[SIZE];
        const struct adapter_file_module *old = adapter_file_find(&s, modules[i].name);
        uint32_t q = old->rank, rows = t == 1 ? modules[i].d_out : q,
                 cols = t == 1 ? q : modules[i].d_in;
        float *v = calloc((size_t)rows * cols, sizeof *v);
        gradient_of(G, i, k);
        for (size_t a = 0; a < rows; a++)
            for (size_t b = 0; b < cols; b++) {
                double sum = 0;
                size_t inner = t == 1 ? modules[i].d_in : modules[i].d_out;
                for (size_t h = 0; h < inner; h++)
                    sum += t == 1 ? G[a * inner + h] * (double)old->factor[0].f32[b * inner + h]
                                  : (double)old->factor[1].f32[h * q + a] * G[h * cols + b];
                v[a * cols + b] = (float)(sum * alpha / q);
            }
        m[i] = (struct adapter_file_module){.name = modules[i].name, .rank = q, .alpha = alpha};
        m[i].factor[t == 1] = (struct adapter_file_factor){.f32 = v, .rows = rows, .cols = cols};
    }
    ok(adapter_file_write(path, &meta, m, MODULES, true));
    for (size_t i = 0; i < MODULES; i++)
        free((void *)(uintptr_t)m[i].factor[t == 1].f32);
    adapter_file_close(&s);
}

static struct method_next gather_gradients(struct contribution *c, const char *method, unsigned t)
{
    for (unsigned k = 0; k < 3; k++) {
        send_gradient(at("update", k), method, t, k, k + 1.0);
        c[k] = sent(member_names[k], weights[k], at("update", k));
        struct adapter_file state = {0};
        ok(adapter_file_map(&state, at("state", t)));
        ok(method_check_update(method_find(method), at("update", k),
                               &(struct method_expect){.state = &state,
                                                       .member = member_names[k],
                                                       .round = t,
                                                       .rank = 1 + k,
                                                       .alpha = 99}));
        adapter_file_close(&state);
    }
    return (struct method_next){.state_path = at("state", t),
                                .contribution = c,
                                .count = 3,
                                .frozen_out = t == 2 ? at("found", 0) : NULL};
}

/* Both gradient rounds; the second gives at("found", 0). */
static void find_basis(const char *method)
{
    const struct method *m = method_find(method);
    struct method_start start = gradient_start();
    ok(method_start(m, at("state", 1), &start));
    for (unsigned t = 1; t <= 2; t++) {
        struct contribution c[3];
        struct method_next next = gather_gradients(c, method, t);
        struct method_report report = {0};
        ok(method_next(&report, m, at("state", t + 1), &next));
        cr_expect_eq(report.frozen_made, t == 2);
        cr_expect_eq(report.total.sent, 3);
        cr_expect_gt(report.total.update_norm, 0);
        method_report_close(&report);
    }
}

/* G - B B^T G A^T A = 0: the factors span the mean gradient on both sides. */
static void check_spans(const struct adapter_file *f, size_t i, bool with_b)
{
    static double G[SIZE], one[SIZE], P[SIZE];
    const struct adapter_file_module *x = adapter_file_find(f, modules[i].name);
    size_t m = modules[i].d_out, n = modules[i].d_in, r = x->rank;
    memset(G, 0, sizeof G), memset(P, 0, sizeof P);
    for (unsigned k = 0; k < 3; k++) {
        gradient_of(one, i, k);
        for (size_t j = 0; j < m * n; j++)
            G[j] += weights[k] / (3 + 1 + 2) * one[j];
    }
    for (size_t row = 0; row < m; row++) /* P = G A^T A */
        for (size_t l = 0; l < r; l++) {
            double sum = 0;
            for (size_t h = 0; h < n; h++)
                sum += G[row * n + h] * (double)x->factor[0].f32[l * n + h];
            for (size_t col = 0; col < n; col++)
                P[row * n + col] += sum * (double)x->factor[0].f32[l * n + col];
        }
    cr_expect_lt(distance(P, G), 1e-5 * norm(G), "rows: %g", distance(P, G) / norm(G));
    if (!with_b) return;
    memset(P, 0, sizeof P);
    for (size_t col = 0; col < n; col++) /* P = B B^T G */
        for (size_t l = 0; l < r; l++) {
            double sum = 0;
            for (size_t h = 0; h < m; h++)
                sum += G[h * n + col] * (double)x->factor[1].f32[h * r + l];
            for (size_t row = 0; row < m; row++)
                P[row * n + col] += sum * (double)x->factor[1].f32[row * r + l];
        }
    cr_expect_lt(distance(P, G), 1e-5 * norm(G), "columns: %g", distance(P, G) / norm(G));
}

Test(method_setup, two_rounds_of_gradients_find_factors_that_span_their_mean)
{
    for (int which = 0; which < 2; which++) {
        const char *method = which ? "ffa" : "fed-sb";
        struct adapter_file found = {0}, state = {0};
        struct digest d;
        char text[DIGEST_TEXT_BYTES];
        find_basis(method);
        ok(adapter_file_open(&found, at("found", 0)));
        for (size_t i = 0; i < MODULES; i++) {
            check_spans(&found, i, !which);
            cr_expect_eq(found.module[i].factor[1].f32 != NULL, !which);
        }
        ok(adapter_file_open(&state, at("state", 3)));
        ok(digest_of_file(&d, at("found", 0)));
        digest_text(text, &d);
        cr_expect_str_eq(state.meta.frozen, text);
        cr_expect_eq(state.meta.round, 3);
        for (size_t i = 0; i < MODULES; i++) {
            const struct adapter_file_factor *x = &state.module[i].factor[which ? 1 : 2];
            cr_assert_not_null(x->f32);
            cr_expect_eq(x->cols, RANK);
            for (size_t j = 0; j < (size_t)x->rows * x->cols; j++)
                cr_expect_eq(x->f32[j], 0);
        }
        ok(adapter_file_join(&state, &found, text));
        if (!which) cr_expect_float_eq(state.module[0].scale, 1, 0);
        adapter_file_close(&state);
        adapter_file_close(&found);
    }
}

Test(method_setup, training_goes_on_from_the_factors_found)
{
    const struct method *m = method_find("fed-sb");
    struct method_report report = {0};
    struct adapter_file state = {0};
    find_basis("fed-sb");
    ok(adapter_file_open(&state, at("state", 3)));
    struct sender x = {.method = "fed-sb",
                       .member = "delta",
                       .frozen = state.meta.frozen,
                       .round = 3,
                       .rank = 4,
                       .alpha = 4,
                       .seed = 1};
    send(at("update", 0), &x);
    ok(method_check_update(
        m, at("update", 0),
        &(struct method_expect){.state = &state, .member = "delta", .round = 3, .rank = 4}));
    struct contribution c[] = {{"delta", 2, at("update", 0)}};
    struct method_next next = {
        .state_path = at("state", 3), .frozen_path = at("found", 0), .contribution = c, .count = 1};
    ok(method_next(&report, m, at("state", 4), &next));
    cr_expect(!report.frozen_made);
    struct adapter_file u = {0}, after = {0};
    ok(adapter_file_open(&u, at("update", 0)));
    ok(adapter_file_open(&after, at("state", 4)));
    cr_expect_str_eq(after.meta.frozen, state.meta.frozen);
    for (size_t i = 0; i < MODULES; i++)
        for (size_t a = 0; a < 4; a++)
            cr_expect_arr_eq(after.module[i].factor[2].f32 + a * RANK,
                             u.module[i].factor[2].f32 + a * 4, 4 * sizeof(float));
    adapter_file_close(&u);
    adapter_file_close(&after);
    adapter_file_close(&state);
    method_report_close(&report);
}

Test(method_setup, what_does_not_fit_a_gradient_round_is_refused_by_name)
{
    const struct method *m = method_find("fed-sb");
    struct method_start start = gradient_start();
    struct contribution c[3];
    struct method_report report = {0};
    struct adapter_file state = {0};
    refused(method_make_frozen(m, at("x", 0), &start), ERR_INPUT, "only with basis=seeded");
    ok(method_start(m, at("state", 1), &start));
    start.frozen_path = at("state", 1);
    start.frozen_digest = base;
    refused(method_start(m, at("x", 0), &start), ERR_INPUT, "expected no file of frozen factors");
    struct method_next next = gather_gradients(c, "fed-sb", 1);
    ok(method_next(&report, m, at("state", 2), &next));
    method_report_close(&report);
    next = gather_gradients(c, "fed-sb", 2);
    next.frozen_out = NULL;
    refused(method_next(&report, m, at("state", 3), &next), ERR_INPUT,
            "no path is given for the frozen factors");
    ok(adapter_file_map(&state, at("state", 1)));
    struct method_expect first = {.state = &state, .round = 1, .member = "delta"};
    send_gradient(at("update", 0), "fed-sb", 2, 0, 1);
    refused(method_check_update(m, at("update", 0), &first), ERR_STATE, "round 2, expected round");
    adapter_file_close(&state);
}
