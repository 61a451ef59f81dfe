#include "agg/algebra/lowrank.h"

#include "agg/algebra/matrix.h"

#include <cblas.h>
#include <errno.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))

int lowrank_begin(void)
{
    int before = openblas_get_num_threads();
    openblas_set_num_threads(1);
    return before;
}

void lowrank_end(int before)
{
    openblas_set_num_threads(before);
}

err lowrank_each(size_t count, int threads, err (*one)(void *context, size_t i), void *context)
{
    err failed = ERR_NONE;
    size_t first = SIZE_MAX;
    int before = lowrank_begin();
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (size_t i = 0; i < count; i++) {
        err e = one(context, i);
#pragma omp critical(lowrank_each)
        if (err_is(e) && i < first) {
            failed = e;
            first = i;
        }
    }
    lowrank_end(before);
    return failed;
}

size_t lowrank_total(const struct lowrank_stack *s)
{
    size_t total = 0;
    for (size_t i = 0; i < s->count; i++)
        total += s->term[i].r;
    return total;
}

/* out (m, r) column-major = c B R */
static void gather_product(double *out, const struct lowrank_term *t, size_t m)
{
    for (size_t i = 0; i < m; i++) {
        for (size_t l = 0; l < t->r; l++) {
            double b = t->c * (double)t->B[i * t->r + l];
            for (size_t j = 0; j < t->r; j++)
                out[j * m + i] += b * (double)t->R[l * t->r + j];
        }
    }
}

/* left (m, R) column-major, zeroed, = [c_1 B_1 | c_2 B_2 | ...]; right (n, R) = [A_1^T | A_2^T |
 * ...] */
static void gather(double *left, double *right, const struct lowrank_stack *s)
{
    for (size_t k = 0; k < s->count; k++) {
        const struct lowrank_term *t = &s->term[k];
        size_t m = s->m, n = (size_t)t->r * s->n;
        if (t->R) gather_product(left, t, m);
        for (size_t j = 0; j < t->r && !t->R; j++)
            for (size_t i = 0; i < m; i++)
                left[j * m + i] = t->c * (double)t->B[i * t->r + j];
        for (size_t i = 0; i < n; i++)
            right[i] = (double)t->A[i];
        left += (size_t)t->r * m;
        right += n;
        if (s->done) s->done(s->context, k);
    }
}

/* out (m rows of length `row`) = c x (m, r), rounded once. Compiled also for wider registers; the
 * bits are the same, because each element is rounded by itself. */
MATRIX_CLONES static void copy_scaled(float *out, size_t row, const float *x, double c,
                                      const size_t size[2])
{
    for (size_t i = 0; i < size[0]; i++)
        for (size_t j = 0; j < size[1]; j++)
            out[i * row + j] = (float)(c * (double)x[i * size[1] + j]);
}

void lowrank_pair(float *B, float *A, const struct lowrank_stack *s)
{
    size_t total = lowrank_total(s);
    for (size_t k = 0; k < s->count; k++) {
        const struct lowrank_term *t = &s->term[k];
        const size_t size[2] = {s->m, t->r};
        REQUIRE(!t->R);
        copy_scaled(B, total, t->B, t->c, size);
        memcpy(A, t->A, (size_t)t->r * s->n * sizeof *A);
        B += t->r;
        A += (size_t)t->r * s->n;
        if (s->done) s->done(s->context, k);
    }
}

/* sum_j ||left_j|| ||right_j||: the sizes of the rank-one terms that are summed. Where they cancel,
 * the rounding error of the sum is relative to these, not to the sum. */
static double sizes(const double *left, const double *right, const struct lowrank_stack *s)
{
    size_t total = lowrank_total(s);
    double sum = 0;
    for (size_t j = 0; j < total; j++) {
        double b = 0, a = 0;
        for (size_t i = 0; i < s->m; i++)
            b += left[j * s->m + i] * left[j * s->m + i];
        for (size_t i = 0; i < s->n; i++)
            a += right[j * s->n + i] * right[j * s->n + i];
        sum += sqrt(b) * sqrt(a);
    }
    return sum;
}

