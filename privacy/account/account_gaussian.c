#include "privacy/account/account_gaussian.h"

#include "base/err.h"

#include <math.h>

/* From x = 25 on, the terms left out are less than 1e-10 of the last one kept. */
double account_gaussian_log_erfc(double x)
{
    if (x < 25) return x < -1 ? log1p(-0.5 * erfc(-x)) + log(2) : log(erfc(x));
    double y = 1 / (x * x);
    double series =
        1 + y * (-1. / 2 + y * (3. / 4 + y * (-15. / 8 + y * (105. / 16 - y * 945. / 32))));
    return -x * x - log(x) - 0.5 * log(M_PI) + log(series);
}

double account_gaussian_log_cdf(double x)
{
    return account_gaussian_log_erfc(-x * M_SQRT1_2) - log(2);
}

double account_gaussian_between(double low, double high)
{
    REQUIRE(low <= high);
    /* Computes in the tail that contains both ends, so that no number near 1 is subtracted. */
    if (low + high > 0) return 0.5 * (erfc(low * M_SQRT1_2) - erfc(high * M_SQRT1_2));
    return 0.5 * (erfc(-high * M_SQRT1_2) - erfc(-low * M_SQRT1_2));
}

double account_gaussian_log_between(double low, double high)
{
    REQUIRE(low <= high);
    if (low + high > 0) return account_gaussian_log_between(-high, -low);
    /* ln Phi(high) + ln(1 - Phi(low) / Phi(high)), in the lower tail */
    double first = account_gaussian_log_cdf(high), second = account_gaussian_log_cdf(low);
    return second == -INFINITY ? first : first + log(-expm1(second - first));
}

double account_gaussian_delta(double mu, double epsilon)
{
    double first = account_gaussian_log_cdf(mu / 2 - epsilon / mu);
    double second = epsilon + account_gaussian_log_cdf(-mu / 2 - epsilon / mu);
    return second >= first ? 0 : -exp(first) * expm1(second - first);
}

double account_gaussian_epsilon(double mu, double delta)
{
    double low = 0, high = 1;
    REQUIRE(mu > 0 && delta > 0);
    if (account_gaussian_delta(mu, 0) <= delta) return 0;
    while (account_gaussian_delta(mu, high) > delta) {
        low = high;
        high *= 2;
    }
    for (int i = 0; i < 200 && high - low > 1e-14 * high; i++) {
        double middle = low + (high - low) / 2;
        if (account_gaussian_delta(mu, middle) > delta)
            low = middle;
        else
            high = middle;
    }
    return high * (1 + 1e-12);
}
