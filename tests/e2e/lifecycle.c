/* A real fedlorad process over TLS: runs that continue from states of others, wait for each other,
 * and are archived and deleted. */
#include "agg/adapter/state_whole.h"
#include "client/session/remote.h"
#include "tests/support/three_members.h"

#include <stdlib.h>
#include <unistd.h>

/* Nothing of a carry is dropped, so that a state does not depend on the number of rounds. */
static Fedlora__V1__RunConfig config_of(const char *name, const char *method, uint32_t rounds)
{
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    config.name = (char *)(uintptr_t)name;
    config.method = (char *)(uintptr_t)method;
    config.rounds = rounds;
    config.rank = 8;
    config.carry_error = -1;
    return config;
}

static void create(const char *name, const char *method, uint32_t rounds)
{
    Fedlora__V1__RunConfig config = config_of(name, method, rounds);
    run_name = name;
    ok(fake_create_run(&ops, &config, MEMBERS));
}

static void operator_again(void)
{
    fake_close(&ops);
    open_member(&ops, "ops", 0);
}

static Fedlora__V1__RunStatus *status_of(const char *name)
{
    Fedlora__V1__RunStatus *status = NULL;
    ok(fake_status(&status, &ops, name));
    return status;
}

/* ---- --from ---- */

/* Only its name, and the number of its last round. */
static err create_from(const char *name, const char *from, uint32_t rounds)
{
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    config.name = (char *)(uintptr_t)name;
    config.from_run = (char *)(uintptr_t)from;
    config.rounds = rounds;
    run_name = name;
    return fake_create(&ops, &config);
}

static struct digest uninterrupted(const char *method)
{
    begin("");
    create("r", method, ROUNDS);
    struct digest last = run_everyone(0, 8);
    end();
    return last;
}

static void refuse_from(void)
{
    Fedlora__V1__RunConfig config = config_of("t", "ffa", ROUNDS);
    config.from_run = "r";
    refused(fake_create_run(&ops, &config, MEMBERS), ERR_REFUSED, "but the state is of method");
    refused(create_from("t", "none", 0), ERR_REFUSED, "there is no run \"none\" to continue");
    refused(create_from("t", "r", 1), ERR_REFUSED, "rounds: 1, but the state is that of round 1");
}

static void continue_on_the_same_server(const char *method, const struct digest *wanted)
{
    begin("");
    create("r", method, 1);
    run_everyone(0, 8);
    operator_again();
    refuse_from();
    ok(create_from("r2", "r", 2));
    Fedlora__V1__RunStatus *status = status_of("r2");
    cr_expect_str_eq(status->phase, "waiting", "it waits for its members");
    cr_expect_eq(status->round, 2);
    message_free(status);
    fake_federation_stop(&federation, SIGKILL);
    ok(fake_federation_start(&federation));
    run_everyone(1, 8);
    operator_again();
    ok(create_from("r3", "r2", ROUNDS));
    struct digest last = run_everyone(0, 8);
    cr_expect(digest_equal(&last, wanted), "%s: another state than without the change", method);
    operator_again();
    status = status_of("r3");
    cr_expect_eq(status->n_history, 1);
    cr_expect_eq(status->history[0]->round, ROUNDS);
    message_free(status);
    end();
}

enum { FILE_BYTES = SUPPORT_PATH_BYTES + 16 };

/* A copy of the newest state of run r, as an operator has it from run export --parts. */
static void copy_files(char out[2][FILE_BYTES], struct digest digest[2], const char *folder)
{
    Fedlora__V1__RunStatus *status = status_of("r");
    char from[SUPPORT_PATH_BYTES], name[DIGEST_TEXT_BYTES], command[3 * SUPPORT_PATH_BYTES];
    memcpy(digest[0].byte, status->state_digest.data, DIGEST_BYTES);
    message_free(status);
    for (int i = 0; i < 2; i++) {
        bool needed = false;
        digest_text(name, &digest[i]);
        snprintf(from, sizeof from, "%s/blobs/%s", federation.store, name);
        snprintf(out[i], FILE_BYTES, "%s/file%d", folder, i);
        snprintf(command, sizeof command, "cp %s %s", from, out[i]);
        cr_assert_eq(system(command), 0);
        if (i == 0) ok(state_whole_needs(&needed, &digest[1], out[0]));
        if (!needed) {
            if (i == 0) *out[1] = 0;
            return;
        }
    }
}

