/* Exact algebra of a stack: a list of low-rank terms of one module, whose sum is
 *
 *     S = sum_k c_k B_k A_k
 *
 *     B_k (m, r_k)    A_k (r_k, n)    float32, row-major
 *     m = d_out       n = d_in        R = sum r_k, the total rank
 *
 * All arithmetic is float64. The dense (m, n) matrix is formed only if R reaches min(m, n), because
 * it is then smaller than the factors. Recompression otherwise goes through two QR factorisations:
 *
 *     [c_1 B_1 | c_2 B_2 | ...]    = Q_B T_B      Householder, so that rank deficiency, zero
 *     [A_1; A_2; ...]^T            = Q_A T_A      factors and duplicates need no special case
 *     T_B T_A^T                    = U s V^T      a small SVD
 *
 * s are the singular values of S itself. A cut after q of them leaves an error of exactly
 * sqrt(sum_{i>q} s_i^2), and no pair of rank q has a smaller one (Eckart-Young).
 *
 * Reproducible bits: LAPACK and BLAS run on the calling thread (lowrank_begin()), so the result
 * depends on the order of the list, but not on the number of threads or the order of arrival. Pure
 * otherwise; safe from several threads at once. */
#ifndef AGG_LOWRANK_H
#define AGG_LOWRANK_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct lowrank_term {
    double c;
    const float *B; /* (m, r) */
    const float *A; /* (r, n) */
    uint32_t r;
    const float *R; /* (r, r): the term is c B R A; NULL: none */
};

struct lowrank_stack {
    uint32_t m, n;
    const struct lowrank_term *term;
    size_t count;
    /* NULL, or called with the index of each term after it was read, so that its pages can be
     * dropped. A term may be read again later. */
    void (*done)(void *context, size_t term);
    void *context;
};

/* Sets BLAS to one thread. Call it before a parallel loop, and lowrank_end() after it with the
 * value returned. */
int lowrank_begin(void);
void lowrank_end(int before);
/* one(context, i) for each i < count, on `threads` threads, between the two calls above. The error
 * is that of the smallest i that failed, whichever thread finished first. */
err lowrank_each(size_t count, int threads, err (*one)(void *context, size_t i), void *context);

size_t lowrank_total(const struct lowrank_stack *s); /* R */
/* The stack itself as one pair, in the order of the list, with c folded into B; no term has an R.
 * The same as PEFT's combination type "cat": as fast as a copy, but of rank R. */
void lowrank_pair(float *B /* (m, R) */, float *A /* (R, n) */, const struct lowrank_stack *s);

/* ||S||_F, exact also where terms cancel: by QR, or densely if R >= mn/(m+n). */
err lowrank_norm(double *out, const struct lowrank_stack *s);
/* <S1, S2> = trace((B1^T B2)(A2 A1^T)); shapes agree. The error is about 1e-16 of
 * ||B1|| ||A1|| ||B2|| ||A2||, so it is useless for sums that cancel. */
err lowrank_inner(double *out, const struct lowrank_stack *s1, const struct lowrank_stack *s2);
/* out (m, w) = S right; both column-major. Nothing larger than a term's factors is formed. */
err lowrank_times(double *out, const struct lowrank_stack *s, const double *right /* (n, w) */,
                  size_t w);
/* out (m, n) row-major += S. */
err lowrank_add_dense(double *out, const struct lowrank_stack *s);

/* The singular value decomposition of S, kept in factored form until cut. */
struct lowrank_svd {
    uint32_t m, n, k; /* k = min(m, n, R): singular values held */
    double *sigma;    /* (k), decreasing */
    double norm;      /* ||S||_F */
    double noise;     /* rounding of S: 2^-52 max(m, n) sum ||c b|| ||a|| over all R ranks */
    double head_norm; /* ||sum of the first `head` terms||_F */
    bool dense;
    double *left;  /* dense: (m, k) column-major; else reflectors of Q_B (m, R) */
    double *right; /* dense: (n, k) column-major; else reflectors of Q_A (n, R) */
    double *tau_left, *tau_right, *core_left, *core_right;
    uint32_t rank_total;
};
err lowrank_svd_open(struct lowrank_svd *out, const struct lowrank_stack *s, size_t head);
void lowrank_svd_close(struct lowrank_svd *svd);

/* Cut after the smallest q that meets all conditions below, but at most rank_max. Without a
 * condition everything is kept, except singular values that are zero up to the rounding of the
 * terms, which may be far larger than their sum. */
struct lowrank_cut {
    uint32_t rank_max; /* 0: no bound */
    double error;      /* tail <= error * ||S|| - spent; 0: no condition */
    double spent;      /* error of earlier cuts, counted against `error` */
    double energy;     /* sum of kept s^2 >= energy * sum of s^2, at most 1; 0: no condition */
};
/* q, and tail = sqrt(sum_{i>q} s_i^2). */
void lowrank_cut(uint32_t *q, double *tail, const struct lowrank_svd *svd,
                 const struct lowrank_cut *cut);

enum lowrank_split {
    LOWRANK_BALANCED,    /* B = U sqrt(s), A = sqrt(s) V^T */
    LOWRANK_LEFT,        /* B = U s, A = V^T (orthonormal rows) */
    LOWRANK_ORTHONORMAL, /* B = U, A = V^T: s is dropped */
};
/* The leading q directions as float32. Signs: the largest |entry| of each left vector is positive.
 * *rounding (may be NULL) is the Frobenius norm of the rounding to float32, to a few percent; 0 for
 * ORTHONORMAL. */
err lowrank_split(float *B /* (m, q) */, float *A /* (q, n) */, double *rounding,
                  const struct lowrank_svd *svd, uint32_t q, enum lowrank_split split);

#endif
