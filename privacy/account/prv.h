/* Epsilon at delta by the numerical accountant of Gopi, Lee, Wutschitz 2021 (algorithm 1): the loss
 * of each release, cut off at -+L, put on a mesh with its mean kept, convolved by FFT. Unlike
 * connect-the-dots this is no bound by itself but lies within stated errors of the truth (theorem
 * 5.5), so it gives a bound on either side: a check of the other accountants.
 *
 * With T releases in all, error epsilon_error and delta_error = delta / 1000: mesh
 * h = epsilon_error / sqrt(T/2 ln(12 / delta_error)); L = 3 + max(epsilon_error, RDP epsilon of all
 * at delta_error / 4, of each one at delta_error / (8 T)); upper = eps(delta - delta_error) +
 * epsilon_error, lower = eps(delta + delta_error) - epsilon_error. Add or remove one, in the
 * direction of removal, as the reference implementation has it. */
#ifndef PRIVACY_PRV_H
#define PRIVACY_PRV_H

#include "privacy/account/pld.h"

struct prv_result {
    double upper, lower; /* at least 0 */
};

/* ERR_LIMIT when the mesh would have over LIMIT_PRV_CELLS points, or when double precision does not
 * resolve delta_error after so many releases. */
err prv_epsilon(struct prv_result *out, const struct pld_event *event, size_t count, double delta,
                double epsilon_error);

#endif
