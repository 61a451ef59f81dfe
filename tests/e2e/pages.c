/* A real fedlorad process over TLS, and its page for browsers in a real browser. */
#include "tests/support/http_port.h"
#include "tests/support/three_members.h"

#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TRIAGE_ROUNDS = 30, TRIAGE_CLOSED = 8, SKIPPED = 77 };

static void close_round(int round)
{
    struct hand h;
    for (int i = 0; i < 2; i++) {
        char id[16];
        snprintf(id, sizeof id, "m%d", i);
        open_hand(&h, id, 4);
        h.header.train_loss = 1 + 1.5 / (round + 1) + 0.1 * i;
        submit_task(&h);
        drop_task(&h);
    }
}

/* One run that has finished, and one in the middle, whose third member is never there. */
static void make_runs(void)
{
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    ok(create_run("flora", 0));
    run_everyone(0, 0);
    config.name = (char *)(uintptr_t)(run_name = "triage");
    config.method = "flora";
    config.rounds = TRIAGE_ROUNDS;
    config.rank = 8;
    config.quorum = 2;
    ok(fake_create_run(&ops, &config, MEMBERS));
    struct fake_member second;
    open_member(&second, "m1", 4);
    hello(&second); /* the first round begins with a quorum */
    fake_close(&second);
    for (int round = 0; round < TRIAGE_CLOSED; round++)
        close_round(round);
}

Test(pages, shows_runs_members_and_events_to_a_browser)
{
    char command[3 * SUPPORT_PATH_BYTES];
    begin("[http]\nlisten = 127.0.0.1:0\n");
    make_runs();
    snprintf(command, sizeof command,
             "python3 %s/tests/support/page_check.py %d %s >%s/page.log 2>&1", FEDLORA_SOURCE_DIR,
             http_port_of(&federation), dir, dir);
    int status = system(command);
    status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    snprintf(command, sizeof command, "cat %s/page.log >&2", dir);
    if (status && status != SKIPPED) cr_expect_eq(system(command), 0);
    end();
    if (status == SKIPPED) cr_skip("chromium is not installed");
    cr_expect_eq(status, 0);
}
