/* The low-rank part of the products: factors packed in the precision, and their products over the
 * segments of a batch. The scale and R are multiplied into B, so that
 *
 *   b_m (rows, width) = [s B R, carry B]        y_m += H_m b_m^T        G_m = dy_m b_m
 *
 * and the factors A of all modules are stacked, so that x is read once for all. */
#include "kernels/cpu/cpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct factor { /* one module */
    struct low_rank_module m;
    struct mat b;       /* (rows, width) */
    struct mat plain_b; /* (rows, rank), only with R */
    struct mat r;       /* (rank, rank), only with R */
};
struct backend_low_rank {
    size_t n, k, width, modules;
    struct mat a; /* (width, k) */
    struct factor *factor;
    void *memory;
};

size_t cpu_low_rank_room(const struct backend_context *c, size_t width)
{
    (void)c, (void)width;
    return 0;
}

/* ---- factors */

static size_t place(struct backend_low_rank *l, enum dtype type, char *memory)
{
    size_t at = 0;
    l->a = mat_take(memory, &at, type, l->width, l->k);
    for (size_t i = 0; i < l->modules; i++) {
        struct factor *f = &l->factor[i];
        f->b = mat_take(memory, &at, type, f->m.rows, f->m.width);
        f->plain_b = mat_take(memory, &at, type, f->m.small ? f->m.rows : 0, f->m.rank);
        f->r = mat_take(memory, &at, type, f->m.small ? f->m.rank : 0, f->m.rank);
    }
    return at;
}

void cpu_low_rank_close(struct backend_low_rank *l)
{
    if (!l) return;
    if (l->memory) backend_cpu.memory_give(NULL, l->memory);
    free(l->factor);
    free(l);
}

err cpu_low_rank_open(struct backend_low_rank **out, struct backend_context *c,
                      struct backend_weight *w, const struct low_rank_module *module,
                      size_t modules)
{
    struct backend_low_rank *l = calloc(1, sizeof *l);
    if (!l) return err_sys(ENOMEM, "engine");
    cpu_weight_shape(&l->n, &l->k, w);
    l->modules = modules;
    err e = err_sys(ENOMEM, "engine: %zu modules", modules);
    if (!(l->factor = calloc(modules, sizeof *l->factor))) goto out;
    for (size_t i = 0; i < modules; i++) {
        l->factor[i].m = module[i];
        l->width += module[i].width;
    }
    TRY_OUT(e, backend_cpu.memory_take(&l->memory, c, place(l, c->precision, NULL) + 64));
    place(l, c->precision, l->memory);
out:
    if (err_is(e))
        cpu_low_rank_close(l);
    else
        *out = l;
    return e;
}

/* to (rows, cols) = scale * value, which is float32 and dense. */
static void put(struct backend_context *c, struct mat to, const float *value, size_t rows,
                size_t cols, float scale)
{
    struct mat from = {(void *)(uintptr_t)value, DTYPE_F32, cols};
    if (value && rows && cols) cpu_convert(c, to, from, rows, cols, scale);
}

/* b = s B R, from the packed B and R, rounded once. */
static void multiply_small(struct backend_context *c, struct factor *f)
{
    size_t rank = f->m.rank, rows = f->m.rows;
    struct product_shape p = {PRODUCT_NN, rows, rank, rank, f->m.scale, false};
    if (rank) cpu_product(c, f->b, f->plain_b, f->r, &p);
}

/* The scale belongs to the factors that train; the carry is part of the frozen weight. */
static void set(struct backend_context *c, struct backend_low_rank *l, struct factor *f,
                const struct low_rank_values *v)
{
    const struct low_rank_module *m = &f->m;
    put(c, mat_at(l->a, m->col, 0), v->a, m->rank, l->k, 1.0f);
    if (m->small) {
        put(c, f->plain_b, v->b, m->rows, m->rank, 1.0f);
        put(c, f->r, v->r, m->rank, m->rank, 1.0f);
        if (v->b || v->r) multiply_small(c, f);
    } else {
        put(c, f->b, v->b, m->rows, m->rank, m->scale);
    }
    size_t carry = m->width - m->rank;
    put(c, mat_at(l->a, m->col + m->rank, 0), v->carry_a, carry, l->k, 1.0f);
    put(c, mat_at(f->b, 0, m->rank), v->carry_b, m->rows, carry, 1.0f);
}

