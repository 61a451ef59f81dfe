/* Backups: what they hold, what a check of them finds, and crashes at every step of making and
 * restoring one. */
#include "coordinator/store/backup.h"

#include "base/version.h"
#include "coordinator/store/backup_manifest.h"
#include "tests/support/faulty_disk.h"
#include "tests/support/store_fixture.h"

#include <dirent.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>

static char to[SUPPORT_PATH_BYTES + 16], restored[SUPPORT_PATH_BYTES + 16];
static char said[4096];

static void note(const char *text, void *context)
{
    size_t used = strlen(said);
    (void)context;
    snprintf(said + used, sizeof said - used, "%s\n", text);
}
static const struct backup_notes notes = {note, NULL};

static struct store_blob newest;
static int64_t run;

/* A store with a run, two published rounds and an update for the third. */
static void begin_run(void)
{
    char audit[SUPPORT_PATH_BYTES + 32];
    struct store_update u;
    begin();
    run = add_run("r");
    ok(store_started(&store, &(struct store_start){.run = run, .state = make_blob("state 0")}));
    for (uint32_t i = 1; i <= 2; i++)
        ok(publish(run, i, &newest));
    u = make_update(run, "a", 3);
    ok(store_receipts(&store, &u, 1));
    snprintf(audit, sizeof audit, "%s/audit", dir);
    ok(file_make_dirs(audit));
    snprintf(audit, sizeof audit, "%s/audit/2026-01.jsonl", dir);
    ok(file_write(audit, "{\"seq\":1}\n", 10, true));
    snprintf(to, sizeof to, "%s.backup", dir);
    snprintf(restored, sizeof restored, "%s.restored", dir);
}

static void end_run(void)
{
    end();
    support_dir_remove(to);
    support_dir_remove(restored);
}

static err backup(bool incremental, bool copy)
{
    const struct backup_options o = {
        .data = dir, .to = to, .federation = "test", .incremental = incremental, .copy = copy};
    struct backup_result r;
    return backup_make(&r, &o, &notes);
}

static struct backup_result verify(const char *where)
{
    struct backup_result r = {0};
    *said = 0;
    ok(backup_verify(&r, where, &notes));
    return r;
}

static err restore(bool accept)
{
    const struct backup_restore o = {.from = to, .to = restored, .accept = accept};
    struct backup_result r;
    return backup_restore(&r, &o, &notes);
}

/* The run of the store at `where` is as begin_run() made it, and so are its files. */
static void expect_run(const char *where)
{
    struct store s = {0};
    struct store_run *row = NULL;
    struct store_update *u = NULL;
    struct arena arena = {0};
    struct backup_result r;
    size_t count = 0;
    char path[sizeof restored + 32];
    ok(store_open(&s, where));
    ok(store_runs(&row, &count, &s, &arena));
    cr_assert(count == 1 && row->published == 2);
    cr_expect(digest_equal(&row->state.digest, &newest.digest));
    ok(store_updates(&u, &count, &s, row->id, 3, &arena));
    cr_assert_eq(count, 1);
    cr_expect_str_eq(u->member, "a");
    store_close(&s);
    arena_close(&arena);
    *said = 0;
    ok(backup_verify_store(&r, &(struct store_place){.dir = where}, &notes));
    cr_expect(r.wrong == 0 && r.files >= 3, "%zu files, %zu wrong: %s", r.files, r.wrong, said);
    snprintf(path, sizeof path, "%s/audit/2026-01.jsonl", where);
    cr_expect(file_exists(path));
}

Test(backup, a_restored_backup_is_the_store_of_that_moment)
{
    for (int copy = 0; copy <= 1; copy++) {
        struct store_blob later;
        begin_run();
        ok(backup(false, copy));
        ok(publish(run, 3, &later)); /* the store goes on and gives up what the backup has */
        ok(publish(run, 4, &later));
        ok(publish(run, 5, &later));
        ok(store_trim(&store));
        cr_expect(!has_blob(&newest));
        cr_expect_eq(verify(to).wrong, 0, "%s", said);
        ok(restore(false));
        expect_run(restored);
        refused(restore(false), ERR_INPUT, "is not empty");
        end_run();
    }
}

Test(backup, the_next_one_copies_what_is_new_and_drops_what_is_old)
{
    struct store_blob later;
    struct backup_result r;
    const struct backup_options o = {
        .data = dir, .to = to, .federation = "test", .incremental = true};
    begin_run();
    ok(backup_make(&r, &o, &notes));
    cr_expect_eq(r.linked, 3);
    ok(backup_make(&r, &o, &notes));
    cr_expect(r.linked == 0 && r.kept == 4, "%zu linked, %zu kept", r.linked, r.kept);
    refused(backup(false, false), ERR_INPUT, "--incremental");
    ok(publish(run, 3, &later));
    ok(backup_make(&r, &o, &notes));
    cr_expect_eq(r.linked, 1);
    size_t files = 0;
    char path[sizeof to + 8];
    snprintf(path, sizeof path, "%s/files", to);
    DIR *list = opendir(path);
    for (struct dirent *entry; (entry = readdir(list));)
        files += entry->d_name[0] != '.';
    closedir(list);
    cr_expect_eq(files, r.files, "%zu files, %zu in the manifest", files, r.files);
    cr_expect_eq(verify(to).wrong, 0, "%s", said);
    end_run();
}

