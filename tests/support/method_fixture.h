/* A run of three modules and four members, with updates of random factors, for the tests of
 * methods. */
#ifndef TESTS_SUPPORT_METHOD_FIXTURE_H
#define TESTS_SUPPORT_METHOD_FIXTURE_H

#include "agg/adapter/flatten.h"
#include "agg/round/method.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/rng.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MODULES = 3, MEMBERS = 4, OUT = 24, IN = 40, SIZE = OUT * IN };

static const struct method_module modules[MODULES] = {{"model.layers.1.v_proj", 16, 40},
                                                      {"model.layers.0.q_proj", OUT, IN},
                                                      {"model.layers.0.k_proj", 8, 24}};
static const char base[] = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

static char dir[SUPPORT_PATH_BYTES];

static inline void make_dir(void)
{
    support_dir_make(dir);
}

static inline void remove_dir(void)
{
    support_dir_remove(dir);
}

static inline const char *at(const char *format, unsigned n)
{
    enum { KEPT = 1024 }; /* paths stay valid for the length of a test */
    static char path[KEPT][SUPPORT_PATH_BYTES + 64];
    static int next;
    char name[64], *out = path[next++ % KEPT];
    snprintf(name, sizeof name, "%s.%u", format, n);
    snprintf(out, sizeof path[0], "%s/%s", dir, name);
    return out;
}

static inline struct method_start start_of(uint32_t rank, double alpha)
{
    return (struct method_start){.run = "r1",
                                 .base = base,
                                 .seed = 7,
                                 .rank = rank,
                                 .alpha = alpha,
                                 .module = modules,
                                 .module_count = MODULES};
}

static char frozen_digest[DIGEST_TEXT_BYTES];

static inline struct method_start frozen_start_of(const char *method, uint32_t rank, double alpha)
{
    struct method_start s = start_of(rank, alpha);
    struct digest d;
    ok(method_make_frozen(method_find(method), at("frozen", 0), &s));
    ok(digest_of_file(&d, at("frozen", 0)));
    digest_text(frozen_digest, &d);
    s.frozen_path = at("frozen", 0);
    s.frozen_digest = frozen_digest;
    return s;
}

static inline struct method_start frozen_start(uint32_t rank)
{
    return frozen_start_of("fed-sb", rank, rank);
}

struct sender {
    const char *method, *member, *frozen;
    uint32_t round, rank;
    double alpha;
    bool rslora, zero;
    size_t modules; /* only the first ones, up to this number; 0: all */
    uint64_t seed;
};

/* Writes an update of random factors, as large as training makes them. */
static inline void send(const char *path, const struct sender *x)
{
    struct adapter_file_meta meta = {.kind = ADAPTER_FILE_UPDATE,
                                     .run = "r1",
                                     .method = x->method,
                                     .base = base,
                                     .frozen = x->frozen,
                                     .member = x->member,
                                     .round = x->round,
                                     .rank = x->rank,
                                     .alpha = x->alpha,
                                     .rslora = x->rslora};
    struct adapter_file_module m[MODULES] = {0};
    size_t count = x->modules ? x->modules : MODULES;
    const struct method *method = method_find(x->method);
    unsigned factors = method->factors(x->round);
    struct rng rng;
    rng_init(&rng, "update", x->seed, x->member, x->round);
    for (size_t i = 0; i < count; i++) {
        uint32_t r = x->rank, least = modules[i].d_out < IN ? modules[i].d_out : IN;
        if (method->frozen && r > least) r = least;
        uint32_t rows[] = {r, modules[i].d_out, r}, cols[] = {modules[i].d_in, r, r};
        m[i].name = modules[i].name;
        m[i].rank = r;
        for (int f = 0; f < 3; f++) {
            if (!(factors & 1u << f)) continue;
            float *v = calloc((size_t)rows[f] * cols[f], sizeof *v);
            for (size_t j = 0; j < (size_t)rows[f] * cols[f]; j++)
                v[j] = x->zero && f == 1 ? 0 : (float)(0.1 * rng_normal(&rng));
            m[i].factor[f] =
                (struct adapter_file_factor){.f32 = v, .rows = rows[f], .cols = cols[f]};
        }
    }
    ok(adapter_file_write(path, &meta, m, count, true));
    for (size_t i = 0; i < count; i++)
        for (int f = 0; f < 3; f++)
            free((void *)(uintptr_t)m[i].factor[f].f32);
}

/* ---- dense float64, by loops ---- */

/* sum += c times the dense change of W0 by module i of a file. `frozen` holds the A (and B) that
 * the file lacks. */
