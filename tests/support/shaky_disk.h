/* A disk for simulations in one process. A step is a call of file_disk that changes something, or a
 * commit of the database.
 *
 *   - The n-th step from now kills: it happens, half happens or does not happen, and every later
 *     step fails without an effect until shaky_disk_restart(). To the files this is `kill -9`.
 *   - Each step fails with a chance, as on a full or failing disk.
 *   - A restart may be that of the machine: of files that were not flushed the tail is lost, and
 *     renames and removals in folders that were not flushed are undone.
 *
 * SQLite's own files are not part of the last: its commits are durable, as with synchronous=FULL.
 * Include this header in one file of a program. */
#ifndef TESTS_SUPPORT_SHAKY_DISK_H
#define TESTS_SUPPORT_SHAKY_DISK_H

#include "base/file.h"
#include "base/rng.h"
#include "coordinator/store/db.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SHAKY_PATH = 256, SHAKY_NOTES = 64 };
enum shaky_half { SHAKY_BEFORE, SHAKY_AFTER }; /* the step that kills: did it happen? */

struct shaky_disk {
    struct file_disk real;
    struct rng *rng;
    long steps, kill_at; /* kill_at 0: never */
    enum shaky_half half;
    double fails; /* chance of a step */
    bool dead;
    /* Not flushed yet: files with new bytes, and names that folders have forgotten or learned. */
    struct {
        char path[SHAKY_PATH];
        off_t flushed;
    } file[SHAKY_NOTES];
    struct {
        char from[SHAKY_PATH], to[SHAKY_PATH];
    } name[SHAKY_NOTES];
    size_t files, names;
    bool notes;          /* keep these notes: the machine may restart */
    long killed, failed; /* counts */
};
static struct shaky_disk shaky;

/* May the step happen? */
static bool shaky_step(void)
{
    if (shaky.dead) {
        errno = EIO;
        return false;
    }
    shaky.steps++;
    if (shaky.kill_at && shaky.steps >= shaky.kill_at) {
        shaky.dead = true;
        shaky.killed++;
        errno = EIO;
        return shaky.half == SHAKY_AFTER;
    }
    if (shaky.fails > 0 && rng_unit(shaky.rng) < shaky.fails) {
        shaky.failed++;
        errno = rng_below(shaky.rng, 2) ? ENOSPC : EIO;
        return false;
    }
    return true;
}

static void shaky_path(char out[SHAKY_PATH], int fd)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, SHAKY_PATH - 1);
    out[n > 0 ? n : 0] = 0;
}

static void shaky_forget(const char *path)
{
    for (size_t i = 0; i < shaky.files; i++)
        if (!strcmp(shaky.file[i].path, path)) shaky.file[i--] = shaky.file[--shaky.files];
}

/* The oldest note gives way. */
static void shaky_note_file(int fd)
{
    char path[SHAKY_PATH];
    if (!shaky.notes) return;
    shaky_path(path, fd);
    for (size_t i = 0; i < shaky.files; i++)
        if (!strcmp(shaky.file[i].path, path)) return;
    if (shaky.files == SHAKY_NOTES) shaky.file[0] = shaky.file[--shaky.files];
    memcpy(shaky.file[shaky.files].path, path, sizeof path);
    struct stat st;
    shaky.file[shaky.files++].flushed = fstat(fd, &st) == 0 ? st.st_size : 0;
}

static int shaky_open(const char *path, int flags, mode_t mode)
{
    if (shaky.dead && (flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR))) {
        errno = EIO;
        return -1;
    }
    return shaky.real.open(path, flags, mode);
}
static ssize_t shaky_write(int fd, const void *data, size_t size)
{
    bool was_dead = shaky.dead;
    shaky_note_file(fd);
    if (!shaky_step()) return -1;
    if (shaky.dead && !was_dead) size = size > 1 ? size / 2 : size;
    ssize_t n = shaky.real.write(fd, data, size);
    return shaky.dead ? -1 : n;
}
static int shaky_fsync(int fd)
{
    char path[SHAKY_PATH];
    struct stat st;
    if (!shaky_step()) return -1;
    if (shaky.notes) {
        shaky_path(path, fd);
        if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
            for (size_t i = 0; i < shaky.names; i++)
                if (!strncmp(shaky.name[i].to, path, strlen(path)) ||
                    !strncmp(shaky.name[i].from, path, strlen(path)))
                    shaky.name[i--] = shaky.name[--shaky.names];
        } else
            shaky_forget(path);
    }
    return shaky.dead ? -1 : 0; /* the kernel needs no flush here */
}
static int shaky_rename(const char *from, const char *to)
{
    if (!shaky_step()) return -1;
    int result = shaky.real.rename(from, to);
    for (size_t i = 0; i < shaky.files && result == 0; i++)
        if (!strcmp(shaky.file[i].path, from)) snprintf(shaky.file[i].path, SHAKY_PATH, "%s", to);
    if (result == 0 && shaky.notes && shaky.names < SHAKY_NOTES) {
        snprintf(shaky.name[shaky.names].from, SHAKY_PATH, "%s", from);
        snprintf(shaky.name[shaky.names++].to, SHAKY_PATH, "%s", to);
    }
    return shaky.dead ? -1 : result;
}
static int shaky_unlink(const char *path)
{
    if (!shaky_step()) return -1;
    shaky_forget(path);
    int result = shaky.real.unlink(path);
    return shaky.dead ? -1 : result;
}
static int shaky_ftruncate(int fd, off_t size)
{
    if (!shaky_step()) return -1;
    int result = shaky.real.ftruncate(fd, size);
    return shaky.dead ? -1 : result;
}
static err shaky_commit(void)
{
    return !shaky_step() || shaky.dead ? err_sys(EIO, "the database") : ERR_NONE;
}

static void shaky_disk_install(void)
{
    shaky.real = file_disk;
    file_disk.open = shaky_open;
    file_disk.write = shaky_write;
    file_disk.fsync = shaky_fsync;
    file_disk.rename = shaky_rename;
    file_disk.unlink = shaky_unlink;
    file_disk.ftruncate = shaky_ftruncate;
    db_before_commit = shaky_commit;
}

/* `machine`: it lost what was not flushed, each file and name with a chance. */
static void shaky_disk_restart(bool machine)
{
    while (machine && shaky.names) {
        shaky.names--;
        if (rng_below(shaky.rng, 2))
            (void)shaky.real.rename(shaky.name[shaky.names].to, shaky.name[shaky.names].from);
    }
    for (size_t i = 0; machine && i < shaky.files; i++) {
        struct stat st;
        if (stat(shaky.file[i].path, &st) != 0 || st.st_size <= shaky.file[i].flushed) continue;
        off_t kept = (off_t)rng_below(shaky.rng, (uint64_t)st.st_size + 1);
        if (kept < shaky.file[i].flushed) kept = shaky.file[i].flushed;
        if (truncate(shaky.file[i].path, kept) != 0) continue;
        if (rng_below(shaky.rng, 2) && truncate(shaky.file[i].path, st.st_size) != 0) continue;
    }
    shaky.files = shaky.names = 0;
    shaky.dead = false;
    shaky.kill_at = 0;
}

#endif
