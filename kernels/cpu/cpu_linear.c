/* Products with the frozen weights, by oneDNN. A weight is packed once for each of its two
 * products, in the blocked layout of oneDNN. In float32 two copies of the layers would take too
 * much memory, so only the forward one is kept and the backward one is made from it at each use. A
 * head is packed in slices of the vocabulary, so that its logits need no memory. Numbers of rows
 * are rounded up to keep the number of shapes small, since each shape needs a primitive of its
 * own. */
#include "kernels/cpu/cpu_onednn.h"
#include "kernels/cpu/cpu_vector.h"
#include "kernels/weight.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE = 1536, WHOLE_MAX = 32768, PACK_ROWS = 512 };

struct piece { /* rows [first, first + count) of W */
    size_t first, count;
    dnnl_memory_desc_t md;
    void *data;
};
struct backend_weight {
    size_t n, k;
    size_t pieces[2]; /* number of pieces: forward, backward */
    struct piece *piece[2];
    bool turned;                 /* the backward piece is made from the forward one at each use */
    float *bias;                 /* (n), or NULL */
    struct weight_source source; /* for embed() */
};

/* Reorders plain rows of W, (count, k) in the precision, into the layout of `p`. The forward
 * product reads them as W^T (k, count). */
static err pack_rows(struct piece *p, const struct backend_context *c, void *rows, size_t k,
                     bool back)
{
    dnnl_memory_desc_t from;
    dnnl_dims_t dims = {(int64_t)k, (int64_t)p->count};
    if (back) dims[0] = (int64_t)p->count, dims[1] = (int64_t)k;
    TRY(onednn_check(dnnl_memory_desc_init_by_tag(&from, 2, dims, onednn_type(c->precision),
                                                  back ? dnnl_ab : dnnl_ba),
                     "layout"));
    return onednn_reorder(c->primitives, &p->md, p->data, &from, rows);
}

/* Makes the backward piece of a weight from its forward one. It is valid until the next call. */
static err turn_piece(struct piece *out, struct cpu_primitives *all, const struct backend_weight *w)
{
    static const int swap[2] = {1, 0};
    struct piece p = w->piece[1][0];
    dnnl_memory_desc_t from;
    TRY(onednn_room(&p.data, all, dnnl_memory_desc_get_size(&p.md)));
    TRY(onednn_check(dnnl_memory_desc_permute_axes(&from, &w->piece[0][0].md, swap), "layout"));
    TRY(onednn_reorder(all, &p.md, p.data, &from, w->piece[0][0].data));
    *out = p;
    return ERR_NONE;
}

/* oneDNN sums in another order for very few rows and, without AVX-512, for the last rows of a share
 * of 32. Shares therefore have 64 or 128 (CPU_SHARE) rows, so the bits of a row do not depend on
 * the other rows. Generation multiplies few rows, so they are not rounded up; in float32 each is
 * multiplied alone to keep its bits independent of its neighbours. */
static size_t round_rows(size_t rows)
{
    return (rows + BACKEND_ROWS - 1) / BACKEND_ROWS * BACKEND_ROWS;
}

static struct shape_key slice_key(struct mat y, struct mat x, const struct backend_weight *w,
                                  size_t slice, const struct linear_rows *r)
{
    const struct piece *p = &w->piece[r->back][slice];
    return (struct shape_key){.rows = (int64_t)(r->few ? r->rows : round_rows(r->rows)),
                              .n = (int64_t)(r->back ? w->k : p->count),
                              .k = (int64_t)(r->back ? p->count : w->k),
                              .ldx = (int64_t)x.ld,
                              .ldy = (int64_t)y.ld,
                              .xtype = x.type,
                              .ytype = y.type,
                              .add = r->add,
                              .bias = !r->back && w->bias};
}

static struct onednn_operands operands(struct mat y, struct mat x, const struct backend_weight *w,
                                       const struct piece *p, bool back)
{
    return (struct onednn_operands){.x = x.data,
                                    .y = y.data,
                                    .w = p->data,
                                    .w_layout = &p->md,
                                    .bias = !back && w->bias ? w->bias + p->first : NULL};
}

