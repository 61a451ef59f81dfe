/* Starts of one store, and of copies of it. A copy is made as an operator makes a backup: of the
 * folder, while no coordinator runs. */
#include "tests/support/store_fixture.h"

#include <stdlib.h>
#include <unistd.h>

static char other[SUPPORT_PATH_BYTES + 8];

static struct store_epoch start(const char *where)
{
    struct store_epoch epoch = {0};
    ok(support_store_open(&store, where));
    ok(store_epoch_begin(&epoch, &store));
    store_close(&store);
    return epoch;
}

static err judge(const char *where, const struct store_epoch *epoch)
{
    ok(support_store_open(&store, where));
    err e = store_epoch_judge(&store, epoch->byte, sizeof epoch->byte);
    store_close(&store);
    return e;
}

static void copy_store(void)
{
    char command[2 * SUPPORT_PATH_BYTES + 64];
    snprintf(other, sizeof other, "%s.copy", dir);
    snprintf(command, sizeof command, "cp -r %s %s", dir, other);
    cr_assert_eq(system(command), 0);
}

static void begin_closed(void)
{
    begin();
    store_close(&store);
}

Test(store_epoch, accepts_what_it_has_given_out_itself_after_any_restart)
{
    struct store_epoch epoch[5];
    begin_closed();
    for (int i = 0; i < 5; i++)
        epoch[i] = start(dir);
    for (int i = 0; i < 5; i++)
        ok(judge(dir, &epoch[i]));
    ok(support_store_open(&store, dir));
    ok(store_epoch_judge(&store, NULL, 0));
    refused(store_epoch_judge(&store, epoch, 31), ERR_INPUT, "31 bytes, expected 32");
    end();
}

Test(store_epoch, an_old_copy_finds_out_from_its_members)
{
    if (!support_is_sqlite()) cr_skip_test("of SQLite files");
    begin_closed();
    struct store_epoch common = start(dir);
    copy_store();
    struct store_epoch newer = start(dir);
    refused(judge(other, &newer), ERR_STATE, "an old copy of its store");
    ok(judge(other, &common));
    /* Both have started as often, but not in the same way. */
    struct store_epoch fork = start(other);
    refused(judge(other, &newer), ERR_STATE, "start 2 of another copy, this is start 2");
    refused(judge(dir, &fork), ERR_STATE, "--accept-copy");
    support_dir_remove(other);
    support_dir_remove(dir);
}

Test(store_epoch, the_copy_that_the_operator_accepts_is_the_only_one_in_use)
{
    if (!support_is_sqlite()) cr_skip_test("of SQLite files");
    begin_closed();
    start(dir);
    copy_store();
    struct store_epoch lost = {0}, own = start(other);
    for (int i = 0; i < 20; i++)
        lost = start(dir);
    refused(judge(other, &lost), ERR_STATE, "");
    ok(support_store_open(&store, other));
    ok(store_epoch_accept(&store));
    store_close(&store);
    struct store_epoch after = start(other);
    ok(judge(other, &lost));
    ok(judge(other, &own));
    ok(judge(other, &after));
    refused(judge(dir, &after), ERR_STATE, "an old copy");
    support_dir_remove(other);
    support_dir_remove(dir);
}

Test(store_epoch, another_store_says_nothing_about_this_one)
{
    char name[SUPPORT_PATH_BYTES];
    begin_closed();
    start(dir);
    snprintf(name, sizeof name, "%s", dir);
    begin_closed(); /* a second folder */
    struct store_epoch theirs = start(dir);
    theirs = start(dir);
    ok(judge(name, &theirs));
    support_dir_remove(name);
    support_dir_remove(dir);
}
