#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int disk_open(const char *path, int flags, mode_t mode)
{
    return open(path, flags, mode);
}

struct file_disk file_disk = {
    .open = disk_open,
    .write = write,
    .fsync = fsync,
    .rename = rename,
    .unlink = unlink,
    .close = close,
    .ftruncate = ftruncate,
};

/* A missing file is ERR_INPUT, because a wrong path is corrected by the user; other failures are
 * ERR_MACHINE. */
static err file_open_read(int *out, size_t *size, const char *path)
{
    int fd = file_disk.open(path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) {
        if (errno == ENOENT || errno == ENOTDIR)
            return err_make(ERR_INPUT, "%s: no such file", path);
        return err_sys(errno, "%s", path);
    }
    struct stat st;
    if (fstat(fd, &st) != 0) {
        err e = err_sys(errno, "%s", path);
        file_disk.close(fd);
        return e;
    }
    if (S_ISDIR(st.st_mode)) {
        file_disk.close(fd);
        return err_make(ERR_INPUT, "%s: is a directory, expected a file", path);
    }
    *out = fd;
    *size = (size_t)st.st_size;
    return ERR_NONE;
}

/* The map stays valid after the descriptor is closed. mmap() refuses a size of 0, so an empty file
 * has no map. */
err file_map_open(struct file_map *out, const char *path)
{
    int fd = -1;
    struct file_map map = {0};
    TRY(file_open_read(&fd, &map.size, path));
    err e = ERR_NONE;
    if (map.size > 0) {
        void *data = mmap(NULL, map.size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED)
            e = err_sys(errno, "%s: mapping %zu bytes", path, map.size);
        else
            map.data = data;
    }
    file_disk.close(fd);
    if (err_is(e)) return e;
    *out = map;
    return ERR_NONE;
}

void file_map_close(struct file_map *map)
{
    if (map->data) munmap((void *)(uintptr_t)map->data, map->size);
    *map = (struct file_map){0};
}

/* Drops only pages that are wholly inside the range, because a page at its border also has
 * neighbouring data. */
void file_map_drop(const struct file_map *map, size_t offset, size_t size)
{
    REQUIRE(offset <= map->size && size <= map->size - offset);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)map->data + offset + page - 1) / page * page;
    uintptr_t to = ((uintptr_t)map->data + offset + size) / page * page;
    if (map->data && from < to) madvise((void *)from, to - from, MADV_DONTNEED);
}

/* ---- writing ---- */

/* Opens and locks the part file. Its name is fixed, so that a crash leaves at most one and the next
 * writer reuses it. The lock keeps two writers apart; the comparison of inodes detects a part that
 * its writer renamed between our open() and our lock. The mode is left to the umask, because an
 * export is made to be passed on, and private files are in directories of mode 0700. */
static err part_open(int *out, const char *part)
{
    for (int attempt = 0; attempt < 16; attempt++) {
        int fd = file_disk.open(part, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (fd < 0) return err_sys(errno, "%s", part);
        struct stat ours, named;
        if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
            file_disk.close(fd);
            return err_make(ERR_STATE, "%s: in use by another process that is writing it", part);
        }
        if (fstat(fd, &ours) == 0 && stat(part, &named) == 0 && ours.st_ino == named.st_ino &&
            ours.st_dev == named.st_dev) {
            if (file_disk.ftruncate(fd, 0) == 0) {
                *out = fd;
                return ERR_NONE;
            }
            err e = err_sys(errno, "%s", part);
            file_disk.unlink(part); /* allowed, because the lock is held */
            file_disk.close(fd);
            return e;
        }
        file_disk.close(fd);
    }
    return err_make(ERR_STATE, "%s: replaced by other processes repeatedly", part);
}

/* A dangling symbolic link counts as existing, because rename() would replace it. */
static err path_free(const char *path)
{
    if (!file_exists(path)) return ERR_NONE;
    return err_make(ERR_INPUT, "%s: exists already", path);
}

