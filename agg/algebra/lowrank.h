/* Exact algebra of one module's stack: a list of terms whose sum is
 *
 *     S = sum_k c_k B_k A_k        B_k (m, r_k), A_k (r_k, n), float32 row-major; m = d_out, n =
 * d_in
 *
 * All arithmetic is float64. No dense (m, n) matrix is formed unless the total rank R = sum r_k
 * reaches min(m, n), where it is the smaller way. Recompression: B_st = Q_B T_B and A_st^T = Q_A
 * T_A (Householder, so rank deficiency, zero factors and duplicates are no trouble), SVD of the
 * small T_B T_A^T = U s V^T. Then s are the singular values of S itself, and cutting after q leaves
 * an error of exactly sqrt(sum_{i>q} s_i^2), which no rank-q pair can better (Eckart-Young). See
 * reference "recompression", section 5 of the algorithms sheet.
 *
 * Bits: LAPACK and BLAS run on the calling thread (lowrank_begin()), so the result depends on
 * neither threads nor the order in which terms arrived, only on the order in the list. Pure
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
    /* NULL, or called with the index of a term that has been read: its pages may go. A term may be
     * read again later. */
    void (*done)(void *context, size_t term);
    void *context;
};

/* BLAS on one thread from here to lowrank_end() with the value returned; around parallel loops. */
int lowrank_begin(void);
void lowrank_end(int before);

size_t lowrank_total(const struct lowrank_stack *s); /* R */
/* The stack itself as one pair, in the order of the list, c folded into B; no term has an R. What
 * PEFT's "cat" makes: at the speed of memory, but of rank R. */
void lowrank_pair(float *B /* (m, R) */, float *A /* (R, n) */, const struct lowrank_stack *s);

/* ||S||_F, without cancellation trouble: by QR, or densely where R >= mn/(m+n). */
err lowrank_norm(double *out, const struct lowrank_stack *s);
/* Norms of common + with[i], for i in 0..count: the common part is summed once. */
err lowrank_norms(double *out /* (count) */, const struct lowrank_stack *common,
                  const struct lowrank_term *with, size_t count);
/* <S1, S2> = trace((B1^T B2)(A2 A1^T)); shapes agree. Relative error about 1e-16 of ||B1||
 * ||A1||..., so not for differences that cancel. */
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
    double head_norm; /* ||sum of the first `head` terms||_F */
    bool dense;
    double *left;  /* dense: (m, k) column-major; else reflectors of Q_B (m, R) */
    double *right; /* dense: (n, k) column-major; else reflectors of Q_A (n, R) */
    double *tau_left, *tau_right, *core_left, *core_right;
    uint32_t rank_total;
};
err lowrank_svd_open(struct lowrank_svd *out, const struct lowrank_stack *s, size_t head);
void lowrank_svd_close(struct lowrank_svd *svd);

/* Where to cut: after the smallest q that meets all that is asked, but never after rank_max. With
 * nothing asked everything is kept, except singular values that are zero to rounding: always cut.
 */
struct lowrank_cut {
    uint32_t rank_max; /* 0: no bound */
    double error;      /* tail <= error * ||S|| - spent; 0: not asked */
    double spent;      /* what earlier cuts have already used */
    double energy;     /* sum of kept s^2 >= energy * sum of s^2, at most 1; 0: not asked */
};
/* q, and tail = sqrt(sum_{i>q} s_i^2). */
void lowrank_cut(uint32_t *q, double *tail, const struct lowrank_svd *svd,
                 const struct lowrank_cut *cut);

enum lowrank_split {
    LOWRANK_BALANCED,    /* B = U sqrt(s), A = sqrt(s) V^T */
    LOWRANK_LEFT,        /* B = U s, A = V^T (orthonormal rows) */
    LOWRANK_ORTHONORMAL, /* B = U, A = V^T: s is dropped */
};
/* The leading q as float32, the largest |entry| of each left vector positive. `rounding`: ||what is
 * stored - what was computed||_F to a few percent (NULL: not asked; 0 for ORTHONORMAL). */
err lowrank_split(float *B /* (m, q) */, float *A /* (q, n) */, double *rounding,
                  const struct lowrank_svd *svd, uint32_t q, enum lowrank_split split);

#endif
