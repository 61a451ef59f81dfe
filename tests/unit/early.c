/* When a simulation ends before its last round. */
#include "sim/early.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

/* The round after which the losses (or accuracies) end a simulation; 0: none. */
static uint32_t end_of(const char *rule, const double *value, uint32_t count, const char *why)
{
    struct early e;
    char text[EARLY_TEXT_BYTES] = "";
    cr_assert_not(err_is(early_parse(&e, rule)));
    for (uint32_t i = 0; i < count; i++) {
        if (!early_ends(&e, i + 1, value[i], value[i], text)) continue;
        cr_assert_str_eq(text, why);
        return i + 1;
    }
    return 0;
}

Test(early, ends_at_a_limit)
{
    const double loss[] = {3, NAN, 0.5, 0.4};
    cr_assert_eq(end_of("loss < 0.5", loss, 4, "loss 0.4 < 0.5 after round 4"), 4);
    cr_assert_eq(end_of("loss>2", loss, 4, "loss 3 > 2 after round 1"), 1);
    cr_assert_eq(end_of("accuracy > 45 %", loss + 2, 2, "accuracy 0.5 > 0.45 after round 1"), 1);
    cr_assert_eq(end_of("loss<0.1", loss, 4, ""), 0);
    cr_assert_eq(end_of(NULL, loss, 4, ""), 0);
}

Test(early, ends_when_nothing_becomes_better)
{
    const double value[] = {3, 2, 2, NAN, 2.5, 1};
    cr_assert_eq(end_of("loss not better for 2 rounds", value, 6,
                        "loss not better than 2 of round 2 for 3 rounds"),
                 5);
    cr_assert_eq(end_of("loss not better for 4 rounds", value, 6, ""), 0);
    cr_assert_eq(end_of("accuracy not better for 1 round", value, 6,
                        "accuracy not better than 3 of round 1 for 1 rounds"),
                 2);
}

Test(early, refuses_other_rules)
{
    static const char *const bad[] = {"loss",
                                      "perplexity < 3",
                                      "loss <",
                                      "loss = 3",
                                      "loss not better",
                                      "loss < x",
                                      "loss not better for 0 rounds",
                                      "loss not better for 3 rounds!"};
    struct early e;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_assert(err_is(early_parse(&e, bad[i])), "accepted: %s", bad[i]);
}
