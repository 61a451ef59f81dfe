#include "client/session/retry.h"

#include "base/text.h"
#include "client/command/command.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

/* Standard error goes to a file meanwhile. */
static size_t lines_of(const char *const *cause, size_t count)
{
    struct retry retry = {.give_up_ms = RETRY_FOR_EVER};
    char text[4096] = "", path[] = "/tmp/retry.XXXXXX";
    size_t lines = 0;
    int fd = mkstemp(path), was = dup(STDERR_FILENO);
    cr_assert(fd >= 0 && was >= 0 && dup2(fd, STDERR_FILENO) >= 0);
    for (size_t i = 0; i < count; i++) {
        stop_asked = 1; /* no pause */
        err e = retry_wait(&retry, err_make(ERR_MACHINE, "%s", cause[i]), "the coordinator");
        stop_asked = 0;
        cr_assert_eq(e.kind, ERR_STOPPED);
    }
    retry_ok(&retry);
    fflush(stderr);
    dup2(was, STDERR_FILENO);
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    cr_assert_gt(n, 0);
    unlink(path);
    close(fd);
    close(was);
    cr_expect(strstr(text, "connected again after "), "%s", text);
    for (const char *at = text; (at = strchr(at, '\n')); at++)
        lines++;
    return lines - 1; /* without that one */
}

Test(retry, prints_a_cause_once_and_few_of_many)
{
    static const char *const same[] = {"a", "a", "a", "a"}, *const two[] = {"a", "b", "b"},
                             *const many[] = {"a", "b", "a", "b", "a", "b", "a", "b"};
    cr_expect_eq(lines_of(same, 4), 1);
    cr_expect_eq(lines_of(two, 3), 2);
    cr_expect_eq(lines_of(many, 8), RETRY_SAY_FIRST);
}
