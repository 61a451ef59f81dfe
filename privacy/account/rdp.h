/* Renyi differential privacy of sampled Gaussian noise, and its conversion to (epsilon, delta).
 *
 * RDP composes by addition: add the values of all events at each order, then convert once.
 * Noise multiplier z = deviation / sensitivity. Pure functions, any thread; no units. */
#ifndef PRIVACY_RDP_H
#define PRIVACY_RDP_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>

/* The default orders, the same as in Google's dp_accounting: 1.1 to 10.9 by 0.1, 11 to 63, 128,
 * 256, 512, 1024. */
enum { RDP_ORDERS = 99 + 53 + 4 };
const double *rdp_orders(void);

/* Full participation: alpha / (2 z^2) (Mironov 2017, proposition 7). */
double rdp_gaussian(double z, double order);

/* Poisson sampling at rate q in (0, 1), add or remove one: ln A(order) / (order - 1), Mironov,
 * Talwar, Zhang 2019, section 3.3. Whole orders by the finite sum, others by the series, whose
 * terms alternate in sign: `exact` adds them with their signs, otherwise all are taken as positive,
 * which is an upper bound. INFINITY if the series has not converged after 1,000 terms (some orders
 * below 2). */
double rdp_poisson(double q, double z, double order, bool exact);

/* Fixed-size sampling of a share q without replacement, replace one, z = deviation over the
 * sensitivity of replacing: Wang, Balle, Kasiviswanathan 2019, theorem 27; between whole orders by
 * convexity (corollary 10). */
double rdp_fixed_size(double q, double z, double order);

/* The least epsilon over the orders and the order that gave it: Canonne, Kamath, Steinke 2020,
 * proposition 12. INFINITY if no order has a finite value. */
double rdp_epsilon(double *order_out, const double *order, const double *rdp, size_t count,
                   double delta);

#endif