void cpu_low_rank_load(struct backend_context *c, struct backend_low_rank *l, size_t module,
                       const struct low_rank_values *values)
{
    set(c, l, &l->factor[module], values);
}

void cpu_low_rank_set(struct backend_context *c, struct backend_low_rank *const *all, size_t count,
                      const float *value)
{
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < all[i]->modules; k++) {
            const struct low_rank_module *m = &all[i]->factor[k].m;
            struct low_rank_values v = {0};
            if (m->trains & LOW_RANK_A) v.a = value + m->a_at;
            if (m->trains & LOW_RANK_B) v.b = value + m->b_at;
            if (m->trains & LOW_RANK_R) v.r = value + m->r_at;
            set(c, all[i], &all[i]->factor[k], &v);
        }
}

/* ---- products */

/* Skips a product with an empty side, which an adapter without carry or a segment without tokens
 * has. */
static void multiply(struct backend_context *c, struct mat out, struct mat a, struct mat b,
                     struct product_shape p)
{
    if (p.m && p.n && p.k) cpu_product(c, out, a, b, &p);
}

/* x with the mask of one module, written to `to`. */
static struct mat masked(struct backend_context *c, struct mat to, struct mat x,
                         const struct low_rank_use *u, const struct low_rank_module *m,
                         const struct batch_rows *b)
{
    struct formula_mask mask = formula_mask_of(b->dropout, b->dropout_key, m->place, u->first);
    cpu_dropout(c, to, x, u->tokens, u->factors->k, &mask);
    return to;
}

/* Room for `count` matrices (tokens, cols) of the precision, placed in m. False after a recorded
 * failure. */
static bool room(struct mat *m, int count, struct backend_context *c, size_t tokens, size_t cols)
{
    size_t at = 0;
    for (int i = 0; i < count; i++)
        mat_take(NULL, &at, c->precision, tokens, cols);
    char *memory = cpu_room(c, at);
    at = 0;
    for (int i = 0; i < count && memory; i++)
        m[i] = mat_take(memory, &at, c->precision, tokens, cols);
    return memory != NULL;
}

/* H = x A^T of one segment. Without dropout one product serves all modules. With dropout each
 * module sees its own masked x, so each needs its own product; the carry sees all of x. */
static void shrink(struct backend_context *c, struct mat h, struct mat x,
                   const struct low_rank_use *u, const struct batch_rows *b)
{
    const struct backend_low_rank *l = u->factors;
    struct product_shape p = {PRODUCT_NT, u->tokens, l->width, l->k, 1.0f, false};
    struct mat wide;
    if (b->dropout <= 0) {
        multiply(c, h, x, l->a, p);
        return;
    }
    if (!room(&wide, 1, c, u->tokens, l->k)) return;
    for (size_t i = 0; i < l->modules; i++) {
        const struct low_rank_module *m = &l->factor[i].m;
        p.n = m->rank;
        multiply(c, mat_at(h, 0, m->col), masked(c, wide, x, u, m, b), mat_at(l->a, m->col, 0), p);
        p.n = m->width - m->rank;
        multiply(c, mat_at(h, 0, m->col + m->rank), x, mat_at(l->a, m->col + m->rank, 0), p);
    }
}

void cpu_low_rank_shrink(struct backend_context *c, const struct low_rank_site *l, struct mat x,
                         const struct backend_batch *b)
{
    for (size_t i = 0; i < l->uses; i++) {
        const struct low_rank_use *u = &l->use[i];
        if (u->factors && u->tokens)
            shrink(c, mat_at(l->h, u->first, 0), mat_at(x, u->first, 0), u, &b->rows);
    }
}

