/* Files that are whole or absent. Reading is by memory map; writing goes beside, is flushed, and is
 * renamed, and the directory is flushed. All disk calls go through `file_disk`, so tests can make
 * the n-th one fail (ENOSPC, EIO) or "lose power" there. */
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct file_disk { /* POSIX signatures; replaced only by tests */
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
/* Tells the kernel the pages may go (they come back from disk when touched). */
void file_map_drop(const struct file_map *map, size_t offset, size_t size);

/* A file being written: open -> append... -> commit (flush, rename, flush the directory), or close
 * alone to abandon it (the part is deleted). Without `replace` an existing path is ERR_INPUT. */
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
err file_read_all(char **out /* malloc'd, zero-terminated */, size_t *size, const char *path,
                  size_t size_max);
err file_make_dirs(const char *path); /* like mkdir -p, mode 0700 for what it makes */
err file_sync_dir(const char *path);
bool file_exists(const char *path);
bool file_is_dir(const char *path);
/* dir + "/" + name into out (bytes long); ERR_INPUT when it does not fit. */
err file_join(char *out, size_t bytes, const char *dir, const char *name);

#endif
