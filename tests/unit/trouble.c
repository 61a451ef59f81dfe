#include "coordinator/run/trouble.h"

#include "base/err.h"
#include "tests/support/capture.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { MINUTE = 60 * 1000, HOUR = 60 * MINUTE };

static struct troubles *t;
static char text[65536];
static const char *list[100];

static void happen(enum trouble_kind kind, const char *run, const char *peer, uint64_t now_ms)
{
    const struct trouble_case c = {
        .kind = kind, .run = run, .peer = peer, .address = "10.0.0.7:5", .text = "no \x1b[31mroom"};
    trouble_raise(t, &c, now_ms);
}

static size_t lines_of(const char *event)
{
    size_t n = 0;
    for (const char *at = text; (at = strstr(at, event)); at++)
        n++;
    return n;
}

static void be_refused_a_hundred_times(void)
{
    for (uint64_t i = 0; i < 100; i++)
        happen(TROUBLE_CALL_REFUSED, i % 2 ? "q" : "r", "client/m", 1000 + i);
    happen(TROUBLE_CALL_REFUSED, "r", "client/m", 1000 + 2 * MINUTE);
}

Test(trouble, writes_one_line_a_minute_and_peer_and_counts_the_others)
{
    ok(troubles_open(&t));
    capture(text, sizeof text, 2, be_refused_a_hundred_times);
    cr_expect_eq(lines_of("event=call.refused"), 2, "%s", text);
    cr_expect(strstr(text, "run=r peer=client/m address=10.0.0.7:5 says=\"no ?[31mroom\""), "%s",
              text);
    cr_expect(strstr(text, "left_out=49"), "%s", text);
    cr_assert_eq(trouble_list(list, 100, t, "r"), 1);
    cr_expect(strstr(list[0], "call.refused since 20") &&
                  strstr(list[0], " UTC (51 times): run r: client/m at 10.0.0.7:5: no ?[31mroom"),
              "%s", list[0]);
    cr_expect_eq(trouble_list(list, 100, t, NULL), 2);
    trouble_tick(t, 1000 + HOUR);
    cr_expect_eq(trouble_list(list, 100, t, NULL), 0, "it is over by itself");
    troubles_close(t);
}

static void be_attacked(void)
{
    char peer[32];
    for (uint64_t i = 0; i < 100000; i++) {
        snprintf(peer, sizeof peer, "client/%llu", (unsigned long long)i);
        happen(TROUBLE_CALL_REFUSED, "r", peer, 1000 + i % 100);
    }
    trouble_tick(t, 1000 + 2 * MINUTE);
}

Test(trouble, is_bounded_in_lines_and_rows_whatever_peers_do)
{
    ok(troubles_open(&t));
    capture(text, sizeof text, 2, be_attacked);
    cr_expect_eq(lines_of("event=call.refused"), TROUBLE_LINES + 1, "%zu",
                 lines_of("event=call.refused"));
    cr_expect(strstr(text, "others=99940"), "%s", text + strlen(text) - 200);
    cr_expect_eq(trouble_count(t, TROUBLE_CALL_REFUSED), TROUBLE_ROWS);
    happen(TROUBLE_DISK_FULL, NULL, NULL, 5000);
    cr_expect_eq(trouble_list(list, 100, t, "r"), TROUBLE_SHOWN);
    cr_expect(strstr(list[0], "store.full"), "what matters most is first: %s", list[0]);
    troubles_close(t);
}

static void raise_of_run_and_own(void)
{
    happen(TROUBLE_WORK_WAITS, "r", NULL, 1000);
    happen(TROUBLE_CALL_REFUSED, NULL, "client/north", 1000);
    happen(TROUBLE_CERTIFICATE_ENDS, NULL, "client/north", 1000);
    happen(TROUBLE_CERTIFICATE_ENDS, NULL, NULL, 1000);
}

/* Also one of lesser weight, because everything else may follow from it. */
Test(trouble, names_the_coordinators_own_first)
{
    ok(troubles_open(&t));
    capture(text, sizeof text, 2, raise_of_run_and_own);
    cr_assert_eq(trouble_list(list, 100, t, "r"), 4);
    cr_expect(strstr(list[0], "certificate.ends") && !strstr(list[0], "client/"), "%s", list[0]);
    cr_expect(strstr(list[1], "run.trouble"), "%s", list[1]);
    troubles_close(t);
}

static void fill_and_empty_the_disk(void)
{
    err full = err_in(err_sys(ENOSPC, "blob"), "round 3"), other = err_sys(EIO, "blob");
    trouble_of_disk(t, other, 1000);
    cr_assert_eq(trouble_count(t, TROUBLE_DISK_FULL), 0);
    for (uint64_t i = 0; i < 50; i++)
        trouble_of_disk(t, full, 1000 + i * MINUTE);
    cr_assert_eq(trouble_last_ms(t, TROUBLE_DISK_FULL), 1000 + 49 * MINUTE);
    trouble_tick(t, 1000 + 100 * HOUR);
    cr_assert_eq(trouble_list(list, 100, t, "r"), 1, "only trouble_end() ends it");
    trouble_end(t, TROUBLE_DISK_FULL, NULL, NULL, 2000 + 100 * HOUR);
    trouble_end(t, TROUBLE_DISK_FULL, NULL, NULL, 2000 + 100 * HOUR);
}

Test(trouble, says_once_that_a_lasting_one_began_and_once_that_it_ended)
{
    ok(troubles_open(&t));
    capture(text, sizeof text, 2, fill_and_empty_the_disk);
    cr_expect_eq(lines_of("event=store.full"), 1, "%s", text);
    cr_expect_eq(lines_of("event=store.space_again"), 1, "%s", text);
    cr_expect_eq(trouble_list(list, 100, t, NULL), 0);
    troubles_close(t);
}
