/* Server optimizers over several rounds, against the formulas by plain loops in float64; and the
 * file with the optimizer's memory. */
#include "agg/round/method_options.h"

#include "tests/support/method_fixture.h"

#include <math.h>

TestSuite(method_server, .init = make_dir, .fini = remove_dir);

enum { ROUNDS = 4, VALUES = 3 * OUT * IN };

static bool same_bytes(const char *a, const char *b)
{
    struct digest x, y;
    ok(digest_of_file(&x, a));
    ok(digest_of_file(&y, b));
    return digest_equal(&x, &y);
}

/* State 1 of a run with these options. */
static void begin_with(const struct method *m, const char *const *words, size_t count)
{
    struct method_start start = begin(m);
    start.option = words;
    start.option_count = count;
    ok(method_start(m, at("state", 1), &start));
}

static struct method_next next_of(struct contribution *c, const struct method *m, unsigned t)
{
    struct method_next next = gather_round(c, m, t);
    next.memory_path = t > 1 ? at("memory", t) : NULL;
    next.memory_out = at("memory", t + 1);
    return next;
}

static void run_one(const struct method *m, unsigned t)
{
    struct contribution c[MEMBERS];
    struct method_next next = next_of(c, m, t);
    struct method_report report = {0};
    ok(method_next(&report, m, at("state", t + 1), &next));
    cr_expect(report.memory_made);
    method_report_close(&report);
}

/* ---- the formulas, one factor of one module ---- */

struct plain {
    double x[VALUES], m[VALUES], u[VALUES];
    bool begun;
};

/* The mean of the factor over the members; beyond its rank a member has the state's values. */
static void mean_of(double *mean, const struct plain *p, const struct adapter_file_factor *whole,
                    size_t i, int role)
{
    memset(mean, 0, VALUES * sizeof *mean);
    for (unsigned k = 0; k < MEMBERS; k++) {
        struct adapter_file u = {0};
        ok(adapter_file_open(&u, at("update", k)));
        const struct adapter_file_factor *own =
            &adapter_file_find(&u, modules[i].name)->factor[role];
        for (size_t row = 0; row < whole->rows; row++)
            for (size_t col = 0; col < whole->cols; col++) {
                bool has = row < own->rows && col < own->cols;
                mean[row * whole->cols + col] +=
                    weights[k] / total_weight *
                    (has ? (double)own->f32[row * own->cols + col] : p->x[row * whole->cols + col]);
            }
        adapter_file_close(&u);
    }
}

static void step_plain(struct plain *p, const double *mean, size_t n, const char *server)
{
    const double lr = 0.5, b1 = 0.8, b2 = 0.95, tau = 0.02;
    for (size_t j = 0; j < n; j++) {
        double d = mean[j] - p->x[j];
        if (strcmp(server, "fedavgm") == 0) {
            p->m[j] = b1 * p->m[j] + d;
            p->x[j] += lr * p->m[j];
            continue;
        }
        if (!p->begun) p->u[j] = tau * tau;
        if (strcmp(server, "fedadagrad") == 0) {
            p->u[j] += d * d;
            p->x[j] += lr * d / (sqrt(p->u[j]) + tau);
            continue;
        }
        p->m[j] = b1 * p->m[j] + (1 - b1) * d;
        if (strcmp(server, "fedadam") == 0)
            p->u[j] = b2 * p->u[j] + (1 - b2) * d * d;
        else
            p->u[j] -= (1 - b2) * d * d * (p->u[j] > d * d ? 1 : p->u[j] < d * d ? -1 : 0);
        p->x[j] += lr * p->m[j] / (sqrt(p->u[j]) + tau);
    }
    p->begun = true;
}

static void take_factor(struct plain *p, const struct adapter_file_factor *f)
{
    for (size_t j = 0; j < (size_t)f->rows * f->cols; j++)
        p->x[j] = (double)f->f32[j];
}

static const char *const common[] = {"server_lr=0.5", "server_beta1=0.8", "server_beta2=0.95",
                                     "server_tau=0.02"};

