/* The list of a store's files, and the lock that keeps them while a backup copies them. */
#include "coordinator/store/store_files.h"

#include "tests/support/store_fixture.h"

static char said[4096];

static err say(const struct store_file *f, void *context)
{
    char text[256];
    size_t *files = context, used = strlen(said);
    store_file_text(text, sizeof text, f);
    snprintf(said + used, sizeof said - used, "%s\n", text);
    ++*files;
    cr_expect(has_blob(&f->blob), "%s", text);
    return ERR_NONE;
}

static void expect_said(const char *text)
{
    cr_expect(strstr(said, text), "no \"%s\" in:\n%s", text, said);
}

static int64_t start(void)
{
    struct store_blob state = make_blob("state 0"), frozen = make_blob("frozen");
    int64_t run = add_run("r");
    ok(store_started(&store, &(struct store_start){.run = run, .state = state, .frozen = frozen}));
    return run;
}

Test(store_files, names_each_file_and_its_use)
{
    size_t files = 0;
    begin();
    int64_t run = start();
    struct store_blob state, pin = make_blob("pin");
    struct store_update u = make_update(run, "a", 1);
    ok(store_receipts(&store, &u, 1));
    ok(publish(run, 1, &state));
    ok(store_pin(&store, &pin, 1));
    ok(store_files(&store.db, say, &files));
    expect_said("the update of a for round 1 of run r\n");
    expect_said("the state of round 1 of run r\n");
    expect_said("the state of round 0 of run r\n");
    expect_said("a file that an operator has uploaded\n");
    cr_expect_eq(files, 4, "%zu files:\n%s", files, said); /* publish() gave no frozen factors */
    end();
}

static err stop_at_second(const struct store_file *f, void *context)
{
    (void)f;
    return ++*(int *)context == 2 ? err_make(ERR_STATE, "enough") : ERR_NONE;
}

Test(store_files, ends_with_the_first_error)
{
    int calls = 0;
    begin();
    start();
    refused(store_files(&store.db, stop_at_second, &calls), ERR_STATE, "enough");
    cr_expect_eq(calls, 2);
    end();
}

static int64_t doomed(void)
{
    int64_t n = -1;
    ok(db_number(&n, &store.db, "SELECT count(*) FROM doomed", ""));
    return n;
}

Test(store_files, files_given_up_stay_while_a_backup_is_made)
{
    struct store_blob first, state;
    struct store_recovered found;
    struct lock lock = {0}, other = {0};
    bool free = true;
    begin();
    int64_t run = start();
    ok(publish(run, 1, &first));
    ok(store_files_keep(&lock, dir));
    ok(publish(run, 2, &state));
    ok(publish(run, 3, &state));
    ok(store_trim(&store));
    ok(store_recover(&found, &store, 1u << 30)); /* the service may start again meanwhile */
    cr_expect(has_blob(&first) && doomed() > 0);
    ok(store_files_free(&free, &other, dir));
    cr_expect(!free);
    lock_close(&lock);
    ok(store_trim(&store));
    cr_expect(!has_blob(&first) && doomed() == 0);
    cr_expect(has_blob(&state));
    end();
}
