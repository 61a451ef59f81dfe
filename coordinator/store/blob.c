#include "coordinator/store/blob.h"

#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
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

/* rename() alone does not make the file's content durable: after a power cut the name could lead
 * to an empty file. */
static err flush_file(const char *path)
{
    int fd = file_disk.open(path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) return err_sys(errno, "%s", path);
    err e = file_disk.fsync(fd) == 0 ? ERR_NONE : err_sys(errno, "%s", path);
    file_disk.close(fd);
    return e;
}

/* A crash between rename and the flush of the folder may lose the name, never the content under it;
 * no receipt was sent yet. A blob that exists already has the same content, because its name is its
 * digest. The folder is flushed then too: an earlier call may have failed before it did so. */
err blob_adopt(const char *data_dir, const char *part, const struct digest *digest)
{
    struct blob_path path = blob_path(data_dir, digest);
    char folder[LIMIT_PATH_BYTES];
    TRY(file_join(folder, sizeof folder, data_dir, "blobs"));
    if (!file_exists(path.text)) {
        TRY(flush_file(part));
        if (file_disk.rename(part, path.text) != 0) return err_sys(errno, "%s", path.text);
    } else if (file_disk.unlink(part) != 0)
        return err_sys(errno, "%s", part);
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
 * blob_sweep() removes it at the next start. */
err blob_remove(const char *data_dir, const struct digest *digest)
{
    struct blob_path path = blob_path(data_dir, digest);
    if (file_disk.unlink(path.text) != 0 && errno != ENOENT) return err_sys(errno, "%s", path.text);
    return ERR_NONE;
}

/* Everything else in the folder is removed, including files whose name is not a digest. An error of
 * is_used() ends the sweep, because a file must never be removed while its use is unknown. */
err blob_sweep(size_t *removed, const struct blob_sweep *sweep)
{
    char folder[LIMIT_PATH_BYTES], path[LIMIT_PATH_BYTES];
    size_t count = 0;
    err e = ERR_NONE;
    TRY(file_join(folder, sizeof folder, sweep->data_dir, "blobs"));
    DIR *dir = opendir(folder);
    if (!dir) return err_sys(errno, "%s", folder);
    for (struct dirent *entry; (entry = readdir(dir));) {
        struct digest digest;
        bool used = false;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (!err_is(digest_parse(&digest, entry->d_name)))
            TRY_OUT(e, sweep->is_used(&used, &digest, sweep->context));
        if (used) continue;
        TRY_OUT(e, file_join(path, sizeof path, folder, entry->d_name));
        if (file_disk.unlink(path) != 0) {
            e = err_sys(errno, "%s", path);
            goto out;
        }
        count++;
    }
    *removed = count;
out:
    closedir(dir);
    return e;
}
