#include "engine/member/member_file.h"

#include "base/file.h"
#include "base/safetensors.h"
#include "engine/member/member_adapter.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void before_path(char out[LIMIT_PATH_BYTES], const char *path)
{
    snprintf(out, LIMIT_PATH_BYTES, "%s.before", path);
}

static const char *text_of(const struct safetensors *st, const char *key)
{
    const char *text = safetensors_metadata(st, key);
    return text ? text : "";
}

/* *round: of the file; 0: there is none. */
static err read_round(uint32_t *round, const char *path, const struct member_round *r)
{
    struct safetensors st = {0};
    *round = 0;
    if (!file_exists(path)) return ERR_NONE;
    TRY(safetensors_open(&st, path));
    const char *run = text_of(&st, "fedlora.run"), *member = text_of(&st, "fedlora.member");
    err e = ERR_NONE;
    if (strcmp(run, r->run) || strcmp(member, r->member) ||
        strcmp(text_of(&st, "fedlora.base"), r->base))
        e = err_make(ERR_INPUT,
                     "%s: belongs to member \"%s\" in run \"%s\", expected member \"%s\" in run "
                     "\"%s\" and the same base",
                     path, member, run, r->member, r->run);
    else
        *round = (uint32_t)strtoul(text_of(&st, "fedlora.round"), NULL, 10);
    safetensors_close(&st);
    return e;
}

err member_file_find(bool *found, char out[LIMIT_PATH_BYTES], const char *path,
                     const struct member_round *r, uint32_t last)
{
    uint32_t round = 0;
    snprintf(out, LIMIT_PATH_BYTES, "%s", path);
    TRY(read_round(&round, out, r));
    if (!round || round > last) {
        before_path(out, path);
        TRY(read_round(&round, out, r));
    }
    *found = round && round <= last;
    return ERR_NONE;
}

err member_file_make_room(const char *path, const struct member_round *r)
{
    char before[LIMIT_PATH_BYTES];
    uint32_t round = 0;
    TRY(read_round(&round, path, r));
    before_path(before, path);
    if (round && round < r->round && rename(path, before) != 0) return err_sys(errno, "%s", before);
    return ERR_NONE;
}

err member_file_undo(const char *path, const struct member_round *r)
{
    char before[LIMIT_PATH_BYTES];
    uint32_t round = 0;
    TRY(read_round(&round, path, r));
    if (!round || round < r->round) return ERR_NONE;
    before_path(before, path);
    if (file_exists(before) ? rename(before, path) : unlink(path))
        return err_sys(errno, "%s", path);
    return ERR_NONE;
}

void member_file_drop(const char *path)
{
    char before[LIMIT_PATH_BYTES];
    before_path(before, path);
    (void)file_disk.unlink(path);
    (void)file_disk.unlink(before);
}
