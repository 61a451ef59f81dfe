/* A coordinator whose rows are in PostgreSQL: sessions that break off, and a second coordinator.
 * Run by tests/e2e/postgres.sh, which starts the server. */
#include "tests/support/database.h"
#include "base/text.h"
#include "tests/support/three_members.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAUSE_US = 150000, TAKEOVER_MS = 15000 };

static atomic_bool enough;

/* Ends all sessions of coordinators. Returns how many there were. */
static long end_sessions(void)
{
    PGconn *conn = PQconnectdb(getenv("FEDLORA_TEST_DATABASE"));
    PGresult *result = PQexec(conn, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                                    " WHERE application_name='fedlorad'");
    long n = PQntuples(result) == 1 ? strtol(PQgetvalue(result, 0, 0), NULL, 10) : 0;
    PQclear(result);
    PQfinish(conn);
    return n;
}

static void *ender_main(void *ended)
{
    while (!atomic_load(&enough)) {
        *(long *)ended += end_sessions();
        usleep(PAUSE_US);
    }
    return NULL;
}

static struct digest state_with(bool disturbed)
{
    struct digest state;
    pthread_t ender;
    long ended = 0;
    begin("[limits]\nretry_after = 250ms\n");
    ok(create_run("flora", 0));
    atomic_store(&enough, false);
    if (disturbed) cr_assert_eq(pthread_create(&ender, NULL, ender_main, &ended), 0);
    state = run_everyone(0, 0);
    atomic_store(&enough, true);
    if (disturbed) {
        pthread_join(ender, NULL);
        cr_expect_gt(ended, 5, "%ld sessions were ended", ended);
    }
    end();
    return state;
}

Test(database, sessions_that_the_server_ends_cost_time_only)
{
    if (support_is_sqlite()) cr_skip_test("FEDLORA_TEST_DATABASE names no server");
    struct digest quiet = state_with(false), disturbed = state_with(true);
    cr_expect(digest_equal(&quiet, &disturbed));
}

/* The folder as another node sees it on shared storage, where the lock of the first node's process
 * may not reach. */
static void start_other_node(struct fake_federation *other)
{
    struct bytes command = {.max = 1 << 16};
    *other = federation;
    other->coordinator = 0;
    other->port = fake_federation_free_port();
    snprintf(other->dir, sizeof other->dir, "%.400s/node", dir);
    snprintf(other->store, sizeof other->store, "%.500s/store", other->dir);
    snprintf(other->log, sizeof other->log, "%.500s/log", other->dir);
    ok(bytes_printf(&command,
                    "mkdir %s && cp -r %s %s && rm -f %s/lock && sed 's|^path = .*|path = %s|;"
                    "s|^listen = .*|listen = 127.0.0.1:%d|' %s/fedlorad.ini > %s/fedlorad.ini",
                    other->dir, federation.store, other->store, other->store, other->store,
                    other->port, dir, other->dir));
    cr_assert_eq(system((char *)command.data), 0);
    bytes_close(&command);
}

Test(database, one_coordinator_at_a_time_uses_it)
{
    struct fake_federation other;
    if (support_is_sqlite()) cr_skip_test("FEDLORA_TEST_DATABASE names no server");
    begin("");
    ok(create_run("flora", 0));
    start_other_node(&other);
    cr_expect_eq(fake_federation_try(&other, NULL), 1);
    cr_expect(fake_federation_logged(&other, "another coordinator is using this database"));
    end();
}

/* The first node hangs, and is cut off from the server. Another one takes its place. When the first
 * goes on, it must not write, and it ends by itself. */
Test(database, a_coordinator_whose_place_was_taken_ends)
{
    struct fake_federation other;
    if (support_is_sqlite()) cr_skip_test("FEDLORA_TEST_DATABASE names no server");
    begin("");
    start_other_node(&other);
    kill(federation.coordinator, SIGSTOP);
    cr_expect_gt(end_sessions(), 2);
    pid_t hung = federation.coordinator;
    ok(fake_federation_start(&other));
    kill(hung, SIGCONT);
    uint64_t until = text_now_ms() + TAKEOVER_MS;
    int status = 0;
    pid_t ended = 0;
    while (!ended && text_now_ms() < until) {
        /* A call that writes: the node learns of it with its first transaction. */
        fake_close(&ops);
        open_member(&ops, "ops", 0);
        cr_expect(err_is(create_run("flora", 0)), "the node that was cut off has created a run");
        ended = waitpid(hung, &status, WNOHANG);
        usleep(100000);
    }
    cr_assert_eq(ended, hung, "it goes on");
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    cr_expect(fake_federation_logged(&federation, "another coordinator has taken over"));
    federation.coordinator = 0;
    fake_close(&ops);
    fake_federation_close(&other);
    support_dir_remove(dir);
}
