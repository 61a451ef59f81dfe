#include "client/session/retry.h"

#include "base/text.h"
#include "client/command/command.h"

#include <criterion/criterion.h>
#include <string.h>

Test(retry, waits_twice_as_long_each_time_up_to_a_bound)
{
    cr_assert_eq(retry_backoff_ms(1), 500);
    cr_assert_eq(retry_backoff_ms(2), 1000);
    cr_assert_eq(retry_backoff_ms(4), 4000);
    cr_assert_eq(retry_backoff_ms(7), 30000);
    cr_assert_eq(retry_backoff_ms(4000000000u), 30000);
}

Test(retry, gives_back_at_once_what_time_does_not_cure)
{
    struct retry retry = {.give_up_ms = 60000, .quiet = true};
    uint64_t start = text_now_ms();
    const enum err_kind kinds[] = {ERR_INPUT, ERR_REFUSED, ERR_STOPPED};
    for (size_t i = 0; i < 3; i++) {
        err e = retry_wait(&retry, err_make(kinds[i], "no"), "the coordinator");
        cr_assert_eq(e.kind, kinds[i]);
        cr_assert_str_eq(e.text, "no");
    }
    cr_assert_lt(text_now_ms() - start, 200);
}

Test(retry, gives_up_after_the_stated_time_and_says_so)
{
    struct retry retry = {.give_up_ms = 600, .quiet = true};
    err cause = err_make(ERR_MACHINE, "cannot connect"), e = ERR_NONE;
    int waits = 0;
    while (!err_is(e = retry_wait(&retry, cause, "the coordinator")))
        waits++;
    cr_assert_leq(waits, 2);
    cr_assert_eq(e.kind, ERR_MACHINE);
    cr_assert(strstr(e.text, "--retry-for") != NULL && strstr(e.text, "cannot connect") != NULL,
              "%s", e.text);
}

Test(retry, begins_anew_after_a_success)
{
    struct retry retry = {.give_up_ms = 800, .quiet = true};
    for (int i = 0; i < 3; i++) {
        err e = retry_wait(&retry, err_make(ERR_LIMIT, "busy"), "the coordinator");
        cr_assert_eq(e.kind, ERR_OK, "%s", e.text);
        retry_ok(&retry);
    }
}

Test(retry, ends_a_wait_when_the_user_interrupts)
{
    uint64_t start = text_now_ms();
    stop_asked = 1;
    err e = retry_sleep(60000);
    stop_asked = 0;
    cr_assert_eq(e.kind, ERR_STOPPED);
    cr_assert_lt(text_now_ms() - start, 1000);
}
