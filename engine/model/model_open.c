#include "base/text.h"
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

/* ---- shapes alone ---- */

/* The place of every weight that has no values. Only its address is used, to tell an absent weight
 * from one without values, and a tied head from its own matrix. */
static const uint8_t no_values[2];

static err describe_weights(struct model *m, enum dtype dtype)
{
    struct arena arena = {0};
    struct model_slot *slot = NULL;
    size_t count = 0;
    TRY(model_take_layers(m));
    err e = model_slots(&slot, &count, m, &arena);
    for (size_t i = 0; i < count && !err_is(e); i++)
        *slot[i].weight = (struct weight){.data = &no_values[slot[i].weight == &m->head],
                                          .dtype = dtype,
                                          .rows = slot[i].rows,
                                          .cols = slot[i].cols};
    arena_close(&arena);
    if (m->arch.tied) m->head = m->embed;
    return e;
}

err model_open_shapes(struct model *out, err *why, const char *path)
{
    static const char name[] = "config.json";
    struct model m = {.bos = -1, .pad = -1};
    char file[LIMIT_PATH_BYTES];
    enum dtype dtype = DTYPE_BF16;
    size_t n = strlen(path);
    bool is_json = text_ends_with(path, ".json");
    *why = ERR_NONE;
    if (!is_json && !file_is_dir(path)) return model_open(out, path);
    if (n >= sizeof m.path) return err_make(ERR_INPUT, "%s: the path is too long", path);
    if (is_json)
        memcpy(file, path, n + 1);
    else
        TRY(file_join(file, sizeof file, path, name));
    TRY(model_config_shapes(&m, &dtype, file));
    memcpy(m.path, path, n + 1);
    err e = describe_weights(&m, dtype);
    if (err_is(e)) {
        model_close(&m);
        return e;
    }
    *why = model_config_check(file);
    *out = m;
    return ERR_NONE;
}
