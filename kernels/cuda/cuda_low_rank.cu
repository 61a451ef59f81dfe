/* The factors of adapters on the device, for any ranks and types. They are stored as the
 * products need them: all A one below the other, and for each module b = s B, or s B R, with the
 * carry beside it. Then
 *
 *   H = drop(x) A^T     y_m += H_m b^T     G_m = dy_m b     P_m = dy_m B     dx += drop(G A) */
#include "kernels/cuda/cuda_low_rank.cuh"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- Setting factors */

enum { SET_THREADS = 256, SET_BLOCKS = 32 };

/* Sets the factors that are not NULL, from float32 values on the device. With an R, b = s B R is
 * made from the new values, or from those that are kept. No thread reads what another one writes.
 * */
static __device__ __forceinline__ void set_module(const struct module_view &v, size_t k,
                                                  const float *a, const float *b, const float *r)
{
    size_t rank = v.m.rank, at = (size_t)blockIdx.x * SET_THREADS + threadIdx.x;
    size_t step = (size_t)SET_BLOCKS * SET_THREADS;
    for (size_t i = at; a && i < rank * k; i += step)
        store1(v.a, i / k, i % k, a[i]);
    if (!v.m.small) {
        for (size_t i = at; b && i < v.m.rows * rank; i += step)
            store1(v.b, i / rank, i % rank, b[i] * v.m.scale);
        return;
    }
    if (!b && !r) return;
    const float *from_b = b ? b : v.whole_b, *from_r = r ? r : v.r;
    for (size_t i = at; i < v.m.rows * rank; i += step) {
        if (b && v.plain_b.data) store1(v.plain_b, i / rank, i % rank, b[i]);
        float sum = 0.0f;
        for (size_t j = 0; j < rank; j++)
            sum += from_b[i / rank * rank + j] * from_r[j * rank + i % rank];
        store1(v.b, i / rank, i % rank, sum * v.m.scale);
        if (b) v.whole_b[i] = b[i];
    }
    for (size_t i = at; r && i < rank * rank; i += step)
        v.r[i] = r[i];
}

__global__ void __launch_bounds__(SET_THREADS)
    set_one_kernel(struct module_view v, size_t k, const float *a, const float *b, const float *r)
{
    set_module(v, k, a, b, r);
}

struct set_entry {
    const struct module_view *view;
    size_t k;
};

__global__ void __launch_bounds__(SET_THREADS)
    set_all_kernel(const struct set_entry *entry, const float *value)
{
    const struct module_view &v = *entry[blockIdx.y].view;
    unsigned trains = v.m.rank ? v.m.trains : 0;
    set_module(v, entry[blockIdx.y].k, trains & LOW_RANK_A ? value + v.m.a_at : NULL,
               trains & LOW_RANK_B ? value + v.m.b_at : NULL,
               v.m.small && (trains & LOW_RANK_R) ? value + v.m.r_at : NULL);
}

/* The table of the last low_rank_set(); a training calls it with the same factors each time. */
struct cuda_set {
    uint64_t *number; /* (count) of the factors, in their order */
    size_t count, entries;
    struct cuda_room table; /* (entries) struct set_entry */
};

void cuda_set_close(struct cuda_set *s)
{
    if (!s) return;
    (void)cudaFree(s->table.data);
    free(s->number);
    free(s);
}

size_t cuda_set_bytes(const struct cuda_set *s)
{
    return s ? s->table.bytes : 0;
}

static bool set_is(const struct cuda_set *s, struct backend_low_rank *const *all, size_t count)
{
    bool same = s->count == count;
    for (size_t i = 0; i < count && same; i++)
        same = s->number[i] == all[i]->number;
    return same;
}