static inline void add(double *sum, const char *path, size_t i, double c, const char *frozen)
{
    struct adapter_file f = {0}, basis = {0};
    ok(adapter_file_open(&f, path));
    if (frozen) {
        ok(adapter_file_open(&basis, frozen));
        ok(adapter_file_join(&f, &basis, f.meta.frozen));
    }
    const struct adapter_file_module *m = adapter_file_find(&f, modules[i].name);
    struct lowrank_term term[2];
    size_t count = m ? flatten_terms(term, m) : 0;
    for (size_t k = 0; k < count; k++)
        for (size_t row = 0; row < modules[i].d_out; row++)
            for (size_t l = 0; l < term[k].r; l++) {
                double b = 0;
                for (size_t h = 0; h < term[k].r; h++)
                    b += (double)term[k].B[row * term[k].r + h] *
                         (term[k].R ? (double)term[k].R[h * term[k].r + l] : h == l);
                for (size_t col = 0; col < modules[i].d_in; col++)
                    sum[row * modules[i].d_in + col] +=
                        c * term[k].c * b * (double)term[k].A[l * modules[i].d_in + col];
            }
    adapter_file_close(&f);
    adapter_file_close(&basis);
}

static inline double norm(const double *x)
{
    double sum = 0;
    for (size_t i = 0; i < SIZE; i++)
        sum += x[i] * x[i];
    return sqrt(sum);
}

static inline double distance(const double *x, const double *y)
{
    double sum = 0;
    for (size_t i = 0; i < SIZE; i++)
        sum += (x[i] - y[i]) * (x[i] - y[i]);
    return sqrt(sum);
}

/* sum += c times the dense change that a member has after it trained `update` from `state`: its
 * own factors if it sent them, else those of the state, also the state's columns beyond the
 * member's rank unless `gone`. The carry is left out. */
static inline void add_member(double *sum, const char *state, const char *update,
                              const char *frozen, size_t i, double c, bool gone)
{
    struct adapter_file s = {0}, u = {0}, basis = {0};
    ok(adapter_file_open(&s, state));
    ok(adapter_file_open(&u, update));
    if (frozen) {
        ok(adapter_file_open(&basis, frozen));
        ok(adapter_file_join(&s, &basis, s.meta.frozen));
    }
    const struct adapter_file_module *old = adapter_file_find(&s, modules[i].name);
    const struct adapter_file_module *own = adapter_file_find(&u, modules[i].name);
    size_t own_rank = own ? own->rank : 0, rank = own && gone ? own_rank : old->rank;
    double scale = old->rank ? old->scale : own->scale;
    if (own_rank > rank) rank = own_rank;
    for (size_t l = 0; l < rank; l++) {
        bool trained = l < own_rank;
        const struct adapter_file_module *b = trained && own->factor[1].f32 ? own : old;
        const struct adapter_file_module *a = trained && own->factor[0].f32 ? own : old;
        for (size_t row = 0; row < modules[i].d_out; row++)
            for (size_t col = 0; col < modules[i].d_in; col++)
                sum[row * modules[i].d_in + col] +=
                    c * scale * (double)b->factor[1].f32[row * b->rank + l] *
                    (double)a->factor[0].f32[l * modules[i].d_in + col];
    }
    adapter_file_close(&s);
    adapter_file_close(&u);
    adapter_file_close(&basis);
}

/* ---- a round of four members ---- */

static const double weights[MEMBERS] = {3, 1, 2, 5};
static const double alphas[MEMBERS] = {8, 4, 16, 20};
static uint32_t ranks[MEMBERS] = {4, 8, 16, 32}; /* the last is the run's; tests may change them */
static const double total_weight = 3 + 1 + 2 + 5;
static const char *const member_names[MEMBERS] = {"delta", "alpha", "charlie", "bravo"};

static inline struct contribution sent(const char *member, double weight, const char *path)
{
    return (struct contribution){.member = member, .weight = weight, .path = path};
}

static const char *extra_option; /* of the runs that are created; tests may set it */

/* Writes state 1 of a run of this method. Its rank is 4. If ranks may differ, it is 12 for
 * frozen factors, else that of the largest member, which is more than the size of some modules. */
static inline struct method_start begin(const struct method *m)
{
    uint32_t most = ranks[MEMBERS - 1];
    struct method_start start = m->frozen        ? frozen_start_of(m->name, 12, 12)
                                : m->mixed_ranks ? start_of(most, 2 * most)
                                                 : start_of(4, 8);
    start.option = &extra_option;
    start.option_count = extra_option != NULL;
    ok(method_start(m, at("state", 1), &start));
    return start;
}

/* The description of member k in round `t`. Ranks and scales differ between members if the
 * method allows it: methods that start afresh allow both, the others allow different ranks at
 * the scale of the run. */
static inline struct sender member_sender(const struct method *m, unsigned k, uint32_t t)
{
    struct sender x = {.method = m->name,
                       .member = member_names[k],
                       .frozen = m->frozen ? frozen_digest : NULL,
                       .round = t,
                       .rank = m->frozen        ? 3 * (k + 1)
                               : m->mixed_ranks ? ranks[k]
                                                : 4,
                       .seed = k + 100 * (t - 1)};
    x.alpha = m->fresh ? alphas[k] : m->frozen ? x.rank : 2 * x.rank;
    x.rslora = m->fresh && k == 2;
    return x;
}

