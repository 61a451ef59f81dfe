#include "engine/member/member_kept.h"

#include "agg/round/method.h"
#include "engine/member/member_file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static unsigned keeps(const struct member_round *r)
{
    const struct method *method = method_find(r->method);
    return method && r->kept_path ? method->keeps : 0;
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
    char path[LIMIT_PATH_BYTES];
    bool found = false;
    if (!keeps(r)) return ERR_NONE;
    TRY(member_file_find(&found, path, r->kept_path, r, r->evaluates ? r->round : r->round - 1));
    if (!found) return ERR_NONE;
    struct adapter_file *file = calloc(1, sizeof *file);
    if (!file) return err_sys(ENOMEM, "%s", path);
    err e = adapter_file_open(file, path);
    for (size_t i = 0; !err_is(e) && i < file->count; i++)
        e = take_module(adapter, &file->module[i], path);
    adapter_file_close(file);
    free(file);
    return e;
}

err member_kept_undo(const struct member_round *r)
{
    return keeps(r) ? member_file_undo(r->kept_path, r) : ERR_NONE;
}

err member_kept_write(const struct member_adapter *a, const struct member_round *r)
{
    struct member_round own = *r;
    if (!keeps(r)) return ERR_NONE;
    own.trains = keeps(r);
    TRY(member_file_make_room(r->kept_path, r));
    return member_adapter_write(r->kept_path, a, &own, 0);
}
