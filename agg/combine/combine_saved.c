/* Tensors saved whole in every adapter: their means; contract in combine.h. */
#include "agg/combine/combine_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 1 << 16 }; /* values at a time */

static size_t value_bytes(const struct tensor *t)
{
    return t->size / t->count;
}

/* Tensor i of f is the same as that of the first adapter, in name and shape. */
static err same_tensor(const struct adapter_file *f, const struct adapter_file *first, size_t i)
{
    const char *name = first->saved[i].name;
    const struct tensor *want = first->saved[i].tensor;
    if (i >= f->saved_count || strcmp(f->saved[i].name, name) != 0)
        return err_make(ERR_INPUT,
                        "%s: %s is saved whole in %s but not here, and its value in the base is in "
                        "no adapter",
                        f->path, name, first->path);
    const struct tensor *t = f->saved[i].tensor;
    bool same = t->dims == want->dims;
    for (int d = 0; d < want->dims && same; d++)
        same = t->shape[d] == want->shape[d];
    if (same) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "%s: tensor %s: its shape differs from that in %s; a mean needs one shape",
                    f->path, t->name, first->path);
}

static double whole(const struct combine *c)
{
    double sum = 0;
    for (size_t k = 0; k < c->file_count; k++)
        sum += c->p[k];
    return sum;
}

/* Weights that are no shares of 1 would scale the tensor itself. The change of a tensor saved whole
 * cannot be scaled, because its value in the base is in no adapter. */
static err check_whole(const struct combine *c)
{
    for (size_t k = 0; k < c->file_count; k++)
        if (c->share[k] < 0 && fabs(whole(c) - 1) > 1e-9)
            return err_make(ERR_INPUT,
                            "%s: %s is saved whole, so with a negative weight the weights must sum "
                            "to 1, not %g",
                            c->file[0].path, c->saved[0].name, whole(c));
    return ERR_NONE;
}

err combine_saved_list(struct combine *c)
{
    const struct adapter_file *first = &c->file[0];
    for (size_t k = 0; k < c->file_count; k++) {
        const struct adapter_file *f = &c->file[k];
        if (f->meta.modules_to_save[0] && f->saved_count == 0)
            return err_make(ERR_INPUT, "%s: has no tensor of modules_to_save %.200s", f->path,
                            f->meta.modules_to_save);
    }
    for (size_t k = 1; k < c->file_count; k++) {
        const struct adapter_file *f = &c->file[k];
        for (size_t i = 0; i < first->saved_count; i++)
            TRY(same_tensor(f, first, i));
        if (f->saved_count > first->saved_count) return same_tensor(first, f, first->saved_count);
        if (first->saved_count && strcmp(f->meta.bias, first->meta.bias) != 0)
            return err_make(ERR_INPUT, "%s: bias \"%s\", %s has \"%s\"", f->path, f->meta.bias,
                            first->path, first->meta.bias);
    }
    c->meta.modules_to_save = first->meta.modules_to_save;
    c->meta.bias = first->meta.bias;
    c->saved_count = first->saved_count;
    TRY(arena_take(&c->saved, &c->arena, c->saved_count, sizeof *c->saved));
    for (size_t i = 0; i < c->saved_count; i++) {
        struct tensor *t;
        TRY(arena_take(&t, &c->arena, 1, sizeof *t));
        *t = *first->saved[i].tensor;
        t->dtype = DTYPE_F32;
        t->size = t->count * sizeof(float);
        c->saved[i] = (struct adapter_file_saved){first->saved[i].name, t};
    }
    return c->saved_count ? check_whole(c) : ERR_NONE;
}

/* sum (n) += p_k x, for the values in `range` of tensor i of adapter k. */
static err add_block(double *sum, float *x, const struct combine *c, size_t k, size_t i,
                     const size_t range[2])
{
    const struct adapter_file *f = &c->file[k];
    const struct tensor *t = f->saved[i].tensor;
    size_t at = range[0], n = range[1] - at;
    TRY(dtype_to_f32(x, (const char *)t->data + at * value_bytes(t), t->dtype, n));
    err e = adapter_file_finite(x, n, t->name, at);
    if (err_is(e)) return err_in(e, "%s", f->path);
    for (size_t j = 0; j < n; j++)
        sum[j] += c->p[k] * (double)x[j];
    return ERR_NONE;
}

/* The mean of the values in `range`; x and sum have room for BLOCK values. */
static err mean_block(float *x, double *sum, const struct combine *c, size_t i,
                      const size_t range[2])
{
    size_t n = range[1] - range[0];
    memset(sum, 0, n * sizeof *sum);
    for (size_t k = 0; k < c->file_count; k++)
        TRY(add_block(sum, x, c, k, i, range));
    double all = whole(c);
    for (size_t j = 0; j < n; j++)
        x[j] = (float)(sum[j] / all);
    return ERR_NONE;
}

static err mean_tensor(struct combine *c, float *x, double *sum, size_t i)
{
    const struct tensor *t = c->saved[i].tensor;
    for (size_t at = 0; at < t->count; at += BLOCK) {
        const size_t range[2] = {at, t->count - at < BLOCK ? t->count : at + BLOCK};
        TRY(mean_block(x, sum, c, i, range));
        TRY(file_out_append(&c->state.scratch, x, (range[1] - at) * sizeof *x));
    }
    for (size_t k = 0; k < c->file_count; k++)
        adapter_file_drop(&c->file[k]);
    return ERR_NONE;
}

err combine_saved_mean(struct combine *c)
{
    float *x = malloc(BLOCK * sizeof *x);
    double *sum = malloc(BLOCK * sizeof *sum);
    err e = x && sum ? ERR_NONE : err_make(ERR_MACHINE, "no memory for means");
    for (size_t i = 0; i < c->saved_count && !err_is(e); i++) {
        /* The offset in the scratch file, until combine_saved_map() makes it a pointer. */
        struct tensor *t = (struct tensor *)(uintptr_t)c->saved[i].tensor;
        t->data = (const void *)(uintptr_t)c->state.scratch.size;
        e = mean_tensor(c, x, sum, i);
    }
    free(x);
    free(sum);
    return e;
}

void combine_saved_map(struct combine *c)
{
    for (size_t i = 0; i < c->saved_count; i++) {
        struct tensor *t = (struct tensor *)(uintptr_t)c->saved[i].tensor;
        t->data = c->state.map.data + (uintptr_t)t->data;
    }
}