/* ---- dense ---- */

/* out (m, n) row-major += the terms from `from` to `to`, in panels of about PANEL ranks: wide
 * enough for efficient products, and memory does not grow with the number of terms. *size (may be
 * NULL) += their sizes. */
static err add_terms(double *out, double *size, const struct lowrank_stack *s, size_t from,
                     size_t to)
{
    enum { PANEL = 128 };
    double *left = NULL, *right = NULL;
    err e = ERR_NONE;
    while (from < to && !err_is(e)) {
        size_t end = from, ranks = 0;
        while (end < to && (end == from || ranks + s->term[end].r <= PANEL))
            ranks += s->term[end++].r;
        struct lowrank_stack panel = {s->m, s->n, s->term + from, end - from, NULL, NULL};
        e = matrix_take(&left, s->m, ranks);
        if (!err_is(e)) e = matrix_take(&right, s->n, ranks);
        if (!err_is(e)) {
            gather(left, right, &panel);
            if (size) *size += sizes(left, right, &panel);
            /* Row-major out = column-major out^T (n, m) += right left^T. */
            cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, (int)s->n, (int)s->m, (int)ranks,
                        1, right, (int)s->n, left, (int)s->m, /*beta*/ 1, out, (int)s->n);
        }
        free(left);
        free(right);
        left = right = NULL;
        for (; from < end; from++)
            if (s->done) s->done(s->context, from);
    }
    return e;
}

err lowrank_add_dense(double *out, const struct lowrank_stack *s)
{
    return add_terms(out, NULL, s, 0, s->count);
}

/* Scaled against underflow and overflow. Summed in plain order, so that the bits are the same on
 * all machines. */
static double norm_of(const double *x, size_t n)
{
    double largest = 0, sum = 0;
    for (size_t i = 0; i < n; i++)
        largest = fmax(largest, fabs(x[i]));
    if (largest == 0 || isinf(largest)) { /* fmax() ignores NaN, but the result must show it */
        for (size_t i = 0; i < n && largest == 0; i++)
            if (isnan(x[i])) return x[i];
        return largest;
    }
    for (size_t i = 0; i < n; i++)
        sum += (x[i] / largest) * (x[i] / largest);
    return largest * sqrt(sum);
}

/* ---- factored ---- */

/* QR in place: x (rows, cols) column-major gets reflectors, with R above; tau (min(rows, cols)). */
static err qr(double *x, double *tau, size_t rows, size_t cols)
{
    int info = LAPACKE_dgeqrf(LAPACK_COL_MAJOR, (int)rows, (int)cols, x, (int)rows, tau);
    return info ? matrix_failed("QR (dgeqrf)", info) : ERR_NONE;
}

/* Copies the upper triangle: t (k, cols) column-major. */
static void triangle(double *t, size_t k, const double *x, size_t rows, size_t cols)
{
    for (size_t j = 0; j < cols; j++)
        for (size_t i = 0; i < k; i++)
            t[j * k + i] = i <= j ? x[j * rows + i] : 0;
}

/* p (kb, ka) column-major = T_B[:, :cols] T_A[:, :cols]^T */
static void core(double *p, const double *tb, const double *ta, const size_t k[2], size_t cols)
{
    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, (int)k[0], (int)k[1], (int)cols, 1, tb,
                (int)k[0], ta, (int)k[1], /*beta*/ 0, p, (int)k[0]);
}

/* S = Q_B p Q_A^T with p = T_B T_A^T (k[0], k[1]). Q_B and Q_A stay as Householder reflectors in
 * left and right. */
struct reduced {
    double *left, *right, *tau_left, *tau_right, *p;
    size_t k[2];
    double head_norm, size;
};

static void reduced_close(struct reduced *r)
{
    free(r->left);
    free(r->right);
    free(r->tau_left);
    free(r->tau_right);
    free(r->p);
    *r = (struct reduced){0};
}

