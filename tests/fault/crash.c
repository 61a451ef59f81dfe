/* A whole run, repeated for each n: its n-th step that touches the disk kills the process, which
 * is started again, or fails as on a full disk. For every n the last state must have the bytes
 * of the undisturbed run. */
#include "tests/support/crash_fixture.h"

/* The last state's name, and that its file is whole. */
static struct digest last_state(const char *dir)
{
    struct store store = {0};
    struct arena arena = {0};
    struct store_run *row = NULL;
    struct digest digest;
    size_t count = 0;
    ok(support_store_open(&store, dir));
    ok(store_runs(&row, &count, &store, &arena));
    cr_assert_eq(count, 1);
    cr_assert_eq(row->published, ROUNDS);
    struct digest named = row->state.digest;
    struct blob_path path = blob_path(dir, &named);
    ok(digest_of_file(&digest, path.text));
    cr_assert(digest_equal(&digest, &named));
    store_close(&store);
    arena_close(&arena);
    return named;
}

static struct digest undisturbed(long *taken)
{
    char dir[SUPPORT_PATH_BYTES];
    make_dir(dir);
    *taken = spawn(dir, FAULT_NONE, 0);
    cr_assert_gt(*taken, 20);
    struct digest digest = last_state(dir);
    support_dir_remove(dir);
    return digest;
}

static void disturb_every_step(enum fault kind, long some)
{
    long taken;
    struct digest expected = undisturbed(&taken);
    for (long at = 1; at <= taken; at += stride(taken, some)) {
        char dir[SUPPORT_PATH_BYTES];
        make_dir(dir);
        if (spawn(dir, kind, at) < 0) cr_assert_gt(spawn(dir, FAULT_NONE, 0), 0);
        struct digest is = last_state(dir);
        cr_expect(digest_equal(&is, &expected), "other bytes after fault %d at step %ld of %ld",
                  (int)kind, at, taken);
        support_dir_remove(dir);
    }
}

static void disturb_both(enum fault kind)
{
    disturb_every_step(kind, 50);
    with_memory = true;
    disturb_every_step(kind, 30);
}

Test(crash, killed_before_any_step_it_ends_with_the_same_bytes)
{
    disturb_both(FAULT_KILL);
}

Test(crash, killed_after_any_step_it_ends_with_the_same_bytes)
{
    disturb_both(FAULT_KILL_AFTER);
}

Test(crash, a_disk_that_is_full_at_any_step_costs_time_only)
{
    disturb_both(FAULT_FULL);
}

Test(crash, killed_again_and_again_it_ends_with_the_same_bytes)
{
    long taken;
    struct digest expected = undisturbed(&taken);
    char dir[SUPPORT_PATH_BYTES];
    struct rng rng;
    rng_init(&rng, "crash again", 7, "", 0);
    make_dir(dir);
    int killed = 0;
    while (spawn(dir, killed % 2 ? FAULT_KILL : FAULT_KILL_AFTER, 15 + (long)rng_below(&rng, 25)) <
           0)
        cr_assert_lt(++killed, 200, "it never gets anywhere");
    cr_expect_gt(killed, 3, "%d kills of %ld steps", killed, taken);
    struct digest is = last_state(dir);
    cr_expect(digest_equal(&is, &expected), "other bytes after %d kills", killed);
    support_dir_remove(dir);
}

Test(crash, leaves_no_file_that_nothing_names)
{
    long taken;
    char dir[SUPPORT_PATH_BYTES];
    with_memory = true;
    undisturbed(&taken);
    make_dir(dir);
    for (long at = taken / 2; at > 15 && spawn(dir, FAULT_KILL, at) >= 0;)
        at -= 7;
    spawn(dir, FAULT_NONE, 0);
    struct store store = {0};
    struct store_recovered found;
    ok(support_store_open(&store, dir));
    ok(store_recover(&found, &store, 0));
    cr_expect_eq(found.removed + found.lost, 0, "%zu files were left over",
                 found.removed + found.lost);
    store_close(&store);
    support_dir_remove(dir);
}