static void continue_elsewhere(const char *method, const struct digest *wanted)
{
    char folder[SUPPORT_PATH_BYTES], path[2][FILE_BYTES];
    struct digest digest[2];
    support_dir_make(folder);
    begin("");
    create("r", method, 2);
    run_everyone(0, 8);
    operator_again();
    copy_files(path, digest, folder);
    end();
    begin("");
    Fedlora__V1__RunConfig config = config_of("r", "", ROUNDS);
    config.rank = 0;
    config.from_state = (ProtobufCBinaryData){DIGEST_BYTES, digest[0].byte};
    refused(fake_create_run(&ops, &config, MEMBERS), ERR_REFUSED, "the state ");
    ok(remote_put(ops.client, &digest[0], path[0]));
    if (*path[1]) {
        refused(fake_create_run(&ops, &config, MEMBERS), ERR_REFUSED, "the file of frozen factors");
        ok(remote_put(ops.client, &digest[1], path[1]));
    }
    ok(fake_create_run(&ops, &config, MEMBERS));
    run_name = "r";
    struct digest last = run_everyone(0, 8);
    cr_expect(digest_equal(&last, wanted), "%s: another state on another server", method);
    end();
    support_dir_remove(folder);
}

static void expect_continued(const char *method)
{
    struct digest wanted = uninterrupted(method);
    continue_on_the_same_server(method, &wanted);
    continue_elsewhere(method, &wanted);
}

Test(lifecycle, a_run_that_continues_another_makes_the_states_of_one_that_was_not_ended)
{
    expect_continued("flora");
}

Test(lifecycle, frozen_factors_go_with_the_state)
{
    expect_continued("fed-sb");
}

/* ---- queues ---- */

static void expect_phase(const char *name, const char *phase, const char *waiting)
{
    Fedlora__V1__RunStatus *status = NULL;
    for (int i = 0; i < 200; i++, usleep(50 * 1000)) {
        message_free(status);
        status = status_of(name);
        if (!strcmp(status->phase, phase) && strstr(status->waiting_for, waiting)) break;
    }
    cr_expect(!strcmp(status->phase, phase) && strstr(status->waiting_for, waiting),
              "%s is %s, waiting for \"%s\"; expected %s, \"%s\"", name, status->phase,
              status->waiting_for, phase, waiting);
    message_free(status);
}

static void set_limit(const char *from, const char *to)
{
    char command[SUPPORT_PATH_BYTES + 128];
    snprintf(command, sizeof command, "sed -i 's/^%s$/%s/' %s/fedlorad.ini", from, to,
             federation.dir);
    cr_assert_eq(system(command), 0);
    kill(federation.coordinator, SIGHUP);
}

Test(lifecycle, runs_beyond_the_limit_wait_for_a_place)
{
    static const char *const names[] = {"a", "b", "c"};
    struct digest last[3];
    begin("[limits]\nopen_runs = 1\n");
    for (int i = 0; i < 3; i++)
        create(names[i], "flora", 1);
    expect_phase("a", "waiting", "members to join");
    expect_phase("b", "queued", "queued: 1 run is ahead of it");
    expect_phase("c", "queued", "queued: 2 runs are ahead of it");
    fake_federation_stop(&federation, SIGKILL);
    ok(fake_federation_start(&federation));
    operator_again();
    expect_phase("c", "queued", "queued: 2 runs are ahead of it");
    ok(fake_command(&ops, RPC_PATH_ADMIN(stop_run), "a"));
    expect_phase("b", "waiting", "members to join");
    expect_phase("c", "queued", "queued: 1 run is ahead of it");
    for (int i = 1; i < 3; i++) {
        run_name = names[i];
        last[i] = run_everyone(0, 8);
    }
    operator_again();
    expect_phase("c", "finished", "");
    create("d", "flora", 1);
    create("e", "flora", 1);
    expect_phase("e", "queued", "queued: 1 run is ahead of it");
    set_limit("open_runs = 1", "open_runs = 0");
    expect_phase("e", "waiting", "members to join");
    cr_expect(!digest_equal(&last[1], &last[2]), "their names are in the files");
    end();
}

Test(lifecycle, rounds_at_once_give_each_run_its_turn)
{
    begin("[limits]\nrounds_at_once = 1\n");
    create("a", "flora", 2);
    struct hand first, second;
    take_task(&first);
    create("b", "flora", 2);
    for (int i = 0; i < MEMBERS; i++) {
        struct fake_member member;
        char id[16];
        snprintf(id, sizeof id, "m%d", i);
        open_member(&member, id, 8);
        hello(&member);
        fake_close(&member);
    }
    expect_phase("a", "training", "");
    expect_phase("b", "queued", "queued: 1 run is ahead of it");
    run_name = "a";
    submit_task(&first);
    for (int i = 1; i < MEMBERS; i++) {
        char id[16];
        snprintf(id, sizeof id, "m%d", i);
        open_hand(&second, id, 8);
        submit_task(&second);
        drop_task(&second);
    }
    expect_phase("b", "training", "");
    expect_phase("a", "queued", "queued: 1 run is ahead of it");
    drop_task(&first);
    end();
}