/* y of one segment. With `fresh` y is set, and columns without a module become zero; else it is
 * added to. */
static void expand(struct backend_context *c, struct mat y, struct mat h,
                   const struct low_rank_use *u, size_t n, bool fresh)
{
    const struct backend_low_rank *l = u->factors;
    size_t at = 0;
    for (size_t i = 0; l && i < l->modules; i++) {
        const struct low_rank_module *m = &l->factor[i].m;
        struct product_shape p = {PRODUCT_NT, u->tokens, m->rows, m->width, 1.0f, !fresh};
        if (fresh && m->row > at) cpu_zero(c, mat_at(y, 0, at), u->tokens, m->row - at);
        multiply(c, mat_at(y, 0, m->row), mat_at(h, 0, m->col), l->factor[i].b, p);
        at = (size_t)m->row + m->rows;
    }
    if (fresh && n > at) cpu_zero(c, mat_at(y, 0, at), u->tokens, n - at);
}

static bool any_factors(const struct low_rank_site *l)
{
    for (size_t i = 0; l && i < l->uses; i++)
        if (l->use[i].factors && l->use[i].tokens) return true;
    return false;
}

/* Zeros in rows [first, end) of m, for tokens that no use has. */
static void clear_rows(struct backend_context *c, struct mat m, size_t first, size_t end,
                       size_t cols)
{
    if (end > first) cpu_zero(c, mat_at(m, first, 0), end - first, cols);
}

/* Without `add` the low-rank part is written first and the large product is added to it inside the
 * kernel, in float32 before it is rounded: in bfloat16 a small term added to a large rounded one
 * would mostly be lost. */
void cpu_linear(struct backend_context *c, struct mat y, struct mat x,
                const struct backend_weight *w, const struct low_rank_site *l,
                const struct backend_batch *b, size_t rows, bool add)
{
    size_t n, k;
    cpu_weight_shape(&n, &k, w);
    if (!any_factors(l)) {
        cpu_dense(c, y, x, w, rows, add);
        return;
    }
    if (add) cpu_dense(c, y, x, w, rows, true);
    cpu_low_rank_shrink(c, l, x, b);
    size_t at = 0;
    for (size_t i = 0; i < l->uses; i++) {
        const struct low_rank_use *u = &l->use[i];
        if (!u->tokens) continue;
        if (!add) clear_rows(c, y, at, u->first, n);
        if (u->factors || !add)
            expand(c, mat_at(y, u->first, 0), mat_at(l->h, u->first, 0), u, n, !add);
        at = u->first + u->tokens;
    }
    if (!add) clear_rows(c, y, at, rows, n);
    if (!add) cpu_dense(c, y, x, w, rows, true);
}

/* G of one segment, and P of modules with R. */
static void back_factors(struct backend_context *c, const struct low_rank_site *l, struct mat dy,
                         const struct low_rank_use *u)
{
    for (size_t i = 0; i < u->factors->modules; i++) {
        const struct factor *f = &u->factors->factor[i];
        size_t t = u->tokens, r = f->m.rank, n = f->m.rows, carry = f->m.width - r;
        struct mat own = mat_at(dy, u->first, f->m.row), g = mat_at(l->g, u->first, f->m.col);
        if (!f->m.small) {
            multiply(c, g, own, f->b,
                     (struct product_shape){PRODUCT_NN, t, f->m.width, n, 1.0f, false});
            continue;
        }
        struct mat p = mat_at(l->p, u->first, f->m.col);
        multiply(c, p, own, f->plain_b, (struct product_shape){PRODUCT_NN, t, r, n, 1.0f, false});
        multiply(c, g, p, f->r, (struct product_shape){PRODUCT_NN, t, r, r, f->m.scale, false});
        multiply(c, mat_at(g, 0, r), own, mat_at(f->b, 0, r),
                 (struct product_shape){PRODUCT_NN, t, carry, n, 1.0f, false});
    }
}

/* dx = G A over all modules in one product. With dropout the part of each module has to pass
 * through its own mask first; the carry is added directly. */
