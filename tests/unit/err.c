/* Errors: texts are safe to print, are cut to their size, and state the cause. */
#include "base/err.h"

#include "base/text.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <string.h>

Test(err, control_characters_do_not_reach_a_terminal)
{
    err e = err_make(ERR_INPUT, "name \"%s\"", "a\x1b[31mb\nc\x7f");
    cr_expect_str_eq(e.text, "name \"a?[31mb?c?\"");
    e = err_make(ERR_INPUT, "%s", "\xc3\xa9t\xc3\xa9");
    cr_expect_str_eq(e.text, "\xc3\xa9t\xc3\xa9");
}

Test(err, a_long_text_is_cut_between_characters)
{
    char text[2000];
    for (size_t shift = 0; shift < 4; shift++) {
        memset(text, 'x', sizeof text);
        for (size_t i = shift; i + 3 < sizeof text - 1; i += 3)
            memcpy(text + i, "\xe2\x82\xac", 3);
        text[sizeof text - 1] = 0;
        err e = err_make(ERR_INPUT, "%s", text);
        cr_expect_geq(strlen(e.text), ERR_TEXT_BYTES - 4);
        cr_expect(text_is_utf8(e.text, strlen(e.text)), "shift %zu", shift);
    }
}

Test(err, the_cause_shows_behind_a_long_place)
{
    char place[1000];
    memset(place, 'p', sizeof place);
    place[999] = 0;
    err e = err_in(err_make(ERR_STATE, "wrong round"), "%s", place);
    cr_expect_eq(e.kind, ERR_STATE);
    cr_expect(strstr(e.text, ": wrong round") != NULL, "%s", e.text);
    e = err_sys(ENOSPC, "%s", place);
    cr_expect(strstr(e.text, ": No space left on device") != NULL, "%s", e.text);
    cr_expect(e.kind == ERR_MACHINE && e.sys == ENOSPC);
    e = err_in(err_in(e, "round %d", 7), "run %s", "r1");
    cr_expect(strncmp(e.text, "run r1: round 7: ppp", 20) == 0 && e.sys == ENOSPC);
}

Test(err, kinds_give_the_exit_status)
{
    static const struct {
        enum err_kind kind;
        int status;
    } row[] = {{ERR_OK, 0},      {ERR_INPUT, 2},   {ERR_STATE, 1},    {ERR_LIMIT, 1},
               {ERR_MACHINE, 1}, {ERR_REFUSED, 3}, {ERR_STOPPED, 130}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        cr_expect_eq(err_exit_code((err){.kind = row[i].kind}), row[i].status);
}

Test(err, our_own_mistakes_abort, .signal = SIGABRT)
{
    REQUIRE(1 + 1 == 3);
}
