/* Products with the frozen weights, by oneDNN. A weight is packed once, in oneDNN's own blocked
 * layout, for each of its two products; a head in slices of the vocabulary, so that logits need not
 * exist whole. Primitives depend on shapes alone and are shared by all layers; numbers of rows are
 * rounded up so that there are few. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_vector.h"

#include <dnnl.h>
#include <errno.h>
#include <omp.h>
#include <stdlib.h>

enum { PIECE = 1536, WHOLE_MAX = 32768, PRIMITIVES = 192, SHARE = 128, PACK_ROWS = 512 };

struct piece { /* rows [first, first + count) of W */
    size_t first, count;
    dnnl_memory_desc_t md;
    void *data;
};
struct backend_weight {
    size_t n, k;
    size_t pieces[2]; /* forward, back */
    struct piece *piece[2];
    bool shared; /* the backward pieces are the forward ones, read the other way */
    float *bias; /* (n), or NULL */
};

struct shape_key { /* y (rows, n) = x (rows, k) w (k, n) */
    int64_t rows, n, k, ldx, ldy;
    int32_t xtype, ytype, add, bias;
};
struct primitive {
    struct shape_key key;
    dnnl_memory_desc_t md[4]; /* x, w, y, bias */
    dnnl_primitive_t primitive;
    dnnl_memory_desc_t pad; /* its scratchpad */
    uint64_t used;
};
struct worker { /* what one thread executes with */
    dnnl_stream_t stream;
    void *pad;
    size_t pad_bytes;
};
struct cpu_primitives {
    dnnl_engine_t engine;
    struct worker *worker; /* (threads) */
    int threads;
    uint64_t clock;
    size_t count;
    struct primitive one[PRIMITIVES];
};

static err dnnl_check(dnnl_status_t s, const char *what)
{
    if (s == dnnl_success) return ERR_NONE;
    return err_make(ERR_MACHINE, "oneDNN: %s failed (status %d)", what, (int)s);
}

bool cpu_has_bf16(void)
{
    dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    return isa == dnnl_cpu_isa_avx512_core_bf16 || isa == dnnl_cpu_isa_avx512_core_amx;
}

void cpu_primitives_close(struct cpu_primitives *p)
{
    if (!p) return;
    for (size_t i = 0; i < p->count; i++)
        dnnl_primitive_destroy(p->one[i].primitive);
    for (int i = 0; p->worker && i < p->threads; i++) {
        if (p->worker[i].stream) dnnl_stream_destroy(p->worker[i].stream);
        free(p->worker[i].pad);
    }
    free(p->worker);
    if (p->engine) dnnl_engine_destroy(p->engine);
    free(p);
}

err cpu_primitives_open(struct cpu_primitives **out, const struct backend_context *c)
{
    struct cpu_primitives *p = calloc(1, sizeof *p);
    if (!p) return err_sys(ENOMEM, "engine");
    p->threads = c->threads;
    err e = dnnl_check(dnnl_engine_create(&p->engine, dnnl_cpu, 0), "engine");
    p->worker = calloc((size_t)p->threads, sizeof *p->worker);
    if (!err_is(e) && !p->worker) e = err_sys(ENOMEM, "engine");
    for (int i = 0; i < p->threads && !err_is(e); i++)
        e = dnnl_check(
            dnnl_stream_create(&p->worker[i].stream, p->engine, dnnl_stream_default_flags),
            "stream");
    if (err_is(e))
        cpu_primitives_close(p);
    else
        *out = p;
    return e;
}

static dnnl_data_type_t dnnl_type(int32_t t)
{
    return t == DTYPE_F32 ? dnnl_f32 : dnnl_bf16;
}

