#include "kernels/cpu/cpu_onednn.h"

#include <errno.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { PRIMITIVES = 192 };

struct primitive {
    struct shape_key key;
    dnnl_memory_desc_t md[4]; /* x, w, y, bias */
    dnnl_primitive_t primitive;
    dnnl_memory_desc_t pad; /* its scratchpad */
    uint64_t used;
};
struct worker { /* the stream and scratchpad of one thread */
    dnnl_stream_t stream;
    void *pad;
    size_t pad_bytes;
};
struct cpu_primitives {
    dnnl_engine_t engine;
    struct worker *worker; /* (threads) */
    int threads;
    void *room[ONEDNN_ROOMS];
    size_t room_bytes[ONEDNN_ROOMS];
    uint64_t clock;
    size_t count;
    struct primitive one[PRIMITIVES];
};

err onednn_check(dnnl_status_t s, const char *what)
{
    if (s == dnnl_success) return ERR_NONE;
    return err_make(ERR_MACHINE, "oneDNN: %s failed (status %d)", what, (int)s);
}

bool cpu_bf16_is_faster(void)
{
    return (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core_amx) ==
           dnnl_cpu_isa_avx512_core_amx;
}

bool cpu_can_bf16(void)
{
    return (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core) == dnnl_cpu_isa_avx512_core;
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
    for (int i = 0; i < ONEDNN_ROOMS; i++)
        free(p->room[i]);
    if (p->engine) dnnl_engine_destroy(p->engine);
    free(p);
}

err cpu_primitives_open(struct cpu_primitives **out, const struct backend_context *c)
{
    struct cpu_primitives *p = calloc(1, sizeof *p);
    if (!p) return err_sys(ENOMEM, "engine");
    p->threads = c->threads;
    err e = onednn_check(dnnl_engine_create(&p->engine, dnnl_cpu, 0), "engine");
    p->worker = calloc((size_t)p->threads, sizeof *p->worker);
    if (!err_is(e) && !p->worker) e = err_sys(ENOMEM, "engine");
    for (int i = 0; i < p->threads && !err_is(e); i++)
        e = onednn_check(
            dnnl_stream_create(&p->worker[i].stream, p->engine, dnnl_stream_default_flags),
            "stream");
    if (err_is(e))
        cpu_primitives_close(p);
    else
        *out = p;
    return e;
}

dnnl_data_type_t onednn_type(int32_t t)
{
    return t == DTYPE_F32 ? dnnl_f32 : dnnl_bf16;
}

static err describe(dnnl_primitive_desc_t *out, struct primitive *p, dnnl_engine_t engine,
                    const dnnl_memory_desc_t *weights)
{
    const struct shape_key *key = &p->key;
    dnnl_dims_t dx = {key->rows, key->k}, dy = {key->rows, key->n};
    dnnl_dims_t sx = {key->ldx, 1}, sy = {key->ldy, 1}, db = {1, key->n};
    dnnl_status_t s =
        dnnl_memory_desc_init_by_strides(&p->md[0], 2, dx, onednn_type(key->xtype), sx);
    p->md[1] = *weights;
    s |= dnnl_memory_desc_init_by_strides(&p->md[2], 2, dy, onednn_type(key->ytype), sy);
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
    return onednn_check(s, "matmul");
}

/* Finds the primitive of a shape. A new one replaces the least recently used one. */
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
    err e = onednn_check(dnnl_primitive_create(&fresh.primitive, pd), "matmul");
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

/* Runs one share of the rows with the stream and scratchpad of the thread. */
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

/* Rows are divided here into shares of a constant size, each of which runs on one thread. If oneDNN
 * divided the work, some sums would depend on the number of threads and rows, and the result would
 * have other bits. */
err onednn_multiply(struct backend_context *c, const struct shape_key *key,
                    const struct onednn_operands *o)
{
    struct cpu_primitives *all = c->primitives;
    int64_t share = key->rows < CPU_SHARE ? key->rows : CPU_SHARE, shares;
    struct shape_key part = *key, last = *key;
    shares = (key->rows + share - 1) / share;
    part.rows = share;
    last.rows = key->rows - (shares - 1) * share;
    struct primitive *p = NULL, *q = NULL, first, end;
    omp_set_num_threads(1); /* a primitive is built for the current number of threads */
    err e = primitive_find(&p, all, &part, o->w_layout);
    if (!err_is(e)) {
        first = *p; /* the next search may evict it */
        e = primitive_find(&q, all, &last, o->w_layout);
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
    omp_set_num_threads(1); /* without AVX-512 oneDNN reads the number of threads when it runs */
#pragma omp parallel for num_threads(c->threads) schedule(static, 1)                               \
    reduction(|                                                                                    \
              : failed) if (shares > 1)
    for (int64_t i = 0; i < shares; i++) {
        const struct worker *worker = &all->worker[cpu_thread()];
        size_t row = (size_t)(i * share);
        void *data[5] = {(char *)o->x + row * x_row, o->w, (char *)o->y + row * y_row, o->bias,
                         worker->pad};
        failed |= (int)execute(all, worker, i == shares - 1 ? &end : &first, data);
    }
    omp_set_num_threads(all->threads);
    return onednn_check((dnnl_status_t)failed, "matmul");
}

err onednn_prepare(struct backend_context *c, const struct shape_key *key,
                   const dnnl_memory_desc_t *w_layout)
{
    struct primitive *p = NULL;
    omp_set_num_threads(1);
    err e = primitive_find(&p, c->primitives, key, w_layout);
    omp_set_num_threads(c->threads);
    if (err_is(e)) return e;
    return reserve_pads(c->primitives, dnnl_memory_desc_get_size(&p->pad) + 64);
}

dnnl_status_t onednn_run(const struct backend_context *c, const struct shape_key *key,
                         const struct onednn_operands *o)
{
    const struct cpu_primitives *all = c->primitives;
    const struct worker *worker = &all->worker[cpu_thread()];
    void *data[5] = {o->x, o->w, o->y, o->bias, worker->pad};
    for (size_t i = 0; i < all->count; i++) {
        const struct primitive *p = &all->one[i];
        if (!memcmp(&p->key, key, sizeof *key) && dnnl_memory_desc_equal(&p->md[1], o->w_layout))
            return execute(all, worker, p, data);
    }
    return dnnl_invalid_arguments;
}

bool onednn_takes(const struct cpu_primitives *all, const struct shape_key *key,
                  const dnnl_memory_desc_t *w_layout)
{
    struct primitive trial = {.key = *key};
    dnnl_primitive_desc_t pd = NULL;
    const char *name = "";
    omp_set_num_threads(1);
    err e = describe(&pd, &trial, all->engine, w_layout);
    omp_set_num_threads(all->threads);
    if (err_is(e)) return false;
    dnnl_status_t s = dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, (void *)&name);
    bool fast = s == dnnl_success && strncmp(name, "ref", 3) != 0;
    dnnl_primitive_desc_destroy(pd);
    return fast;
}

err onednn_room(void **out, struct cpu_primitives *all, int number, size_t bytes)
{
    if (all->room_bytes[number] < bytes) {
        free(all->room[number]);
        all->room[number] = cpu_alloc(bytes);
        all->room_bytes[number] = all->room[number] ? bytes : 0;
        if (!all->room[number]) return err_sys(ENOMEM, "engine: %zu bytes of scratch", bytes);
    }
    *out = all->room[number];
    return ERR_NONE;
}

void *onednn_room_data(const struct cpu_primitives *all, int number)
{
    return all->room[number];
}
