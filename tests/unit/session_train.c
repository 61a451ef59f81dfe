#include "client/session/session_train.h"

#include <criterion/criterion.h>
#include <string.h>

#define OK(call)                                                                                   \
    do {                                                                                           \
        err ok_ = (call);                                                                          \
        cr_assert_eq(ok_.kind, ERR_OK, "%s: %s", #call, ok_.text);                                 \
    } while (0)

Test(session_train, reads_which_factors_to_train)
{
    unsigned trains = 0;
    char *words[] = {(char *)(uintptr_t) "A", (char *)(uintptr_t) "B", (char *)(uintptr_t) "Q"};
    OK(session_trains(&trains, words, 2));
    cr_assert_eq(trains, ADAPTER_A | ADAPTER_B);
    cr_assert_eq(session_trains(&trains, words, 3).kind, ERR_INPUT);
    cr_assert_eq(session_trains(&trains, words, 0).kind, ERR_INPUT);
}

Test(session_train, takes_the_runs_options_and_refuses_what_cannot_be)
{
    struct train_options o = {0}, again = {0}, other = {0};
    struct member_round round = {.run = "r", .member = "ann", .round = 2, .seed = 5};
    Fedlora__V1__Training t = FEDLORA__V1__TRAINING__INIT;
    cr_assert_eq(session_train_options(&o, &t, &round).kind, ERR_INPUT, "neither steps nor epochs");
    t.steps = 9;
    t.lr = 0.5;
    t.schedule = (char *)(uintptr_t) "cosine";
    t.no_shuffle = true;
    OK(session_train_options(&o, &t, &round));
    cr_assert_eq(o.steps, 9);
    cr_assert_eq(o.lr, 0.5);
    cr_assert_eq(o.schedule, TRAIN_COSINE);
    cr_assert_not(o.shuffle);
    OK(session_train_options(&again, &t, &round));
    round.member = "bob";
    OK(session_train_options(&other, &t, &round));
    cr_assert_eq(o.seed, again.seed);
    cr_assert_neq(o.seed, other.seed);
    t.schedule = (char *)(uintptr_t) "sometimes";
    cr_assert_eq(session_train_options(&o, &t, &round).kind, ERR_INPUT);
    t.schedule = (char *)(uintptr_t) "";
    t.lr = -1;
    cr_assert_eq(session_train_options(&o, &t, &round).kind, ERR_INPUT);
    t.lr = 1;
    t.beta1 = 1;
    cr_assert_eq(session_train_options(&o, &t, &round).kind, ERR_INPUT);
    t.beta1 = 0;
    round.prox = -1;
    cr_assert_eq(session_train_options(&o, &t, &round).kind, ERR_INPUT);
    round.prox = 0.25;
    round.prune_lambda = 1e-3;
    cr_assert_eq(session_train_options(&o, &t, &round).kind, ERR_INPUT, "no gamma");
    round.prune_gamma = 0.5;
    OK(session_train_options(&o, &t, &round));
    cr_assert(o.prox == 0.25 && o.prune_lambda == 1e-3 && o.prune_gamma == 0.5);
}

Test(session_train, a_gradient_pass_sees_the_same_rows_in_every_round)
{
    struct train_gradient_options first = {0}, second = {0};
    struct member_round round = {.run = "r", .member = "ann", .round = 1, .seed = 5};
    Fedlora__V1__Training t = FEDLORA__V1__TRAINING__INIT;
    t.steps = 3;
    t.batch = 4;
    t.accumulate = 2;
    OK(session_gradient_options(&first, &t, &round));
    cr_assert_eq(first.rows, 24);
    round.round = 2;
    OK(session_gradient_options(&second, &t, &round));
    cr_assert_eq(first.seed, second.seed);
    t.steps = 0;
    t.epochs = 2;
    OK(session_gradient_options(&second, &t, &round));
    cr_assert_eq(second.rows, 0, "all");
}