/* The descriptor of a matmul; `weights` NULL lets oneDNN choose its layout. */
static err describe(dnnl_primitive_desc_t *out, struct primitive *p, dnnl_engine_t engine,
                    const dnnl_memory_desc_t *weights)
{
    const struct shape_key *key = &p->key;
    dnnl_dims_t dx = {key->rows, key->k}, dw = {key->k, key->n}, dy = {key->rows, key->n};
    dnnl_dims_t sx = {key->ldx, 1}, sy = {key->ldy, 1}, db = {1, key->n};
    dnnl_status_t s = dnnl_memory_desc_init_by_strides(&p->md[0], 2, dx, dnnl_type(key->xtype), sx);
    if (weights)
        p->md[1] = *weights;
    else
        s |= dnnl_memory_desc_init_by_tag(&p->md[1], 2, dw, dnnl_type(key->xtype),
                                          dnnl_format_tag_any);
    s |= dnnl_memory_desc_init_by_strides(&p->md[2], 2, dy, dnnl_type(key->ytype), sy);
    s |= dnnl_memory_desc_init_by_tag(&p->md[3], 2, db, dnnl_f32, dnnl_ab);
    dnnl_matmul_desc_t d;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    s |= dnnl_matmul_desc_init(&d, &p->md[0], &p->md[1], key->bias ? &p->md[3] : NULL, &p->md[2]);
    s |= dnnl_primitive_attr_create(&attr);
    s |= dnnl_primitive_attr_set_fpmath_mode(attr, dnnl_fpmath_mode_strict);
    s |= dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    s |= dnnl_post_ops_create(&ops);
    if (key->add) s |= dnnl_post_ops_append_sum(ops, 1.0f);
    s |= dnnl_primitive_attr_set_post_ops(attr, ops);
    if (s == dnnl_success) s = dnnl_primitive_desc_create(out, &d, attr, engine, NULL);
    if (ops) dnnl_post_ops_destroy(ops);
    if (attr) dnnl_primitive_attr_destroy(attr);
    return dnnl_check(s, "matmul");
}

/* The primitive of a shape, made when it is new, in place of the one used least recently. */
static err primitive_find(struct primitive **out, struct cpu_primitives *all,
                          const struct shape_key *key, const dnnl_memory_desc_t *weights)
{
    size_t oldest = 0;
    all->clock++;
    for (size_t i = 0; i < all->count; i++) {
        struct primitive *p = &all->one[i];
        if (!memcmp(&p->key, key, sizeof *key) && dnnl_memory_desc_equal(&p->md[1], weights)) {
            p->used = all->clock;
            *out = p;
            return ERR_NONE;
        }
        if (p->used < all->one[oldest].used) oldest = i;
    }
    struct primitive fresh = {.key = *key, .used = all->clock};
    dnnl_primitive_desc_t pd = NULL;
    TRY(describe(&pd, &fresh, all->engine, weights));
    fresh.pad = *dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    err e = dnnl_check(dnnl_primitive_create(&fresh.primitive, pd), "matmul");
    dnnl_primitive_desc_destroy(pd);
    if (err_is(e)) return e;
    if (all->count < PRIMITIVES)
        oldest = all->count++;
    else
        dnnl_primitive_destroy(all->one[oldest].primitive);
    all->one[oldest] = fresh;
    *out = &all->one[oldest];
    return ERR_NONE;
}

/* Runs one share of the rows with what a thread has of its own. */
static dnnl_status_t execute(const struct cpu_primitives *all, const struct worker *worker,
                             const struct primitive *p, void *const data[5])
{
    static const int name[5] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_BIAS,
                                DNNL_ARG_SCRATCHPAD};
    const dnnl_memory_desc_t *md[5] = {&p->md[0], &p->md[1], &p->md[2], &p->md[3], &p->pad};
    dnnl_exec_arg_t arg[5];
    dnnl_status_t s = dnnl_success;
    int count = 0;
    for (int i = 0; i < 5 && s == dnnl_success; i++) {
        if (!data[i]) continue;
        arg[count].arg = name[i];
        s = dnnl_memory_create(&arg[count].memory, md[i], all->engine, data[i]);
        if (s == dnnl_success) count++;
    }
    if (s == dnnl_success) s = dnnl_primitive_execute(p->primitive, worker->stream, count, arg);
    if (s == dnnl_success) s = dnnl_stream_wait(worker->stream);
    for (int i = 0; i < count; i++)
        dnnl_memory_destroy(arg[i].memory);
    return s;
}