static void check_averaging(const char *name, const char *server)
{
    static struct plain p[MODULES][3];
    const struct method *m = method_find(name);
    char word[32];
    const char *words[5] = {word, common[0], common[1], common[2], common[3]};
    struct adapter_file s = {0};
    snprintf(word, sizeof word, "server=%s", server);
    memset(p, 0, sizeof p);
    begin_with(m, words, 5);
    for (unsigned t = 1; t <= ROUNDS; t++) {
        ok(adapter_file_open(&s, at("state", t)));
        for (size_t i = 0; i < MODULES && t == 1; i++)
            for (int f = 0; f < 3; f++)
                take_factor(&p[i][f], &adapter_file_find(&s, modules[i].name)->factor[f]);
        run_one(m, t);
        struct adapter_file after = {0};
        ok(adapter_file_open(&after, at("state", t + 1)));
        for (size_t i = 0; i < MODULES; i++)
            for (int f = 0; f < 3; f++) {
                if (!(m->factors(t) & 1u << f)) continue;
                static double mean[VALUES];
                const struct adapter_file_factor *x =
                    &adapter_file_find(&after, modules[i].name)->factor[f];
                size_t n = (size_t)x->rows * x->cols;
                double off = 0, size = 0;
                mean_of(mean, &p[i][f], x, i, f);
                step_plain(&p[i][f], mean, n, server);
                for (size_t j = 0; j < n; j++) {
                    off += pow((double)x->f32[j] - p[i][f].x[j], 2);
                    size += pow(p[i][f].x[j], 2);
                }
                cr_expect_lt(sqrt(off), 1e-6 * sqrt(size), "%s %s round %u: %g", name, server, t,
                             sqrt(off / size));
            }
        adapter_file_close(&after);
        adapter_file_close(&s);
    }
}

static const char *const servers[] = {"fedavgm", "fedadagrad", "fedadam", "fedyogi"};

Test(method_server, optimizers_of_averaged_factors_are_the_formulas)
{
    static const char *const names[] = {"fed-sb", "ffa", "fedit", "rolora"};
    for (int s = 0; s < 4; s++)
        for (int i = 0; i < 4; i++)
            check_averaging(names[i], servers[s]);
}

/* lora-fair corrects the mean first, so its factors are compared with a run without optimizer. */
Test(method_server, lora_fair_steps_towards_its_corrected_mean)
{
    const struct method *m = method_find("lora-fair");
    struct contribution c[MEMBERS];
    struct method_report report = {0};
    struct adapter_file before = {0}, plain = {0}, stepped = {0};
    struct method_start start = begin(m);
    struct method_next next = gather_round(c, m, 1);
    ok(method_next(&report, m, at("plain", 2), &next));
    method_report_close(&report);
    const char *words[] = {"server=fedavgm", "server_lr=0.25"};
    start.option = words;
    start.option_count = 2;
    ok(method_start(m, at("state", 1), &start));
    run_one(m, 1);
    ok(adapter_file_open(&before, at("state", 1)));
    ok(adapter_file_open(&plain, at("plain", 2)));
    ok(adapter_file_open(&stepped, at("state", 2)));
    for (size_t i = 0; i < MODULES; i++)
        for (int f = 0; f < 2; f++) {
            const struct adapter_file_factor *x = &before.module[i].factor[f];
            for (size_t j = 0; j < (size_t)x->rows * x->cols; j++) {
                double old = (double)x->f32[j], to = (double)plain.module[i].factor[f].f32[j];
                double is = (double)stepped.module[i].factor[f].f32[j];
                cr_expect(fabs(is - (old + 0.25 * (to - old))) < 1e-6);
            }
        }
    adapter_file_close(&before);
    adapter_file_close(&plain);
    adapter_file_close(&stepped);
}

/* ---- fedsvd: the axes turn every round ---- */

/* T = A_old A_new^T, since the new rows are orthonormal and span the old ones. */
static void turn(struct plain *p, const struct adapter_file_module *old,
                 const struct adapter_file_module *now)
{
    static double T[16], m[VALUES], u[VALUES], x[VALUES];
    uint32_t r = old->rank, n = old->factor[0].cols, d = old->factor[1].rows;
    for (size_t i = 0; i < r; i++)
        for (size_t j = 0; j < r; j++) {
            T[i * r + j] = 0;
            for (size_t h = 0; h < n; h++)
                T[i * r + j] +=
                    (double)old->factor[0].f32[i * n + h] * (double)now->factor[0].f32[j * n + h];
        }
    memset(m, 0, sizeof m), memset(u, 0, sizeof u), memset(x, 0, sizeof x);
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j < r; j++)
            for (size_t h = 0; h < r; h++) {
                m[i * r + j] += p->m[i * r + h] * T[h * r + j];
                u[i * r + j] += p->u[i * r + h] * T[h * r + j] * T[h * r + j];
                x[i * r + j] += p->x[i * r + h] * T[h * r + j];
            }
    memcpy(p->m, m, sizeof m), memcpy(p->u, u, sizeof u), memcpy(p->x, x, sizeof x);
}

