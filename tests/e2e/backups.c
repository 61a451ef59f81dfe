/* Backups of a real fedlorad process, over TLS, while rounds go by: each is checked and restored,
 * and its run must end with the bytes of the run that was never interrupted. Between them backups
 * and restores are killed at random moments.
 *
 * FEDLORA_BACKUPS=100 FEDLORA_ROUNDS=400 makes the long form (docs/operating.md); without them it
 * is short.
 *
 * Release only: long, and its code is tested under the sanitizers elsewhere. */
#include "base/file.h"
#include "base/rng.h"
#include "base/text.h"
#include "tests/support/three_members.h"

#include <stdarg.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static uint32_t number_from(const char *name, uint32_t fallback)
{
    const char *text = getenv(name);
    return text ? (uint32_t)strtoul(text, NULL, 10) : fallback;
}

static void shell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void shell(const char *format, ...)
{
    char command[4 * SUPPORT_PATH_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    cr_assert_eq(system(command), 0, "%s", command);
}

/* Runs fedlorad with these arguments. With kill_us it is killed after that time, and may end by
 * itself before. Returns the exit status, or -1 when it was killed. */
static int fedlorad(unsigned kill_us, const char *const *argument)
{
    char program[600];
    const char *argv[12] = {"fedlorad"};
    int status = 0;
    for (size_t i = 0; argument[i]; i++)
        argv[i + 1] = argument[i];
    snprintf(program, sizeof program, "%s/fedlorad", FEDLORA_BUILD_DIR);
    fflush(NULL);
    pid_t pid = fork();
    cr_assert(pid >= 0);
    if (pid == 0) {
        if (!freopen("/dev/null", "w", stdout)) _exit(126);
        execv(program, (char **)(uintptr_t)argv);
        _exit(127);
    }
    if (kill_us) {
        usleep(kill_us);
        kill(pid, SIGKILL);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

enum { PATH = SUPPORT_PATH_BYTES + 64 };
static char config[PATH], incremental[PATH];
static struct rng rng;

static int backup_to(const char *to, bool more, unsigned kill_us)
{
    const char *const argument[] = {
        "backup", "--config", config, "--to", to, more ? "--incremental" : "--copy", NULL};
    return fedlorad(kill_us, argument);
}
static int verify(const char *where)
{
    const char *const argument[] = {"verify", where, NULL};
    return fedlorad(0, argument);
}
static int restore(const char *from, const char *to, unsigned kill_us)
{
    const char *const argument[] = {"restore", from, "--to", to, "--accept", NULL};
    return fedlorad(kill_us, argument);
}

static bool is_backup(const char *dir_of)
{
    char path[PATH + 16];
    snprintf(path, sizeof path, "%s/manifest.json", dir_of);
    return file_exists(path);
}

/* A backup killed at any moment leaves the one before, a restore no half store. */
static void interrupt(const char *from)
{
    char to[PATH];
    int status = backup_to(incremental, true, 1 + (unsigned)rng_below(&rng, 60000));
    cr_expect(status <= 0);
    if (is_backup(incremental)) cr_expect_eq(verify(incremental), 0);
    snprintf(to, sizeof to, "%s/killed", dir);
    restore(from, to, 1 + (unsigned)rng_below(&rng, 60000));
    if (file_exists(to)) shell("test -e %s/fedlora.db && rm -r %s", to, to);
}

/* Restored at once, because the next incremental one replaces it. */
static void back_up(int i)
{
    char to[PATH], restored[PATH];
    bool more = i % 2;
    snprintf(to, sizeof to, "%s/backup", dir);
    snprintf(restored, sizeof restored, "%s/restored.%d", dir, i);
    const char *at = more ? incremental : to;
    cr_assert_eq(backup_to(at, more, 0), 0, "backup %d", i);
    cr_assert_eq(verify(at), 0, "backup %d", i);
    cr_assert_eq(restore(at, restored, 0), 0, "backup %d", i);
    interrupt(at);
    if (!more) shell("rm -r %s", to);
}

static uint32_t round_of(void)
{
    Fedlora__V1__RunStatus *s = NULL;
    ok(fake_status(&s, &ops, "r"));
    uint32_t round = s->round;
    message_free(s);
    return round;
}

static void join_begin(struct fake_joining joining[MEMBERS])
{
    for (int i = 0; i < MEMBERS; i++) {
        struct fake_options options = options_of(NULL, 2u << i);
        options.give_up_ms = 60000;
        fake_join_begin(&joining[i], i, &options);
    }
}
static struct digest join_end(struct fake_joining joining[MEMBERS])
{
    for (int i = 0; i < MEMBERS; i++) {
        err e = fake_join_end(&joining[i]);
        cr_assert(!err_is(e), "%s: %s", joining[i].id, e.text);
    }
    return joining[0].last;
}

static err create(uint32_t rounds)
{
    Fedlora__V1__RunConfig c = FEDLORA__V1__RUN_CONFIG__INIT;
    c.name = (char *)(uintptr_t)run_name;
    c.method = (char *)(uintptr_t) "flora";
    c.rounds = rounds;
    c.rank = 8;
    return fake_create_run(&ops, &c, MEMBERS);
}

static void stop(void)
{
    fake_close(&ops);
    cr_assert_eq(fake_federation_stop(&federation, SIGTERM), 0);
}

/* The round that the restored run is in before its members come. */
static uint32_t finish_restored(int i, const struct digest *wanted)
{
    static struct fake_joining joining[MEMBERS];
    const char *const check[] = {"verify", "--store", "--config", config, NULL};
    shell("rm -rf %s && mv %s/restored.%d %s", federation.store, dir, i, federation.store);
    ok(fake_federation_start(&federation));
    open_member(&ops, "ops", 0);
    uint32_t round = round_of();
    join_begin(joining);
    struct digest is = join_end(joining);
    cr_expect(digest_equal(&is, wanted), "backup %d, of round %u: other bytes", i, round);
    cr_expect_eq(fedlorad(0, check), 0, "the store of backup %d", i);
    stop();
    return round;
}

Test(backups, each_one_restores_to_a_run_that_ends_with_the_same_bytes)
{
    static struct fake_joining joining[MEMBERS];
    uint32_t rounds = number_from("FEDLORA_ROUNDS", 24), last = 0;
    int backups = (int)number_from("FEDLORA_BACKUPS", 4);
    rng_init(&rng, "backups", number_from("FEDLORA_SEED", 1), "kills", 0);
    begin("[limits]\ncalls_per_second = 0");
    snprintf(config, sizeof config, "%s/fedlorad.ini", federation.dir);
    snprintf(incremental, sizeof incremental, "%s/incremental", dir);
    ok(create(rounds));
    join_begin(joining);
    for (int i = 0; i < backups; i++) {
        while (round_of() < (uint32_t)i * rounds / (uint32_t)backups)
            usleep(2000);
        back_up(i);
    }
    struct digest wanted = join_end(joining);
    stop();
    for (int i = 0; i < backups; i++) {
        uint32_t round = finish_restored(i, &wanted);
        cr_expect_geq(round, last);
        last = round;
    }
    support_dir_remove(dir);
}