static err reserve_pads(struct cpu_primitives *all, size_t bytes)
{
    for (int i = 0; i < all->threads; i++) {
        struct worker *w = &all->worker[i];
        if (w->pad_bytes >= bytes) continue;
        free(w->pad);
        w->pad = cpu_alloc(bytes);
        w->pad_bytes = w->pad ? bytes : 0;
        if (!w->pad) return err_sys(ENOMEM, "engine: %zu bytes of scratch", bytes);
    }
    return ERR_NONE;
}

/* Rows are shared out here, always the same number to a share, and each share runs on one thread:
 * left to itself, oneDNN divides some sums by the number of threads and of rows, and the bits
 * follow. */
static err multiply(struct backend_context *c, const struct shape_key *key, const struct piece *w,
                    void *pointer[3] /* x, y, bias */)
{
    struct cpu_primitives *all = c->primitives;
    int64_t share = key->rows < SHARE ? key->rows : SHARE, shares;
    struct shape_key part = *key, last = *key;
    shares = (key->rows + share - 1) / share;
    part.rows = share;
    last.rows = key->rows - (shares - 1) * share;
    struct primitive *p = NULL, *q = NULL, first, end;
    omp_set_num_threads(1); /* primitives are made for as many as they may use */
    err e = primitive_find(&p, all, &part, &w->md);
    if (!err_is(e)) {
        first = *p; /* the next search may move it out */
        e = primitive_find(&q, all, &last, &w->md);
    }
    omp_set_num_threads(all->threads);
    if (err_is(e)) return e;
    end = *q;
    size_t pad = dnnl_memory_desc_get_size(&first.pad),
           pad_end = dnnl_memory_desc_get_size(&end.pad);
    TRY(reserve_pads(all, (pad > pad_end ? pad : pad_end) + 64));
    size_t x_row = (size_t)key->ldx * (key->xtype == DTYPE_F32 ? 4 : 2);
    size_t y_row = (size_t)key->ldy * (key->ytype == DTYPE_F32 ? 4 : 2);
    int failed = dnnl_success;
#pragma omp parallel for num_threads(c->threads) schedule(static, 1)                               \
    reduction(|                                                                                    \
              : failed) if (shares > 1)
    for (int64_t i = 0; i < shares; i++) {
        const struct worker *worker = &all->worker[cpu_thread()];
        size_t row = (size_t)(i * share);
        void *data[5] = {(char *)pointer[0] + row * x_row, w->data,
                         (char *)pointer[1] + row * y_row, pointer[2], worker->pad};
        failed |= (int)execute(all, worker, i == shares - 1 ? &end : &first, data);
    }
    return dnnl_check((dnnl_status_t)failed, "matmul");
}

/* In bfloat16 oneDNN sums in another order for very few rows; in float32 it does not, and time
 * would be lost. */
static size_t round_rows(size_t rows, enum dtype type)
{
    return rows < 8 && type == DTYPE_F32 ? rows
                                         : (rows + BACKEND_ROWS - 1) / BACKEND_ROWS * BACKEND_ROWS;
}

/* y (rows, count) of one piece, dense: oneDNN's fast kernels take no other. */
void cpu_linear_slice(struct backend_context *c, struct mat y, struct mat x,
                      const struct backend_weight *w, size_t slice, const struct linear_rows *r)
{
    if (!r->rows || err_is(c->first)) return;
    const struct piece *p = &w->piece[r->back][slice];
    int64_t n = (int64_t)(r->back ? w->k : p->count), k = (int64_t)(r->back ? p->count : w->k);
    bool bias = !r->back && w->bias;
    struct shape_key key = {(int64_t)round_rows(r->rows, x.type),
                            n,
                            k,
                            (int64_t)x.ld,
                            (int64_t)y.ld,
                            x.type,
                            y.type,
                            r->add,
                            bias};
    void *pointer[3] = {x.data, y.data, bias ? w->bias + p->first : NULL};
    err e = multiply(c, &key, p, pointer);
    if (err_is(e)) cpu_fail(c, e);
}

