#include "coordinator/store/backup.h"

#include "base/file.h"
#include "base/text.h"
#include "base/version.h"
#include "coordinator/store/backup_manifest.h"
#include "coordinator/store/store_files.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct making {
    const struct backup_options *o;
    const struct backup_notes *notes;
    struct backup_manifest manifest;
    struct backup_result *result;
};

static void note(const struct making *b, const char *what, const char *problem)
{
    char text[LIMIT_PATH_BYTES];
    snprintf(text, sizeof text, "%.1000s: %s", what, problem);
    b->notes->say(text, b->notes->context);
}

/* Only regular files: a link or a folder under the name of a blob is as bad as none. */
static bool has_size(const char *path, uint64_t size)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size == size;
}

/* The content of a file under the name of its digest. A file with this name and size is the same
 * content, because only whole files have such a name. */
static err put_content(struct making *b, const struct file_map *map, const struct digest *digest)
{
    char path[LIMIT_PATH_BYTES];
    TRY(backup_manifest_path(path, b->o->to, digest));
    if (has_size(path, map->size)) {
        b->result->kept++;
        return ERR_NONE;
    }
    TRY(file_write(path, map->data, map->size, /*replace*/ true));
    b->result->copied++;
    b->result->copied_bytes += map->size;
    return ERR_NONE;
}

static err list_file(struct making *b, const char *name, const struct store_blob *blob)
{
    struct backup_file file = {.blob = *blob};
    snprintf(file.name, sizeof file.name, "%s", name);
    return backup_manifest_add(&b->manifest, &file);
}

/* ---- database */

/* The snapshot that decides what else is copied. Its name is known once it is complete. */
static err copy_database(struct making *b, struct store *store, char path[LIMIT_PATH_BYTES])
{
    char part[LIMIT_PATH_BYTES], folder[LIMIT_PATH_BYTES];
    struct store_blob blob = {0};
    struct stat st;
    TRY(file_join(folder, sizeof folder, b->o->to, "files"));
    TRY(file_join(part, sizeof part, folder, "database.part"));
    if (file_disk.unlink(part) != 0 && errno != ENOENT) return err_sys(errno, "%s", part);
    TRY(db_copy(&store->db, part));
    TRY(digest_of_file(&blob.digest, part));
    if (stat(part, &st) != 0) return err_sys(errno, "%s", part);
    blob.size = (uint64_t)st.st_size;
    TRY(backup_manifest_path(path, b->o->to, &blob.digest));
    if (file_disk.rename(part, path) != 0) return err_sys(errno, "%s", path);
    TRY(file_sync_dir(folder));
    b->result->copied++;
    b->result->copied_bytes += blob.size;
    return list_file(b, BACKUP_DATABASE, &blob);
}

/* ---- blobs */

/* The file systems that cannot, and a file with too many links. */
static bool cannot_link(int why)
{
    return why == EXDEV || why == EPERM || why == EMLINK || why == EOPNOTSUPP || why == ENOSYS ||
           why == EACCES;
}

/* Linked files are compared with their digests later, when the store needs to keep nothing. */
static err copy_blob(struct making *b, struct backup_file *f)
{
    char to[LIMIT_PATH_BYTES];
    const struct store_blob *blob = &f->blob;
    struct blob_path from = blob_path(b->o->data, &blob->digest);
    struct file_map map = {0};
    TRY(backup_manifest_path(to, b->o->to, &blob->digest));
    if (has_size(to, blob->size)) {
        b->result->kept++;
        return ERR_NONE;
    }
    f->missing = !has_size(from.text, blob->size);
    if (f->missing) return ERR_NONE;
    if (!b->o->copy) {
        (void)file_disk.unlink(to); /* one with another size */
        f->linked = link(from.text, to) == 0;
        b->result->linked += f->linked;
        if (f->linked) return ERR_NONE;
        if (!cannot_link(errno)) return err_sys(errno, "%s", to);
    }
    TRY(file_map_open(&map, from.text));
    struct digest is = digest_of(map.data, map.size);
    f->missing = !digest_equal(&is, &blob->digest);
    err e = f->missing ? ERR_NONE : put_content(b, &map, &blob->digest);
    file_map_close(&map);
    return e;
}

static void note_missing(struct making *b, const char *what)
{
    note(b, what, "missing or damaged in the store, so it is not in the backup");
    b->result->wrong++;
}

