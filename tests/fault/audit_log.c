/* The audit log, with its n-th step on the disk killing the process (before, after or in the middle
 * of a write) or failing as on a full disk. For every n the chain must be whole after the next
 * start, and every line whose flush had succeeded must be there. */
#include "coordinator/audit/audit.h"
#include "lineage/audit_verify.h"
#include "tests/support/faulty_disk.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

enum { NUMBERS = 12, NOVEMBER_30 = 1796077639 /* 2026-11-30T22:27:19Z */ };

static uint64_t wall = NOVEMBER_30 * 1000ull;
static uint64_t wall_now(void)
{
    return wall;
}

static void add(struct audit *a, int number)
{
    AUDIT(a, NULL, "test.counted", "", "ok", LOG_INT("number", number));
}

/* Three lines a flush, as several actions of one turn. The month ends in the middle. Each number is
 * told to the parent after its flush, as an answer is sent. */
static err work(const char *dir, int answers)
{
    struct audit *a = NULL;
    err e = ERR_NONE;
    TRY(audit_open(&a, dir, NULL));
    for (int i = 1; i <= NUMBERS && !err_is(e); i++) {
        wall += 20 * 60 * 1000;
        add(a, i);
        if (i % 3) continue;
        e = audit_flush(a);
        if (err_is(e)) e = audit_flush(a); /* the next turn tries again */
        if (!err_is(e) && write(answers, &i, sizeof i) != sizeof i) _exit(2);
    }
    audit_close(a);
    return e;
}

/* Returns the last number that was answered. *taken: the steps of a child that was not killed. */
static int spawn(long *taken, const char *dir, enum fault kind, long at)
{
    int answers[2], number = 0, last = 0, status;
    cr_assert_eq(pipe(answers), 0);
    pid_t child = fork();
    cr_assert_geq(child, 0);
    if (child == 0) {
        audit_wall_ms = wall_now;
        close(answers[0]);
        install_faults(kind, at);
        err e = work(dir, answers[1]);
        for (int tries = 0; err_is(e) && kind == FAULT_FULL && tries < 2; tries++)
            e = work(dir, answers[1]); /* the fault was in the opening */
        if (err_is(e)) fprintf(stderr, "step %ld: %s\n", at, e.text);
        int done = -(int)atomic_load(&steps);
        if (write(answers[1], &done, sizeof done) != sizeof done) _exit(2);
        _exit(err_is(e) ? 1 : 0);
    }
    close(answers[1]);
    *taken = 0;
    while (read(answers[0], &number, sizeof number) == sizeof number)
        if (number > 0)
            last = number;
        else
            *taken = -number;
    close(answers[0]);
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) ||
                  (WIFEXITED(status) && WEXITSTATUS(status) == 0),
              "step %ld: status %d", at, status);
    return last;
}

static void found(void *context, uint64_t seq, const char *file, size_t row, const char *text)
{
    long at = *(long *)context;
    cr_expect_fail("step %ld: line %llu (%s:%zu): %s", at, (unsigned long long)seq, file, row,
                   text);
}

/* All files are one chain, signed to its end, and have the numbers 1 to `last`. */
static void check(const char *dir, int last, long at)
{
    struct audit *a = NULL;
    struct bytes all = {.max = 1 << 22};
    struct audit_place place = {0};
    bool there[NUMBERS + 1] = {0};
    ok(audit_open(&a, dir, NULL));
    const struct ledger_key *key = audit_key(a);
    struct audit_verify v = {.key = &key->public, .keys = 1, .found = found, .context = &at};
    add(a, 0);
    ok(audit_flush(a));
    for (size_t before = 1; before != all.size;) {
        before = all.size;
        ok(audit_read(&all, &place, a, 0, 1 << 20));
        if (all.size > before)
            audit_verify_add(&v, place.file, (char *)all.data + before, all.size - before);
    }
    audit_verify_end(&v);
    cr_expect_eq(v.first, 1, "step %ld: the first line is %llu", at, (unsigned long long)v.first);
    for (const char *p = (char *)all.data; (p = strstr(p, "\"number\":")) != NULL; p++) {
        long number = strtol(p + strlen("\"number\":"), NULL, 10);
        if (number <= NUMBERS) there[number] = true;
    }
    for (int i = 1; i <= last; i++)
        cr_expect(there[i], "step %ld: the answered line %d is not there", at, i);
    bytes_close(&all);
    audit_close(a);
}

static void fault_every_step(enum fault kind)
{
    char dir[SUPPORT_PATH_BYTES];
    long taken = 0, unused;
    support_dir_make(dir);
    cr_assert_eq(spawn(&taken, dir, FAULT_NONE, 0), NUMBERS);
    cr_assert_gt(taken, 12);
    support_dir_remove(dir);
    for (long at = 1; at <= taken; at++) {
        support_dir_make(dir);
        int last = spawn(&unused, dir, kind, at);
        check(dir, last, at);
        if (kind == FAULT_FULL) cr_expect_eq(last, NUMBERS, "step %ld: stopped at %d", at, last);
        support_dir_remove(dir);
    }
}

Test(audit_log, killed_before_any_step_its_chain_is_whole)
{
    fault_every_step(FAULT_KILL);
}

Test(audit_log, killed_after_any_step_its_chain_is_whole)
{
    fault_every_step(FAULT_KILL_AFTER);
}

Test(audit_log, a_disk_that_is_full_at_any_step_loses_no_line)
{
    fault_every_step(FAULT_FULL);
}
