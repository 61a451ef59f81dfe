/* Months of a coordinator in minutes: run after run over TLS, with members that come and go and a
 * SIGHUP in each, and then nothing. Memory, descriptors, the store and the log must stay flat, and
 * an idle coordinator must be idle. Prints what it has measured.
 *
 * FEDLORA_RUNS=100 FEDLORA_ROUNDS=50 FEDLORA_IDLE_S=60 makes the long form; without them it is
 * short.
 *
 * Release only: long, and its code is tested under the sanitizers elsewhere. */
#include "base/file.h"
#include "base/text.h"
#include "tests/support/three_members.h"

#include <dirent.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LOG_BYTES_A_ROUND = 1024, STORE_BYTES_A_ROUND = 16384, DESCRIPTORS_MORE = 8 };
/* The log of committed pages, which is emptied at 4 MB; the run's last states and updates. */
enum { STORE_BYTES_MORE = 6 << 20, STORE_BYTES_A_RUN = 64 << 10 };
/* Of memory, for what an allocator keeps; and for each run that the coordinator has in memory. */
enum { MEMORY_KB_MORE = 24 << 10, MEMORY_KB_A_RUN = 256 };

static uint32_t number_from(const char *name, uint32_t fallback)
{
    const char *text = getenv(name);
    return text ? (uint32_t)strtoul(text, NULL, 10) : fallback;
}

struct figures {
    long memory_kb, descriptors;
    uint64_t store_bytes, log_bytes;
    double cpu_s;
};

static long memory_kb(void)
{
    char path[64], line[256];
    long kb = -1;
    snprintf(path, sizeof path, "/proc/%d/status", (int)federation.coordinator);
    FILE *file = fopen(path, "r");
    cr_assert(file);
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, "VmRSS:", 6)) kb = strtol(line + 6, NULL, 10);
    fclose(file);
    return kb;
}

static void each_entry(const char *path, long *entries, uint64_t *bytes)
{
    DIR *folder = opendir(path);
    cr_assert(folder, "%s", path);
    for (struct dirent *entry; (entry = readdir(folder));) {
        char name[LIMIT_PATH_BYTES];
        struct stat st;
        if (entry->d_name[0] == '.') continue;
        ++*entries;
        snprintf(name, sizeof name, "%.2000s/%s", path, entry->d_name);
        if (!bytes || lstat(name, &st) != 0) continue;
        if (S_ISDIR(st.st_mode)) each_entry(name, entries, bytes);
        if (S_ISREG(st.st_mode)) *bytes += (uint64_t)st.st_size;
    }
    closedir(folder);
}

/* utime and stime follow the name, which may have blanks, and eleven fields. */
static double cpu_s(void)
{
    char path[64], line[1024] = "";
    long user = 0, kernel = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)federation.coordinator);
    FILE *file = fopen(path, "r");
    cr_assert(file && fgets(line, sizeof line, file));
    fclose(file);
    cr_assert_eq(sscanf(strrchr(line, ')'), ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %ld %ld",
                        &user, &kernel),
                 2);
    return (double)(user + kernel) / (double)sysconf(_SC_CLK_TCK);
}

static struct figures measure(void)
{
    struct figures f = {.memory_kb = memory_kb(), .cpu_s = cpu_s()};
    char path[64];
    long files = 0;
    struct stat st;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)federation.coordinator);
    each_entry(path, &f.descriptors, NULL);
    each_entry(federation.store, &files, &f.store_bytes);
    cr_assert_eq(stat(federation.log, &st), 0);
    f.log_bytes = (uint64_t)st.st_size;
    return f;
}

/* Says hello and leaves, as a machine that is switched off does. */
static void come_and_go(void)
{
    struct fake_member m;
    open_member(&m, "m1", 8);
    hello(&m);
    fake_close(&m);
}

static void one_run(uint32_t number, uint32_t rounds)
{
    static char name[32];
    Fedlora__V1__RunConfig c = FEDLORA__V1__RUN_CONFIG__INIT;
    snprintf(name, sizeof name, "run%u", number);
    run_name = c.name = name;
    c.method = (char *)(uintptr_t)(number % 2 ? "fedit" : "flora");
    c.rounds = rounds;
    c.rank = 8;
    ok(fake_create_run(&ops, &c, MEMBERS));
    come_and_go();
    kill(federation.coordinator, SIGHUP);
    run_everyone(0, 8);
}

static double growth(uint64_t from, uint64_t to, uint32_t by)
{
    return ((double)to - (double)from) / by;
}

static void expect_flat(const struct figures *a, const struct figures *b, uint32_t runs,
                        uint32_t rounds)
{
    double log_bytes = growth(a->log_bytes, b->log_bytes, runs * rounds);
    double store_bytes = growth(a->store_bytes, b->store_bytes, runs * rounds);
    printf("soak: %u runs of %u rounds with %d members: memory %ld -> %ld kB, descriptors %ld -> "
           "%ld, log %.0f bytes a round, store %.0f bytes a round\n",
           runs, rounds, MEMBERS, a->memory_kb, b->memory_kb, a->descriptors, b->descriptors,
           log_bytes, store_bytes);
    cr_expect_leq(b->memory_kb, a->memory_kb + MEMORY_KB_MORE + (long)runs * MEMORY_KB_A_RUN);
    cr_expect_leq(b->descriptors, a->descriptors + DESCRIPTORS_MORE);
    cr_expect_leq(log_bytes, LOG_BYTES_A_ROUND);
    cr_expect_leq(b->store_bytes, a->store_bytes + STORE_BYTES_MORE +
                                      (uint64_t)runs * (STORE_BYTES_A_RUN +
                                                        (uint64_t)rounds * STORE_BYTES_A_ROUND));
}

static void expect_idle(uint32_t seconds)
{
    sleep(1); /* what the last run has left to do */
    struct figures a = measure();
    sleep(seconds);
    struct figures b = measure();
    double share = (b.cpu_s - a.cpu_s) / seconds;
    printf("soak: idle for %u s: %.3f %% of one processor, %llu bytes of log\n", seconds,
           100 * share, (unsigned long long)(b.log_bytes - a.log_bytes));
    cr_expect_eq(a.log_bytes, b.log_bytes, "an idle coordinator logs nothing");
    cr_expect_leq(share, 0.05);
}

Test(soak, nothing_grows_and_an_idle_coordinator_is_idle)
{
    uint32_t runs = number_from("FEDLORA_RUNS", 4), rounds = number_from("FEDLORA_ROUNDS", 10);
    begin("[limits]\ncalls_per_second = 0");
    one_run(0, rounds);
    struct figures before = measure();
    for (uint32_t i = 1; i <= runs; i++)
        one_run(i, rounds);
    struct figures after = measure();
    expect_flat(&before, &after, runs, rounds);
    expect_idle(number_from("FEDLORA_IDLE_S", 2));
    end();
}