Test(method_server, moments_of_fedsvd_turn_with_its_axes)
{
    static struct plain p[MODULES];
    const struct method *m = method_find("fedsvd");
    for (int s = 0; s < 4; s++) {
        char word[32];
        const char *words[5] = {word, common[0], common[1], common[2], common[3]};
        snprintf(word, sizeof word, "server=%s", servers[s]);
        memset(p, 0, sizeof p);
        begin_with(m, words, 5);
        for (unsigned t = 1; t <= ROUNDS; t++) {
            struct adapter_file before = {0}, after = {0};
            run_one(m, t);
            ok(adapter_file_open(&before, at("state", t)));
            ok(adapter_file_open(&after, at("state", t + 1)));
            for (size_t i = 0; i < MODULES; i++) {
                static double mean[VALUES];
                const struct adapter_file_module *old = adapter_file_find(&before, modules[i].name);
                const struct adapter_file_module *now = adapter_file_find(&after, modules[i].name);
                const struct adapter_file_factor *B = &now->factor[1];
                size_t n = (size_t)B->rows * B->cols;
                double off = 0, size = 0;
                mean_of(mean, &p[i], B, i, 1);
                step_plain(&p[i], mean, n, servers[s]);
                turn(&p[i], old, now);
                for (size_t j = 0; j < n; j++) {
                    off += pow((double)B->f32[j] - p[i].x[j], 2);
                    size += pow(p[i].x[j], 2);
                }
                cr_expect_lt(sqrt(off), 3e-6 * sqrt(size), "%s round %u: %g", servers[s], t,
                             sqrt(off / size));
            }
            adapter_file_close(&before);
            adapter_file_close(&after);
        }
    }
}

/* ---- products: momentum is a low-rank pair ---- */

static void check_product(const char *name, const char *extra)
{
    static double x[MODULES][SIZE], v[MODULES][SIZE];
    const struct method *m = method_find(name);
    const char *words[] = {"server=fedavgm", "server_lr=0.5", "server_beta1=0.8", extra};
    memset(x, 0, sizeof x), memset(v, 0, sizeof v);
    begin_with(m, words, extra ? 4 : 3);
    for (size_t i = 0; i < MODULES; i++)
        add(x[i], at("state", 1), i, 1, NULL);
    for (unsigned t = 1; t <= ROUNDS; t++) {
        run_one(m, t);
        for (size_t i = 0; i < MODULES; i++) {
            double after[SIZE] = {0}, pair[SIZE] = {0}, moment[SIZE] = {0};
            if (!m->fresh) add_member(pair, at("state", t), at("state", t), NULL, i, 1, false);
            for (size_t j = 0; j < SIZE; j++)
                v[i][j] = 0.8 * v[i][j] - pair[j];
            for (unsigned k = 0; k < MEMBERS; k++) {
                double w = weights[k] / total_weight;
                if (m->fresh)
                    add(v[i], at("update", k), i, w, NULL);
                else
                    add_member(v[i], at("state", t), at("update", k), NULL, i, w, false);
            }
            for (size_t j = 0; j < SIZE; j++)
                x[i][j] += 0.5 * v[i][j];
            add(after, at("state", t + 1), i, 1, NULL);
            cr_expect_lt(distance(after, x[i]), 3e-6 * norm(x[i]), "%s round %u: %g", name, t,
                         distance(after, x[i]) / norm(x[i]));
            struct adapter_file f = {0};
            char first[128];
            snprintf(first, sizeof first, "first.%s", modules[i].name);
            ok(adapter_file_open(&f, at("memory", t + 1)));
            const struct adapter_file_module *pairs = adapter_file_find(&f, first);
            for (size_t row = 0; row < modules[i].d_out; row++)
                for (size_t col = 0; col < modules[i].d_in; col++)
                    for (size_t l = 0; l < pairs->rank; l++)
                        moment[row * modules[i].d_in + col] +=
                            (double)pairs->factor[1].f32[row * pairs->rank + l] *
                            (double)pairs->factor[0].f32[l * modules[i].d_in + col];
            cr_expect_lt(distance(moment, v[i]), 3e-6 * norm(v[i]));
            adapter_file_close(&f);
        }
    }
}