void cpu_linear(struct backend_context *c, struct mat y, struct mat x,
                const struct backend_weight *w, size_t rows, bool add)
{
    double since = cpu_clock();
    struct linear_rows r = {rows, add, false};
    if (w->pieces[0] == 1) {
        cpu_linear_slice(c, y, x, w, 0, &r);
    } else { /* a head */
        REQUIRE(!add);
        float *scratch = cpu_scratch(c, round_rows(rows, x.type) * PIECE * sizeof(float));
        for (size_t i = 0; i < w->pieces[0] && scratch; i++) {
            const struct piece *p = &w->piece[0][i];
            struct mat part = {scratch, DTYPE_F32, p->count};
            cpu_linear_slice(c, part, x, w, i, &r);
            backend_cpu.convert(c, mat_at(y, 0, p->first), part, rows, p->count, 1.0f);
        }
    }
    cpu_count(c, OP_LINEAR, since);
}

void cpu_linear_back(struct backend_context *c, struct mat dx, struct mat dy,
                     const struct backend_weight *w, size_t rows, bool add)
{
    double since = cpu_clock();
    REQUIRE(w->pieces[1] == 1);
    struct linear_rows r = {rows, add, true};
    cpu_linear_slice(c, dx, dy, w, 0, &r);
    cpu_count(c, OP_LINEAR_BACK, since);
}

