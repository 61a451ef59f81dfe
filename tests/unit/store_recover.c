/* The start of a coordinator: files that no row names, and rows without their database. */
#include "tests/support/store_fixture.h"

#include <errno.h>
#include <unistd.h>

Test(store_recover, recovers_by_removing_what_no_row_names)
{
    begin();
    int64_t run = add_run("r");
    struct store_blob state = make_blob("state 0"), orphan = make_blob("orphan"), pin;
    char path[SUPPORT_PATH_BYTES + DIGEST_TEXT_BYTES + 8], name[DIGEST_TEXT_BYTES];
    struct store_recovered found;
    bool known;
    ok(store_started(&store, &(struct store_start){.run = run, .state = state}));
    pin = make_blob("pinned");
    ok(store_pin(&store, &pin, 1));
    refused(store_pin(&store, &orphan, 1), ERR_LIMIT, "the most that are kept");
    snprintf(path, sizeof path, "%s/spool/make.1.state", dir);
    ok(file_write(path, "half", 4, true));
    snprintf(path, sizeof path, "%s/blobs/nonsense", dir);
    ok(file_write(path, "half", 4, true));
    ok(store_recover(&found, &store, 1u << 30));
    cr_expect_eq(found.removed, 1);
    cr_expect_eq(found.lost, 2);
    cr_expect(has_blob(&state) && has_blob(&pin) && !has_blob(&orphan));
    digest_text(name, &orphan.digest);
    snprintf(path, sizeof path, "%s/lost/%s", dir, name);
    cr_expect(file_exists(path), "it may belong to another database");
    ok(store_blob_public(&known, &store, 0, &pin.digest));
    cr_expect(known);
    ok(store_blob_public(&known, &store, run, &pin.digest));
    cr_expect(!known, "no member's business");
    end();
}

/* A database that was lost or restored from another place must not cost the states. */
Test(store_recover, refuses_blobs_without_their_database_and_touches_none)
{
    if (!support_is_sqlite()) cr_skip_test("of SQLite files");
    char path[SUPPORT_PATH_BYTES + 32];
    begin();
    add_run("r");
    struct store_blob state = make_blob("state 0");
    store_close(&store);
    static const char *const files[] = {"fedlora.db", "fedlora.db-wal", "fedlora.db-shm"};
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        (void)unlink(path);
    }
    for (int start = 0; start < 2; start++) /* the first one leaves an empty database */
        refused(support_store_open(&store, dir), ERR_INPUT,
                "restore the database that belongs to them");
    cr_expect(has_blob(&state));
    support_dir_remove(dir);
}

static void overwrite(long at, size_t bytes)
{
    char path[SUPPORT_PATH_BYTES + 32];
    snprintf(path, sizeof path, "%s/fedlora.db", dir);
    FILE *file = fopen(path, "r+b");
    cr_assert(file && fseek(file, at, SEEK_SET) == 0);
    for (size_t i = 0; i < bytes; i++)
        fputc(0x5a, file);
    cr_assert_eq(fclose(file), 0);
}

Test(store_recover, finds_a_damaged_database_and_says_what_to_do)
{
    if (!support_is_sqlite()) cr_skip_test("of SQLite files");
    bool whole = false;
    begin();
    for (int i = 0; i < 50; i++) {
        char name[16];
        snprintf(name, sizeof name, "r%d", i);
        add_run(name);
    }
    ok(store_check(&whole, &store));
    cr_expect(whole);
    store_close(&store);
    overwrite(5 * 4096, 3000); /* inside a table; the schema can still be read */
    ok(support_store_open(&store, dir));
    refused(store_check(&whole, &store), ERR_INPUT, "restore it from a backup");
    store_close(&store);
    overwrite(0, 200); /* no database at all */
    err e = support_store_open(&store, dir);
    cr_expect(err_is(e) && e.sys == EUCLEAN, "%s", e.text);
    support_dir_remove(dir);
}