Test(method_server, momentum_of_products_is_that_of_their_dense_sums)
{
    check_product("flora", NULL);
    check_product("flexlora", "tail=carry");
    check_product("fedex", NULL);
}

/* ---- the file ---- */

Test(method_server, the_same_bytes_come_again_and_in_any_order)
{
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        struct method_options o;
        const char *words[] = {"server=fedavgm"};
        if (err_is(method_options_parse(&o, m, words, 1))) continue;
        begin_with(m, words, 1);
        run_one(m, 1);
        run_one(m, 2);
        struct contribution c[MEMBERS], other[MEMBERS];
        struct method_next next = next_of(c, m, 2);
        struct method_report report = {0};
        for (int k = 0; k < MEMBERS; k++)
            other[k] = c[(k + 3) % MEMBERS];
        next.contribution = other;
        next.memory_out = at("again", 1);
        next.threads = 3;
        ok(method_next(&report, m, at("again", 0), &next));
        cr_expect(same_bytes(at("state", 3), at("again", 0)), "%s: state", *name);
        cr_expect(same_bytes(at("memory", 3), at("again", 1)), "%s: memory", *name);
        method_report_close(&report);
    }
}

Test(method_server, a_module_nobody_sent_keeps_its_factors_and_its_memory)
{
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        struct method_options o;
        const char *words[] = {"server=fedavgm"};
        if (err_is(method_options_parse(&o, m, words, 1))) continue;
        begin_with(m, words, 1);
        run_one(m, 1);
        struct contribution c[MEMBERS];
        struct method_next next = next_of(c, m, 2);
        struct method_report report = {0};
        next.count = 0;
        ok(method_next(&report, m, at("state", 3), &next));
        cr_expect(same_bytes(at("memory", 2), at("memory", 3)) || report.memory_made);
        for (int which = 0; which < 2; which++) {
            struct adapter_file a = {0}, b = {0};
            ok(adapter_file_open(&a, at(which ? "memory" : "state", 2)));
            ok(adapter_file_open(&b, at(which ? "memory" : "state", 3)));
            cr_assert_eq(a.tensors.count, b.tensors.count);
            for (size_t i = 0; i < a.tensors.count; i++) {
                cr_expect_str_eq(a.tensors.tensor[i].name, b.tensors.tensor[i].name);
                cr_expect_arr_eq(a.tensors.tensor[i].data, b.tensors.tensor[i].data,
                                 a.tensors.tensor[i].size, "%s", *name);
            }
            adapter_file_close(&a);
            adapter_file_close(&b);
        }
        method_report_close(&report);
    }
}

Test(method_server, memory_that_is_missing_or_of_another_state_is_refused)
{
    const struct method *m = method_find("fedit");
    const char *words[] = {"server=fedadam"};
    struct contribution c[MEMBERS];
    struct method_report report = {0};
    begin_with(m, words, 1);
    run_one(m, 1);
    struct adapter_file s = {0};
    struct digest d;
    char text[DIGEST_TEXT_BYTES];
    ok(adapter_file_open(&s, at("state", 2)));
    ok(digest_of_file(&d, at("memory", 2)));
    digest_text(text, &d);
    cr_expect_str_eq(s.meta.memory, text);
    cr_expect(strstr(s.meta.options, "\"server\":\"fedadam\""));
    adapter_file_close(&s);
    run_one(m, 2);
    struct method_next next = next_of(c, m, 2);
    next.memory_path = NULL;
    refused(method_next(&report, m, at("x", 0), &next), ERR_INPUT,
            "no file is given for its server optimizer's memory");
    next.memory_path = at("memory", 3);
    refused(method_next(&report, m, at("x", 0), &next), ERR_INPUT, "is not the memory that");
    next.memory_path = at("memory", 2);
    next.memory_out = NULL;
    refused(method_next(&report, m, at("x", 0), &next), ERR_INPUT, "no path is given");
    cr_expect(!file_exists(at("x", 0)));
}
