/* Linear operations, and the frozen weights as they lie on the device. */
#include "kernels/cuda/cuda_product.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { PACK_BYTES = 64 << 20 }; /* bytes of a file that are converted at once */

void cuda_linear(struct backend_context *c, struct mat y, struct mat x,
                 const struct backend_weight *w, const struct low_rank_site *l,
                 const struct backend_batch *b, size_t rows, bool add)
{
    double since = cuda_begin(c);
    struct cuda_applied low = cuda_low_rank_forward(c, y, x, w, l, b, rows, add);
    struct cuda_product p = {rows, false, add || low.set, 0, 0, low.margin};
    cuda_multiply(c, y, x, w, &p);
    if (w->cap > 0.0f) cuda_cap(c, y, rows, w->n, w->cap);
    cuda_done(c, OP_LINEAR, since);
}

void cuda_linear_back(struct backend_context *c, struct mat dx, struct mat dy,
                      const struct backend_weight *w, const struct low_rank_site *l,
                      const struct backend_batch *b, size_t rows)
{
    double since = cuda_begin(c);
    struct cuda_applied low = cuda_low_rank_back(c, dx, dy, w, l, b, rows);
    struct cuda_product p = {rows, true, low.set, 0, 0, low.margin};
    if (dx.data) cuda_multiply(c, dx, dy, w, &p);
    cuda_done(c, OP_LINEAR_BACK, since);
}

/* ---- Packing */

void cuda_weight_close(struct backend_weight *w)
{
    if (!w) return;
    cuda_give(w->context, w->packed.data);
    cuda_give(w->context, w->kept);
    cuda_give(w->context, w->bias);
    free(w);
}

static err part_bytes(size_t *out, const struct weight_part *p, size_t k)
{
    size_t row;
    if (!dtype_bytes(&row, p->type, k))
        return err_make(ERR_INPUT, "cuda: a weight of type %s has rows of %zu values",
                        dtype_name(p->type), k);
    *out = p->rows * row;
    return ERR_NONE;
}

/* Converts a part while it is copied, in pieces, because a whole head can have gigabytes. Rows that
 * are permuted stay within their head, so a piece is a number of whole heads. */
static err pack_part(struct backend_context *c, struct mat to, const struct weight_part *p,
                     size_t k)
{
    size_t bytes = 0, unit = p->rope_heads ? p->rows / p->rope_heads : 1;
    TRY(part_bytes(&bytes, p, k));
    size_t row_bytes = p->rows ? bytes / p->rows : 0, units = row_bytes * unit;
    size_t most = units && units < PACK_BYTES ? PACK_BYTES / units * unit : unit;
    for (size_t row = 0; row < p->rows; row += most) {
        struct weight_part piece = *p;
        piece.rows = (uint32_t)(p->rows - row < most ? p->rows - row : most);
        if (p->rope_heads) piece.rope_heads = (uint32_t)(piece.rows / unit);
        void *staged = cuda_scratch(c, piece.rows * row_bytes);
        if (!staged) break;
        cuda_good(c,
                  cudaMemcpyAsync(staged, (const char *)p->data + row * row_bytes,
                                  piece.rows * row_bytes, cudaMemcpyHostToDevice, c->stream),
                  "copying a weight to the device");
        cuda_dequantise(c, mat_at(to, row, 0), staged, &piece, k, 0, piece.rows);
    }
    return ERR_NONE;
}

/* Rows below W and columns to its right, for the factors of an adapter. */
static size_t margin_of(const struct weight_source *s)
{
    bool both = (s->products & BACKEND_FORWARD) && (s->products & BACKEND_BACKWARD);
    return both && !(s->products & (BACKEND_HEAD | BACKEND_EMBED)) ? (size_t)CUDA_MARGIN : 0;
}

static size_t packed_bytes(const struct backend_context *c, const struct weight_source *s)
{
    size_t margin = margin_of(s);
    return (s->n + margin) * cuda_padded(s->k + margin) * cuda_size(c->precision);
}

static err pack_all(struct backend_weight *w, struct backend_context *c,
                    const struct weight_source *s)
{
    size_t row = 0;
    w->margin = margin_of(s);
    w->packed.type = c->precision;
    w->packed.ld = cuda_padded(s->k + w->margin);
    TRY(cuda_take(&w->packed.data, c, packed_bytes(c, s)));
    for (size_t i = 0; i < s->parts; i++) {
        TRY(pack_part(c, mat_at(w->packed, row, 0), &s->part[i], s->k));
        row += s->part[i].rows;
    }
    REQUIRE(row == s->n);
    return ERR_NONE;
}

