#include "base/file.h"
#include "base/lock.h"
#include "base/text.h"
#include "coordinator/store/backup.h"
#include "coordinator/store/backup_manifest.h"

#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The folder in which the store is put together before it gets its name. */
#define PART ".restoring"

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st;
    (void)type;
    bool kept = at->level == 0 || (at->level == 1 && !strcmp(path + at->base, "lock"));
    return kept ? 0 : remove(path);
}

/* Files of a restore that was interrupted, except the lock. Links are not followed. */
static err empty_part(const char *part)
{
    return nftw(part, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0 ? ERR_NONE
                                                                 : err_sys(errno, "%s", part);
}

/* After an error, which the caller reports. The next restore removes files that stay here. */
static void drop_part(const char *part)
{
    char lock[LIMIT_PATH_BYTES];
    if (err_is(empty_part(part)) || err_is(file_join(lock, sizeof lock, part, "lock"))) return;
    file_disk.unlink(lock);
    rmdir(part);
}

/* A store that is there is never written over, because it may be the better one. Two entries are
 * "." and "..". */
static err check_empty(const char *to)
{
    if (!file_exists(to)) return ERR_NONE;
    DIR *dir = opendir(to);
    if (!dir) return err_sys(errno, "%s", to);
    int entries = 0;
    while (entries < 3 && readdir(dir))
        entries++;
    closedir(dir);
    if (entries < 3) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "%.300s: is not empty: expected a new folder; move the old store away first",
                    to);
}

/* Compared on the way. A file that is damaged in the backup is left out and noted, because the rest
 * may be all that there is; a damaged database is an error. */
static err put_file(struct backup_result *result, const struct backup_file *f, const char *from,
                    const char *part, const struct backup_notes *notes)
{
    char source[LIMIT_PATH_BYTES], to[LIMIT_PATH_BYTES], text[256];
    struct file_map map = {0};
    const char *why = f->missing ? "the backup does not have it" : NULL;
    err e = ERR_NONE;
    TRY(backup_manifest_path(source, from, &f->blob.digest));
    TRY(file_join(to, sizeof to, part, f->name));
    if (!why && !file_exists(source)) why = "it is missing in the backup";
    if (!why) {
        TRY(file_map_open(&map, source));
        struct digest is = digest_of(map.data, map.size);
        if (!digest_equal(&is, &f->blob.digest)) why = "it is damaged in the backup";
        if (!why) e = file_write(to, map.data, map.size, /*replace*/ false);
        file_map_close(&map);
    }
    if (!why) {
        result->files++;
        result->bytes += f->blob.size;
        return e;
    }
    if (!strcmp(f->name, BACKUP_DATABASE))
        return err_make(ERR_INPUT, "%.300s: the database cannot be restored: %s", from, why);
    snprintf(text, sizeof text, "%s: %s", f->name, why);
    notes->say(text, notes->context);
    result->wrong++;
    return ERR_NONE;
}

/* The epoch is counted up in any case, so that members can tell this copy from the original. */
static err begin_epoch(const char *part, bool accept)
{
    struct store store = {0};
    struct store_epoch epoch;
    TRY(store_open(&store, part));
    err e = accept ? store_epoch_accept(&store) : store_epoch_begin(&epoch, &store);
    store_close(&store);
    return e;
}

/* For the audit log, which only the service may write: it reads this at its next start. */
static err leave_note(const struct backup_restore *o, const struct backup_manifest *m,
                      const char *part)
{
    char path[LIMIT_PATH_BYTES], text[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, part, BACKUP_NOTE));
    int n = snprintf(text, sizeof text, "made_ms=%llu %s%.1000s", (unsigned long long)m->made_ms,
                     o->accept ? "accepted " : "", o->from);
    return file_write(path, text, (size_t)n, /*replace*/ true);
}

static err fill(struct backup_result *result, const struct backup_manifest *m,
                const struct backup_restore *o, const char *part, const struct backup_notes *notes)
{
    static const char *const folders[] = {"blobs", "audit"};
    char path[LIMIT_PATH_BYTES];
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        TRY(file_join(path, sizeof path, part, folders[i]));
        TRY(file_make_dirs(path));
    }
    for (size_t i = 0; i < m->files; i++)
        TRY(put_file(result, &m->file[i], o->from, part, notes));
    TRY(leave_note(o, m, part));
    TRY(begin_epoch(part, o->accept));
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        TRY(file_join(path, sizeof path, part, folders[i]));
        TRY(file_sync_dir(path));
    }
    return file_sync_dir(part);
}

/* The folder above holds the new name; without its flush a power cut could take the name back. */
static err sync_parent(const char *path)
{
    char parent[LIMIT_PATH_BYTES];
    snprintf(parent, sizeof parent, "%s", path);
    char *slash = strrchr(parent, '/');
    if (!slash) return file_sync_dir(".");
    slash[slash == parent] = 0;
    return file_sync_dir(parent);
}

err backup_restore(struct backup_result *out, const struct backup_restore *o,
                   const struct backup_notes *notes)
{
    char part[LIMIT_PATH_BYTES], to[LIMIT_PATH_BYTES];
    struct backup_manifest m = {0};
    struct backup_result result = {0};
    struct lock lock = {0};
    uint64_t began = text_now_ms();
    size_t n = strlen(o->to);
    while (n > 1 && o->to[n - 1] == '/')
        n--;
    if (n + sizeof PART >= sizeof part || n == 0)
        return err_make(ERR_INPUT, "%.80s...: the path is empty or too long", o->to);
    snprintf(to, sizeof to, "%.*s", (int)n, o->to);
    snprintf(part, sizeof part, "%.*s%s", (int)n, o->to, PART);
    TRY(check_empty(to));
    TRY(backup_manifest_read(&m, o->from));
    err e = ERR_NONE;
    TRY_OUT(e, file_make_dirs(part));
    TRY_OUT(e, lock_open(&lock, part));
    TRY_OUT(e, empty_part(part));
    TRY_OUT(e, fill(&result, &m, o, part, notes));
    if (rename(part, to) != 0) TRY_OUT(e, err_sys(errno, "%s", to));
    TRY_OUT(e, sync_parent(to));
    result.took_ms = text_now_ms() - began;
    *out = result;
out:
    if (err_is(e) && lock.fd > 0) drop_part(part);
    lock_close(&lock);
    backup_manifest_close(&m);
    return e;
}
