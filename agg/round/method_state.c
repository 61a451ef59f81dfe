#include "agg/round/method_state.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { META_TEXT_MAX = 8 << 20 };

err method_state_open(struct method_state *out, const char *path, size_t count)
{
    struct method_state s = {.count = count};
    char scratch[LIMIT_PATH_BYTES + 16];
    err e = ERR_NONE;
    if (strlen(path) >= LIMIT_PATH_BYTES - 32)
        return err_make(ERR_INPUT, "%.80s...: the path is too long", path);
    snprintf(scratch, sizeof scratch, "%s.scratch", path);
    TRY_OUT(e, arena_take(&s.module, &s.arena, count, sizeof *s.module));
    TRY_OUT(e, arena_take(&s.offset, &s.arena, count, sizeof *s.offset));
    TRY_OUT(e, arena_take(&s.dropped, &s.arena, count, sizeof *s.dropped));
    TRY_OUT(e, file_out_open(&s.scratch, scratch, /*replace*/ true));
    *out = s;
    return ERR_NONE;
out:
    method_state_close(&s);
    return e;
}

void method_state_close(struct method_state *s)
{
    file_map_close(&s->map);
    file_out_close(&s->scratch);
    arena_close(&s->arena);
    *s = (struct method_state){0};
}

/* Scratch offsets depend on the order in which threads arrive; the state's own bytes do not,
 * because method_state_commit() writes modules in order. */
err method_state_put(struct method_state *s, size_t i, const char *name,
                     const struct method_result *result)
{
    err e = ERR_NONE;
    s->module[i] = result->module;
    s->dropped[i] = result->dropped;
#pragma omp critical(method_state_put)
    {
        e = arena_text(&s->module[i].name, &s->arena, name, strlen(name));
        for (int r = 0; r < ADAPTER_FILE_ROLES && !err_is(e); r++) {
            const struct adapter_file_factor *x = &result->module.factor[r];
            s->offset[i][r] = s->scratch.size;
            if (x->f32)
                e = file_out_append(&s->scratch, x->f32, (size_t)x->rows * x->cols * sizeof(float));
        }
    }
    return e;
}

static err to_text(const char **out, json_t *map, struct arena *arena)
{
    struct bytes text = {.max = META_TEXT_MAX};
    err e = json_write(&text, map);
    if (!err_is(e)) e = arena_text(out, arena, (const char *)text.data, text.size);
    bytes_close(&text);
    return e;
}

err method_state_modules(const char **out, const struct method_module *module, size_t count,
                         struct arena *arena)
{
    json_t *map = json_object();
    bool fine = map != NULL;
    for (size_t i = 0; i < count && fine; i++)
        fine =
            json_object_set_new(map, module[i].name,
                                json_pack("[i,i]", (int)module[i].d_out, (int)module[i].d_in)) == 0;
    err e = fine ? to_text(out, map, arena) : err_make(ERR_MACHINE, "no memory for metadata");
    json_decref(map);
    return e;
}

static err dropped_text(const char **out, struct method_state *s)
{
    json_t *map = json_object();
    bool fine = map != NULL, any = false;
    for (size_t i = 0; i < s->count && fine; i++) {
        if (!(s->dropped[i] > 0)) continue;
        any = true;
        fine = json_object_set_new(map, s->module[i].name, json_real(s->dropped[i])) == 0;
    }
    err e = fine ? ERR_NONE : err_make(ERR_MACHINE, "no memory for metadata");
    *out = "";
    if (fine && any) e = to_text(out, map, &s->arena);
    json_decref(map);
    return e;
}

err method_state_dropped_parse(json_t **map, const struct adapter_file *state)
{
    const char *text = state->meta.dropped;
    if (!text[0]) return ERR_NONE;
    err e = json_parse(map, text, strlen(text), "fedlora.dropped");
    return err_is(e) ? err_in(e, "%s", state->path) : e;
}

err method_state_map(struct method_state *s)
{
    if (s->scratch.size) TRY(file_map_open(&s->map, s->scratch.part));
    for (size_t i = 0; i < s->count; i++)
        for (int r = 0; r < ADAPTER_FILE_ROLES; r++) {
            struct adapter_file_factor *x = &s->module[i].factor[r];
            x->tensor = NULL;
            if (x->f32) x->f32 = (const float *)(const void *)(s->map.data + s->offset[i][r]);
        }
    return ERR_NONE;
}

err method_state_commit(struct method_state *s, const char *path,
                        const struct adapter_file_meta *meta)
{
    struct adapter_file_meta full = *meta;
    struct adapter_file check = {0};
    TRY(dropped_text(&full.dropped, s));
    TRY(method_state_map(s));
    TRY(adapter_file_write_from(path, &full, s->module, s->count, &s->map));
    /* The header is read back before any process relies on the file. */
    TRY(adapter_file_map(&check, path));
    adapter_file_close(&check);
    return ERR_NONE;
}