err file_out_open(struct file_out *out, const char *path, bool replace)
{
    if (strlen(path) + sizeof ".part" > sizeof out->part)
        return err_make(ERR_INPUT, "%.80s...: the path is too long", path);
    if (file_is_dir(path)) return err_make(ERR_INPUT, "%s: is a directory, expected a file", path);
    if (!replace) TRY(path_free(path));
    char part[sizeof out->part];
    snprintf(part, sizeof part, "%.*s.part", (int)sizeof part - 6, path);
    int fd = -1;
    TRY(part_open(&fd, part));
    *out = (struct file_out){.fd = fd, .replace = replace};
    memcpy(out->path, path, strlen(path) + 1);
    memcpy(out->part, part, sizeof part);
    return ERR_NONE;
}

/* Linux writes at most 2 GiB in one call, and less when a signal arrives. */
err file_out_append(struct file_out *out, const void *data, size_t size)
{
    REQUIRE(out->part[0] && out->fd >= 0);
    const uint8_t *p = data;
    for (size_t left = size; left > 0;) {
        size_t step = left < (1u << 30) ? left : 1u << 30;
        ssize_t n = file_disk.write(out->fd, p, step);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return err_sys(n < 0 ? errno : EIO, "%s", out->part);
        p += n;
        left -= (size_t)n;
    }
    out->size += size;
    return ERR_NONE;
}

/* The directory whose entry a rename changes. */
static void parent_of(char out[4096], const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        snprintf(out, 4096, ".");
    else if (slash == path)
        snprintf(out, 4096, "/");
    else
        snprintf(out, 4096, "%.*s", (int)(slash - path), path);
}

/* The order matters. The data is flushed before the rename, because a power loss could otherwise
 * leave the final name with missing contents. The directory is flushed after it, because the name
 * itself could otherwise be lost. */
err file_out_commit(struct file_out *out)
{
    REQUIRE(out->part[0] && out->fd >= 0);
    if (file_disk.fsync(out->fd) != 0) return err_sys(errno, "%s", out->part);
    if (!out->replace) TRY(path_free(out->path));
    /* The lock is still held, so no other writer can take the part file in between. */
    if (file_disk.rename(out->part, out->path) != 0) return err_sys(errno, "%s", out->path);
    out->part[0] = 0;
    char parent[4096];
    parent_of(parent, out->path);
    err e = file_sync_dir(parent);
    if (file_disk.close(out->fd) != 0 && !err_is(e)) e = err_sys(errno, "%s", out->path);
    out->fd = -1;
    return e;
}

void file_out_close(struct file_out *out)
{
    if (out->part[0]) file_disk.unlink(out->part);
    if (out->fd > 0) file_disk.close(out->fd);
    *out = (struct file_out){.fd = -1};
}

static err write_whole(const char *path, const struct file_map *data, bool replace, bool secret)
{
    struct file_out out = {0};
    err e = ERR_NONE;
    TRY_OUT(e, file_out_open(&out, path, replace));
    if (secret && fchmod(out.fd, S_IRUSR | S_IWUSR) != 0) {
        e = err_sys(errno, "%s: changing its mode", out.part);
        goto out;
    }
    TRY_OUT(e, file_out_append(&out, data->data, data->size));
    TRY_OUT(e, file_out_commit(&out));
out:
    file_out_close(&out);
    return e;
}

err file_write(const char *path, const void *data, size_t size, bool replace)
{
    return write_whole(path, &(struct file_map){data, size}, replace, /*secret*/ false);
}

err file_write_secret(const char *path, const void *data, size_t size, bool replace)
{
    return write_whole(path, &(struct file_map){data, size}, replace, /*secret*/ true);
}

/* ---- reading, paths ---- */

/* Reads to the end and ignores the reported size, because pipes and /dev/stdin report none and a
 * file may grow while it is read. */
err file_read_all(char **out, size_t *size, const char *path, size_t size_max)
{
    int fd = -1;
    size_t used = 0, room = 0;
    TRY(file_open_read(&fd, &room, path));
    err e = ERR_NONE;
    char *data = NULL;
    if (room > size_max) {
        e = err_make(ERR_INPUT, "%s: %zu bytes, expected at most %zu", path, room, size_max);
        goto out;
    }
    for (room += 4096;; room *= 2) {
        char *grown = realloc(data, room + 1);
        if (!grown) {
            e = err_sys(ENOMEM, "%s: %zu bytes", path, room);
            goto out;
        }
        data = grown;
        ssize_t n = 1;
        while (used < room && (n = read(fd, data + used, room - used)) != 0) {
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) {
                e = err_sys(errno, "%s", path);
                goto out;
            }
            used += (size_t)n;
        }
        if (used > size_max) {
            e = err_make(ERR_INPUT, "%s: more than %zu bytes, the largest size accepted here", path,
                         size_max);
            goto out;
        }
        if (n == 0) break;
    }
    data[used] = 0;
    *out = data;
    *size = used;
    data = NULL;
