/* The options of faulty members; tests/e2e/simulate_attacks.sh runs them. */
#include "sim/attack.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>

Test(attack, reads_kinds_numbers_and_shares)
{
    struct attack a = {0};
    ok(attack_parse(&a, NULL));
    ok(attack_parse(&a, ""));
    cr_expect_eq(a.kind, ATTACK_NONE);
    ok(attack_parse(&a, "sign-flip 5%"));
    cr_expect_eq(a.kind, ATTACK_SCALE);
    cr_expect_str_eq(a.name, "sign-flip");
    cr_expect_float_eq(a.amount, -1, 0);
    cr_expect_float_eq(a.share, 0.05, 1e-12);
    ok(attack_parse(&a, "noise:0.25 20%"));
    cr_expect_eq(a.kind, ATTACK_NOISE);
    cr_expect_float_eq(a.amount, 0.25, 0);
    ok(attack_parse(&a, "scale:-8 100%"));
    cr_expect_float_eq(a.amount, -8, 0);
    ok(attack_parse(&a, "nan 0%"));
    cr_expect_eq(a.kind, ATTACK_NONE);
    ok(attack_parse(&a, "label-shuffle 1%"));
    cr_expect_eq(a.kind, ATTACK_LABELS);
}

static void refuse(const char *text, const char *part)
{
    struct attack a = {0};
    refused(attack_parse(&a, text), ERR_INPUT, part);
    cr_expect_eq(a.kind, ATTACK_NONE);
}

Test(attack, refuses_wrong_ones)
{
    refuse("flip 5%", "\"flip\": expected sign-flip, scale:FACTOR");
    refuse("sign-flip", "expected a share of the members, as \"sign-flip 5%\"");
    refuse("sign-flip 0.05", "expected a share of the members");
    refuse("sign-flip:2 5%", "sign-flip: expected no number after it");
    refuse("scale 5%", "scale: expected a number after a colon");
    refuse("scale:x 5%", "x");
    refuse("nan 101%", "101");
}
