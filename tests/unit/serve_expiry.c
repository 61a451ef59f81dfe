/* When the end of a certificate is worth a line. */
#include "coordinator/serve/serve_expiry.h"

#include <criterion/criterion.h>

enum { HOUR = 3600, DAY = 24 * HOUR };

Test(serve_expiry, each_of_the_days_is_reached_in_turn)
{
    cr_expect_eq(serve_expiry_reached(31 * DAY, INT64_MAX), 0);
    cr_expect_eq(serve_expiry_reached(30 * DAY, INT64_MAX), 0);
    cr_expect_eq(serve_expiry_reached(30 * DAY - 1, INT64_MAX), 30);
    cr_expect_eq(serve_expiry_reached(14 * DAY - 1, INT64_MAX), 14);
    cr_expect_eq(serve_expiry_reached(7 * DAY - 1, INT64_MAX), 7);
    cr_expect_eq(serve_expiry_reached(DAY - 1, INT64_MAX), 1);
    cr_expect_eq(serve_expiry_reached(-DAY, INT64_MAX), 1, "it has ended");
}

Test(serve_expiry, a_short_life_is_reported_in_its_last_quarter_only)
{
    cr_expect_eq(serve_expiry_reached(10 * DAY, 30 * DAY / 4), 0);
    cr_expect_eq(serve_expiry_reached(6 * DAY, 30 * DAY / 4), 7);
    cr_expect_eq(serve_expiry_reached(HOUR, 30 * DAY / 4), 1);
    cr_expect_eq(serve_expiry_reached(HOUR, DAY / 4), 0, "of a day");
}