/* Copies the bytes of the file; parts start at multiples of 256 bytes. */
static err keep_all(struct backend_weight *w, struct backend_context *c,
                    const struct weight_source *s)
{
    size_t at[WEIGHT_PARTS_MAX], bytes[WEIGHT_PARTS_MAX], all = 0;
    for (size_t i = 0; i < s->parts; i++) {
        TRY(part_bytes(&bytes[i], &s->part[i], s->k));
        at[i] = all;
        all += (bytes[i] + 255) / 256 * 256;
    }
    TRY(cuda_take(&w->kept, c, all));
    for (size_t i = 0; i < s->parts; i++) {
        w->part[i].data = (char *)w->kept + at[i];
        cuda_good(c,
                  cudaMemcpyAsync((char *)w->kept + at[i], s->part[i].data, bytes[i],
                                  cudaMemcpyHostToDevice, c->stream),
                  "copying a weight to the device");
    }
    return ERR_NONE;
}

/* Parts in the precision need no conversion, so keeping them as in the file would save nothing. */
static bool keeps(const struct backend_context *c, const struct weight_source *s)
{
    bool other = false;
    for (size_t i = 0; i < s->parts; i++)
        other |= s->part[i].type != c->precision;
    return (s->products & BACKEND_KEEP) && other;
}

/* The products of a weight are tried in memory of their own, which is given back then. The results
 * of a head are float32. */
void cuda_weight_bytes(struct backend_weight_bytes *out, const struct backend_context *c,
                       const struct weight_source *s)
{
    bool kept = keeps(c, s), head = s->products & BACKEND_HEAD;
    struct blas_kind forward = {}, back = {};
    forward.n = back.k = s->n;
    forward.k = back.n = s->k;
    forward.in = back.in = c->precision;
    forward.out = back.out = head ? DTYPE_F32 : c->precision;
    out->held = kept ? 0 : packed_bytes(c, s);
    for (size_t i = 0; i < s->parts && kept; i++) {
        size_t bytes = 0;
        if (!err_is(part_bytes(&bytes, &s->part[i], s->k))) out->held += (bytes + 255) / 256 * 256;
    }
    out->held += s->bias ? s->n * sizeof(float) : 0;
    out->scratch = kept ? s->n * cuda_padded(s->k) * cuda_size(c->precision) : 0;
    size_t trial = s->products & BACKEND_FORWARD ? cuda_trial_bytes(c, &forward) : 0;
    size_t other = s->products & BACKEND_BACKWARD ? cuda_trial_bytes(c, &back) : 0;
    out->scratch += trial > other ? trial : other;
}

/* Waits, so that another context may use the weight at once, and so that a failure of its copies is
 * known. */
err cuda_weight_pack(struct backend_weight **out, struct backend_context *c,
                     const struct weight_source *s)
{
    cuda_begin(c);
    REQUIRE(s->parts <= WEIGHT_PARTS_MAX);
    struct backend_weight *w = (struct backend_weight *)calloc(1, sizeof *w);
    if (!w) return err_sys(ENOMEM, "cuda");
    static uint64_t weights;
    bool good = !err_is(c->first);
    w->context = c;
    w->number = __atomic_add_fetch(&weights, 1, __ATOMIC_RELAXED);
    w->n = s->n;
    w->k = s->k;
    w->cap = s->cap;
    w->parts = s->parts;
    for (size_t i = 0; i < s->parts; i++) {
        w->part[i] = s->part[i];
        w->part[i].data = NULL;
    }
    err e = keeps(c, s) ? keep_all(w, c, s) : pack_all(w, c, s);
    if (!err_is(e) && s->bias) e = cuda_take(&w->bias, c, s->n * sizeof(float));
    if (!err_is(e) && s->bias) cuda_send(c, w->bias, s->bias, s->n * sizeof(float));
    cuda_wait(c);
    if (!err_is(e)) e = cuda_new_failure(c, good);
    if (err_is(e))
        cuda_weight_close(w);
    else
        *out = w;
    return e;
}
