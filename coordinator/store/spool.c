#include "coordinator/store/spool.h"

#include "base/file.h"
#include "base/text.h"
#include "coordinator/store/room.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OWNER_TEXT_BYTES = 33 };

/* Names of a run and its owner may together be too long for a file name, so their digest is used.
 * Each is hashed with its zero byte, so that no two pairs of names give the same text. */
static void owner_text(char out[OWNER_TEXT_BYTES], const struct spool_key *key)
{
    struct digest_stream s;
    char text[DIGEST_TEXT_BYTES];
    digest_begin(&s);
    digest_add(&s, key->run, strlen(key->run) + 1);
    digest_add(&s, key->owner, strlen(key->owner) + 1);
    struct digest digest = digest_end(&s);
    digest_text(text, &digest);
    snprintf(out, OWNER_TEXT_BYTES, "%.32s", text);
}

static void path_of(char out[LIMIT_PATH_BYTES], const char *data_dir, const struct spool_key *key)
{
    char owner[OWNER_TEXT_BYTES], digest[DIGEST_TEXT_BYTES];
    owner_text(owner, key);
    digest_text(digest, &key->digest);
    int n = snprintf(out, LIMIT_PATH_BYTES, "%s/spool/%s.%s", data_dir, owner, digest);
    REQUIRE(n > 0 && n < LIMIT_PATH_BYTES);
}

/* A file larger than the upload cannot be a part of it, so the upload starts again. */
uint64_t spool_received(const char *data_dir, const struct spool_key *key)
{
    char path[LIMIT_PATH_BYTES];
    struct stat st;
    path_of(path, data_dir, key);
    if (stat(path, &st) != 0) return 0;
    return (uint64_t)st.st_size <= key->size ? (uint64_t)st.st_size : 0;
}

/* Removes every file of the spool for which `matches` is true. */
static err spool_remove(size_t *removed, const char *data_dir,
                        bool (*matches)(const char *name, const char *path, const void *context),
                        const void *context)
{
    char folder[LIMIT_PATH_BYTES], path[LIMIT_PATH_BYTES];
    size_t count = 0;
    err e = ERR_NONE;
    TRY(file_join(folder, sizeof folder, data_dir, "spool"));
    DIR *dir = opendir(folder);
    if (!dir) return err_sys(errno, "%s", folder);
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        TRY_OUT(e, file_join(path, sizeof path, folder, entry->d_name));
        if (!matches(entry->d_name, path, context)) continue;
        if (file_disk.unlink(path) != 0 && errno != ENOENT) {
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

struct other_part {
    char owner[OWNER_TEXT_BYTES], name[OWNER_TEXT_BYTES + DIGEST_TEXT_BYTES];
};
static bool is_other_part(const char *name, const char *path, const void *context)
{
    const struct other_part *mine = context;
    (void)path;
    return !strncmp(name, mine->owner, strlen(mine->owner)) && strcmp(name, mine->name) != 0;
}

/* The room is checked before the first byte and at each append, so that uploads do not fill the
 * disk that the database needs for its commits.
 *
 * Older uploads of the same owner are removed first, because they can never be completed once a new
 * one has begun. The offset may be before the end of the file, because a client only counts bytes
 * that were confirmed to it. */
err spool_open(struct spool *out, const char *data_dir, const struct spool_key *key,
               uint64_t offset, uint64_t reserve)
{
    struct spool s = {.fd = -1,
                      .size = key->size,
                      .received = offset,
                      .resumed = offset > 0,
                      .reserve = reserve,
                      .data_dir = data_dir};
    struct other_part mine;
    char digest[DIGEST_TEXT_BYTES];
    size_t removed;
    uint64_t here = spool_received(data_dir, key);
    if (offset > here)
        return err_make(ERR_STATE, "the upload continues at byte %llu, not %llu",
                        (unsigned long long)here, (unsigned long long)offset);
    TRY(room_check(data_dir, key->size - offset, reserve));
    owner_text(mine.owner, key);
    digest_text(digest, &key->digest);
    snprintf(mine.name, sizeof mine.name, "%s.%s", mine.owner, digest);
    TRY(spool_remove(&removed, data_dir, is_other_part, &mine));
    path_of(s.path, data_dir, key);
    /* O_NOFOLLOW, because a symbolic link in the spool must not lead the bytes of a peer to another
     * file. */
    s.fd = file_disk.open(s.path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (s.fd < 0) return err_sys(errno, "%s", s.path);
    if (file_disk.ftruncate(s.fd, (off_t)offset) != 0 || lseek(s.fd, (off_t)offset, SEEK_SET) < 0) {
        err e = err_sys(errno, "%s", s.path);
        spool_close(&s);
        return e;
    }
    *out = s;
    return ERR_NONE;
}

/* Nothing is flushed here: blob_adopt() flushes the whole file once, when the upload has passed its
 * checks. A short write leaves the file as it was before the call, so that the next attempt
 * continues at `received`. */
err spool_append(struct spool *s, const void *data, size_t size)
{
    const uint8_t *p = data;
    if (size > s->size - s->received)
        return err_make(ERR_INPUT, "the upload has more bytes than the %llu announced",
                        (unsigned long long)s->size);
    if (s->reserve) TRY(room_check(s->data_dir, size, s->reserve));
    for (size_t left = size; left > 0;) {
        ssize_t n = file_disk.write(s->fd, p, left);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            err e = err_sys(n < 0 ? errno : EIO, "%s", s->path);
            /* Best effort. If it fails too, the check of the digest refuses the upload. */
            if (file_disk.ftruncate(s->fd, (off_t)s->received) != 0 ||
                lseek(s->fd, (off_t)s->received, SEEK_SET) < 0)
                s->resumed = true;
            return e;
        }
        p += n;
        left -= (size_t)n;
    }
    s->received += size;
    return ERR_NONE;
}

void spool_close(struct spool *s)
{
    if (s->fd > 0) file_disk.close(s->fd);
    s->fd = -1;
}

/* Files named make.* belong to a worker. */
static bool is_makers(const char *name)
{
    return !strncmp(name, "make.", 5);
}

static bool is_old_part(const char *name, const char *path, const void *context)
{
    const uint64_t *age_ms = context;
    struct stat st;
    if (is_makers(name)) return false;
    if (stat(path, &st) != 0) return true;
    uint64_t now = text_wall_ms(), then = (uint64_t)st.st_mtime * 1000;
    return now > then && now - then > *age_ms;
}

static bool is_stale(const char *name, const char *path, const void *context)
{
    return is_makers(name) || is_old_part(name, path, context);
}

err spool_expire(size_t *removed, const char *data_dir, uint64_t age_ms)
{
    return spool_remove(removed, data_dir, is_old_part, &age_ms);
}

err spool_sweep(size_t *removed, const char *data_dir, uint64_t age_ms)
{
    return spool_remove(removed, data_dir, is_stale, &age_ms);
}
