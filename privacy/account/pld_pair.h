/* The pair of worst neighbours of one release of sampled Gaussian noise, in units of the clip norm:
 * P = (1 - up) N(0, z^2) + up N(1, z^2) and Q = (1 - low) N(0, z^2) + low N(-1, z^2). Removing a
 * unit has up = q, low = 0; adding one up = 0, low = q; replacing one up = low = q (Zhu, Dong, Wang
 * 2022, theorem 11). The loss is L(x) = ln(P/Q)(x), rising in x, for x drawn from P. Pure. */
#ifndef PRIVACY_PLD_PAIR_H
#define PRIVACY_PLD_PAIR_H

struct pld_pair {
    double z, up, low; /* up = 0, low = 0, or both the same */
};

double pld_pair_loss(const struct pld_pair *pair, double x);
/* The x that has this loss; -infinity or +infinity for losses outside the range. */
double pld_pair_inverse(const struct pld_pair *pair, double loss);
/* The probabilities of low < x <= high under P and under Q. */
double pld_pair_up(const struct pld_pair *pair, double low, double high);
double pld_pair_low(const struct pld_pair *pair, double low, double high);
/* ln pld_pair_low(), also if the probability is too small for a double. */
double pld_pair_log_low(const struct pld_pair *pair, double low, double high);

#endif
