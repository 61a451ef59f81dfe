#include "engine/member/member_options.h"

#include <criterion/criterion.h>
#include <string.h>

#define OK(call)                                                                                   \
    do {                                                                                           \
        err ok_ = (call);                                                                          \
        cr_assert_eq(ok_.kind, ERR_OK, "%s: %s", #call, ok_.text);                                 \
    } while (0)

Test(member_options, reads_which_factors_to_train)
{
    unsigned trains = 0;
    char *words[] = {(char *)(uintptr_t) "A", (char *)(uintptr_t) "B", (char *)(uintptr_t) "Q"};
    OK(member_options_factors(&trains, words, 2));
    cr_assert_eq(trains, ADAPTER_A | ADAPTER_B);
    cr_assert_eq(member_options_factors(&trains, words, 3).kind, ERR_INPUT);
    cr_assert_eq(member_options_factors(&trains, words, 0).kind, ERR_INPUT);
}

Test(member_options, takes_the_runs_options_and_refuses_what_cannot_be)
{
    struct train_options o = {0}, again = {0}, other = {0};
    struct member_round round = {.run = "r", .member = "ann", .round = 2, .seed = 5};
    struct training_options t;
    training_options_defaults(&t);
    t.epochs = 0;
    cr_assert_eq(member_options_train(&o, &t, &round).kind, ERR_INPUT, "neither steps nor epochs");
    t.steps = 9;
    t.lr = 0.5;
    t.schedule = TRAINING_COSINE;
    t.shuffle = false;
    OK(member_options_train(&o, &t, &round));
    cr_assert_eq(o.steps, 9);
    cr_assert_eq(o.lr, 0.5);
    cr_assert_eq(o.schedule, TRAIN_COSINE);
    cr_assert_not(o.shuffle);
    OK(member_options_train(&again, &t, &round));
    round.member = "bob";
    OK(member_options_train(&other, &t, &round));
    cr_assert_eq(o.seed, again.seed);
    cr_assert_neq(o.seed, other.seed);
    round.prox = -1;
    cr_assert_eq(member_options_train(&o, &t, &round).kind, ERR_INPUT);
    round.prox = 0.25;
    round.prune_lambda = 1e-3;
    cr_assert_eq(member_options_train(&o, &t, &round).kind, ERR_INPUT, "no gamma");
    round.prune_gamma = 0.5;
    OK(member_options_train(&o, &t, &round));
    cr_assert(o.prox == 0.25 && o.prune_lambda == 1e-3 && o.prune_gamma == 0.5);
}

Test(member_options, a_gradient_pass_sees_the_same_rows_in_every_round)
{
    struct train_gradient_options first = {0}, second = {0};
    struct member_round round = {.run = "r", .member = "ann", .round = 1, .seed = 5};
    struct training_options t;
    training_options_defaults(&t);
    t.steps = 3;
    t.batch = 4;
    t.accumulate = 2;
    OK(member_options_gradient(&first, &t, &round));
    cr_assert_eq(first.rows, 24);
    round.round = 2;
    OK(member_options_gradient(&second, &t, &round));
    cr_assert_eq(first.seed, second.seed);
    t.steps = 0;
    t.epochs = 2;
    OK(member_options_gradient(&second, &t, &round));
    cr_assert_eq(second.rows, 0, "all");
}

/* seq, eos, bos and boundary belong to the data, precision to the engine, and kept moments to the
 * member's files; the seed is the order's key. */
Test(member_options, every_other_option_of_training_reaches_the_optimizer)
{
    const struct member_round round = {.run = "r", .member = "ann", .round = 1, .seed = 5};
    const struct option_row *row;
    for (size_t i = 0; (row = option_row_at(training_options_set(), i)) != NULL; i++) {
        struct training_options t;
        struct train_options before, after;
        bool elsewhere = strcmp(row->flag, "seq") == 0 || strcmp(row->flag, "eos") == 0 ||
                         strcmp(row->flag, "precision") == 0 || strcmp(row->flag, "seed") == 0 ||
                         strcmp(row->flag, "keep-optimizer") == 0 ||
                         strcmp(row->flag, "bos") == 0 || strcmp(row->flag, "boundary") == 0;
        training_options_defaults(&t);
        OK(member_options_train(&before, &t, &round));
        void *at = (char *)&t + row->at;
        if (row->kind == OPTION_FLAG) *(bool *)at = !*(bool *)at;
        if (row->kind == OPTION_INT) *(int64_t *)at += 1;
        if (row->kind == OPTION_NUM) *(double *)at += 0.0078125;
        if (row->kind == OPTION_CHOICE) *(int *)at += 1;
        OK(member_options_train(&after, &t, &round));
        cr_expect_eq(memcmp(&before, &after, sizeof before) != 0, !elsewhere, "%s", row->flag);
    }
}
