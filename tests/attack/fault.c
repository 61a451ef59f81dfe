/* A library for LD_PRELOAD that makes one system call of a program fail or end the program
 * (tests/attack/syscalls.py). FEDLORA_FAULT is CALL:N:HOW:
 *
 *     CALL    a name of the table below
 *     N       the N-th call of the process, from 1
 *     HOW     kill, killafter, or the number of the error
 *
 * With FEDLORA_FAULT_COUNT, a file, the counts of all calls are written there at the end. Writes to
 * sockets and pipes are not counted. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum call { FSYNC, FDATASYNC, RENAME, UNLINK, WRITE, PWRITE, FTRUNCATE, OPEN, MKDIR, MMAP, CALLS };
static const char *const names[CALLS] = {"fsync",    "fdatasync", "rename", "unlink", "write",
                                         "pwrite64", "ftruncate", "open",   "mkdir",  "mmap"};

static atomic_long counts[CALLS];
static enum call chosen = CALLS;
static long chosen_at;
static int error; /* 0: kill */
static bool after;

__attribute__((constructor)) static void read_fault(void)
{
    const char *text = getenv("FEDLORA_FAULT");
    char call[16] = "", how[16] = "";
    if (!text || sscanf(text, "%15[^:]:%ld:%15s", call, &chosen_at, how) != 3) return;
    for (int i = 0; i < CALLS; i++)
        if (!strcmp(names[i], call)) chosen = (enum call)i;
    after = !strcmp(how, "killafter");
    error = after || !strcmp(how, "kill") ? 0 : (int)strtol(how, NULL, 10);
}

__attribute__((destructor)) static void write_counts(void)
{
    const char *path = getenv("FEDLORA_FAULT_COUNT");
    FILE *f = path ? fopen(path, "w") : NULL;
    for (int i = 0; f && i < CALLS; i++)
        fprintf(f, "%s %ld\n", names[i], atomic_load(&counts[i]));
    if (f) fclose(f);
}

/* True: this call is to fail, with errno set. */
static bool hit(enum call call)
{
    long n = atomic_fetch_add(&counts[call], 1) + 1;
    if (call != chosen || n != chosen_at || after) return false;
    if (!error) kill(getpid(), SIGKILL);
    errno = error;
    return true;
}

static void done(enum call call)
{
    if (after && call == chosen && atomic_load(&counts[call]) == chosen_at) kill(getpid(), SIGKILL);
}

static bool is_file(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && fd > 2;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))(uintptr_t)dlsym(RTLD_NEXT, #name)

int fsync(int fd)
{
    REAL(fsync);
    if (hit(FSYNC)) return -1;
    int result = real(fd);
    done(FSYNC);
    return result;
}
int fdatasync(int fd)
{
    REAL(fdatasync);
    if (hit(FDATASYNC)) return -1;
    int result = real(fd);
    done(FDATASYNC);
    return result;
}
int rename(const char *from, const char *to)
{
    REAL(rename);
    if (hit(RENAME)) return -1;
    int result = real(from, to);
    done(RENAME);
    return result;
}
int unlink(const char *path)
{
    REAL(unlink);
    if (hit(UNLINK)) return -1;
    int result = real(path);
    done(UNLINK);
    return result;
}
ssize_t write(int fd, const void *data, size_t size)
{
    REAL(write);
    if (!is_file(fd)) return real(fd, data, size);
    if (hit(WRITE)) return -1;
    ssize_t result = real(fd, data, size);
    done(WRITE);
    return result;
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    REAL(pwrite64);
    if (hit(PWRITE)) return -1;
    ssize_t result = real(fd, data, size, at);
    done(PWRITE);
    return result;
}
int ftruncate(int fd, off_t size)
{
    REAL(ftruncate);
    if (hit(FTRUNCATE)) return -1;
    int result = real(fd, size);
    done(FTRUNCATE);
    return result;
}
int ftruncate64(int fd, off64_t size)
{
    return ftruncate(fd, size);
}
int mkdir(const char *path, mode_t mode)
{
    REAL(mkdir);
    if (hit(MKDIR)) return -1;
    int result = real(path, mode);
    done(MKDIR);
    return result;
}
void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    REAL(mmap);
    if (fd < 0) return real(at, size, protection, flags, fd, offset);
    if (hit(MMAP)) return MAP_FAILED;
    void *result = real(at, size, protection, flags, fd, offset);
    done(MMAP);
    return result;
}

void *mmap64(void *at, size_t size, int protection, int flags, int fd, off64_t offset)
{
    return mmap(at, size, protection, flags, fd, offset);
}

static int open_real(const char *name, const char *path, int flags, mode_t mode)
{
    int (*real)(const char *, int, ...) =
        (int (*)(const char *, int, ...))(uintptr_t)dlsym(RTLD_NEXT, name);
    if (hit(OPEN)) return -1;
    int result = real(path, flags, mode);
    done(OPEN);
    return result;
}
int open(const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;
    va_end(more);
    return open_real("open", path, flags, mode);
}
int open64(const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;
    va_end(more);
    return open_real("open64", path, flags, mode);
}
