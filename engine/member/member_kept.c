#include "engine/member/member_kept.h"

#include "agg/round/method.h"
#include "base/file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static unsigned keeps(const struct member_round *r)
{
    const struct method *method = method_find(r->method);
    return method && r->kept_path ? method->keeps : 0;
}

static void before_path(char out[LIMIT_PATH_BYTES], const struct member_round *r)
{
    snprintf(out, LIMIT_PATH_BYTES, "%s.before", r->kept_path);
}

static err check(const struct adapter_file *file, const struct member_round *r)
{
    const struct adapter_file_meta *m = &file->meta;
    if (!strcmp(m->run, r->run) && !strcmp(m->member, r->member) && !strcmp(m->base, r->base))
        return ERR_NONE;
    return err_make(ERR_INPUT,
                    "%s: has factors of member \"%s\" in run \"%s\", expected member \"%s\" in run "
                    "\"%s\" and the same base",
                    file->path, m->member, m->run, r->member, r->run);
}

/* *found: the file has factors of round `last` or an earlier one. */
static err open_kept(bool *found, struct adapter_file *out, const char *path,
                     const struct member_round *r, uint32_t last)
{
    *found = false;
    if (!file_exists(path)) return ERR_NONE;
    TRY(adapter_file_open(out, path));
    err e = check(out, r);
    *found = !err_is(e) && out->meta.round <= last;
    if (!*found) adapter_file_close(out);
    return e;
}

static err take_module(struct adapter *adapter, const struct adapter_file_module *from,
                       const char *path)
{
    uint32_t layer = 0;
    enum module_kind kind = MODULE_Q;
    TRY(model_module_parse(&layer, &kind, from->name));
    const struct adapter_module *to = adapter_find(adapter, layer, kind);
    if (!to) return err_make(ERR_INPUT, "%s: the state has no module %s", path, from->name);
    const struct {
        float *value;
        uint32_t rows, cols;
    } place[] = {
        {to->a, to->rank, to->d_in}, {to->b, to->d_out, to->rank}, {to->r, to->rank, to->rank}};
    for (int role = ADAPTER_FILE_A; role <= ADAPTER_FILE_R; role++) {
        const struct adapter_file_factor *f = &from->factor[role];
        if (!f->f32) continue;
        if (!place[role].value || f->rows != place[role].rows || f->cols != place[role].cols)
            return err_make(ERR_INPUT,
                            "%s: a factor of module %s has another shape than the state's", path,
                            from->name);
        memcpy(place[role].value, f->f32, (size_t)f->rows * f->cols * sizeof(float));
    }
    return ERR_NONE;
}

/* struct adapter_file is several kilobytes large, so it is not on the stack. */
err member_kept_take(struct adapter *adapter, const struct member_round *r)
{
    char before[LIMIT_PATH_BYTES];
    bool found = false;
    uint32_t last = r->evaluates ? r->round : r->round - 1;
    if (!keeps(r)) return ERR_NONE;
    struct adapter_file *file = calloc(1, sizeof *file);
    if (!file) return err_sys(ENOMEM, "%s", r->kept_path);
    before_path(before, r);
    err e = open_kept(&found, file, r->kept_path, r, last);
    if (!err_is(e) && !found) e = open_kept(&found, file, before, r, last);
    for (size_t i = 0; found && i < file->count && !err_is(e); i++)
        e = take_module(adapter, &file->module[i], file->path);
    if (found) adapter_file_close(file);
    free(file);
    return e;
}

/* The newest file has an earlier round than this one. */
static err has_older(bool *older, const struct member_round *r)
{
    struct adapter_file *file = calloc(1, sizeof *file);
    if (!file) return err_sys(ENOMEM, "%s", r->kept_path);
    err e = open_kept(older, file, r->kept_path, r, r->round - 1);
    if (!err_is(e) && *older) adapter_file_close(file);
    free(file);
    return e;
}

/* The newest file becomes the one before, unless it has this round already. */
static err make_room(const struct member_round *r)
{
    char before[LIMIT_PATH_BYTES];
    bool older = false;
    TRY(has_older(&older, r));
    before_path(before, r);
    if (older && rename(r->kept_path, before) != 0) return err_sys(errno, "%s", before);
    return ERR_NONE;
}

err member_kept_undo(const struct member_round *r)
{
    char before[LIMIT_PATH_BYTES];
    bool older = false;
    if (!keeps(r) || !file_exists(r->kept_path)) return ERR_NONE;
    TRY(has_older(&older, r));
    if (older) return ERR_NONE;
    before_path(before, r);
    if (file_exists(before) ? rename(before, r->kept_path) : unlink(r->kept_path))
        return err_sys(errno, "%s", r->kept_path);
    return ERR_NONE;
}

err member_kept_write(const struct member_adapter *a, const struct member_round *r)
{
    struct member_round own = *r;
    if (!keeps(r)) return ERR_NONE;
    own.trains = keeps(r);
    TRY(make_room(r));
    return member_adapter_write(r->kept_path, a, &own, 0);
}
