/* There is one packed copy of a weight, for the forward product. The backward operand is made from
 * it at each use, which takes a few percent of the time of a product of 512 rows. With BACKEND_KEEP
 * there is no copy, and both operands are made from the bytes of the file. A head is divided into
 * slices of the vocabulary, so that its logits need little memory.
 *
 * Without AVX-512, oneDNN has no product for the blocked layout of cpu_pack.h, and operands are
 * plain. Its general product would also read a transposed operand, which saves making one, but then
 * the bits of the last rows depend on their number. */
#include "kernels/cpu/cpu_weight.h"

#include "kernels/cpu/cpu_vector.h"
#include "kernels/weight.h"

#include <errno.h>
#include <omp.h>
#include <stdlib.h>

enum { PIECE = 1536, WHOLE_MAX = 32768 };
enum { ROOM_ROWS = 2 }; /* rooms 0 and 1 are for operands */

CPU_CLONES static void narrow(uint16_t *to, const float *from, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = cpu_bf16(from[i]);
}

/* Memory of one thread: a group of rows of W in float32, and behind it the same in bfloat16. */
static size_t rows_bytes(const struct weight_slice *p)
{
    return PACK_ROWS * pack_ld(&p->shape) * (sizeof(float) + sizeof(uint16_t));
}

static void write_group(void *to, const struct backend_weight *w, const struct weight_slice *p,
                        bool back, size_t group, float *wide)
{
    const struct pack_shape *s = &p->shape;
    size_t ld = pack_ld(s), row = group * PACK_ROWS;
    size_t count = row >= s->n ? 0 : s->n - row < PACK_ROWS ? s->n - row : PACK_ROWS;
    uint16_t *half = (uint16_t *)(wide + PACK_ROWS * ld);
    memset(wide, 0, PACK_ROWS * ld * sizeof(float));
    for (size_t i = 0; i < count; i++)
        weight_source_rows(wide + i * ld, &w->source, p->first + row + i, 1);
    if (s->type != DTYPE_F32) narrow(half, wide, PACK_ROWS * ld);
    pack_rows(to, s, back, s->type == DTYPE_F32 ? (const void *)wide : (const void *)half, group);
}

/* The share of the calling thread of a parallel region. */
static void write_share(void *to, const struct backend_context *c, const struct backend_weight *w,
                        const struct weight_slice *p, bool back)
{
    size_t me = (size_t)cpu_thread(), threads = (size_t)omp_get_num_threads();
    size_t groups = pack_groups(&p->shape, back);
    char *buffer = (char *)onednn_room_data(c->primitives, ROOM_ROWS) + me * rows_bytes(p);
    for (size_t i = groups * me / threads; i < groups * (me + 1) / threads; i++)
        write_group(to, w, p, back, i, (float *)(void *)buffer);
}

static void turn_share(void *to, const struct weight_slice *p)
{
    size_t me = (size_t)cpu_thread(), threads = (size_t)omp_get_num_threads();
    size_t blocks = pack_blocks(&p->shape);
    for (size_t i = blocks * me / threads; i < blocks * (me + 1) / threads; i++)
        pack_turn(to, &p->shape, p->data, i);
}

bool cpu_operand_is_made(const struct backend_weight *w, size_t slice, bool back)
{
    return back || !w->slice[slice].data;
}

static err reserve_rows(struct backend_context *c, const struct weight_slice *p)
{
    void *rows;
    return onednn_room(&rows, c->primitives, ROOM_ROWS, rows_bytes(p) * (size_t)c->threads);
}

err cpu_operand_reserve(struct backend_context *c, const struct backend_weight *w, size_t slice)
{
    const struct weight_slice *p = &w->slice[slice];
    size_t forward = pack_bytes(&p->shape, false), back = pack_bytes(&p->shape, true);
    for (int i = 0; i < (w->slices > 1 ? 2 : 1); i++) {
        void *room;
        TRY(onednn_room(&room, c->primitives, i, forward > back ? forward : back));
    }
    return p->data ? ERR_NONE : reserve_rows(c, p);
}

void cpu_operand_make(const struct backend_context *c, const struct backend_weight *w, size_t slice,
                      bool back)
{
    const struct weight_slice *p = &w->slice[slice];
    void *to = onednn_room_data(c->primitives, (int)(slice % 2));
    if (p->data)
        turn_share(to, p);
    else
        write_share(to, c, w, p, back);
}

void *cpu_operand_data(const struct backend_context *c, const struct backend_weight *w,
                       size_t slice, bool back)
{
    if (!cpu_operand_is_made(w, slice, back)) return w->slice[slice].data;
    return onednn_room_data(c->primitives, (int)(slice % 2));
}

/* The rows are read from the file, because only those of this batch are needed and a packed copy
 * would take vocab * d_model floats. */
void cpu_embed(struct backend_context *c, struct mat to, const struct backend_weight *w,
               const struct backend_batch *b)
{
    double since = cpu_clock();
    size_t tokens = b->rows.tokens, k = w->source.k;
    float *wide = to.type == DTYPE_F32 ? NULL : cpu_scratch(c, k * sizeof(float));
    if (to.type != DTYPE_F32 && !wide) return;
    for (size_t i = 0; i < tokens; i++) {
        float *row = wide ? wide : mat_at(to, i, 0).data;
        weight_source_rows(row, &w->source, (size_t)b->rows.id[i], 1);
        if (wide) cpu_row_put(to, i, 0, row, k);
    }
    cpu_count(c, OP_COPY, since);
}