/* After a recorded failure the table is empty. */
static void set_build(struct backend_context *c, struct backend_low_rank *const *all, size_t count)
{
    struct cuda_set *s = c->set;
    size_t entries = 0, at = 0;
    s->count = s->entries = 0;
    for (size_t i = 0; i < count; i++)
        entries += all[i]->modules;
    if (!entries || !cuda_grow(c, &s->table, entries * sizeof(struct set_entry))) return;
    free(s->number);
    s->number = (uint64_t *)malloc(count * sizeof *s->number);
    struct set_entry *table = (struct set_entry *)malloc(entries * sizeof *table);
    if (!s->number || !table) {
        free(table);
        cuda_fail(c, err_sys(ENOMEM, "cuda"));
        return;
    }
    for (size_t i = 0; i < count; i++) {
        s->number[i] = all[i]->number;
        for (uint32_t m = 0; m < all[i]->modules; m++)
            table[at++] = {all[i]->device + m, all[i]->k};
    }
    cuda_send(c, s->table.data, table, entries * sizeof *table);
    free(table);
    if (err_is(c->first)) return; /* the kernel must not follow pointers that were not copied */
    s->count = count;
    s->entries = entries;
}

void cuda_low_rank_set(struct backend_context *c, struct backend_low_rank *const *all, size_t count,
                       const float *value)
{
    double since = cuda_begin(c);
    if (!c->set && !(c->set = (struct cuda_set *)calloc(1, sizeof *c->set)))
        cuda_fail(c, err_sys(ENOMEM, "cuda"));
    if (c->set && !set_is(c->set, all, count)) set_build(c, all, count);
    if (c->set && c->set->entries)
        launch(set_all_kernel, dim3(SET_BLOCKS, (unsigned)c->set->entries), dim3(SET_THREADS), 0,
               c->stream, static_cast<const struct set_entry *>(c->set->table.data), value);
    cuda_done(c, OP_LOW_RANK, since);
}

void cuda_low_rank_load(struct backend_context *c, struct backend_low_rank *l, size_t module,
                        const struct low_rank_values *values)
{
    double since = cuda_begin(c);
    REQUIRE(module < l->modules);
    const struct module_view *v = &l->view[module];
    size_t rank = v->m.rank, rows = v->m.rows, carry = v->m.width - rank;
    const struct {
        const float *host;
        size_t n;
    } part[] = {{values->a, rank * l->k},
                {values->b, rows * rank},
                {v->m.small ? values->r : NULL, rank * rank},
                {values->carry_a, carry * l->k},
                {values->carry_b, rows * carry}};
    size_t total = 0;
    for (size_t i = 0; i < 5; i++)
        total += part[i].host ? part[i].n : 0;
    float *staged = total ? (float *)cuda_scratch(c, total * sizeof(float)) : NULL, *at[5] = {};
    for (size_t i = 0; i < 5 && staged; i++) {
        if (!part[i].host || !part[i].n) continue;
        at[i] = staged;
        cuda_send(c, staged, part[i].host, part[i].n * sizeof(float));
        staged += part[i].n;
    }
    if (at[0] || at[1] || at[2])
        launch(set_one_kernel, dim3(SET_BLOCKS), dim3(SET_THREADS), 0, c->stream, *v, l->k, at[0],
               at[1], at[2]);
    if (at[3]) cuda_convert(c, mat_at(v->a, rank, 0), {at[3], DTYPE_F32, l->k}, carry, l->k, 1.0f);
    if (at[4]) cuda_convert(c, mat_at(v->b, 0, rank), {at[4], DTYPE_F32, carry}, rows, carry, 1.0f);
    cuda_done(c, OP_LOW_RANK, since);
}

/* ---- Opening */

/* The same for all widths, because the buffers for the widest of several sites are used for the
 * others too. */
size_t cuda_low_rank_room(const struct backend_context *c, size_t width)
{
    (void)c;
    return width ? CUDA_MARGIN : 0;
}

/* cuda_give() waits, so that the next owner of the margin may write there at once. */
void cuda_low_rank_close(struct backend_low_rank *l)
{
    if (!l) return;
    cuda_give(l->context, l->block);
    if (l->margin) __atomic_store_n(&l->margin->owner, NULL, __ATOMIC_RELEASE);
    free(l->view);
    free(l);
}