out:
    free(data);
    file_disk.close(fd);
    return e;
}

/* Creates each parent in turn. A directory that exists is no error, even if another process has
 * just created it. */
static err make_dirs(const char *path, mode_t mode)
{
    char part[4096];
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof part)
        return err_make(ERR_INPUT, "\"%.80s\": the path is empty or too long", path);
    memcpy(part, path, n + 1);
    for (size_t i = 1; i <= n; i++) {
        if (part[i] != '/' && part[i] != 0) continue;
        char kept = part[i];
        part[i] = 0;
        if (mkdir(part, mode) != 0 && errno != EEXIST) return err_sys(errno, "%s", part);
        part[i] = kept;
    }
    if (!file_is_dir(path)) return err_make(ERR_INPUT, "%s: is a file, expected a directory", path);
    return ERR_NONE;
}

err file_make_dirs(const char *path)
{
    return make_dirs(path, 0700);
}

err file_make_public_dirs(const char *path)
{
    return make_dirs(path, 0755);
}

err file_sync_dir(const char *path)
{
    int fd = file_disk.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (fd < 0) return err_sys(errno, "%s", path);
    err e = ERR_NONE;
    /* Some file systems cannot flush a directory and answer EINVAL; they have nothing to wait
     * for. */
    if (file_disk.fsync(fd) != 0 && errno != EINVAL) e = err_sys(errno, "%s", path);
    file_disk.close(fd);
    return e;
}

err file_flush(const char *path)
{
    int fd = file_disk.open(path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) return err_sys(errno, "%s", path);
    err e = file_disk.fsync(fd) == 0 ? ERR_NONE : err_sys(errno, "%s", path);
    file_disk.close(fd);
    return e;
}

/* The mode of /tmp and its like is not changed, even by root. */
err file_make_private(unsigned *was, const char *path)
{
    struct stat st;
    *was = 0;
    if (stat(path, &st) != 0) return errno == ENOENT ? ERR_NONE : err_sys(errno, "%s", path);
    unsigned mode = st.st_mode & 07777, others = S_IRWXG | S_IRWXO;
    bool shared = S_ISDIR(st.st_mode) && (mode & (S_ISVTX | S_IWOTH));
    if (!(mode & others)) return ERR_NONE;
    if (shared)
        return err_make(ERR_INPUT,
                        "%s: many users may write to this folder (mode %04o): expected a folder of "
                        "its own",
                        path, mode);
    if (st.st_uid != geteuid())
        return err_make(
            ERR_INPUT,
            "%s: other users may use it (mode %04o), and it belongs to user %u: expected "
            "mode %04o, or an owner who is the user of this process",
            path, mode, (unsigned)st.st_uid, mode & ~others);
    if (chmod(path, mode & ~others) != 0) return err_sys(errno, "%s: changing its mode", path);
    *was = mode;
    return ERR_NONE;
}

err file_check_secret(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0) return err_sys(errno, "%s", path);
    unsigned refused = S_IRWXO | S_IRWXG, mode = st.st_mode & 07777;
    if (st.st_uid == 0 && geteuid() != 0) refused &= ~(unsigned)S_IRGRP;
    if (!S_ISREG(st.st_mode) || !(mode & refused)) return ERR_NONE;
    return err_make(ERR_INPUT, "%s: other users may read this key (mode %04o): expected mode 0600",
                    path, mode);
}

/* lstat(), because a symbolic link exists even if its target does not. */
uint64_t file_size(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
}

bool file_exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

bool file_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* memmove(), because `out` and `dir` may be the same buffer. */
err file_join(char *out, size_t bytes, const char *dir, const char *name)
{
    size_t n = strlen(dir), m = strlen(name);
    bool slash = n > 0 && dir[n - 1] != '/';
    if (n + slash + m + 1 > bytes)
        return err_make(ERR_INPUT, "%.80s.../%.80s: the path is too long", dir, name);
    memmove(out, dir, n);
    if (slash) out[n] = '/';
    memcpy(out + n + slash, name, m + 1);
    return ERR_NONE;
}
