#include "coordinator/store/room.h"

#include "base/text.h"

#include <errno.h>
#include <sys/statvfs.h>

/* f_bavail and not f_bfree: the rest is for root only. */
err room_left(uint64_t *bytes, const char *dir)
{
    struct statvfs fs;
    if (statvfs(dir, &fs) != 0) return err_sys(errno, "%s", dir);
    *bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    return ERR_NONE;
}

err room_check(const char *dir, uint64_t wanted, uint64_t reserve)
{
    uint64_t left = 0;
    TRY(room_left(&left, dir));
    if (wanted <= left && left - wanted >= reserve) return ERR_NONE;
    char has[32], needs[32], keeps[32];
    text_size(has, sizeof has, left);
    text_size(needs, sizeof needs, wanted);
    text_size(keeps, sizeof keeps, reserve);
    err e = err_make(ERR_LIMIT,
                     "the coordinator's disk is full: %s left, %s needed and %s kept free; "
                     "come back later",
                     has, needs, keeps);
    e.sys = ENOSPC;
    return e;
}
