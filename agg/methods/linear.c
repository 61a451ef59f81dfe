#include "agg/methods/linear.h"

#include "agg/algebra/matrix.h"

#include <cblas.h>
#include <math.h>
#include <stdlib.h>

/* gram (r, r) = A A^T of A (r, n), or B^T B of B (m, r), column by column a panel at a time:
 * float64 copies of a whole factor would be as large as the factor twice. */
static err gram_of(double *gram, const float *x, size_t r, size_t d, bool rows)
{
    enum { PANEL = 256 };
    double *part = NULL;
    TRY(matrix_take(&part, r, PANEL));
    for (size_t at = 0; at < d; at += PANEL) {
        size_t n = d - at < PANEL ? d - at : PANEL;
        for (size_t j = 0; j < n; j++) /* part (r, n) column-major */
            for (size_t i = 0; i < r; i++)
                part[j * r + i] = (double)(rows ? x[i * d + at + j] : x[(at + j) * r + i]);
        cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, (int)r, (int)r, (int)n, 1, part,
                    (int)r, part, (int)r, 1, gram, (int)r);
    }
    free(part);
    return ERR_NONE;
}

struct measure {  /* ||s X fixed||_F of a trained factor X: s sqrt(<X, G X>) */
    double *gram; /* (r, r); NULL: the identity */
    double *work; /* as large as X */
    size_t r, d;
    double scale;
    bool rows; /* X is (r, d), not (d, r) */
};

static double measure(const struct measure *m, const double *x)
{
    double sum = 0;
    const double *y = x;
    int r = (int)m->r, d = (int)m->d;
    /* Row-major (d, r) is column-major (r, d): G from the left. Row-major (r, d): from the right.
     */
    if (m->gram && m->rows)
        cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, d, r, r, 1, x, d, m->gram, r, 0,
                    m->work, d);
    else if (m->gram)
        cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, r, d, r, 1, m->gram, r, x, r, 0,
                    m->work, r);
    if (m->gram) y = m->work;
    for (size_t i = 0; i < m->r * m->d; i++)
        sum += x[i] * y[i];
    return m->scale * sqrt(fmax(0, sum));
}

static err report(struct method_result *out, const struct method_round *round,
                  enum adapter_file_role role, const float *fixed)
{
    const struct adapter_file_module *old = round->module;
    const float *now = out->module.factor[role].f32, *was = old->factor[role].f32;
    struct measure m = {.r = old->rank, .scale = old->scale, .rows = role == ADAPTER_FILE_A};
    m.d = m.rows ? old->d_in : old->d_out;
    size_t n = m.r * m.d, other = m.rows ? old->d_out : old->d_in;
    double *exact = NULL, *x = NULL;
    err e = ERR_NONE;
    TRY_OUT(e, matrix_take(&exact, n, 1));
    TRY_OUT(e, matrix_take(&x, n, 1));
    if (fixed) {
        TRY_OUT(e, matrix_take(&m.work, n, 1));
        TRY_OUT(e, matrix_take(&m.gram, m.r, m.r));
        TRY_OUT(e, gram_of(m.gram, fixed, m.r, other, /*rows*/ !m.rows));
    }
    TRY_OUT(e, method_mean_exact(exact, round, role, n));
    for (size_t i = 0; i < n; i++)
        x[i] = exact[i] - (was ? (double)was[i] : 0);
    out->row.update_norm = measure(&m, x);
    for (size_t i = 0; i < n; i++)
        x[i] = (double)now[i] - exact[i];
    out->row.error = measure(&m, x);
    for (size_t i = 0; i < n; i++)
        x[i] = (double)now[i];
    out->row.state_norm = measure(&m, x);
out:
    free(exact);
    free(x);
    free(m.work);
    free(m.gram);
    return e;
}

err linear_next(float **mean, struct method_result *out, const struct method_round *round,
                enum adapter_file_role role, const float *fixed)
{
    const struct adapter_file_module *old = round->module;
    bool a = role == ADAPTER_FILE_A;
    uint32_t rows = a ? old->rank : old->d_out, cols = a ? old->d_in : old->rank;
    if (!old->factor[role].f32)
        return err_make(ERR_INPUT, "the state has no adapter for module %s", old->name);
    for (size_t k = 0; k < round->count; k++) {
        const struct adapter_file_module *u = round->update[k];
        if (u && (u->rank > old->rank || !u->factor[role].f32))
            return err_make(ERR_INPUT, "module %s: expected lora_%c of rank at most %u", u->name,
                            a ? 'A' : 'B', old->rank);
    }
    out->module.rank = out->row.rank = old->rank;
    TRY(method_result_take(mean, out, role, rows, cols));
    TRY(method_mean(*mean, round, role, (size_t)rows * cols));
    return round->no_report ? ERR_NONE : report(out, round, role, fixed);
}
