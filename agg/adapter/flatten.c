#include "agg/adapter/flatten.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

size_t flatten_terms(struct lowrank_term out[2], const struct adapter_file_module *m)
{
    const struct adapter_file_factor *x = m->factor;
    size_t count = 0;
    if (x[ADAPTER_FILE_A].f32 && x[ADAPTER_FILE_B].f32)
        out[count++] = (struct lowrank_term){.c = m->scale,
                                             .B = x[ADAPTER_FILE_B].f32,
                                             .A = x[ADAPTER_FILE_A].f32,
                                             .R = x[ADAPTER_FILE_R].f32,
                                             .r = m->rank};
    if (m->carry_rank)
        out[count++] = (struct lowrank_term){.c = 1,
                                             .B = x[ADAPTER_FILE_CARRY_B].f32,
                                             .A = x[ADAPTER_FILE_CARRY_A].f32,
                                             .r = m->carry_rank};
    return count;
}

struct flat { /* the result of one module; malloc'd, since threads cannot share the arena */
    float *A, *B;
    uint32_t q;
    double norm, tail;
    err e;
};

static err flatten_module(struct flat *out, const struct adapter_file_module *m,
                          const struct lowrank_cut *cut)
{
    struct lowrank_term term[2];
    struct lowrank_stack stack = {
        .m = m->d_out, .n = m->d_in, .term = term, .count = flatten_terms(term, m)};
    struct lowrank_svd svd = {0};
    err e = ERR_NONE;
    TRY(lowrank_svd_open(&svd, &stack, 0));
    lowrank_cut(&out->q, &out->tail, &svd, cut);
    out->norm = svd.norm;
    /* A module whose change is zero is kept, with rank 1 and all zero. */
    uint32_t rank = out->q ? out->q : 1;
    out->B = calloc((size_t)m->d_out * rank, sizeof(float));
    out->A = calloc((size_t)m->d_in * rank, sizeof(float));
    if (!out->A || !out->B)
        e = err_make(ERR_MACHINE, "no memory for module %s", m->name);
    else
        e = lowrank_split(out->B, out->A, NULL, &svd, out->q, LOWRANK_BALANCED);
    out->q = rank;
    lowrank_svd_close(&svd);
    return e;
}

static err keep(struct flatten *f, const struct flat *flat, const struct adapter_file_module *m)
{
    struct adapter_file_module *to = &f->module[f->count];
    size_t a = (size_t)flat->q * m->d_in, b = (size_t)m->d_out * flat->q;
    float *values;
    TRY(arena_text(&to->name, &f->arena, m->name, strlen(m->name)));
    TRY(arena_take(&values, &f->arena, a + b, sizeof *values));
    memcpy(values, flat->A, a * sizeof *values);
    memcpy(values + a, flat->B, b * sizeof *values);
    to->d_out = m->d_out;
    to->d_in = m->d_in;
    to->rank = flat->q;
    to->alpha = flat->q;
    to->scale = 1;
    to->factor[ADAPTER_FILE_A] =
        (struct adapter_file_factor){.f32 = values, .rows = flat->q, .cols = m->d_in};
    to->factor[ADAPTER_FILE_B] =
        (struct adapter_file_factor){.f32 = values + a, .rows = m->d_out, .cols = flat->q};
    f->norm[f->count] = flat->norm;
    f->tail[f->count] = flat->tail;
    f->norm_total = hypot(f->norm_total, flat->norm);
    f->tail_total = hypot(f->tail_total, flat->tail);
    f->count++;
    return ERR_NONE;
}

err flatten_open(struct flatten *out, const struct adapter_file *file,
                 const struct lowrank_cut *cut, int threads)
{
    struct flatten f = {.root = file->meta.root};
    struct flat *flat = NULL;
    err e = ERR_NONE;
    if (adapter_file_needs_frozen(file))
        return err_make(ERR_INPUT, "%s: the file of its frozen factors, %.16s..., is needed",
                        file->path, file->meta.frozen);
    TRY_OUT(e, arena_take(&f.module, &f.arena, file->count, sizeof *f.module));
    TRY_OUT(e, arena_take(&f.norm, &f.arena, file->count, sizeof *f.norm));
    TRY_OUT(e, arena_take(&f.tail, &f.arena, file->count, sizeof *f.tail));
    TRY_OUT(e, arena_take(&flat, &f.arena, file->count, sizeof *flat));
    int before = lowrank_begin();
#pragma omp parallel for schedule(dynamic)                                                         \
    num_threads(threads > 0 ? threads : omp_get_max_threads())
    for (size_t i = 0; i < file->count; i++)
        if (file->module[i].rank || file->module[i].carry_rank)
            flat[i].e = flatten_module(&flat[i], &file->module[i], cut);
    lowrank_end(before);
    for (size_t i = 0; i < file->count; i++) {
        if (!err_is(e) && err_is(flat[i].e)) e = err_in(flat[i].e, "%s", file->path);
        if (!err_is(e) && flat[i].A) e = keep(&f, &flat[i], &file->module[i]);
        free(flat[i].A);
        free(flat[i].B);
    }
    if (err_is(e)) goto out;
    *out = f;
    return ERR_NONE;
out:
    flatten_close(&f);
    return e;
}

void flatten_close(struct flatten *f)
{
    arena_close(&f->arena);
    *f = (struct flatten){0};
}