static err add_blob(const struct store_file *file, void *context)
{
    struct making *b = context;
    struct backup_file f = {.blob = file->blob};
    char digest[DIGEST_TEXT_BYTES], what[256], named[512];
    TRY(copy_blob(b, &f));
    digest_text(digest, &file->blob.digest);
    snprintf(f.name, sizeof f.name, "blobs/%s", digest);
    if (f.missing) {
        store_file_text(what, sizeof what, file);
        snprintf(named, sizeof named, "%s (%s)", what, f.name);
        note_missing(b, named);
    }
    return backup_manifest_add(&b->manifest, &f);
}

/* ---- audit log */

/* Files that are only appended to. One that grows meanwhile is taken up to here, and a line that is
 * cut by that is removed when the log is opened again. */
static err copy_audit(struct making *b)
{
    char folder[LIMIT_PATH_BYTES], path[LIMIT_PATH_BYTES], name[BACKUP_NAME_BYTES];
    TRY(file_join(folder, sizeof folder, b->o->data, "audit"));
    DIR *dir = opendir(folder);
    if (!dir) return errno == ENOENT ? ERR_NONE : err_sys(errno, "%s", folder);
    err e = ERR_NONE;
    for (struct dirent *entry; !err_is(e) && (entry = readdir(dir));) {
        struct file_map map = {0};
        struct store_blob blob = {0};
        struct stat st;
        size_t n = (size_t)snprintf(name, sizeof name, "audit/%s", entry->d_name);
        if (n >= sizeof name || !text_is_name(entry->d_name, sizeof name)) continue;
        TRY_OUT(e, file_join(path, sizeof path, folder, entry->d_name));
        if (stat(path, &st) != 0 || !S_ISREG(st.st_mode)) continue;
        TRY_OUT(e, file_map_open(&map, path));
        blob.size = map.size;
        blob.digest = digest_of(map.data, map.size);
        e = put_content(b, &map, &blob.digest);
        file_map_close(&map);
        if (!err_is(e)) e = list_file(b, name, &blob);
    }
out:
    closedir(dir);
    return e;
}

/* ---- the whole */

/* The lock is held from the snapshot until the last of its files is linked or copied, and no
 * longer: while it is held, files that the service gives up stay on the disk. */
static err copy_all(struct making *b, struct store *store)
{
    char path[LIMIT_PATH_BYTES];
    struct db snapshot = {0};
    struct lock keep = {0};
    TRY(store_files_keep(&keep, b->o->data));
    err e = copy_database(b, store, path);
    if (!err_is(e)) e = db_open_still(&snapshot, path);
    if (!err_is(e)) e = store_files(&snapshot, add_blob, b);
    if (!err_is(e)) e = copy_audit(b);
    db_close(&snapshot);
    lock_close(&keep);
    return e;
}

/* Files that were copied have been compared on the way. */
static err check_linked(struct making *b)
{
    char path[LIMIT_PATH_BYTES];
    for (size_t i = 0; i < b->manifest.files; i++) {
        struct backup_file *f = &b->manifest.file[i];
        struct digest is;
        if (!f->linked) continue;
        TRY(backup_manifest_path(path, b->o->to, &f->blob.digest));
        TRY(digest_of_file(&is, path));
        if (digest_equal(&is, &f->blob.digest)) continue;
        note_missing(b, f->name);
        f->missing = true;
        if (file_disk.unlink(path) != 0) return err_sys(errno, "%s", path);
    }
    return ERR_NONE;
}

/* Files of an earlier backup that the new manifest does not name. */
static err drop_others(struct making *b)
{
    char folder[LIMIT_PATH_BYTES], path[LIMIT_PATH_BYTES];
    TRY(file_join(folder, sizeof folder, b->o->to, "files"));
    DIR *dir = opendir(folder);
    if (!dir) return err_sys(errno, "%s", folder);
    err e = ERR_NONE;
    for (struct dirent *entry; !err_is(e) && (entry = readdir(dir));) {
        struct digest digest;
        if (entry->d_name[0] == '.') continue;
        if (!err_is(digest_parse(&digest, entry->d_name)) &&
            backup_manifest_find(&b->manifest, &digest))
            continue;
        TRY_OUT(e, file_join(path, sizeof path, folder, entry->d_name));
        if (file_disk.unlink(path) != 0) e = err_sys(errno, "%s", path);
    }
out:
    closedir(dir);
    return e;
}

