/* A real Prometheus with Alertmanager that watches a real fedlorad process: exactly the alerts of
 * what is wrong arrive.
 *
 * Release only: long, and its code is tested under the sanitizers elsewhere. */
#include "base/file.h"
#include "base/text.h"
#include "tests/support/http_port.h"
#include "tests/support/small_disk.h"
#include "tests/support/three_members.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define ENDS "FedloraCertificateEnds coordinator\n"
#define FULL "FedloraDiskFull\nFedloraDiskLow\nFedloraDown\n"
#define AWAY "FedloraMemberAway m2\n"

/* ---- members that call twice a second */

static atomic_bool stopped[MEMBERS];

static void *call_again_and_again(void *number)
{
    int i = (int)(intptr_t)number;
    struct fake_member m;
    char id[16];
    snprintf(id, sizeof id, "m%d", i);
    open_member(&m, id, 2u << i);
    while (!atomic_load(&stopped[i])) {
        Fedlora__V1__HelloReply *reply = NULL;
        err e = fake_hello(&reply, &m);
        if (!err_is(e))
            message_free(reply); /* on a full disk it is refused, but the member called */
        usleep(500 * 1000);
    }
    fake_close(&m);
    return NULL;
}

/* ---- Prometheus */

static pid_t start_watch(void)
{
    char port[16];
    snprintf(port, sizeof port, "%d", http_port_of(&federation));
    pid_t pid = fork();
    if (pid) return pid;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    execlp("python3", "python3", FEDLORA_SOURCE_DIR "/tests/support/prometheus_watch.py", port,
           FEDLORA_SOURCE_DIR "/deploy/prometheus/fedlora.rules.yml", dir, (char *)NULL);
    _exit(127);
}

/* Waits until exactly these alerts fire, and looks again a little later whether it was not only on
 * the way to others. */
static void expect_firing(const char *expected)
{
    char path[SUPPORT_PATH_BYTES + 16], last[1024] = "(nothing was scraped)";
    int equal = 0;
    snprintf(path, sizeof path, "%s/firing", dir);
    for (int i = 0; i < 300 && equal < 5; i++, usleep(200 * 1000)) {
        char *text = NULL;
        size_t size;
        err e = file_read_all(&text, &size, path, sizeof last - 1);
        if (err_is(e)) continue;
        equal = strcmp(text, expected) ? 0 : equal + 1;
        snprintf(last, sizeof last, "%s", text);
        free(text);
    }
    cr_assert_eq(equal, 5, "expected:\n%sfiring:\n%s", expected, last);
}

/* A probe learns of a full disk within five seconds. */
static void expect_not_ready(void)
{
    char command[2 * SUPPORT_PATH_BYTES];
    uint64_t until = text_now_ms() + 5000;
    snprintf(command, sizeof command,
             "python3 %s/tests/support/http_page.py %d /readyz body | grep -q '\"check\":\"disk\"'",
             FEDLORA_SOURCE_DIR, http_port_of(&federation));
    while (system(command) != 0)
        cr_assert_lt(text_now_ms(), until, "/readyz does not say that the disk is full");
}

/* A certificate of two days for the coordinator. The old one stays in use. */
static void make_short_certificate(void)
{
    char command[3 * SUPPORT_PATH_BYTES];
    snprintf(command, sizeof command,
             "cd %s && rm server.* && %s/deploy/make-certs.sh . --days 2 >%s/short.log 2>&1",
             federation.certs, FEDLORA_SOURCE_DIR, dir);
    cr_assert_eq(system(command), 0);
}

/* ---- */

static bool begin_watched(void)
{
    base = (struct fake_base){digest_of("a base", 6), modules, 2};
    support_dir_make(dir);
    ok(rpc_init());
    ok(fake_federation_open(&federation, dir, MEMBERS,
                            "[store]\nreserve = 2MB\n[http]\nlisten = 127.0.0.1:0\n"));
    if (!small_disk_mount(federation.store, "size=16m")) {
        support_dir_remove(dir);
        return false;
    }
    ok(fake_federation_start(&federation));
    open_member(&ops, "ops", 0);
    ok(create_run("flora", 0));
    return true;
}

static void end_watched(pid_t watch, pthread_t thread[MEMBERS])
{
    for (int i = 0; i < MEMBERS; i++) {
        atomic_store(&stopped[i], true);
        pthread_join(thread[i], NULL);
    }
    kill(watch, SIGTERM);
    waitpid(watch, NULL, 0);
    fake_close(&ops);
    cr_expect_eq(fake_federation_stop(&federation, SIGTERM), 0, "a clean stop");
    umount(federation.store);
    support_dir_remove(dir);
}

Test(alerts, arrive_for_exactly_what_is_wrong)
{
    pthread_t thread[MEMBERS];
    if (system("command -v prometheus prometheus-alertmanager >/dev/null"))
        cr_skip("prometheus or prometheus-alertmanager is not installed");
    if (!begin_watched()) cr_skip("this user cannot mount a small disk");
    for (int i = 0; i < MEMBERS; i++)
        cr_assert_eq(pthread_create(&thread[i], NULL, call_again_and_again, (void *)(intptr_t)i),
                     0);
    pid_t watch = start_watch();
    expect_firing("");
    atomic_store(&stopped[2], true);
    make_short_certificate();
    expect_firing(ENDS AWAY);
    small_disk_fill(federation.store);
    expect_not_ready();
    expect_firing(ENDS FULL AWAY);
    end_watched(watch, thread);
}
