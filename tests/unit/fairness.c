/* How unequal the members' losses are. */
#include "sim/fairness.h"

#include "base/file.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MEMBERS = 20 };

/* Losses 1 to 20: the worst tenth are 20 and 19; the variance of 1..n is n (n + 1) / 12. */
Test(fairness, averages_the_worst_tenth)
{
    struct fairness_member m[MEMBERS];
    struct fairness_spread loss, accuracy;
    for (int i = 0; i < MEMBERS; i++)
        m[i] = (struct fairness_member){
            .id = "m", .rows = 1, .loss = i * 7 % MEMBERS + 1, .accuracy = i < 5 ? i / 10.0 : -1};
    fairness_accuracy(&accuracy, m, MEMBERS);
    fairness_loss(&loss, m, MEMBERS);
    cr_assert_eq(loss.members, MEMBERS);
    cr_assert_float_eq(loss.mean, 10.5, 1e-12);
    cr_assert_float_eq(loss.worst, 19.5, 1e-12);
    cr_assert_float_eq(loss.sd, sqrt(20 * 21 / 12.0), 1e-12);
    cr_assert_float_eq(m[0].loss, 20, 0);
    cr_assert_eq(accuracy.members, 5);
    cr_assert_float_eq(accuracy.mean, 0.2, 1e-12);
    cr_assert_float_eq(accuracy.worst, 0, 1e-12);
}

Test(fairness, has_no_spread_of_one_member)
{
    struct fairness_member one = {.id = "a", .rows = 2, .loss = 3, .accuracy = -1};
    struct fairness_spread loss, accuracy;
    fairness_loss(&loss, &one, 1);
    fairness_accuracy(&accuracy, &one, 1);
    cr_assert_float_eq(loss.worst, 3, 0);
    cr_assert_float_eq(loss.sd, 0, 0);
    cr_assert_eq(accuracy.members, 0);
}

Test(fairness, reads_its_file)
{
    static const char text[] = "member,rows,loss,accuracy\na,3,1.5,0.25\nb,4,2,\n";
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 16];
    struct arena arena = {0};
    struct fairness_member *m = NULL;
    size_t count = 7;
    support_dir_make(dir);
    cr_assert_not(err_is(fairness_read(&m, &count, dir, &arena)));
    cr_assert_eq(count, 0);
    snprintf(path, sizeof path, "%s/members.csv", dir);
    cr_assert_not(err_is(file_write(path, text, strlen(text), true)));
    cr_assert(fairness_measured(dir));
    cr_assert_not(err_is(fairness_read(&m, &count, dir, &arena)));
    cr_assert_eq(count, 2);
    cr_assert_str_eq(m[1].id, "b");
    cr_assert_eq(m[0].rows, 3);
    cr_assert_float_eq(m[0].accuracy, 0.25, 0);
    cr_assert_float_eq(m[1].loss, 2, 0);
    cr_assert_lt(m[1].accuracy, 0);
    fairness_forget(dir);
    cr_assert_not(fairness_measured(dir));
    support_dir_remove(dir);
    arena_close(&arena);
}
