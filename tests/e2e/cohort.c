/* A real fedlorad process whose run draws two of three members for each round. */
#include "proto/message.h"
#include "tests/support/fake_federation.h"
#include "tests/support/fake_member.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <signal.h>
#include <unistd.h>

enum { MEMBERS = 3, ROUNDS = 4, COHORT = 2 };

static const struct method_module modules[] = {{"model.layers.0.self_attn.q_proj", 48, 32}};
static struct fake_base base;
static struct fake_federation federation;
static struct fake_member ops;
static char dir[SUPPORT_PATH_BYTES];

static struct fake_options options_of(const char *id)
{
    return (struct fake_options){.server = federation.address,
                                 .certs = federation.certs,
                                 .id = id,
                                 .run = "r",
                                 .base = &base,
                                 .rank = 4,
                                 .examples = 10,
                                 .give_up_ms = 20000};
}

static void open_ops(void)
{
    struct fake_options options = options_of("ops");
    ok(fake_open(&ops, &options));
}

static err create_run(void)
{
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    config.name = "r";
    config.method = "flora";
    config.rounds = ROUNDS;
    config.cohort = COHORT;
    return fake_create_run(&ops, &config, MEMBERS);
}

/* Returns the status of the finished run. The coordinator is killed `kills` times meanwhile. */
static Fedlora__V1__RunStatus *run_all(int kills)
{
    static struct fake_joining joining[MEMBERS];
    Fedlora__V1__RunStatus *status = NULL;
    support_dir_make(dir);
    ok(rpc_init());
    ok(fake_federation_open(&federation, dir, MEMBERS, ""));
    ok(fake_federation_start(&federation));
    open_ops();
    ok(create_run());
    for (int i = 0; i < MEMBERS; i++) {
        struct fake_options options = options_of(NULL);
        fake_join_begin(&joining[i], i, &options);
    }
    ok(fake_federation_kill(&federation, kills));
    for (int i = 0; i < MEMBERS; i++) {
        err e = fake_join_end(&joining[i]);
        cr_assert(!err_is(e), "%s: %s", joining[i].id, e.text);
    }
    fake_close(&ops);
    open_ops();
    ok(fake_status(&status, &ops, "r"));
    fake_close(&ops);
    cr_expect_eq(fake_federation_stop(&federation, SIGTERM), 0, "a clean stop");
    support_dir_remove(dir);
    return status;
}

/* A member that is not drawn waits, and takes part when it is drawn. */
Test(cohort, a_coordinator_that_is_killed_draws_the_same_members_again)
{
    Fedlora__V1__RunStatus *status[2];
    base = (struct fake_base){digest_of("a base", 6), modules, 1};
    for (int i = 0; i < 2; i++) {
        status[i] = run_all(i ? 4 : 0);
        cr_assert_str_eq(status[i]->phase, "finished", "%s", status[i]->waiting_for);
        cr_assert_eq(status[i]->n_history, ROUNDS);
        for (size_t k = 0; k < ROUNDS; k++)
            cr_expect_eq(status[i]->history[k]->updates, COHORT);
    }
    cr_assert_eq(status[0]->state_digest.len, DIGEST_BYTES);
    cr_expect_arr_eq(status[0]->state_digest.data, status[1]->state_digest.data, DIGEST_BYTES);
    for (size_t i = 0; i < MEMBERS; i++)
        cr_expect_eq(status[0]->members[i]->last_round, status[1]->members[i]->last_round);
    message_free(status[0]);
    message_free(status[1]);
}