Test(backup, its_time_is_kept_in_the_store)
{
    struct arena arena = {0};
    struct store_backup last = {0};
    bool found = true;
    begin_run();
    ok(store_backup_last(&found, &last, &store, &arena));
    cr_expect(!found);
    ok(backup(false, false));
    ok(store_backup_last(&found, &last, &store, &arena));
    cr_expect(found && last.files == 5 && last.wrong == 0 && last.made_ms > 0);
    cr_expect_str_eq(last.path, to);
    arena_close(&arena);
    end_run();
}

/* One call for each file of the backup, with its path. */
static size_t each_file(void (*act)(const char *path))
{
    size_t files = 0;
    struct backup_manifest m = {0};
    ok(backup_manifest_read(&m, to));
    for (; files < m.files; files++) {
        char path[LIMIT_PATH_BYTES];
        ok(backup_manifest_path(path, to, &m.file[files].blob.digest));
        act(path);
        struct backup_result r = verify(to);
        cr_expect(r.wrong >= 1 && strstr(said, m.file[files].name), "%s: %zu wrong: %s",
                  m.file[files].name, r.wrong, said);
        act(path);
    }
    backup_manifest_close(&m);
    return files;
}

/* A second call takes the first one back. */
static void flip(const char *path)
{
    FILE *file = fopen(path, "r+b");
    cr_assert(file && fseek(file, 3, SEEK_SET) == 0);
    int byte = fgetc(file);
    cr_assert(fseek(file, 3, SEEK_SET) == 0);
    fputc(byte ^ 1, file);
    cr_assert_eq(fclose(file), 0);
}
static void hide(const char *path)
{
    char away[LIMIT_PATH_BYTES + 8];
    snprintf(away, sizeof away, "%s.away", path);
    cr_assert_eq(file_exists(path) ? rename(path, away) : rename(away, path), 0);
}

Test(backup, a_check_names_each_file_that_is_changed_or_missing)
{
    begin_run();
    ok(backup(false, true));
    cr_expect_eq(each_file(flip), 5);
    cr_expect_eq(each_file(hide), 5);
    cr_expect_eq(verify(to).wrong, 0, "%s", said);
    end_run();
}

Test(backup, a_changed_manifest_cannot_name_other_places)
{
    static const char *const bad[][2] = {
        {"audit/2026-01.jsonl", "audit/../../../etc/x"},
        {"\"fedlora.db\"", "\"../fedlora.db\""},
        {"blobs/", "blobs/../"},
        {"fedlora backup", "fedlora other"},
        {"\"size\":", "\"site\":"},
        {"\"digest\":\"", "\"digest\":\"zz"},
    };
    char path[sizeof to + 16], *text = NULL;
    size_t size;
    begin_run();
    ok(backup(false, true));
    snprintf(path, sizeof path, "%s/manifest.json", to);
    ok(file_read_all(&text, &size, path, 1 << 20));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char changed[16384];
        struct backup_manifest m = {0};
        const char *at = strstr(text, bad[i][0]);
        cr_assert(at, "%s", bad[i][0]);
        snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - text), text, bad[i][1],
                 at + strlen(bad[i][0]));
        ok(file_write(path, changed, strlen(changed), true));
        refused(backup_manifest_read(&m, to), ERR_INPUT, "manifest.json");
    }
    ok(file_write(path, text, size, true));
    cr_expect_eq(verify(to).wrong, 0);
    free(text);
    end_run();
}

Test(backup, files_that_the_store_has_lost_are_named_and_do_not_stop_it)
{
    struct backup_result r;
    const struct backup_options o = {.data = dir, .to = to, .federation = "test"};
    begin_run();
    ok(blob_remove(dir, &newest.digest));
    *said = 0;
    ok(backup_verify_store(&r, &(struct store_place){.dir = dir}, &notes));
    cr_expect(r.wrong == 1 && strstr(said, "the state of round 2 of run r: missing"), "%s", said);
    ok(backup_make(&r, &o, &notes));
    cr_expect_eq(r.wrong, 1);
    cr_expect(strstr(said, "the state of round 2 of run r"), "%s", said);
    cr_expect_eq(verify(to).wrong, 1);
    cr_expect(strstr(said, "the store had lost it"), "%s", said);
    ok(restore(false));
    end_run();
}

Test(backup, damage_of_the_store_is_not_copied_as_if_it_were_whole)
{
    for (int copy = 0; copy <= 1; copy++) {
        begin_run();
        flip(blob_path(dir, &newest.digest).text);
        *said = 0;
        ok(backup(false, copy));
        cr_expect(strstr(said, "missing or damaged in the store"), "%s", said);
        cr_expect_eq(verify(to).wrong, 1);
        end_run();
    }
}