/* The sweep and the repair at the start own every folder of the store, and a backup within it would
 * be lost together with it. */
static err check_apart(const char *to, const char *data)
{
    char *target = realpath(to, NULL), *store = realpath(data, NULL);
    size_t n = store ? strlen(store) : 0;
    err e = ERR_NONE;
    if (!target || !store)
        e = err_sys(errno, "%s", target ? data : to);
    else if (!strncmp(target, store, n) && (!target[n] || target[n] == '/'))
        e = err_make(ERR_INPUT, "%.300s: is within the store %.300s: expected a folder outside it",
                     to, data);
    free(target);
    free(store);
    return e;
}

/* A folder with other files is refused, because those that a backup does not name are removed. */
static err check_target(const struct backup_options *o)
{
    char path[LIMIT_PATH_BYTES];
    bool has = backup_manifest_exists(o->to);
    if (has && !o->incremental)
        return err_make(ERR_INPUT,
                        "%.300s: has a backup already; --incremental replaces it and "
                        "copies what is new, or give another folder",
                        o->to);
    bool is_new = !file_exists(o->to);
    TRY(file_make_dirs(o->to));
    err apart = check_apart(o->to, o->data);
    if (err_is(apart) && is_new) rmdir(o->to);
    TRY(apart);
    DIR *dir = opendir(o->to);
    if (!dir) return err_sys(errno, "%s", o->to);
    bool strange = false;
    static const char *const known[] = {
        ".", "..", "files", "lock", "manifest.json", "manifest.json.part"};
    for (struct dirent *entry; (entry = readdir(dir));) {
        bool is = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            is |= !strcmp(entry->d_name, known[i]);
        strange |= !is;
    }
    closedir(dir);
    if (strange)
        return err_make(ERR_INPUT,
                        "%.300s: has files that are not of a backup: expected a new or "
                        "empty folder",
                        o->to);
    TRY(file_join(path, sizeof path, o->to, "files"));
    return file_make_dirs(path);
}

/* From the final list, because a file that was linked may have turned out to be damaged. */
static void sum_up(struct making *b, uint64_t began_ms)
{
    struct backup_result *r = b->result;
    for (size_t i = 0; i < b->manifest.files; i++) {
        const struct backup_file *f = &b->manifest.file[i];
        r->files += !f->missing;
        r->bytes += f->missing ? 0 : f->blob.size;
    }
    r->took_ms = text_now_ms() - began_ms;
}

/* The order is what makes it safe: contents, their folder, the manifest, and only then the removal
 * of files that no manifest names any more. */
static err make(struct making *b, struct store *store)
{
    char folder[LIMIT_PATH_BYTES];
    uint64_t began = text_now_ms();
    b->manifest.store_version = VERSION_STORE;
    b->manifest.made_ms = text_wall_ms();
    snprintf(b->manifest.federation, sizeof b->manifest.federation, "%s", b->o->federation);
    TRY(copy_all(b, store));
    backup_manifest_sort(&b->manifest);
    TRY(check_linked(b));
    TRY(file_join(folder, sizeof folder, b->o->to, "files"));
    TRY(file_sync_dir(folder));
    TRY(backup_manifest_write(&b->manifest, b->o->to));
    TRY(drop_others(b));
    sum_up(b, began);
    struct store_backup row = {.made_ms = b->manifest.made_ms,
                               .path = b->o->to,
                               .files = b->result->files,
                               .bytes = b->result->bytes,
                               .wrong = b->result->wrong};
    err e = store_backup_add(store, &row);
    return err_is(e) ? err_in(e, "the backup is complete, but its time could not be kept") : e;
}

err backup_make(struct backup_result *out, const struct backup_options *options,
                const struct backup_notes *notes)
{
    struct backup_result result = {0};
    struct making b = {.o = options, .notes = notes, .result = &result};
    struct store store = {0};
    struct lock target = {0};
    err e = ERR_NONE;
    TRY_OUT(e, store_open_beside(&store, &(struct store_place){.dir = options->data}));
    TRY_OUT(e, check_target(options));
    TRY_OUT(e, lock_open(&target, options->to));
    TRY_OUT(e, make(&b, &store));
    *out = result;
out:
    lock_close(&target);
    store_close(&store);
    backup_manifest_close(&b.manifest);
    return e;
}
