/* Values, pages and frozen factors of adapter files; contract in adapter_file.h. */
#include "agg/adapter/adapter_file.h"

#include <math.h>
#include <string.h>

err adapter_file_f32(const float **out, const struct adapter_file_factor *factor,
                     struct arena *arena)
{
    if (factor->f32) {
        *out = factor->f32;
        return ERR_NONE;
    }
    float *values;
    const struct tensor *t = factor->tensor;
    REQUIRE(t);
    TRY(arena_take(&values, arena, t->count, sizeof *values));
    TRY(dtype_to_f32(values, t->data, t->dtype, t->count));
    *out = values;
    return ERR_NONE;
}

/* Tests a block at a time, by the bits of the exponent, so that the inner loop has no branch. */
size_t adapter_file_first_bad(const float *x, size_t n)
{
    enum { BLOCK = 4096 };
    const uint32_t exponent = 0x7f800000;
    for (size_t i = 0; i < n; i += BLOCK) {
        size_t end = n - i < BLOCK ? n : i + BLOCK;
        uint32_t bad = 0;
        for (size_t j = i; j < end; j++) {
            uint32_t bits;
            memcpy(&bits, &x[j], sizeof bits);
            bad |= (bits & exponent) == exponent;
        }
        if (!bad) continue;
        for (size_t j = i; j < end; j++)
            if (!isfinite(x[j])) return j;
    }
    return n;
}

err adapter_file_finite(const float *x, size_t n, const char *tensor, size_t first)
{
    size_t bad = adapter_file_first_bad(x, n);
    if (bad == n) return ERR_NONE;
    return err_make(ERR_INPUT, "tensor %s: value %zu is %s, expected finite numbers", tensor,
                    first + bad, isnan(x[bad]) ? "NaN" : "infinite");
}

err adapter_file_check_finite(const struct adapter_file *file,
                              const struct adapter_file_module *module)
{
    struct arena scratch = {0};
    err e = ERR_NONE;
    for (int r = 0; r <= ADAPTER_FILE_ROLES && !err_is(e); r++) {
        const struct adapter_file_factor *x =
            r < ADAPTER_FILE_ROLES ? &module->factor[r] : &module->magnitude;
        const float *values;
        if (!x->tensor) continue;
        e = adapter_file_f32(&values, x, &scratch);
        if (err_is(e)) break;
        e = adapter_file_finite(values, x->tensor->count, x->tensor->name, 0);
        if (err_is(e)) e = err_in(e, "%s", file->path);
    }
    arena_close(&scratch);
    return e;
}

void adapter_file_drop(const struct adapter_file *file)
{
    file_map_drop(&file->tensors.map, 0, file->tensors.map.size);
}

/* ---- frozen factors ---- */

bool adapter_file_needs_frozen(const struct adapter_file *state)
{
    if (state->meta.kind != ADAPTER_FILE_STATE || !state->meta.frozen[0]) return false;
    for (size_t i = 0; i < state->count; i++) {
        const struct adapter_file_factor *x = state->module[i].factor;
        if ((x[ADAPTER_FILE_R].tensor || x[ADAPTER_FILE_B].tensor) && !x[ADAPTER_FILE_A].tensor)
            return true;
    }
    return false;
}

err adapter_file_replace(struct adapter_file *file, const struct adapter_file *by)
{
    size_t replaced = 0;
    if (strcmp(file->meta.run, by->meta.run) != 0 || strcmp(file->meta.base, by->meta.base) != 0)
        return err_make(
            ERR_INPUT, "%s: belongs to run \"%s\" of base %.16s..., %s to \"%s\" of %.16s...",
            by->path, by->meta.run, by->meta.base, file->path, file->meta.run, file->meta.base);
    for (size_t i = 0; i < file->count; i++) {
        const struct adapter_file_module *from = adapter_file_find(by, file->module[i].name);
        for (int role = ADAPTER_FILE_A; from && role <= ADAPTER_FILE_R; role++) {
            struct adapter_file_factor *to = &file->module[i].factor[role];
            const struct adapter_file_factor *f = &from->factor[role];
            if (!f->rows) continue;
            if (f->rows != to->rows || f->cols != to->cols)
                return err_make(ERR_INPUT,
                                "%s: a factor of module %s is (%u, %u), expected (%u, %u)",
                                by->path, from->name, f->rows, f->cols, to->rows, to->cols);
            *to = *f;
            replaced++;
        }
    }
    if (!replaced) return err_make(ERR_INPUT, "%s: has no factor of %s", by->path, file->path);
    return ERR_NONE;
}

err adapter_file_join(struct adapter_file *state, const struct adapter_file *frozen,
                      const char *frozen_digest)
{
    if (strcmp(state->meta.frozen, frozen_digest) != 0)
        return err_make(ERR_INPUT, "%s: needs frozen factors %.16s..., but %s is %.16s...",
                        state->path, state->meta.frozen, frozen->path, frozen_digest);
    if (strcmp(state->meta.base, frozen->meta.base) != 0 && frozen->meta.base[0])
        return err_make(ERR_INPUT, "%s: frozen factors of base %.16s..., expected %.16s...",
                        frozen->path, frozen->meta.base, state->meta.base);
    for (size_t i = 0; i < state->count; i++) {
        struct adapter_file_module joined = state->module[i];
        bool square = joined.factor[ADAPTER_FILE_R].tensor != NULL;
        if (!square && !joined.factor[ADAPTER_FILE_B].tensor) continue;
        const struct adapter_file_module *from = adapter_file_find(frozen, joined.name);
        if (!from || (square && !from->factor[ADAPTER_FILE_B].tensor))
            return err_make(ERR_INPUT, "%s: no factors for module %s", frozen->path, joined.name);
        if (from->rank != joined.rank ||
            (joined.d_out && from->d_out && joined.d_out != from->d_out) ||
            (joined.d_in && joined.d_in != from->d_in))
            return err_make(ERR_INPUT,
                            "%s: module %s: %u x %u of rank %u, expected %u x %u of rank %u",
                            frozen->path, joined.name, from->d_out, from->d_in, from->rank,
                            joined.d_out, joined.d_in, joined.rank);
        if (from->d_out) joined.d_out = from->d_out;
        joined.d_in = from->d_in;
        joined.factor[ADAPTER_FILE_A] = from->factor[ADAPTER_FILE_A];
        if (square) joined.factor[ADAPTER_FILE_B] = from->factor[ADAPTER_FILE_B];
        state->module[i] = joined;
    }
    return ERR_NONE;
}
