/* A transform of real sequences under which convolution is multiplication point by point.
 *
 * A real sequence x of n = 2^k >= 4 values is read as a polynomial modulo X^n + 1, so the part of a
 * product beyond the end wraps around with the opposite sign. Folded as z_j = x_j + i x_{j + n/2},
 * it is a polynomial modulo X^{n/2} - i with complex coefficients. So n/2 complex values hold all
 * of it, and no step is spent on symmetry (right-angle convolution, Crandall and Fagin 1994). The
 * transformed values are not in the usual order, but in the same order for all sequences.
 *
 *   struct fft fft = {0};
 *   TRY(fft_open(&fft, n));
 *   fft_forward(&fft, z);  ... multiply z[j] by another's z[j], raise to a power ...  fft_inverse
 *
 * Error: if the absolute values of a sequence add up to 1, every value of its forward transform is
 * within fft_error(n) of the exact one. This is our own code because the libraries of Debian 12 are
 * either not in double precision (kissfft) or have a licence that would extend to the whole program
 * (FFTW). */
#ifndef PRIVACY_FFT_H
#define PRIVACY_FFT_H

#include "base/err.h"

#include <stddef.h>

struct fft_value {
    double re, im;
};

struct fft {
    size_t size;            /* n / 2 */
    struct fft_value *root; /* (n / 2): level l starts at 2^l, in bit-reversed order */
};

err fft_open(struct fft *out, size_t n);
void fft_close(struct fft *fft);

/* z: (n / 2) folded values, in place. The inverse divides by n / 2, so it undoes the forward
 * one. */
void fft_forward(const struct fft *fft, struct fft_value *z);
void fft_inverse(const struct fft *fft, struct fft_value *z);

/* The place of value i of a sequence in its folded form. */
static inline double *fft_at(const struct fft *fft, struct fft_value *z, size_t i)
{
    return i < fft->size ? &z[i].re : &z[i - fft->size].im;
}

double fft_error(size_t n);

#endif