static err reduce(struct reduced *out, const struct lowrank_stack *s, size_t head)
{
    struct reduced r = {0};
    double *tb = NULL, *ta = NULL;
    size_t total = lowrank_total(s);
    struct lowrank_stack first = {s->m, s->n, s->term, head, NULL, NULL};
    err e = ERR_NONE;
    r.k[0] = MIN(s->m, total);
    r.k[1] = MIN(s->n, total);
    TRY_OUT(e, matrix_take(&r.left, s->m, total));
    TRY_OUT(e, matrix_take(&r.right, s->n, total));
    TRY_OUT(e, matrix_take(&r.tau_left, total, 1));
    TRY_OUT(e, matrix_take(&r.tau_right, total, 1));
    TRY_OUT(e, matrix_take(&r.p, r.k[0], r.k[1]));
    TRY_OUT(e, matrix_take(&tb, r.k[0], total));
    TRY_OUT(e, matrix_take(&ta, r.k[1], total));
    gather(r.left, r.right, s);
    r.size = sizes(r.left, r.right, s);
    TRY_OUT(e, qr(r.left, r.tau_left, s->m, total));
    TRY_OUT(e, qr(r.right, r.tau_right, s->n, total));
    triangle(tb, r.k[0], r.left, s->m, total);
    triangle(ta, r.k[1], r.right, s->n, total);
    if (head && head < s->count) {
        core(r.p, tb, ta, r.k, lowrank_total(&first));
        r.head_norm = norm_of(r.p, r.k[0] * r.k[1]);
    }
    core(r.p, tb, ta, r.k, total);
    if (head == s->count) r.head_norm = norm_of(r.p, r.k[0] * r.k[1]);
    *out = r;
    r = (struct reduced){0};
out:
    free(tb);
    free(ta);
    reduced_close(&r);
    return e;
}

/* True if the dense sum (2 m n R operations) costs less than the QR of both sides, which takes
 * about 2 (m + n) R^2. */
static bool dense_is_less(const struct lowrank_stack *s)
{
    double m = s->m, n = s->n;
    return (double)lowrank_total(s) >= m * n / (m + n);
}

static err norm_factored(double *out, const struct lowrank_stack *s)
{
    struct reduced r = {0};
    TRY(reduce(&r, s, s->count));
    *out = r.head_norm;
    reduced_close(&r);
    return ERR_NONE;
}

err lowrank_norm(double *out, const struct lowrank_stack *s)
{
    double *dense = NULL;
    if (lowrank_total(s) == 0) {
        *out = 0;
        return ERR_NONE;
    }
    if (!dense_is_less(s)) return norm_factored(out, s);
    TRY(matrix_take(&dense, s->m, s->n));
    err e = lowrank_add_dense(dense, s);
    if (!err_is(e)) *out = norm_of(dense, (size_t)s->m * s->n);
    free(dense);
    return e;
}

err lowrank_times(double *out, const struct lowrank_stack *s, const double *right, size_t w)
{
    err e = ERR_NONE;
    memset(out, 0, s->m * w * sizeof *out);
    for (size_t k = 0; k < s->count && !err_is(e); k++) {
        double *b = NULL, *a = NULL, *x = NULL;
        int m = (int)s->m, n = (int)s->n, r = (int)s->term[k].r;
        struct lowrank_stack one = {s->m, s->n, &s->term[k], 1, NULL, NULL};
        e = matrix_take(&b, s->m, s->term[k].r);
        if (!err_is(e)) e = matrix_take(&a, s->n, s->term[k].r);
        if (!err_is(e)) e = matrix_take(&x, s->term[k].r, w);
        if (!err_is(e)) {
            gather(b, a, &one);
            cblas_dgemm(CblasColMajor, CblasTrans, CblasNoTrans, r, (int)w, n, 1, a, n, right, n, 0,
                        x, r);
            cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, m, (int)w, r, 1, b, m, x, r, 1,
                        out, m);
        }
        free(b);
        free(a);
        free(x);
        if (s->done) s->done(s->context, k);
    }
    return e;
}

