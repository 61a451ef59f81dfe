/* A disk whose n-th step kills the process, or fails as on a full disk. A step is a call of
 * file_disk that changes something, or a commit of the database. It is for tests that fork: include
 * this header in one file of a program, and install it once in a process. */
#ifndef TESTS_SUPPORT_FAULTY_DISK_H
#define TESTS_SUPPORT_FAULTY_DISK_H

#include "base/file.h"
#include "coordinator/store/db.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

enum fault { FAULT_NONE, FAULT_KILL, FAULT_KILL_AFTER, FAULT_FULL };

static struct file_disk disk; /* the real one */
static atomic_long steps, fault_at;
static enum fault fault;

/* Counts a step; true when it is the faulty one. */
static bool step(void)
{
    if (atomic_fetch_add(&steps, 1) + 1 != fault_at) return false;
    if (fault == FAULT_KILL) kill(getpid(), SIGKILL);
    return true;
}
static void after(bool hit)
{
    if (hit && fault == FAULT_KILL_AFTER) kill(getpid(), SIGKILL);
}
static bool full(bool hit)
{
    if (!hit || fault != FAULT_FULL) return false;
    errno = ENOSPC;
    return true;
}

static ssize_t bad_write(int fd, const void *data, size_t size)
{
    bool hit = step();
    if (full(hit)) return -1;
    /* The write of the faulty step is cut in half: a reader must not accept such a file. */
    ssize_t n = disk.write(fd, data, hit && size > 1 ? size / 2 : size);
    after(hit);
    return n;
}
static int bad_fsync(int fd)
{
    bool hit = step();
    int result = full(hit) ? -1 : disk.fsync(fd);
    after(hit);
    return result;
}
static int bad_rename(const char *from, const char *to)
{
    bool hit = step();
    int result = full(hit) ? -1 : disk.rename(from, to);
    after(hit);
    return result;
}
static int bad_unlink(const char *path)
{
    bool hit = step();
    int result = full(hit) ? -1 : disk.unlink(path);
    after(hit);
    return result;
}
static int bad_ftruncate(int fd, off_t size)
{
    bool hit = step();
    int result = full(hit) ? -1 : disk.ftruncate(fd, size);
    after(hit);
    return result;
}
static err bad_commit(void)
{
    bool hit = step();
    after(hit); /* this is just before the commit; just after it is the next step */
    return hit && fault == FAULT_FULL ? err_sys(ENOSPC, "the database") : ERR_NONE;
}

static void install_faults(enum fault kind, long at)
{
    disk = file_disk;
    fault = kind;
    fault_at = at;
    file_disk.write = bad_write;
    file_disk.fsync = bad_fsync;
    file_disk.rename = bad_rename;
    file_disk.unlink = bad_unlink;
    file_disk.ftruncate = bad_ftruncate;
    db_before_commit = bad_commit;
}

#endif