/* y (rows, count) of one piece is dense, because the fast kernels of oneDNN require it. */
void cpu_linear_slice(struct backend_context *c, struct mat y, struct mat x,
                      const struct backend_weight *w, size_t slice, const struct linear_rows *r)
{
    if (!r->rows || err_is(c->first)) return;
    struct piece p = w->piece[r->back][slice];
    err e = r->back && w->turned ? turn_piece(&p, c->primitives, w) : ERR_NONE;
    struct shape_key key = slice_key(y, x, w, slice, r);
    struct onednn_operands o = operands(y, x, w, &p, r->back);
    if (!err_is(e)) e = onednn_multiply(c, &key, &o);
    if (err_is(e)) cpu_fail(c, e);
}

void cpu_slice_prepare(struct backend_context *c, struct mat y, struct mat x,
                       const struct backend_weight *w, size_t slice, const struct linear_rows *r)
{
    struct piece p = w->piece[r->back][slice];
    struct shape_key key = slice_key(y, x, w, slice, r);
    err e = onednn_prepare(c, &key, &p.md);
    if (!err_is(e) && r->back && w->turned) e = turn_piece(&p, c->primitives, w);
    if (err_is(e)) cpu_fail(c, e);
}

bool cpu_slice_run(struct backend_context *c, struct mat y, struct mat x,
                   const struct backend_weight *w, size_t slice, const struct linear_rows *r)
{
    struct piece p = w->piece[r->back][slice];
    if (r->back && w->turned)
        p.data = onednn_room_data(c->primitives); /* made by cpu_slice_prepare() */
    struct shape_key key = slice_key(y, x, w, slice, r);
    struct onednn_operands o = operands(y, x, w, &p, r->back);
    return onednn_run(c, &key, &o) == dnnl_success;
}

void cpu_dense(struct backend_context *c, struct mat y, struct mat x,
               const struct backend_weight *w, size_t rows, bool add)
{
    double since = cpu_clock();
    struct linear_rows r = {
        .rows = rows, .add = add, .few = rows < BACKEND_FEW && x.type == DTYPE_F32};
    if (w->pieces[0] == 1) {
        cpu_linear_slice(c, y, x, w, 0, &r);
    } else { /* a head, packed in slices */
        REQUIRE(!add);
        float *scratch = cpu_scratch(c, round_rows(rows) * PIECE * sizeof(float));
        for (size_t i = 0; i < w->pieces[0] && scratch; i++) {
            const struct piece *p = &w->piece[0][i];
            struct mat part = {scratch, DTYPE_F32, p->count};
            cpu_linear_slice(c, part, x, w, i, &r);
            cpu_convert(c, mat_at(y, 0, p->first), part, rows, p->count, 1.0f);
        }
    }
    cpu_count(c, OP_LINEAR, since);
}

void cpu_dense_back(struct backend_context *c, struct mat dx, struct mat dy,
                    const struct backend_weight *w, size_t rows, bool add)
{
    double since = cpu_clock();
    REQUIRE(w->pieces[1] == 1);
    struct linear_rows r = {.rows = rows, .add = add, .back = true};
    cpu_linear_slice(c, dx, dy, w, 0, &r);
    cpu_count(c, OP_LINEAR_BACK, since);
}

/* The rows are read from the file, because only those of this batch are needed and a packed copy
 * would take vocab * d_model floats. */
void cpu_embed(struct backend_context *c, struct mat to, const struct backend_weight *w,
               const struct backend_batch *b)
{
    double since = cpu_clock();
    size_t tokens = b->rows.tokens;
    float *wide = to.type == DTYPE_F32 ? NULL : cpu_scratch(c, w->k * sizeof(float));
    if (to.type != DTYPE_F32 && !wide) return;
    for (size_t i = 0; i < tokens; i++) {
        float *row = wide ? wide : mat_at(to, i, 0).data;
        weight_source_rows(row, &w->source, (size_t)b->rows.id[i], 1);
        if (wide) cpu_row_put(to, i, 0, row, w->k);
    }
    cpu_count(c, OP_COPY, since);
}

void cpu_weight_shape(size_t *n, size_t *k, const struct backend_weight *w)
{
    *n = w->n;
    *k = w->k;
}
size_t cpu_weight_slices(const struct backend_weight *w)
{
    return w->pieces[0];
}
void cpu_weight_slice(size_t *first, size_t *count, const struct backend_weight *w, size_t slice)
{
    *first = w->piece[0][slice].first;
    *count = w->piece[0][slice].count;
}