void cpu_weight_shape(size_t *n, size_t *k, const struct backend_weight *w)
{
    *n = w->source.n;
    *k = w->source.k;
}
float cpu_weight_cap(const struct backend_weight *w)
{
    return w->source.cap;
}
size_t cpu_weight_slices(const struct backend_weight *w)
{
    return w->slices;
}
void cpu_weight_slice(size_t *first, size_t *count, const struct backend_weight *w, size_t slice)
{
    *first = w->slice[slice].first;
    *count = w->slice[slice].shape.n;
}

static err set_layouts(struct weight_slice *p, bool blocked)
{
    dnnl_data_type_t type = onednn_type((int32_t)p->shape.type);
    dnnl_format_tag_t tag = !blocked ? dnnl_ab : type == dnnl_f32 ? dnnl_BA16a64b : dnnl_BA16a64b2a;
    int64_t n = (int64_t)p->shape.n, k = (int64_t)p->shape.k;
    dnnl_dims_t forward = {k, n}, back = {n, k};
    p->shape.blocked = blocked;
    TRY(onednn_check(dnnl_memory_desc_init_by_tag(&p->layout[0], 2, forward, type, tag), "layout"));
    return onednn_check(dnnl_memory_desc_init_by_tag(&p->layout[1], 2, back, type, tag), "layout");
}

static bool layouts_work(const struct weight_slice *p, const struct backend_context *c)
{
    bool good = true;
    for (int back = 0; back < 2 && good; back++) {
        struct shape_key key = {.rows = CPU_SHARE,
                                .n = p->layout[back].dims[1],
                                .k = p->layout[back].dims[0],
                                .xtype = (int32_t)p->shape.type,
                                .ytype = (int32_t)p->shape.type};
        key.ldx = key.k;
        key.ldy = key.n;
        good = onednn_takes(c->primitives, &key, &p->layout[back]);
    }
    return good;
}

static err open_slice(struct weight_slice *p, const struct backend_weight *w,
                      struct backend_context *c)
{
    TRY(set_layouts(p, pack_can_block()));
    if (p->shape.blocked && !layouts_work(p, c)) TRY(set_layouts(p, false));
    if (w->source.products & BACKEND_KEEP) return ERR_NONE;
    TRY(reserve_rows(c, p));
    void *data = cpu_alloc(pack_bytes(&p->shape, false));
    if (!data) return err_sys(ENOMEM, "engine: memory for a packed weight");
#pragma omp parallel num_threads(c->threads)
    write_share(data, c, w, p, false);
    p->data = data;
    c->packed_bytes += pack_bytes(&p->shape, false);
    return ERR_NONE;
}

/* An embedding alone is read from its file. Operands that are made at each use share two rooms; the
 * slices of a head are smaller than other weights. */
void cpu_weight_bytes(struct backend_weight_bytes *out, const struct backend_context *c,
                      const struct weight_source *s)
{
    uint64_t packed = (uint64_t)s->n * s->k * (c->precision == DTYPE_F32 ? 4 : 2);
    *out = (struct backend_weight_bytes){0};
    if (!(s->products & BACKEND_FORWARD)) return;
    if (!(s->products & BACKEND_HEAD)) out->scratch = packed;
    if (!(s->products & BACKEND_KEEP)) out->held = packed;
    for (size_t i = 0; i < s->parts && (s->products & BACKEND_KEEP); i++) {
        size_t bytes = 0;
        if (dtype_bytes(&bytes, s->part[i].type, s->part[i].rows * s->k)) out->held += bytes;
    }
}

static err open_slices(struct backend_weight *w, struct backend_context *c)
{
    const struct weight_source *s = &w->source;
    bool sliced = (s->products & BACKEND_HEAD) && s->n > WHOLE_MAX;
    size_t most = sliced ? PIECE : s->n;
    size_t slices = (s->n + most - 1) / most;
    if (!(w->slice = calloc(slices, sizeof *w->slice))) return err_sys(ENOMEM, "engine");
    for (size_t i = 0; i < slices; i++) {
        size_t first = i * most, n = s->n - first < most ? s->n - first : most;
        w->slice[i].first = first;
        w->slice[i].shape = (struct pack_shape){.type = c->precision, .n = n, .k = s->k};
        w->slices = i + 1;
        TRY(open_slice(&w->slice[i], w, c));
    }
    return ERR_NONE;
}

void cpu_weight_close(struct backend_weight *w)
{
    if (!w) return;
    for (size_t i = 0; i < w->slices; i++)
        free(w->slice[i].data);
    free(w->slice);
    free(w->bias);
    free(w);
}

err cpu_weight_pack(struct backend_weight **out, struct backend_context *c,
                    const struct weight_source *s)
{
    if (c->precision != DTYPE_F32 && !cpu_can_bf16())
        return err_make(
            ERR_INPUT,
            "precision bf16 needs AVX-512, which this processor does not have: use f32 or auto");
    struct backend_weight *w = calloc(1, sizeof *w);
    if (!w) return err_sys(ENOMEM, "engine");
    w->source = *s;
    w->source.bias = NULL; /* the caller's memory */
    err e = ERR_NONE;
    if (s->bias && !(w->bias = cpu_alloc(s->n * sizeof(float)))) e = err_sys(ENOMEM, "engine");
    if (w->bias) memcpy(w->bias, s->bias, s->n * sizeof(float));
    if (!err_is(e) && (s->products & BACKEND_FORWARD)) e = open_slices(w, c);
    if (err_is(e))
        cpu_weight_close(w);
    else
        *out = w;
    return e;
}
