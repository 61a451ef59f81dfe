/* The seed 00 01 .. 1f draws what Python's hashlib.blake2b does with the formula of cohort.h. */
#include "privacy/noise/cohort.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const two_ids[] = {"icu", "lab"};

static struct cohort_seed known(void)
{
    struct cohort_seed seed;
    for (int i = 0; i < 32; i++)
        seed.byte[i] = (uint8_t)i;
    return seed;
}

Test(cohort, is_drawn_again_from_its_seed)
{
    struct cohort_seed seed = known();
    struct cohort c = {.run = "trial", .round = 3, .q = 0.3};
    static const char answer[] = "0001000000000100000010000000000000011000";
    char text[DIGEST_TEXT_BYTES], member[16];
    for (int i = 0; i < 40; i++) {
        snprintf(member, sizeof member, "m%d", i);
        cr_expect_eq(cohort_has(&seed, &c, member), answer[i] == '1', "%s", member);
    }
    struct digest d = cohort_anchor(&seed, &c, two_ids, 2);
    digest_text(text, &d);
    cr_expect_str_eq(text, "c1375c4e72679d3306bb051590533b2efed21da9812364aeffe6fc0b1eaeee65");
}

Test(cohort, seeds_follow_backwards_to_the_anchor)
{
    struct cohort_seed last = known(), two, one, same;
    const struct cohort c = {.run = "trial", .round = 3, .q = 1}, at_two = {"trial", 2, 1};
    struct digest d;
    char text[DIGEST_TEXT_BYTES];
    cohort_seed_before(&same, &last, &c, 3);
    cr_expect_eq(memcmp(&same, &last, sizeof same), 0);
    cohort_seed_before(&two, &last, &c, 2);
    memcpy(d.byte, two.byte, sizeof d.byte);
    digest_text(text, &d);
    cr_expect_str_eq(text, "8838fe4e08f2e8fe489f6eee205c6894a70fc8e833f6a62ac6c90e77cfeff656");
    cohort_seed_before(&one, &last, &c, 1);
    cohort_seed_before(&same, &two, &at_two, 1);
    cr_expect_eq(memcmp(&same, &one, sizeof same), 0, "from wherever it is asked");
    struct digest x = cohort_anchor(&last, &c, two_ids, 2),
                  y = cohort_anchor(&two, &at_two, two_ids, 2);
    cr_expect(digest_equal(&x, &y));
    cohort_seed_before(&last, &last, &c, 2); /* in place */
    cr_expect_eq(memcmp(&two, &last, sizeof two), 0);
}

Test(cohort, has_everyone_at_rate_one_and_the_share_it_says_else)
{
    struct cohort_seed seed;
    struct cohort c = {.run = "r", .round = 1, .q = 1};
    enum { N = 100000 };
    char member[16];
    cohort_seed_draw(&seed);
    for (int i = 0; i < 100; i++) {
        snprintf(member, sizeof member, "m%d", i);
        cr_expect(cohort_has(&seed, &c, member));
    }
    c.q = 0.07;
    double in = 0, both = 0;
    for (int i = 0; i < N; i++) {
        struct cohort next = {.run = "r", .round = 2, .q = 0.07};
        snprintf(member, sizeof member, "m%d", i);
        bool has = cohort_has(&seed, &c, member);
        in += has;
        both += has && cohort_has(&seed, &next, member);
    }
    cr_expect_lt(fabs(in - 7000), 6 * sqrt(N * 0.07 * 0.93), "chance 2e-9: %g", in);
    cr_expect_lt(fabs(both - 490), 6 * sqrt(490.0), "rounds are independent: %g", both);
}

Test(cohort, another_seed_commits_to_something_else)
{
    struct cohort_seed a = known(), b = a;
    struct cohort c = {.run = "r", .round = 1, .q = 0.5}, later = c;
    b.byte[31] ^= 1;
    later.round = 2;
    struct digest x = cohort_anchor(&a, &c, two_ids, 2), y = cohort_anchor(&b, &c, two_ids, 2),
                  z = cohort_anchor(&a, &later, two_ids, 2),
                  one = cohort_anchor(&a, &c, two_ids, 1);
    cr_expect(!digest_equal(&x, &y) && !digest_equal(&x, &z) && !digest_equal(&x, &one));
    cohort_seed_draw(&a);
    cohort_seed_draw(&b);
    cr_expect_neq(memcmp(&a, &b, sizeof a), 0);
}

Test(cohort, the_denominator_does_not_know_who_came)
{
    double weight[] = {1, 0.25, 0.5};
    cr_expect_eq(cohort_denominator(1, NULL, 8), 8);
    cr_expect_eq(cohort_denominator(0.5, NULL, 8), 4);
    cr_expect_eq(cohort_denominator(0.5, weight, 3), 0.875);
}