Test(backup, refuses_folders_that_are_not_its_own)
{
    struct backup_result r;
    char path[sizeof to + 16];
    begin_run();
    refused(backup_verify(&r, dir, &notes), ERR_INPUT, "is no backup");
    ok(file_make_dirs(to));
    snprintf(path, sizeof path, "%s/thesis.txt", to);
    ok(file_write(path, "mine", 4, true));
    refused(backup(false, false), ERR_INPUT, "has files that are not of a backup");
    refused(backup(true, false), ERR_INPUT, "has files that are not of a backup");
    cr_expect(file_exists(path));
    end_run();
}

Test(backup, refuses_a_folder_within_the_store)
{
    static const char *const places[] = {"spool", "mine"};
    begin_run();
    for (int i = 0; i < 2; i++) {
        struct backup_result r;
        char path[sizeof dir + 16];
        snprintf(path, sizeof path, "%s/%s", dir, places[i]);
        const struct backup_options o = {.data = dir, .to = path, .federation = "test"};
        bool was = file_exists(path);
        refused(backup_make(&r, &o, &notes), ERR_INPUT, "is within the store");
        cr_expect_eq(file_exists(path), was, "%s", path);
    }
    end_run();
}

/* ---- epochs */

static struct store_epoch start(const char *where)
{
    struct store s = {0};
    struct store_epoch epoch = {0};
    ok(store_open(&s, where));
    ok(store_epoch_begin(&epoch, &s));
    store_close(&s);
    return epoch;
}
static err judge(const char *where, const struct store_epoch *epoch)
{
    struct store s = {0};
    ok(store_open(&s, where));
    err e = store_epoch_judge(&s, epoch->byte, sizeof epoch->byte);
    store_close(&s);
    return e;
}

Test(backup, members_never_believe_the_original_and_the_restored_store_both)
{
    begin_run();
    struct store_epoch before = start(dir);
    ok(backup(false, false));
    struct store_epoch after = start(dir);
    ok(restore(false));
    ok(judge(restored, &before));
    refused(judge(restored, &after), ERR_STATE, "an old copy of its store");
    struct store_epoch theirs = start(restored);
    refused(judge(dir, &theirs), ERR_STATE, "an old copy of its store");
    support_dir_remove(restored);
    ok(restore(true));
    theirs = start(restored);
    ok(judge(restored, &after));
    refused(judge(dir, &theirs), ERR_STATE, "an old copy of its store");
    end_run();
}

/* ---- crashes */

/* Runs `act` in a process whose n-th step on the disk is its last one, or fails. */
static int with_fault(enum fault kind, long at, err (*act)(void))
{
    int status = 0;
    fflush(NULL);
    pid_t pid = fork();
    cr_assert(pid >= 0);
    if (pid == 0) {
        install_faults(kind, at);
        _exit(err_is(act()) ? 1 : atomic_load(&steps) >= at ? 0 : 2);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static err act_backup(void)
{
    return backup(true, true);
}
static err act_restore(void)
{
    return restore(false);
}

static void expect_first_or_none(void)
{
    if (backup_manifest_exists(to)) cr_expect_eq(verify(to).wrong, 0, "%s", said);
}

static void fault_everywhere(enum fault kind, err (*act)(void), void (*check)(void))
{
    int tried = 0;
    for (long at = 1; at < 500; at++, tried++) {
        int status = with_fault(kind, at, act);
        cr_assert(status == -1 || status <= 2);
        check();
        if (status == 2) break; /* it has fewer steps */
    }
    cr_expect(tried > 10 && tried < 500, "%d steps", tried);
}

Test(backup, ended_at_any_step_there_is_a_whole_backup_or_none)
{
    static const enum fault kinds[] = {FAULT_KILL, FAULT_KILL_AFTER, FAULT_FULL};
    for (size_t i = 0; i < 3; i++) {
        struct store_blob later;
        begin_run();
        fault_everywhere(kinds[i], act_backup, expect_first_or_none);
        ok(backup(true, true));
        cr_expect_eq(verify(to).wrong, 0, "%s", said);
        ok(publish(run, 3, &later)); /* now one that replaces another */
        fault_everywhere(kinds[i], act_backup, expect_first_or_none);
        cr_expect(backup_manifest_exists(to));
        end_run();
    }
}

static void expect_whole_or_none(void)
{
    if (!file_exists(restored)) return;
    expect_run(restored);
    support_dir_remove(restored);
}

Test(backup, a_restore_ended_at_any_step_leaves_a_whole_store_or_none)
{
    static const enum fault kinds[] = {FAULT_KILL, FAULT_KILL_AFTER, FAULT_FULL};
    char part[sizeof restored + 16];
    begin_run();
    ok(backup(false, true));
    for (size_t i = 0; i < 3; i++)
        fault_everywhere(kinds[i], act_restore, expect_whole_or_none);
    ok(restore(false));
    expect_run(restored);
    snprintf(part, sizeof part, "%s.restoring", restored);
    cr_expect(!file_exists(part));
    end_run();
}
