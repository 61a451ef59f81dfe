#include "engine/model/model_build.h"

#include <string.h>

/* *out is written only at the end, so a failed call leaves it untouched. The struct is then copied:
 * nothing in it points to itself except m.head, which is copied from m.embed here for tied
 * models. */
err model_open(struct model *out, const char *path)
{
    struct model m = {.bos = -1, .pad = -1};
    if (strlen(path) >= sizeof m.path) return err_make(ERR_INPUT, "%s: the path is too long", path);
    memcpy(m.path, path, strlen(path) + 1);
    err e = file_is_dir(path) ? model_hf_open(&m) : model_gguf_open(&m);
    if (err_is(e)) {
        model_close(&m);
        return e;
    }
    if (m.arch.tied) m.head = m.embed;
    *out = m;
    return e;
}