size_t cpu_weight_rows(const struct backend_weight *w)
{
    return w->n;
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

/* From rows of W as they are, (count, k) of `type`, to the layout of `p`. Forward reads them as W^T
 * (k, count). */
static err reorder(struct piece *p, const struct backend_context *c, void *rows, size_t k,
                   bool back)
{
    struct cpu_primitives *all = c->primitives;
    dnnl_memory_desc_t from;
    dnnl_dims_t dims = {(int64_t)k, (int64_t)p->count};
    if (back) dims[0] = (int64_t)p->count, dims[1] = (int64_t)k;
    dnnl_memory_t a = NULL, b = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t primitive = NULL;
    omp_set_num_threads(all->threads);
    dnnl_status_t s = dnnl_memory_desc_init_by_tag(&from, 2, dims, dnnl_type(c->precision),
                                                   back ? dnnl_ab : dnnl_ba);
    s |= dnnl_memory_create(&a, &from, all->engine, rows);
    s |= dnnl_memory_create(&b, &p->md, all->engine, p->data);
    if (s == dnnl_success)
        s = dnnl_reorder_primitive_desc_create(&pd, &from, all->engine, &p->md, all->engine, NULL);
    if (s == dnnl_success) s = dnnl_primitive_create(&primitive, pd);
    if (s == dnnl_success) {
        dnnl_exec_arg_t arg[2] = {{DNNL_ARG_FROM, a}, {DNNL_ARG_TO, b}};
        s = dnnl_primitive_execute(primitive, all->worker[0].stream, 2, arg);
        s |= dnnl_stream_wait(all->worker[0].stream);
    }
    if (primitive) dnnl_primitive_destroy(primitive);
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (a) dnnl_memory_destroy(a);
    if (b) dnnl_memory_destroy(b);
    return dnnl_check(s, "reorder");
}

/* A float32 head is large and used once a pass: both of its products read the rows as they are. */
static bool is_plain(const struct backend_context *c, const struct weight_source *s)
{
    return c->precision == DTYPE_F32 && s->n > WHOLE_MAX;
}

static err plain_layout(struct piece *p, size_t k)
{
    dnnl_dims_t dims = {(int64_t)k, (int64_t)p->count};
    TRY(dnnl_check(dnnl_memory_desc_init_by_tag(&p->md, 2, dims, dnnl_f32, dnnl_ba), "layout"));
    p->data = cpu_alloc(p->count * k * sizeof(float));
    return p->data ? ERR_NONE : err_sys(ENOMEM, "engine: a packed weight");
}

/* The layout oneDNN likes for this piece with many rows. */
static err piece_layout(struct piece *p, const struct backend_context *c, size_t k, bool back)
{
    struct shape_key key = {.rows = 1024,
                            .n = (int64_t)(back ? k : p->count),
                            .k = (int64_t)(back ? p->count : k),
                            .xtype = c->precision,
                            .ytype = c->precision};
    key.ldx = key.k;
    key.ldy = key.n;
    struct primitive trial = {.key = key};
    dnnl_primitive_desc_t pd = NULL;
    TRY(describe(&pd, &trial, c->primitives->engine, NULL));
    p->md = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    dnnl_primitive_desc_destroy(pd);
    p->data = cpu_alloc(dnnl_memory_desc_get_size(&p->md));
    return p->data ? ERR_NONE : err_sys(ENOMEM, "engine: a packed weight");
}

static err pack_pieces(struct backend_weight *w, struct backend_context *c,
                       const struct weight_source *s, bool back)
{
    size_t count = s->n > WHOLE_MAX ? PIECE : s->n, pieces = (s->n + count - 1) / count;
    w->piece[back] = calloc(pieces, sizeof *w->piece[back]);
    size_t size = c->precision == DTYPE_F32 ? 4 : 2;
    size_t wide_bytes = PACK_ROWS * s->k * sizeof(float);
    float *wide = cpu_scratch(c, wide_bytes + count * s->k * size); /* freed blocks would pile up */
    char *rows = (char *)wide + wide_bytes;
    err e = ERR_NONE;
    if (!w->piece[back] || !wide) e = err_sys(ENOMEM, "engine: packing a weight");
    for (size_t first = 0; first < s->n && !err_is(e); first += count) {
        struct piece *p = &w->piece[back][w->pieces[back]++];
        p->first = first;
        p->count = s->n - first < count ? s->n - first : count;
        for (size_t i = 0; i < p->count; i += PACK_ROWS) {
            size_t n = p->count - i < PACK_ROWS ? p->count - i : PACK_ROWS;
            s->rows(wide, s->user, first + i, n);
            struct mat from = {wide, DTYPE_F32, s->k};
            struct mat to = {rows + i * s->k * size, c->precision, s->k};
            backend_cpu.convert(c, to, from, n, s->k, 1.0f);
        }
        e = is_plain(c, s) ? plain_layout(p, s->k) : piece_layout(p, c, s->k, back);
        if (!err_is(e)) e = reorder(p, c, rows, s->k, back);
    }
    return e;
}

static err share_pieces(struct backend_weight *w)
{
    if (!(w->piece[1] = calloc(w->pieces[0], sizeof *w->piece[1])))
        return err_sys(ENOMEM, "engine: packing a weight");
    for (size_t i = 0; i < w->pieces[0]; i++) {
        struct piece *p = &w->piece[1][i];
        *p = w->piece[0][i];
        dnnl_dims_t dims = {(int64_t)p->count, (int64_t)w->k};
        dnnl_status_t s = dnnl_memory_desc_init_by_tag(&p->md, 2, dims, dnnl_f32, dnnl_ab);
        TRY(dnnl_check(s, "layout"));
    }
    w->pieces[1] = w->pieces[0];
    return ERR_NONE;
}

void cpu_weight_close(struct backend_weight *w)
{
    if (!w) return;
    for (int back = 0; back < 2; back++) {
        for (size_t i = 0; i < w->pieces[back] && !(back && w->shared); i++)
            free(w->piece[back][i].data);
        free(w->piece[back]);
    }
    free(w->bias);
    free(w);
}

err cpu_weight_pack(struct backend_weight **out, struct backend_context *c,
                    const struct weight_source *s)
{
    struct backend_weight *w = calloc(1, sizeof *w);
    if (!w) return err_sys(ENOMEM, "engine");
    w->n = s->n;
    w->k = s->k;
    err e = ERR_NONE;
    if (s->bias && !(w->bias = cpu_alloc(s->n * sizeof(float)))) e = err_sys(ENOMEM, "engine");
    if (w->bias) memcpy(w->bias, s->bias, s->n * sizeof(float));
    if (!err_is(e) && (s->products & BACKEND_FORWARD)) e = pack_pieces(w, c, s, false);
    w->shared = is_plain(c, s) && w->pieces[0] > 0;
    if (!err_is(e) && (s->products & BACKEND_BACKWARD))
        e = w->shared ? share_pieces(w) : pack_pieces(w, c, s, true);
    if (err_is(e))
        cpu_weight_close(w);
    else
        *out = w;
    return e;
}