err lowrank_inner(double *out, const struct lowrank_stack *s1, const struct lowrank_stack *s2)
{
    REQUIRE(s1->m == s2->m && s1->n == s2->n);
    size_t r1 = lowrank_total(s1), r2 = lowrank_total(s2);
    double *b1 = NULL, *b2 = NULL, *a1 = NULL, *a2 = NULL, *bb = NULL, *aa = NULL, sum = 0;
    int m = (int)s1->m, n = (int)s1->n;
    err e = ERR_NONE;
    if (r1 == 0 || r2 == 0) {
        *out = 0;
        return ERR_NONE;
    }
    TRY_OUT(e, matrix_take(&b1, s1->m, r1));
    TRY_OUT(e, matrix_take(&b2, s1->m, r2));
    TRY_OUT(e, matrix_take(&a1, s1->n, r1));
    TRY_OUT(e, matrix_take(&a2, s1->n, r2));
    TRY_OUT(e, matrix_take(&bb, r1, r2));
    TRY_OUT(e, matrix_take(&aa, r1, r2));
    gather(b1, a1, s1);
    gather(b2, a2, s2);
    cblas_dgemm(CblasColMajor, CblasTrans, CblasNoTrans, (int)r1, (int)r2, m, 1, b1, m, b2, m, 0,
                bb, (int)r1);
    cblas_dgemm(CblasColMajor, CblasTrans, CblasNoTrans, (int)r1, (int)r2, n, 1, a1, n, a2, n, 0,
                aa, (int)r1);
    for (size_t i = 0; i < r1 * r2; i++)
        sum += bb[i] * aa[i];
    *out = sum;
out:
    free(b1);
    free(b2);
    free(a1);
    free(a2);
    free(bb);
    free(aa);
    return e;
}

/* ---- singular values ---- */

static err check_norm(double norm)
{
    if (isfinite(norm)) return ERR_NONE; /* LAPACK may loop forever on NaN */
    return err_make(ERR_INPUT, "factors have values that are not finite, or too large");
}

/* a (rows, cols) column-major = u (rows, k) diag(sigma) vt (k, cols), destroying a. *again: divide
 * and conquer did not converge (rare, and deterministic), so svd_slow() is needed on a new copy. */
static err svd_fast(bool *again, double *u, double *sigma, double *vt, double *a,
                    const size_t size[2])
{
    int rows = (int)size[0], cols = (int)size[1], k = MIN(rows, cols);
    int info = LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'S', rows, cols, a, rows, sigma, u, rows, vt, k);
    *again = info > 0;
    return info < 0 ? matrix_failed("singular values (dgesdd)", info) : ERR_NONE;
}

static err svd_slow(double *u, double *sigma, double *vt, double *a, const size_t size[2])
{
    int rows = (int)size[0], cols = (int)size[1], k = MIN(rows, cols);
    double *super = NULL;
    TRY(matrix_take(&super, size[0], 1));
    int info = LAPACKE_dgesvd(LAPACK_COL_MAJOR, 'S', 'S', rows, cols, a, rows, sigma, u, rows, vt,
                              k, super);
    free(super);
    return info ? matrix_failed("singular values (dgesvd)", info) : ERR_NONE;
}

/* vt (k, n) column-major into v (n, k) column-major. */
static void transpose(double *v, const double *vt, size_t k, size_t n)
{
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < k; i++)
            v[i * n + j] = vt[j * k + i];
}

/* If dgesdd fails, the dense matrix is summed again. This is rare, and cheaper than a copy each
 * time. */