/* The layout that oneDNN prefers for this piece with many rows. */
static err piece_layout(struct piece *p, const struct backend_context *c, size_t k, bool back)
{
    struct shape_key key = {.rows = 1024,
                            .n = (int64_t)(back ? k : p->count),
                            .k = (int64_t)(back ? p->count : k),
                            .xtype = c->precision,
                            .ytype = c->precision};
    key.ldx = key.k;
    key.ldy = key.n;
    return onednn_layout(&p->md, c->primitives, &key);
}

static err piece_alloc(struct piece *p)
{
    p->data = cpu_alloc(dnnl_memory_desc_get_size(&p->md));
    return p->data ? ERR_NONE : err_sys(ENOMEM, "engine: memory for a packed weight");
}

static err pack_pieces(struct backend_weight *w, struct backend_context *c,
                       const struct weight_source *s, bool back)
{
    bool slices = (s->products & BACKEND_HEAD) && s->n > WHOLE_MAX;
    size_t count = slices ? PIECE : s->n, pieces = (s->n + count - 1) / count;
    w->piece[back] = calloc(pieces, sizeof *w->piece[back]);
    size_t size = c->precision == DTYPE_F32 ? 4 : 2;
    size_t wide_bytes = PACK_ROWS * s->k * sizeof(float);
    /* Scratch memory, because blocks freed between the packed weights would leave gaps in the
     * heap. */
    float *wide = cpu_scratch(c, wide_bytes + count * s->k * size);
    char *rows = (char *)wide + wide_bytes;
    err e = ERR_NONE;
    if (!w->piece[back] || !wide) e = err_sys(ENOMEM, "engine: packing a weight");
    for (size_t first = 0; first < s->n && !err_is(e); first += count) {
        struct piece *p = &w->piece[back][w->pieces[back]++];
        p->first = first;
        p->count = s->n - first < count ? s->n - first : count;
        for (size_t i = 0; i < p->count; i += PACK_ROWS) {
            size_t n = p->count - i < PACK_ROWS ? p->count - i : PACK_ROWS;
            weight_source_rows(wide, s, first + i, n);
            struct mat from = {wide, DTYPE_F32, s->k};
            struct mat to = {rows + i * s->k * size, c->precision, s->k};
            cpu_convert(c, to, from, n, s->k, 1.0f);
        }
        e = piece_layout(p, c, s->k, back);
        if (!err_is(e)) e = piece_alloc(p);
        if (!err_is(e)) e = pack_rows(p, c, rows, s->k, back);
    }
    return e;
}

static err turn_pieces(struct backend_weight *w, const struct backend_context *c)
{
    REQUIRE(w->pieces[0] == 1);
    if (!(w->piece[1] = calloc(1, sizeof *w->piece[1])))
        return err_sys(ENOMEM, "engine: packing a weight");
    w->piece[1][0] = (struct piece){.count = w->n};
    w->pieces[1] = 1;
    return piece_layout(w->piece[1], c, w->k, true);
}

static err pack_backward(struct backend_weight *w, struct backend_context *c,
                         const struct weight_source *s)
{
    w->turned = c->precision == DTYPE_F32 && w->pieces[0] == 1;
    return w->turned ? turn_pieces(w, c) : pack_pieces(w, c, s, true);
}

void cpu_weight_close(struct backend_weight *w)
{
    if (!w) return;
    for (int back = 0; back < 2; back++) {
        for (size_t i = 0; i < w->pieces[back]; i++)
            free(w->piece[back][i].data);
        free(w->piece[back]);
    }
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
    w->n = s->n;
    w->k = s->k;
    w->source = *s;
    err e = ERR_NONE;
    if (s->bias && !(w->bias = cpu_alloc(s->n * sizeof(float)))) e = err_sys(ENOMEM, "engine");
    if (w->bias) memcpy(w->bias, s->bias, s->n * sizeof(float));
    if (!err_is(e) && (s->products & BACKEND_FORWARD)) e = pack_pieces(w, c, s, false);
    if (!err_is(e) && (s->products & BACKEND_BACKWARD)) e = pack_backward(w, c, s);
    if (err_is(e))
        cpu_weight_close(w);
    else
        *out = w;
    return e;
}
