/* A folder for the files that a fuzz target gives to the code under test. It is made by the first
 * call and removed with its files when the process ends. */
#ifndef TESTS_FUZZ_FOLDER_H
#define TESTS_FUZZ_FOLDER_H

#include <ftw.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FOLDER_PATH_BYTES = 512 };
static char folder[256];

static inline int folder_remove_one(const char *path, const struct stat *st, int type,
                                    struct FTW *where)
{
    (void)st, (void)type;
    return where->level > 0 ? remove(path) : 0;
}

/* Removes all that is in a folder. */
static inline void folder_clear(const char *path)
{
    (void)nftw(path, folder_remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static inline void folder_remove(void)
{
    folder_clear(folder);
    rmdir(folder);
}

/* True in the first call, which makes the folder. */
static inline bool folder_begin(void)
{
    const char *base = getenv("TMPDIR");
    if (folder[0]) return false;
    snprintf(folder, sizeof folder, "%s/fedlora-fuzz-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(folder)) abort();
    atexit(folder_remove);
    return true;
}

static inline void folder_path(char out[FOLDER_PATH_BYTES], const char *name)
{
    if (snprintf(out, FOLDER_PATH_BYTES, "%s/%s", folder, name) >= FOLDER_PATH_BYTES) abort();
}

static inline void folder_put(const char *name, const void *data, size_t size)
{
    char path[FOLDER_PATH_BYTES];
    folder_path(path, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) abort();
}

#endif
