/* Epsilon at delta by the numerical accountant of Gopi, Lee, Wutschitz 2021 (algorithm 1): the loss
 * of each release is cut off at -L and L, put on a mesh so that its mean stays, and convolved by
 * FFT. The result is no bound by itself, unlike connect-the-dots, but lies within stated errors of
 * the truth (theorem 5.5). So it gives a bound on either side, as a check of the other accountants.
 *
 *     T           total number of releases
 *     delta_error = delta / 1000
 *     h           = epsilon_error / sqrt(T/2 ln(12 / delta_error)), the mesh
 *     L           = 3 + max(epsilon_error, RDP epsilon of all releases at delta_error / 4, RDP
 *                   epsilon of each release at delta_error / (8 T))
 *     upper       = eps(delta - delta_error) + epsilon_error
 *     lower       = eps(delta + delta_error) - epsilon_error
 *
 * Neighbours differ by one unit added or removed, in the direction of removal, as in the authors'
 * implementation (github.com/microsoft/prv_accountant). */
#ifndef PRIVACY_PRV_H
#define PRIVACY_PRV_H

#include "privacy/account/pld.h"

struct prv_result {
    double upper, lower; /* at least 0 */
};

/* ERR_LIMIT if the mesh would have more than LIMIT_PRV_CELLS points, or if double precision does
 * not resolve delta_error after this number of releases. */
err prv_epsilon(struct prv_result *out, const struct pld_event *event, size_t count, double delta,
                double epsilon_error);

#endif