static err svd_dense(struct lowrank_svd *svd, const struct lowrank_stack *s, size_t head)
{
    double *x = NULL, *vt = NULL;
    size_t m = s->m, n = s->n, k = svd->k;
    /* x is row-major (m, n), which is column-major (n, m): the SVD of S^T. Left and right swap. */
    const size_t size[2] = {n, m};
    bool again = false;
    err e = ERR_NONE;
    svd->dense = true;
    TRY_OUT(e, matrix_take(&x, m, n));
    TRY_OUT(e, add_terms(x, &svd->noise, s, 0, head));
    svd->head_norm = norm_of(x, m * n);
    TRY_OUT(e, add_terms(x, &svd->noise, s, head, s->count));
    TRY_OUT(e, check_norm(norm_of(x, m * n)));
    TRY_OUT(e, matrix_take(&vt, k, m));
    TRY_OUT(e, matrix_take(&svd->right, n, k));
    TRY_OUT(e, svd_fast(&again, svd->right, svd->sigma, vt, x, size));
    if (again) {
        memset(x, 0, m * n * sizeof *x);
        TRY_OUT(e, add_terms(x, NULL, s, 0, s->count));
        TRY_OUT(e, svd_slow(svd->right, svd->sigma, vt, x, size));
    }
    free(x);
    x = NULL;
    TRY_OUT(e, matrix_take(&svd->left, m, k));
    transpose(svd->left, vt, k, m);
out:
    free(x);
    free(vt);
    return e;
}

static err svd_factored(struct lowrank_svd *svd, const struct lowrank_stack *s, size_t head)
{
    struct reduced r = {0};
    double *vt = NULL, *p = NULL;
    bool again = false;
    err e = ERR_NONE;
    TRY_OUT(e, reduce(&r, s, head));
    TRY_OUT(e, check_norm(norm_of(r.p, r.k[0] * r.k[1])));
    TRY_OUT(e, matrix_take(&svd->core_left, r.k[0], svd->k));
    TRY_OUT(e, matrix_take(&svd->core_right, r.k[1], svd->k));
    TRY_OUT(e, matrix_take(&vt, svd->k, r.k[1]));
    TRY_OUT(e, matrix_take(&p, r.k[0], r.k[1]));
    memcpy(p, r.p, r.k[0] * r.k[1] * sizeof *p);
    TRY_OUT(e, svd_fast(&again, svd->core_left, svd->sigma, vt, p, r.k));
    if (again) TRY_OUT(e, svd_slow(svd->core_left, svd->sigma, vt, r.p, r.k));
    transpose(svd->core_right, vt, svd->k, r.k[1]);
    svd->head_norm = r.head_norm;
    svd->noise = r.size;
    svd->left = r.left;
    svd->right = r.right;
    svd->tau_left = r.tau_left;
    svd->tau_right = r.tau_right;
    r.left = r.right = r.tau_left = r.tau_right = NULL;
out:
    free(vt);
    free(p);
    reduced_close(&r);
    return e;
}

err lowrank_svd_open(struct lowrank_svd *out, const struct lowrank_stack *s, size_t head)
{
    REQUIRE(head <= s->count);
    size_t total = lowrank_total(s), least = MIN(s->m, s->n);
    struct lowrank_svd svd = {.m = s->m, .n = s->n};
    svd.k = (uint32_t)MIN(total, least);
    svd.rank_total = (uint32_t)total;
    err e = ERR_NONE;
    TRY_OUT(e, matrix_take(&svd.sigma, svd.k, 1));
    if (svd.k > 0) {
        /* From R = min(m, n) on, the dense matrix is no larger than the stack and costs no more. */
        e = total >= least ? svd_dense(&svd, s, head) : svd_factored(&svd, s, head);
        if (err_is(e)) goto out;
    }
    svd.norm = norm_of(svd.sigma, svd.k);
    svd.noise *= 0x1p-52 * (s->m > s->n ? s->m : s->n);
    *out = svd;
    return ERR_NONE;
out:
    lowrank_svd_close(&svd);
    return e;
}

void lowrank_svd_close(struct lowrank_svd *svd)
{
    free(svd->sigma);
    free(svd->left);
    free(svd->right);
    free(svd->tau_left);
    free(svd->tau_right);
    free(svd->core_left);
    free(svd->core_right);
    *svd = (struct lowrank_svd){0};
}
