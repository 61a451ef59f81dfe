/* Upgrades of the tables, the copy that each leaves, and the way back. */
#include "base/version.h"
#include "tests/support/store_fixture.h"

#include <stdlib.h>
#include <unistd.h>

static char copy[SUPPORT_PATH_BYTES + 32];

/* A store of version 7. */
static void make_old(void)
{
    struct db db = {0};
    support_dir_make(dir);
    snprintf(copy, sizeof copy, "%s/fedlora.db", dir);
    ok(db_open(&db, copy, DB_FLUSHED));
    ok(store_schema_make(&db, 0, 7));
    ok(db_script(&db, "INSERT INTO runs(name,config,created_ms) VALUES('r','config',5)"));
    db_close(&db);
    snprintf(copy, sizeof copy, "%s/fedlora.db.v7", dir);
}

static void set_version(int version)
{
    char sql[64];
    snprintf(sql, sizeof sql, "PRAGMA user_version = %d", version);
    ok(support_store_open(&store, dir));
    ok(db_script(&store.db, sql));
    store_close(&store);
}

/* Of the sqlite3 library itself, and not through store.h. */
static int64_t count_of(const char *path, const char *sql)
{
    struct db db = {0};
    int64_t n = -1;
    ok(db_open_still(&db, path));
    ok(db_number(&n, &db, sql, ""));
    db_close(&db);
    return n;
}

Test(store_schema, an_upgrade_keeps_the_database_as_it_was)
{
    make_old();
    ok(support_store_open(&store, dir));
    cr_expect_eq(store.migrated_from, 7);
    cr_expect_eq(count_of(copy, "PRAGMA user_version"), 7);
    cr_expect_eq(count_of(copy, "SELECT count(*) FROM runs WHERE name='r'"), 1);
    cr_expect_eq(count_of(copy, "SELECT count(*) FROM sqlite_master WHERE name='epochs'"), 0);
    store_close(&store);
    cr_assert_eq(unlink(copy), 0);
    ok(support_store_open(&store, dir)); /* nothing to upgrade, so no copy */
    cr_expect_eq(store.migrated_from, 0);
    cr_expect(!file_exists(copy));
    end();
}

Test(store_schema, an_upgrade_replaces_a_copy_that_a_crash_has_interrupted)
{
    char part[sizeof copy + 8];
    make_old();
    snprintf(part, sizeof part, "%s.part", copy);
    ok(file_write(part, "half", 4, true));
    ok(support_store_open(&store, dir));
    cr_expect(!file_exists(part));
    cr_expect_eq(count_of(copy, "PRAGMA user_version"), 7);
    end();
}

Test(store_schema, a_newer_database_is_refused_with_the_way_back)
{
    begin();
    store_close(&store);
    set_version(VERSION_STORE + 1);
    refused(support_store_open(&store, dir), ERR_INPUT, "restore a backup from before the upgrade");
    snprintf(copy, sizeof copy, "%s/fedlora.db.v%d", dir, VERSION_STORE + 1);
    ok(file_write(copy, "newer", 5, true)); /* of no use to this version */
    refused(support_store_open(&store, dir), ERR_INPUT, "restore a backup from before the upgrade");
    snprintf(copy, sizeof copy, "%s/fedlora.db.v%d", dir, VERSION_STORE);
    ok(file_write(copy, "older", 5, true));
    refused(support_store_open(&store, dir), ERR_INPUT, copy);
    support_dir_remove(dir);
}

/* The steps of docs/operating.md. */
Test(store_schema, the_copy_in_its_place_is_the_store_before_the_upgrade)
{
    char command[3 * SUPPORT_PATH_BYTES];
    make_old();
    ok(support_store_open(&store, dir));
    add_run("after the upgrade");
    store_close(&store);
    snprintf(command, sizeof command,
             "cd %s && rm -f fedlora.db-wal fedlora.db-shm && "
             "mv fedlora.db.v7 fedlora.db",
             dir);
    cr_assert_eq(system(command), 0);
    snprintf(copy, sizeof copy, "%s/fedlora.db", dir);
    cr_expect_eq(count_of(copy, "PRAGMA user_version"), 7);
    cr_expect_eq(count_of(copy, "SELECT count(*) FROM runs"), 1);
    ok(support_store_open(&store, dir)); /* and it can be upgraded again */
    cr_expect_eq(store.migrated_from, 7);
    end();
}

Test(store_schema, a_command_beside_a_service_never_upgrades_its_tables)
{
    make_old();
    refused(store_open_beside(&store, &(struct store_place){.dir = dir}), ERR_INPUT,
            "has version 7, this fedlorad uses");
    snprintf(copy, sizeof copy, "%s/fedlora.db", dir);
    cr_expect_eq(count_of(copy, "PRAGMA user_version"), 7);
    refused(store_open_beside(&store, &(struct store_place){.dir = "/nonexistent"}), ERR_INPUT,
            "expected the folder of a store");
    support_dir_remove(dir);
    begin();
    struct store other = {0};
    ok(store_open_beside(&other, &(struct store_place){.dir = dir}));
    store_close(&other);
    end();
}
