/* Archiving, deleting and sweeping on a disk that fails, or whose process dies, at every step. */
#include "base/json.h"
#include "coordinator/store/store_files.h"
#include "coordinator/store/store_retain.h"
#include "coordinator/work/keep_record.h"
#include "tests/support/faulty_disk.h"
#include "tests/support/store_fixture.h"

#include <dirent.h>
#include <stdlib.h>
#include <sys/wait.h>

enum { RUNS = 3, ROUNDS = 3, STEPS_MAX = 400 };
static const char *const names[RUNS] = {"archived", "deleted", "kept"};
static char base[SUPPORT_PATH_BYTES]; /* the store before any fault */
static char records[SUPPORT_PATH_BYTES + 16];

/* A published run with two states and the updates of its last round. */
static void add_published(const char *name)
{
    int64_t run = add_run(name);
    char text[64];
    snprintf(text, sizeof text, "%s: state 0", name);
    ok(store_started(&store, &(struct store_start){.run = run, .state = make_blob(text)}));
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        snprintf(text, sizeof text, "%s: update %u", name, round);
        struct store_update u = {.run = run,
                                 .member = "a",
                                 .trained_round = round,
                                 .counted_in = round,
                                 .blob = make_blob(text),
                                 .examples = 7};
        ok(store_receipts(&store, &u, 1));
        snprintf(text, sizeof text, "%s: state %u", name, round);
        struct store_blob state = make_blob(text);
        struct store_publish p = {.run = run,
                                  .keep = 2,
                                  .updates_keep = 1,
                                  .round = {.round = round, .state = state, .updates = 1},
                                  .last = round == ROUNDS && strcmp(name, "kept") != 0};
        struct release *release = NULL;
        ok(release_plain(&release, &state.digest));
        p.release = release;
        ok(store_publish(&store, &p));
        release_close(release);
    }
    ok(store_trim(&store));
}

static void make_base(void)
{
    begin();
    for (int i = 0; i < RUNS; i++)
        add_published(names[i]);
    store_close(&store);
    snprintf(base, sizeof base, "%s", dir);
}

static err find_run(int64_t *id, const char *name)
{
    struct store_run *row = NULL;
    struct arena arena = {0};
    err e = store_run_named(&row, &store, name, &arena);
    *id = row ? row->id : 0;
    arena_close(&arena);
    return e;
}

/* The order of a service: an operator marks the runs, then the sweep copies and removes. A run that
 * was marked before a crash is not marked again. */
static err do_all(void)
{
    struct store_retain at = {0};
    uint64_t when;
    int64_t archived = 0, deleted = 0;
    bool done = false;
    TRY(store_open(&store, dir));
    err e = find_run(&archived, names[0]);
    if (!err_is(e)) e = find_run(&deleted, names[1]);
    if (!err_is(e)) e = store_archive(&when, &store, archived, "admin/ops");
    if (!err_is(e) && deleted) e = store_delete(&store, deleted, "admin/ops");
    const struct keep_record copy = {.dir = records, .name = names[0], .run = archived};
    if (!err_is(e)) e = keep_record_make(&copy, &store);
    while (!err_is(e) && !done)
        e = store_retain_step(&done, &store, &at);
    if (!err_is(e)) e = store_trim(&store);
    store_close(&store);
    return e;
}

static err expect_there(const struct store_file *file, void *context)
{
    uint64_t size = 0;
    (void)context;
    char text[256];
    store_file_text(text, sizeof text, file);
    cr_expect(!err_is(blob_size(&size, dir, &file->blob.digest)), "%s is not there", text);
    return ERR_NONE;
}

static size_t count_blobs(void)
{
    char path[SUPPORT_PATH_BYTES + 16];
    size_t files = 0;
    snprintf(path, sizeof path, "%s/blobs", dir);
    DIR *list = opendir(path);
    for (struct dirent *entry; (entry = readdir(list));)
        files += entry->d_name[0] != '.';
    closedir(list);
    return files;
}

/* A folder that has its final name is complete. */
static bool record_is_whole(void)
{
    char path[SUPPORT_PATH_BYTES + 64];
    struct digest is, wanted = digest_of("archived: state 3", strlen("archived: state 3"));
    snprintf(path, sizeof path, "%s/archived.1/record.json", records);
    json_t *record = json_load_file(path, 0, NULL);
    size_t rounds = json_array_size(json_object_get(record, "rounds"));
    json_decref(record);
    snprintf(path, sizeof path, "%s/archived.1", records);
    if (!file_exists(path)) return false;
    cr_expect_eq(rounds, ROUNDS);
    snprintf(path, sizeof path, "%s/archived.1/state.safetensors", records);
    ok(digest_of_file(&is, path));
    cr_expect(digest_equal(&is, &wanted));
    return true;
}

static void expect_files_of_rows(void)
{
    ok(store_open(&store, dir));
    ok(store_files(&store.db, expect_there, NULL));
    store_close(&store);
}

/* After the fault the files of all rows are there; then the work is done again, to the same end. */
static void expect_end(long at)
{
    struct store_recovered found = {0};
    expect_files_of_rows();
    (void)record_is_whole();
    ok(store_open(&store, dir));
    ok(store_recover(&found, &store, 1000));
    store_close(&store);
    cr_expect_eq(found.lost, 0, "step %ld", at);
    ok(do_all());
    expect_files_of_rows();
    cr_expect(record_is_whole());
    /* The last state of one run; two states and an update of the other. */
    cr_expect_eq(count_blobs(), 4, "step %ld: %zu files", at, count_blobs());
}

/* False: the work ended before this step. */
static bool with_fault(enum fault kind, long at)
{
    char command[3 * SUPPORT_PATH_BYTES];
    int status = 0;
    support_dir_make(dir);
    snprintf(command, sizeof command, "cp -r %s/. %s", base, dir);
    cr_assert_eq(system(command), 0);
    snprintf(records, sizeof records, "%s/old", dir);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        install_faults(kind, at);
        err e = do_all();
        _exit(err_is(e) ? 3 : atomic_load(&steps) < at ? 0 : 4);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    bool reached = !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    expect_end(at);
    support_dir_remove(dir);
    return reached;
}

static void at_every_step(enum fault kind)
{
    long at = 1;
    make_base();
    while (at < STEPS_MAX && with_fault(kind, at))
        at++;
    cr_expect_gt(at, 30, "%ld steps", at);
    cr_expect_lt(at, STEPS_MAX);
    support_dir_remove(base);
}

Test(retain, a_full_disk_at_any_step_loses_nothing_that_is_kept)
{
    at_every_step(FAULT_FULL);
}

Test(retain, a_death_at_any_step_loses_nothing_that_is_kept)
{
    at_every_step(FAULT_KILL);
}