/* Writes four updates of round `t` and fills the request to combine them. */
static inline struct method_next gather_round(struct contribution *c, const struct method *m,
                                              uint32_t t)
{
    for (unsigned k = 0; k < MEMBERS; k++) {
        struct sender x = member_sender(m, k, t);
        send(at("update", k), &x);
        c[k] = sent(member_names[k], weights[k], at("update", k));
    }
    return (struct method_next){.state_path = at("state", t),
                                .frozen_path = m->frozen ? at("frozen", 0) : NULL,
                                .contribution = c,
                                .count = MEMBERS,
                                .rounds = t};
}

/* The next state, and everything that a report can have. */
static inline err next_reported(struct method_report *report, const struct method *m,
                                const char *path, const struct method_next *next)
{
    const struct method_report_options all = {.directions = true};
    TRY(method_next(report, m, path, next));
    return method_report_make(report, m, path, next, &all);
}

/* One round from state 1 to state 2. */
static inline struct method_report run_round(const struct method *m, struct contribution *c,
                                             struct method_next *next)
{
    struct method_report report = {0};
    begin(m);
    *next = gather_round(c, m, 1);
    ok(next_reported(&report, m, at("state", 2), next));
    return report;
}

static inline const struct method_report_row *row_of(const struct method_report *report, size_t i)
{
    for (size_t r = 0; r < report->count; r++)
        if (strcmp(report->row[r].module, modules[i].name) == 0) return &report->row[r];
    cr_assert_fail("no row of module %s", modules[i].name);
    return NULL;
}

/* Module i of states t and t + 1, and the exact mean of the members' modules in round t. */
struct dense_round {
    double before[SIZE], after[SIZE], exact[SIZE];
    double change, error; /* ||exact - before||, ||after - exact|| */
};

static inline struct dense_round dense_round(const struct method *m, unsigned t, size_t i,
                                             bool gone)
{
    struct dense_round d = {0};
    const char *frozen = m->frozen ? at("frozen", 0) : NULL;
    double carried[SIZE] = {0}, pair[SIZE] = {0};
    add(d.before, at("state", t), i, 1, frozen);
    add(d.after, at("state", t + 1), i, 1, frozen);
    add_member(pair, at("state", t), at("state", t), frozen, i, 1, false);
    for (size_t j = 0; j < SIZE; j++) /* no member trains the carry */
        d.exact[j] = carried[j] = d.before[j] - pair[j];
    for (unsigned k = 0; k < MEMBERS; k++)
        add_member(d.exact, at("state", t), at("update", k), frozen, i, weights[k] / total_weight,
                   gone);
    d.change = distance(d.exact, d.before);
    d.error = distance(d.after, d.exact);
    return d;
}

/* Compares the report of the module with the dense sums. */
static inline void expect_row(const struct method_report *report, const struct dense_round *d,
                              size_t i)
{
    const struct method_report_row *row = row_of(report, i);
    double size = norm(d->after);
    /* Frozen factors that are orthonormal to float32 count as exactly orthonormal. */
    cr_expect(fabs(row->update_norm - d->change) < 1e-7 * d->change,
              "%s: change %.12g, dense %.12g", row->module, row->update_norm, d->change);
    cr_expect(fabs(row->error - d->error) < 0.1 * d->error + 1e-9 * size,
              "%s: error %.12g, dense %.12g", row->module, row->error, d->error);
    cr_expect(fabs(row->state_norm - size) < 1e-6 * size, "%s: norm %.12g, dense %.12g",
              row->module, row->state_norm, size);
    cr_expect_eq(row->sent, MEMBERS);
}

/* In a round whose only member has learned nothing, every bit of A (rank, d_in) stays as it was. */
static inline struct method_report expect_a_stays(const char *method, uint32_t rank)
{
    const struct method *m = method_find(method);
    struct method_report report = {0};
    struct sender x = {
        .method = method, .member = "a", .round = 1, .rank = 4, .alpha = 8, .zero = true};
    struct contribution c[] = {{"a", 1, at("update", 0)}};
    struct method_next next = {.state_path = at("state", 1), .contribution = c, .count = 1};
    struct adapter_file was = {0}, is = {0};
    begin(m);
    send(c[0].path, &x);
    ok(next_reported(&report, m, at("state", 2), &next));
    ok(adapter_file_open(&was, at("state", 1)));
    ok(adapter_file_open(&is, at("state", 2)));
    for (size_t i = 0; i < MODULES; i++)
        cr_expect_arr_eq(was.module[i].factor[0].f32, is.module[i].factor[0].f32,
                         rank * is.module[i].d_in * sizeof(float));
    adapter_file_close(&was);
    adapter_file_close(&is);
    return report;
}

#endif
