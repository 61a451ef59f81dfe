/* The changes made by members and states, over all modules, as dense float64 matrices. Robust
 * rules and reports are compared with them. */
#ifndef TESTS_SUPPORT_METHOD_CHANGES_H
#define TESTS_SUPPORT_METHOD_CHANGES_H

#include "tests/support/method_fixture.h"

enum { ALL = MODULES * SIZE };

/* The change made by member k in round t, over all modules. */
static inline void change_of(double *D, const struct method *m, unsigned t, unsigned k)
{
    const char *frozen = m->frozen ? at("frozen", 0) : NULL;
    memset(D, 0, ALL * sizeof *D);
    for (size_t i = 0; i < MODULES; i++) {
        double *d = D + i * SIZE;
        if (m->factors(t) & METHOD_R) { /* a block of R: zero beyond it, on top of the state's R */
            struct adapter_file s = {0}, u = {0}, f = {0};
            ok(adapter_file_open(&s, at("state", t)));
            ok(adapter_file_open(&u, at("update", k)));
            ok(adapter_file_open(&f, frozen));
            const struct adapter_file_module *old = adapter_file_find(&s, modules[i].name);
            const struct adapter_file_module *x = adapter_file_find(&u, modules[i].name);
            const struct adapter_file_module *ab = adapter_file_find(&f, modules[i].name);
            for (size_t row = 0; x && row < modules[i].d_out; row++)
                for (size_t col = 0; col < modules[i].d_in; col++)
                    for (size_t a = 0; a < x->rank; a++)
                        for (size_t b = 0; b < x->rank; b++)
                            d[row * modules[i].d_in + col] +=
                                (double)ab->factor[1].f32[row * old->rank + a] *
                                ((double)x->factor[2].f32[a * x->rank + b] -
                                 (double)old->factor[2].f32[a * old->rank + b]) *
                                (double)ab->factor[0].f32[b * modules[i].d_in + col];
            adapter_file_close(&s);
            adapter_file_close(&u);
            adapter_file_close(&f);
        } else if (m->fresh) {
            add(d, at("update", k), i, 1, NULL);
        } else {
            add_member(d, at("state", t), at("update", k), frozen, i, 1, false);
            add_member(d, at("state", t), at("state", t), frozen, i, -1, false);
        }
    }
}

static inline double inner(const double *x, const double *y)
{
    double sum = 0;
    for (size_t j = 0; j < ALL; j++)
        sum += x[j] * y[j];
    return sum;
}

/* State t + 1 less state t. */
static inline void published(double *D, const struct method *m, unsigned t)
{
    const char *frozen = m->frozen ? at("frozen", 0) : NULL;
    memset(D, 0, ALL * sizeof *D);
    for (size_t i = 0; i < MODULES; i++) {
        add(D + i * SIZE, at("state", t + 1), i, 1, frozen);
        add(D + i * SIZE, at("state", t), i, -1, frozen);
    }
}

#endif
