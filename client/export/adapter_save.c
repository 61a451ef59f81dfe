/* adapter_save_peft(): the adapter in memory is described as an adapter file, which borrows its
 * values, and written by agg/adapter. Nothing is copied except the names. */
#include "client/export/adapter_save.h"

#include "agg/adapter/adapter_file.h"
#include "agg/adapter/flatten.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An empty factor for an absent one. */
static struct adapter_file_factor factor(const float *value, uint32_t rows, uint32_t cols)
{
    if (!value || !rows || !cols) return (struct adapter_file_factor){0};
    return (struct adapter_file_factor){.f32 = value, .rows = rows, .cols = cols};
}

/* The adapter stores scale = alpha / rank as a float. A whole alpha within the rounding error of it
 * is taken as the value that the user gave. */
static double alpha_of(const struct adapter_module *m)
{
    double alpha = (double)m->scale * m->rank, whole = nearbyint(alpha);
    return whole > 0 && fabs(alpha - whole) < 1e-6 * whole ? whole : alpha;
}

/* The adapter as an adapter file, borrowing its values; the names and the list are in out's arena.
 * The metadata of a run stay empty, because no run made it. */
static err as_file(struct adapter_file *out, const struct adapter *ad)
{
    TRY(arena_take(&out->module, &out->arena, ad->count, sizeof *out->module));
    for (size_t i = 0; i < ad->count; i++) {
        const struct adapter_module *m = &ad->module[i];
        struct adapter_file_module *to = &out->module[i];
        char name[LIMIT_TENSOR_NAME_BYTES];
        model_module_name(name, m->layer, m->kind);
        TRY(arena_text(&to->name, &out->arena, name, strlen(name)));
        to->d_out = m->d_out;
        to->d_in = m->d_in;
        to->rank = m->rank;
        to->carry_rank = m->carry_rank;
        to->alpha = m->rank ? alpha_of(m) : 0;
        to->scale = m->rank ? (double)m->scale : 0;
        to->factor[ADAPTER_FILE_A] = factor(m->a, m->rank, m->d_in);
        to->factor[ADAPTER_FILE_B] = factor(m->b, m->d_out, m->rank);
        to->factor[ADAPTER_FILE_R] = factor(m->r, m->rank, m->rank);
        to->factor[ADAPTER_FILE_CARRY_A] = factor(m->carry_a, m->carry_rank, m->d_in);
        to->factor[ADAPTER_FILE_CARRY_B] = factor(m->carry_b, m->d_out, m->carry_rank);
    }
    out->count = ad->count;
    out->meta = (struct adapter_file_meta){.kind = ADAPTER_FILE_STATE,
                                           .run = "",
                                           .method = "",
                                           .base = "",
                                           .frozen = "",
                                           .member = "",
                                           .alpha_pattern = "",
                                           .target_modules = ""};
    /* Errors of agg/adapter begin with this name. */
    snprintf(out->path, sizeof out->path, "the adapter");
    return ERR_NONE;
}

/* One alpha for all modules, or a pattern that lists each. %.17g prints a double that reads back as
 * the same value. */
static err put_alphas(struct adapter_file *file, struct bytes *pattern)
{
    bool same = true;
    for (size_t i = 0; i < file->count; i++) {
        const struct adapter_file_module *m = &file->module[i];
        if (m->rank > file->meta.rank) file->meta.rank = m->rank;
        if (!m->rank) continue;
        same = same && (file->meta.alpha == 0 || file->meta.alpha == m->alpha);
        file->meta.alpha = m->alpha;
    }
    if (same) return ERR_NONE;
    const char *before = "{";
    for (size_t i = 0; i < file->count; i++) {
        if (!file->module[i].rank) continue;
        TRY(bytes_printf(pattern, "%s\"%s\":%.17g", before, file->module[i].name,
                         file->module[i].alpha));
        before = ",";
    }
    TRY(bytes_printf(pattern, "}"));
    file->meta.alpha_pattern = (const char *)pattern->data;
    return ERR_NONE;
}

/* Writes the carry and R, which PEFT cannot express, as a state in the same directory. */
static err save_state(struct adapter_file *file, const struct adapter_save_options *o)
{
    char path[LIMIT_PATH_BYTES];
    struct bytes pattern = {.max = 64u << 20};
    err e = ERR_NONE;
    TRY_OUT(e, file_join(path, sizeof path, o->path, ADAPTER_SAVE_STATE));
    TRY_OUT(e, put_alphas(file, &pattern));
    e = adapter_file_write(path, &file->meta, file->module, file->count, /*replace*/ true);
out:
    bytes_close(&pattern);
    return e;
}

/* Flattening is an SVD per module, so it is done only if there is a carry or R. The path of the
 * base is made absolute, because PEFT resolves it from the directory in which it runs. */
err adapter_save_peft(const struct adapter *ad, const struct adapter_save_options *o)
{
    struct adapter_file file = {0};
    struct flatten flat = {0};
    struct lowrank_cut exact = {0};
    bool plain = true;
    char *whole = NULL;
    err e = ERR_NONE;
    for (size_t i = 0; i < ad->count; i++)
        plain = plain && ad->module[i].carry_rank == 0 && !ad->module[i].r;
    TRY_OUT(e, as_file(&file, ad));
    if (!plain) TRY_OUT(e, flatten_open(&flat, &file, &exact, o->threads));
    whole = o->base ? realpath(o->base, NULL) : NULL;
    file.meta.base_path = whole ? whole : o->base;
    file.meta.root = o->root;
    e = adapter_file_write_peft(o->path, &file.meta, plain ? file.module : flat.module,
                                plain ? file.count : flat.count, o->replace);
    if (!plain && !err_is(e)) e = save_state(&file, o);
out:
    free(whole);
    flatten_close(&flat);
    adapter_file_close(&file);
    return e;
}