static void back_input(struct backend_context *c, struct mat dx, struct mat g,
                       const struct low_rank_use *u, const struct batch_rows *b)
{
    const struct backend_low_rank *l = u->factors;
    struct product_shape p = {PRODUCT_NN, u->tokens, l->k, l->width, 1.0f, false};
    struct mat wide[2];
    if (b->dropout <= 0) {
        multiply(c, dx, g, l->a, p);
        return;
    }
    if (!room(wide, 2, c, u->tokens, l->k)) return;
    cpu_zero(c, dx, u->tokens, l->k);
    for (size_t i = 0; i < l->modules; i++) {
        const struct low_rank_module *m = &l->factor[i].m;
        struct mat own = mat_at(g, 0, m->col), a = mat_at(l->a, m->col, 0);
        p.k = m->width - m->rank;
        p.add = true;
        multiply(c, dx, mat_at(own, 0, m->rank), mat_at(a, m->rank, 0), p);
        if (!m->rank) continue;
        p.k = m->rank;
        p.add = false;
        multiply(c, wide[0], own, a, p);
        cpu_add(c, dx, masked(c, wide[1], wide[0], u, m, b), u->tokens, l->k, 1.0f);
    }
}

/* Tokens without factors contribute 0 to dx, which is then added to. */
void cpu_linear_back(struct backend_context *c, struct mat dx, struct mat dy,
                     const struct backend_weight *w, const struct low_rank_site *l,
                     const struct backend_batch *b, size_t rows)
{
    size_t n, k, at = 0;
    bool any = any_factors(l);
    cpu_weight_shape(&n, &k, w);
    for (size_t i = 0; any && i < l->uses; i++) {
        const struct low_rank_use *u = &l->use[i];
        if (!u->tokens) continue;
        if (u->factors) back_factors(c, l, dy, u);
        if (!dx.data) continue;
        clear_rows(c, dx, at, u->first, k);
        at = u->first + u->tokens;
        if (u->factors)
            back_input(c, mat_at(dx, u->first, 0), mat_at(l->g, u->first, 0), u, &b->rows);
        else
            cpu_zero(c, mat_at(dx, u->first, 0), u->tokens, k);
    }
    if (dx.data && any) clear_rows(c, dx, at, rows, k);
    if (dx.data) cpu_dense_back(c, dx, dy, w, rows, any);
}

/* ---- gradients */

/* The gradient `i` of a use: its place, and its tokens [first, first + tokens) from the start of
 * the use. One for the whole use, or one a row: row gradients of DP-SGD cost the same arithmetic as
 * their sum. */
struct part {
    float *gradient;
    size_t first, tokens;
};
static size_t part_count(const struct low_rank_use *u)
{
    return u->rows ? u->rows : 1;
}
static struct part part_at(const struct low_rank_use *u, const struct batch_rows *b, size_t i)
{
    struct part p = {u->gradient, 0, u->tokens};
    if (!u->rows) return p;
    const uint32_t *start = b->start + u->row + i;
    p.gradient += i * u->stride;
    p.first = start[0] - u->first;
    p.tokens = start[1] - start[0];
    return p;
}

/* Adds alpha a^T b to the gradients at `at`; a (tokens, p.m) and b (tokens, p.n) start at the first
 * token of the use. */
static void add_gradient(struct backend_context *c, const struct low_rank_use *u,
                         const struct batch_rows *rows, size_t at, struct mat a, struct mat b,
                         struct product_shape p)
{
    for (size_t i = 0; i < part_count(u); i++) {
        struct part part = part_at(u, rows, i);
        struct mat out = {part.gradient + at, DTYPE_F32, p.n};
        p.k = part.tokens;
        multiply(c, out, mat_at(a, part.first, 0), mat_at(b, part.first, 0), p);
    }
}

