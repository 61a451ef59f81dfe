#include "coordinator/store/blob.h"

#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* By value, because callers need several paths at once and none of them outlives its function. */
struct blob_path blob_path(const char *data_dir, const struct digest *digest)
{
    struct blob_path path;
    char name[DIGEST_TEXT_BYTES];
    digest_text(name, digest);
    int n = snprintf(path.text, sizeof path.text, "%s/blobs/%s", data_dir, name);
    REQUIRE(n > 0 && (size_t)n < sizeof path.text);
    return path;
}

/* A crash between rename and the flush of the folder may lose the name, never the content under it;
 * no receipt was sent yet. A file that has the name already is replaced: its bytes may have been
 * damaged on the disk since, and those of `part` have just been checked. */
err blob_adopt(const char *data_dir, const char *part, const struct digest *digest)
{
    struct blob_path path = blob_path(data_dir, digest);
    char folder[LIMIT_PATH_BYTES];
    TRY(file_join(folder, sizeof folder, data_dir, "blobs"));
    /* rename() alone does not make the file's content durable: after a power cut the name could
     * lead to an empty file. */
    TRY(file_flush(part));
    if (file_disk.rename(part, path.text) != 0) return err_sys(errno, "%s", path.text);
    return file_sync_dir(folder);
}

err blob_size(uint64_t *out, const char *data_dir, const struct digest *digest)
{
    struct blob_path path = blob_path(data_dir, digest);
    struct stat st;
    if (stat(path.text, &st) != 0) {
        char name[DIGEST_TEXT_BYTES];
        digest_text(name, digest);
        if (errno != ENOENT) return err_sys(errno, "%s", path.text);
        return err_make(ERR_STATE, "blob %.16s does not exist (any more); ask for the next task",
                        name);
    }
    *out = (uint64_t)st.st_size;
    return ERR_NONE;
}

/* The folder is not flushed. If a crash brings the file back, no row names it any more, so
 * blob_sweep() takes it away at the next start. */
err blob_remove(const char *data_dir, const struct digest *digest)
{
    struct blob_path path = blob_path(data_dir, digest);
    if (file_disk.unlink(path.text) != 0 && errno != ENOENT) return err_sys(errno, "%s", path.text);
    return ERR_NONE;
}

static bool is_dots(const char *name)
{
    return !strcmp(name, ".") || !strcmp(name, "..");
}

err blob_any(bool *out, const char *data_dir)
{
    char folder[LIMIT_PATH_BYTES];
    TRY(file_join(folder, sizeof folder, data_dir, "blobs"));
    DIR *dir = opendir(folder);
    if (!dir) return err_sys(errno, "%s", folder);
    *out = false;
    for (struct dirent *entry; !*out && (entry = readdir(dir));)
        *out = !is_dots(entry->d_name);
    closedir(dir);
    return ERR_NONE;
}

static err drop(struct blob_sweep *sweep, const char *path)
{
    if (file_disk.unlink(path) != 0) return err_sys(errno, "%s", path);
    sweep->removed++;
    return ERR_NONE;
}

static err move_to_lost(const char *data_dir, const char *path, const char *name)
{
    char folder[LIMIT_PATH_BYTES], to[LIMIT_PATH_BYTES];
    TRY(file_join(folder, sizeof folder, data_dir, "lost"));
    TRY(file_make_dirs(folder));
    TRY(file_join(to, sizeof to, folder, name));
    return file_disk.rename(path, to) == 0 ? ERR_NONE : err_sys(errno, "%s", path);
}

err blob_lose(const char *data_dir, const struct digest *digest)
{
    struct blob_path path = blob_path(data_dir, digest);
    char name[DIGEST_TEXT_BYTES];
    digest_text(name, digest);
    return file_exists(path.text) ? move_to_lost(data_dir, path.text, name) : ERR_NONE;
}

err blob_intact(bool *out, const char *data_dir, const struct digest *digest)
{
    struct blob_path path = blob_path(data_dir, digest);
    struct digest is;
    *out = false;
    if (!file_exists(path.text)) return ERR_NONE;
    TRY(digest_of_file(&is, path.text));
    *out = digest_equal(&is, digest);
    return ERR_NONE;
}

err blob_check(const char *data_dir, const struct digest *digest, const char *what)
{
    bool intact = false;
    TRY(blob_intact(&intact, data_dir, digest));
    if (intact) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "%s is missing or damaged on the disk: restore %s from a backup, then resume "
                    "the run",
                    what, blob_path(data_dir, digest).text);
}

static err lose(struct blob_sweep *sweep, const char *path, const char *name)
{
    TRY(move_to_lost(sweep->data_dir, path, name));
    sweep->lost++;
    return ERR_NONE;
}

/* Files whose name is not a digest are unknown too. An error of fate() ends the sweep, because a
 * file must never be moved while its use is unknown. */
err blob_sweep(struct blob_sweep *sweep)
{
    char folder[LIMIT_PATH_BYTES], path[LIMIT_PATH_BYTES];
    err e = ERR_NONE;
    TRY(file_join(folder, sizeof folder, sweep->data_dir, "blobs"));
    DIR *dir = opendir(folder);
    if (!dir) return err_sys(errno, "%s", folder);
    for (struct dirent *entry; (entry = readdir(dir));) {
        struct digest digest;
        enum blob_fate fate = BLOB_UNKNOWN;
        if (is_dots(entry->d_name)) continue;
        if (!err_is(digest_parse(&digest, entry->d_name)))
            TRY_OUT(e, sweep->fate(&fate, &digest, sweep->context));
        if (fate == BLOB_USED) continue;
        TRY_OUT(e, file_join(path, sizeof path, folder, entry->d_name));
        TRY_OUT(e, fate == BLOB_DOOMED ? drop(sweep, path) : lose(sweep, path, entry->d_name));
    }
out:
    closedir(dir);
    return e;
}
