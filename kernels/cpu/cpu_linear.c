/* Products with the frozen weights, by oneDNN. Numbers of rows are rounded up to keep the number of
 * shapes small, since each shape needs a primitive of its own. */
#include "kernels/cpu/cpu_weight.h"

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
    const struct pack_shape *s = &w->slice[slice].shape;
    return (struct shape_key){.rows = (int64_t)(r->few ? r->rows : round_rows(r->rows)),
                              .n = (int64_t)(r->back ? s->k : s->n),
                              .k = (int64_t)(r->back ? s->n : s->k),
                              .ldx = (int64_t)x.ld,
                              .ldy = (int64_t)y.ld,
                              .xtype = x.type,
                              .ytype = y.type,
                              .add = r->add,
                              .bias = !r->back && w->bias};
}

static struct onednn_operands operands(const struct backend_context *c, struct mat y, struct mat x,
                                       const struct backend_weight *w, size_t slice, bool back)
{
    const struct weight_slice *p = &w->slice[slice];
    return (struct onednn_operands){.x = x.data,
                                    .y = y.data,
                                    .w = cpu_operand_data(c, w, slice, back),
                                    .w_layout = &p->layout[back],
                                    .bias = !back && w->bias ? w->bias + p->first : NULL};
}

/* y (rows, count) of one slice is dense, because the fast kernels of oneDNN require it. */
void cpu_linear_slice(struct backend_context *c, struct mat y, struct mat x,
                      const struct backend_weight *w, size_t slice, const struct linear_rows *r)
{
    if (!r->rows || err_is(c->first)) return;
    err e = cpu_operand_reserve(c, w, slice);
    if (!err_is(e) && cpu_operand_is_made(w, slice, r->back)) {
#pragma omp parallel num_threads(c->threads)
        cpu_operand_make(c, w, slice, r->back);
    }
    struct shape_key key = slice_key(y, x, w, slice, r);
    struct onednn_operands o = operands(c, y, x, w, slice, r->back);
    if (!err_is(e)) e = onednn_multiply(c, &key, &o);
    if (err_is(e)) cpu_fail(c, e);
}

void cpu_slice_prepare(struct backend_context *c, struct mat y, struct mat x,
                       const struct backend_weight *w, size_t slice, const struct linear_rows *r)
{
    struct shape_key key = slice_key(y, x, w, slice, r);
    err e = onednn_prepare(c, &key, &w->slice[slice].layout[r->back]);
    if (!err_is(e)) e = cpu_operand_reserve(c, w, slice);
    if (err_is(e)) cpu_fail(c, e);
}

void cpu_slice_make(const struct backend_context *c, const struct backend_weight *w, size_t slice,
                    bool back)
{
    if (!cpu_operand_is_made(w, slice, back)) return;
    cpu_operand_make(c, w, slice, back);
#pragma omp barrier
}

bool cpu_slice_run(struct backend_context *c, struct mat y, struct mat x,
                   const struct backend_weight *w, size_t slice, const struct linear_rows *r)
{
    struct shape_key key = slice_key(y, x, w, slice, r);
    struct onednn_operands o = operands(c, y, x, w, slice, r->back);
    return onednn_run(c, &key, &o) == dnnl_success;
}

void cpu_dense(struct backend_context *c, struct mat y, struct mat x,
               const struct backend_weight *w, size_t rows, bool add)
{
    double since = cpu_clock();
    struct linear_rows r = {
        .rows = rows, .add = add, .few = rows < BACKEND_FEW && x.type == DTYPE_F32};
    if (w->slices == 1) {
        cpu_linear_slice(c, y, x, w, 0, &r);
    } else { /* a head, packed in slices */
        REQUIRE(!add);
        float *scratch = cpu_scratch(c, round_rows(rows) * w->slice[0].shape.n * sizeof(float));
        for (size_t i = 0; i < w->slices && scratch; i++) {
            const struct weight_slice *p = &w->slice[i];
            struct mat part = {scratch, DTYPE_F32, p->shape.n};
            cpu_linear_slice(c, part, x, w, i, &r);
            cpu_convert(c, mat_at(y, 0, p->first), part, rows, p->shape.n, 1.0f);
        }
    }
    REQUIRE(w->source.cap == 0.0f || y.type == DTYPE_F32);
    for (size_t i = 0; w->source.cap > 0.0f && i < rows; i++)
        cpu_cap(mat_at(y, i, 0).data, w->source.n, 1.0f, w->source.cap);
    cpu_count(c, OP_LINEAR, since);
}

void cpu_dense_back(struct backend_context *c, struct mat dx, struct mat dy,
                    const struct backend_weight *w, size_t rows, bool add)
{
    double since = cpu_clock();
    REQUIRE(w->slices == 1);
    struct linear_rows r = {.rows = rows, .add = add, .back = true};
    cpu_linear_slice(c, dx, dy, w, 0, &r);
    cpu_count(c, OP_LINEAR_BACK, since);
}
