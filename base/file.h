/* Files that are complete or absent after a crash. A file is written to PATH.part, flushed and
 * renamed, and then the directory is flushed. Reading is by memory map. All disk calls go through
 * `file_disk`, so that tests can make the n-th call fail (ENOSPC, EIO) or simulate a power loss
 * there. */
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct file_disk { /* POSIX signatures and meanings; tests and simulations replace some */
    int (*open)(const char *path, int flags, mode_t mode);
    ssize_t (*write)(int fd, const void *data, size_t size);
    int (*fsync)(int fd);
    int (*rename)(const char *from, const char *to);
    int (*unlink)(const char *path);
    int (*close)(int fd);
    int (*ftruncate)(int fd, off_t size);
};
extern struct file_disk file_disk;

struct file_map {
    const uint8_t *data; /* NULL for an empty file */
    size_t size;
};

err file_map_open(struct file_map *out, const char *path); /* read-only; a directory is ERR_INPUT */
void file_map_close(struct file_map *map);
/* Lets the kernel drop the pages of this range; they are read again when touched. */
void file_map_drop(const struct file_map *map, size_t offset, size_t size);

/* A file being written: open, append..., commit, close. Without commit, close deletes PATH.part.
 * Without `replace` an existing path is ERR_INPUT. */
struct file_out {
    int fd; /* -1 or 0 in a zeroed struct: nothing open */
    bool replace;
    uint64_t size;
    char path[4096], part[4096];
};
err file_out_open(struct file_out *out, const char *path, bool replace);
err file_out_append(struct file_out *out, const void *data, size_t size);
err file_out_commit(struct file_out *out);
void file_out_close(struct file_out *out);

err file_write(const char *path, const void *data, size_t size, bool replace);
/* The same with mode 0600 from the first byte, whatever the umask is. */
err file_write_secret(const char *path, const void *data, size_t size, bool replace);
/* *out is malloc'd and zero-terminated; ERR_INPUT for a file of more than size_max bytes. */
err file_read_all(char **out, size_t *size, const char *path, size_t size_max);
err file_make_dirs(const char *path);        /* mkdir -p, with mode 0700 for new directories */
err file_make_public_dirs(const char *path); /* the same with mode 0755, less the umask */
err file_sync_dir(const char *path);
err file_flush(const char *path); /* fsync() of a file that another program or library wrote */
bool file_exists(const char *path);
uint64_t file_size(const char *path); /* of a regular file, also behind a link; 0: there is none */
bool file_is_dir(const char *path);
/* Takes the permissions of group and others away from a folder or file. If they have none, or the
 * path does not exist, nothing happens; *was is the mode it had (0: nothing was changed).
 * ERR_INPUT: it belongs to another user, or is a folder that many users write to. */
err file_make_private(unsigned *was, const char *path);
/* ERR_INPUT if others may read this file, which holds a secret. The group may read it only if it
 * belongs to root, as files do that a service manager mounts for one user. */
err file_check_secret(const char *path);
/* Writes dir + "/" + name into out[0..bytes); ERR_INPUT when it does not fit. */
err file_join(char *out, size_t bytes, const char *dir, const char *name);

#endif