static struct mat place_mat(char *block, size_t *at, enum dtype type, size_t rows, size_t cols)
{
    size_t ld = cuda_padded(cols);
    return {cuda_place(block, at, rows * ld * cuda_size(type)), type, ld};
}

/* The factors use the margin of W if they fit and no other object has it. The columns between
 * modules must be zero there, and stay so. */
static void margin_take(struct backend_low_rank *l, struct backend_context *c,
                        struct backend_weight *w)
{
    struct backend_low_rank *none = NULL;
    bool fits = l->padded && l->padded <= w->margin && w->packed.type == c->precision;
    if (!fits || w->context->device != c->device ||
        !__atomic_compare_exchange_n(&w->owner, &none, l, false, __ATOMIC_ACQUIRE,
                                     __ATOMIC_RELAXED))
        return;
    l->margin = w;
    cuda_zero(c, mat_at(w->packed, 0, w->k), w->n, l->padded);
    cuda_zero(c, mat_at(w->packed, w->n, 0), l->padded, w->k);
}

/* Everything that is not in the margin lies in one block. */
static size_t place_all(struct backend_low_rank *l, char *block, enum dtype type)
{
    size_t at = 0;
    l->device = (struct module_view *)cuda_place(block, &at, l->modules * sizeof *l->device);
    if (l->margin)
        l->a = mat_at(l->margin->packed, l->n, 0);
    else
        l->a = place_mat(block, &at, type, l->padded, l->k);
    for (uint32_t i = 0; i < l->modules; i++) {
        struct module_view *v = &l->view[i];
        v->a = block ? mat_at(l->a, v->at, 0) : l->a;
        if (l->margin)
            v->b = mat_at(l->margin->packed, v->m.row, l->k + v->at);
        else
            v->b = place_mat(block, &at, type, v->m.rows, v->m.width);
        if (!v->m.small) continue;
        if (type == DTYPE_BF16) v->plain_b = place_mat(block, &at, type, v->m.rows, v->m.rank);
        v->whole_b = (float *)cuda_place(block, &at, (size_t)v->m.rows * v->m.rank * sizeof(float));
        v->r = (float *)cuda_place(block, &at, (size_t)v->m.rank * v->m.rank * sizeof(float));
    }
    return at;
}

err cuda_low_rank_open(struct backend_low_rank **out, struct backend_context *c,
                       struct backend_weight *w, const struct low_rank_module *module,
                       size_t modules)
{
    cuda_begin(c);
    struct backend_low_rank *l = (struct backend_low_rank *)calloc(1, sizeof *l);
    if (!l) return err_sys(ENOMEM, "cuda");
    l->context = c;
    l->number = ++c->low_ranks;
    l->n = w->n;
    l->k = w->k;
    l->modules = (uint32_t)modules;
    l->view = (struct module_view *)calloc(modules + 1, sizeof *l->view);
    for (size_t i = 0; i < modules && l->view; i++) {
        l->view[i].m = module[i];
        REQUIRE(module[i].col == l->width && (size_t)module[i].row + module[i].rows <= w->n);
        l->view[i].at = (uint32_t)l->padded;
        l->width += module[i].width;
        l->padded += padded_width(module[i]);
        l->small |= module[i].small;
    }
    if (l->view) margin_take(l, c, w);
    err e = l->view ? ERR_NONE : err_sys(ENOMEM, "cuda");
    size_t bytes = l->view ? place_all(l, NULL, c->precision) : 0;
    if (!err_is(e)) e = cuda_take(&l->block, c, bytes);
    if (err_is(e)) {
        cuda_low_rank_close(l);
        return e;
    }
    place_all(l, (char *)l->block, c->precision);
    l->tensor_cores = low_rank_mma_shapes(l);
    bool good = !err_is(c->first);
    cuda_good(c, cudaMemsetAsync(l->block, 0, bytes, c->stream), "clearing factors");
    cuda_send(c, l->device, l->view, modules * sizeof *l->view);
    e = cuda_new_failure(c, good);
    if (err_is(e))
        cuda_low_rank_close(l);
    else
        *out = l;
    return e;
}
