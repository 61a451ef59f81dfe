/* The normal distribution with full relative precision, and the exact privacy curve of the Gaussian
 * mechanism.
 *
 * Releases in which all units take part compose to one Gaussian mechanism, mu = sqrt(sum 1/z^2):
 *   delta(eps) = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu)
 * (Balle, Wang 2018, theorem 8; Dong, Roth, Su 2019, corollary 2.13). Pure; no units. */
#ifndef PRIVACY_ACCOUNT_GAUSSIAN_H
#define PRIVACY_ACCOUNT_GAUSSIAN_H

/* ln(erfc(x)), relative error below 1e-14 for all finite x; for x > 25 by its asymptotic series. */
double account_gaussian_log_erfc(double x);
/* ln Phi(x). */
double account_gaussian_log_cdf(double x);
/* P(low < N(0,1) <= high), relative error of a few roundings of the smaller tail. */
double account_gaussian_between(double low, double high);
/* ln account_gaussian_between(), also if the probability is too small for a double. */
double account_gaussian_log_between(double low, double high);

double account_gaussian_delta(double mu, double epsilon);
/* The least epsilon >= 0 with delta(epsilon) <= delta, rounded up. */
double account_gaussian_epsilon(double mu, double delta);

#endif
