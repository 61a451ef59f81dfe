/* The files about runs that a machine knows, and the time of a day. */
#include "client/session/session_consent.h"

#include "base/file.h"
#include "client/session/session_day.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static char dir[SUPPORT_PATH_BYTES];
static const char base[] = "b";

static struct session_consent_run run_of(const char *name, uint32_t steps, uint32_t rounds)
{
    Fedlora__V1__HelloReply hello = FEDLORA__V1__HELLO_REPLY__INIT;
    Fedlora__V1__Training t = FEDLORA__V1__TRAINING__INIT;
    struct session_consent_run out;
    hello.run = (char *)(uintptr_t)name;
    hello.method = (char *)(uintptr_t) "flora";
    hello.training = &t;
    hello.rounds = rounds;
    t.steps = steps;
    ok(session_consent_of(&out, &hello, base));
    snprintf(out.state, sizeof out.state, "waits");
    return out;
}

Test(session_consent, an_approval_is_for_the_terms_that_were_shown)
{
    support_dir_make(dir);
    struct session_consent_run a = run_of("a", 5, 10), more = run_of("a", 5, 11),
                               less = run_of("a", 5, 9), other = run_of("a", 6, 10);
    err e = session_consent_give(dir, "a", true);
    cr_expect_eq(e.kind, ERR_INPUT, "an unknown run");
    cr_expect_eq(session_consent_give(dir, "../a", true).kind, ERR_INPUT);
    ok(session_consent_note(dir, &a));
    cr_expect_eq(session_consent_answer(dir, &a), CONSENT_NONE);
    ok(session_consent_give(dir, "a", true));
    cr_expect_eq(session_consent_answer(dir, &a), CONSENT_APPROVED);
    cr_expect_eq(session_consent_answer(dir, &less), CONSENT_APPROVED);
    cr_expect_eq(session_consent_answer(dir, &more), CONSENT_NONE);
    cr_expect_eq(session_consent_answer(dir, &other), CONSENT_NONE);
    ok(session_consent_give(dir, "a", false));
    cr_expect_eq(session_consent_answer(dir, &a), CONSENT_DECLINED);
    support_dir_remove(dir);
}

Test(session_consent, lists_what_it_knows_and_leaves_damage_out)
{
    struct arena arena = {0};
    struct session_consent_run *list, z = run_of("z", 1, 1), b = run_of("b", 1, 1);
    size_t count = 99;
    char path[SUPPORT_PATH_BYTES + 32];
    support_dir_make(dir);
    ok(session_consent_list(&list, &count, dir, &arena));
    cr_expect_eq(count, 0);
    ok(session_consent_note(dir, &z));
    snprintf(b.state, sizeof b.state, "joined");
    ok(session_consent_note(dir, &b));
    snprintf(path, sizeof path, "%s/runs/x.json", dir);
    ok(file_write(path, "{\"run\":", 7, false));
    ok(session_consent_give(dir, "z", true));
    ok(session_consent_list(&list, &count, dir, &arena));
    cr_assert_eq(count, 2);
    cr_expect_str_eq(list[0].run, "b");
    cr_expect_str_eq(list[0].state, "joined");
    cr_expect_str_eq(list[1].state, "approved");
    cr_expect_str_eq(list[1].privacy, "none");
    uint64_t since = list[1].since_ms;
    cr_expect_gt(since, 0);
    ok(session_consent_note(dir, &z));
    ok(session_consent_list(&list, &count, dir, &arena));
    cr_expect_eq(list[1].since_ms, since, "the same state has its first time");
    arena_close(&arena);
    support_dir_remove(dir);
}

Test(session_consent, forgets_runs_that_ended_long_ago_and_no_others)
{
    static const char *const states[] = {"finished", "joined", "waits", "outside", "stopped"};
    struct arena arena = {0};
    struct session_consent_run *list;
    size_t count = 0;
    support_dir_make(dir);
    for (size_t i = 0; i < 5; i++) {
        char name[8];
        snprintf(name, sizeof name, "r%zu", i);
        struct session_consent_run run = run_of(name, 1, 1);
        snprintf(run.state, sizeof run.state, "%s", states[i]);
        ok(session_consent_note(dir, &run));
    }
    session_consent_forget(dir, 60 * 60 * 1000);
    ok(session_consent_list(&list, &count, dir, &arena));
    cr_expect_eq(count, 5, "none is an hour old");
    session_consent_forget(dir, 0);
    ok(session_consent_list(&list, &count, dir, &arena));
    cr_assert_eq(count, 2);
    cr_expect(!strcmp(list[0].run, "r1") && !strcmp(list[1].run, "r2"));
    arena_close(&arena);
    support_dir_remove(dir);
}

Test(session_consent, a_damaged_answer_is_none)
{
    struct session_consent_run a = run_of("a", 5, 10);
    char path[SUPPORT_PATH_BYTES + 32];
    support_dir_make(dir);
    ok(session_consent_note(dir, &a));
    ok(session_consent_give(dir, "a", true));
    snprintf(path, sizeof path, "%s/runs/a.answer", dir);
    ok(file_write(path, "{\"answer\":\"approve\"}", 20, true));
    cr_expect_eq(session_consent_answer(dir, &a), CONSENT_NONE);
    support_dir_remove(dir);
}

Test(session_consent, the_time_of_a_day_begins_at_zero)
{
    struct tm today = {.tm_year = 126, .tm_mon = 10, .tm_mday = 30}, tomorrow = today;
    tomorrow.tm_mday = 31;
    support_dir_make(dir);
    cr_expect_eq(session_day_used_ms(dir, &today), 0);
    ok(session_day_add(dir, &today, 1500));
    ok(session_day_add(dir, &today, 500));
    cr_expect_eq(session_day_used_ms(dir, &today), 2000);
    cr_expect_eq(session_day_used_ms(dir, &tomorrow), 0);
    ok(session_day_add(dir, &tomorrow, 7));
    cr_expect_eq(session_day_used_ms(dir, &tomorrow), 7);
    support_dir_remove(dir);
}