/* dB = s dy^T H, or s dy^T (H R^T) with an R, and dR = s P^T H. */
static void gradient_out(struct backend_context *c, const struct low_rank_site *l, struct mat dy,
                         const struct low_rank_use *u, const struct factor *f,
                         const struct batch_rows *b)
{
    const struct low_rank_module *m = &f->m;
    size_t t = u->tokens, r = m->rank;
    struct mat own = mat_at(dy, u->first, m->row), h = mat_at(l->h, u->first, m->col), hr = h;
    struct product_shape db = {PRODUCT_TN, m->rows, r, t, m->scale, true};
    struct product_shape dr = {PRODUCT_TN, r, r, t, m->scale, true};
    if (m->trains & LOW_RANK_B) {
        if (m->small) {
            if (!room(&hr, 1, c, t, r)) return;
            multiply(c, hr, h, f->r, (struct product_shape){PRODUCT_NT, t, r, r, 1.0f, false});
        }
        add_gradient(c, u, b, m->b_at, own, hr, db);
    }
    if (m->small && (m->trains & LOW_RANK_R))
        add_gradient(c, u, b, m->r_at, mat_at(l->p, u->first, m->col), h, dr);
}

/* dA of all modules at once, so that x is read once for all. */
static void gradient_in_whole(struct backend_context *c, struct mat g, struct mat x,
                              const struct low_rank_use *u, const struct batch_rows *b)
{
    const struct backend_low_rank *l = u->factors;
    struct mat all = {cpu_room(c, l->width * l->k * sizeof(float)), DTYPE_F32, l->k};
    for (size_t i = 0; i < part_count(u) && all.data; i++) {
        struct part part = part_at(u, b, i);
        if (!part.tokens) continue;
        multiply(c, all, mat_at(g, part.first, 0), mat_at(x, part.first, 0),
                 (struct product_shape){PRODUCT_TN, l->width, l->k, part.tokens, 1.0f, false});
        for (size_t k = 0; k < l->modules; k++) {
            const struct low_rank_module *m = &l->factor[k].m;
            struct mat da = {part.gradient + m->a_at, DTYPE_F32, l->k};
            if (m->rank && (m->trains & LOW_RANK_A))
                cpu_add(c, da, mat_at(all, m->col, 0), m->rank, l->k, 1.0f);
        }
    }
}

/* dA = G^T x of each module, with its masked x if there is dropout. */
static void gradient_in(struct backend_context *c, struct mat g, struct mat x,
                        const struct low_rank_use *u, const struct batch_rows *b)
{
    const struct backend_low_rank *l = u->factors;
    bool any = false;
    for (size_t i = 0; i < l->modules; i++)
        any = any || (l->factor[i].m.rank && (l->factor[i].m.trains & LOW_RANK_A));
    if (!any) return;
    if (b->dropout <= 0 && l->modules > 1) {
        gradient_in_whole(c, g, x, u, b);
        return;
    }
    struct mat wide;
    if (b->dropout > 0 && !room(&wide, 1, c, u->tokens, l->k)) return;
    for (size_t i = 0; i < l->modules; i++) {
        const struct low_rank_module *m = &l->factor[i].m;
        struct product_shape p = {PRODUCT_TN, m->rank, l->k, u->tokens, 1.0f, true};
        if (!m->rank || !(m->trains & LOW_RANK_A)) continue;
        struct mat seen = b->dropout > 0 ? masked(c, wide, x, u, m, b) : x;
        add_gradient(c, u, b, m->a_at, mat_at(g, 0, m->col), seen, p);
    }
}

void cpu_low_rank_gradient(struct backend_context *c, const struct low_rank_site *l, struct mat dy,
                           struct mat x, const struct backend_batch *b)
{
    for (size_t i = 0; i < l->uses; i++) {
        const struct low_rank_use *u = &l->use[i];
        if (!u->factors || !u->tokens || !u->gradient) continue;
        for (size_t k = 0; k < u->factors->modules; k++)
            gradient_out(c, l, dy, u, &u->factors->factor[k], &b->rows);
        gradient_in(c, mat_at(l->g, u->first, 0), mat_at(x, u->first, 0), u, &b->rows);
    }
}
