/* Flipped bits in SQLite's log, and logs that a crash has cut. */
#include "coordinator/store/wal.h"

#include "base/file.h"
#include "tests/support/store_fixture.h"

#include <stdlib.h>
#include <unistd.h>

static char *log_bytes;
static size_t log_size;
static char log_path[SUPPORT_PATH_BYTES + 32];

/* The log of five runs, each a commit, as kill -9 leaves it. */
static void make_log(void)
{
    static const char *const names[] = {"a", "b", "c", "d", "e"};
    begin();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        add_run(names[i]);
    snprintf(log_path, sizeof log_path, "%s/fedlora.db-wal", dir);
    ok(file_read_all(&log_bytes, &log_size, log_path, 64 << 20));
    store_close(&store);
}

static void put_log(size_t size)
{
    ok(file_write(log_path, log_bytes, size, true));
}

Test(wal, accepts_logs_that_end_anywhere)
{
    make_log();
    ok(wal_check(dir));
    for (size_t size = 0; size <= log_size; size += log_size / 50 | 1) {
        put_log(size);
        ok(wal_check(dir));
    }
    put_log(log_size);
    ok(wal_check(dir));
    free(log_bytes);
    support_dir_remove(dir);
}

Test(wal, is_not_given_up_with_a_database_that_was_moved_away)
{
    char database[sizeof log_path], away[sizeof log_path];
    make_log();
    put_log(log_size);
    snprintf(database, sizeof database, "%s/fedlora.db", dir);
    snprintf(away, sizeof away, "%s/away.db", dir);
    cr_assert_eq(rename(database, away), 0);
    refused(wal_check(dir), ERR_INPUT, "is absent or empty");
    ok(file_write(database, "", 0, true));
    refused(wal_check(dir), ERR_INPUT, "is absent or empty");
    put_log(0);
    ok(wal_check(dir)); /* a first start that was interrupted */
    free(log_bytes);
    support_dir_remove(dir);
}

/* The last commit may be cut by a crash as well; SQLite loses that alone. */
Test(wal, refuses_a_flipped_bit_that_would_undo_more_than_the_last_commit)
{
    make_log();
    size_t refused_bits = 0, tried = 0;
    for (size_t at = 0; at < log_size; at += log_size / 100 | 1) {
        log_bytes[at] ^= 16;
        put_log(log_size);
        err e = wal_check(dir);
        log_bytes[at] ^= 16;
        tried++;
        refused_bits += e.kind == ERR_INPUT;
        cr_expect(!err_is(e) || strstr(e.text, "is damaged"));
        if (at < log_size / 2) cr_expect(err_is(e), "byte %zu of %zu", at, log_size);
    }
    cr_expect_gt(refused_bits, tried / 2, "%zu of %zu", refused_bits, tried);
    free(log_bytes);
    support_dir_remove(dir);
}
