#include "engine/factors.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* First module of each site; the modules of a site follow each other in enum module_kind. */
static const enum module_kind site_first[SITES + 1] = {MODULE_Q, MODULE_O, MODULE_GATE, MODULE_DOWN,
                                                       MODULE_KINDS};

static size_t mat_size(enum dtype t)
{
    return t == DTYPE_F32 ? 4 : 2;
}

/* Sets the layout of one site and returns the number of values that its packed tensors take, with
 * 64 for alignment of each. H has one column per rank of each module: module m has the columns col
 * .. col + width - 1, of which the first `rank` train and the others belong to the carry. */
static size_t site_plan(struct site_factors *s, const struct adapter *ad, const struct arch *arch,
                        uint32_t layer, enum site site)
{
    uint32_t d_out, d_in;
    size_t values = 0;
    for (int kind = site_first[site]; kind < (int)site_first[site + 1]; kind++) {
        model_module_shape(&d_out, &d_in, arch, (enum module_kind)kind);
        s->d_in = d_in;
        s->d_out[s->slots++] = d_out;
        const struct adapter_module *m = adapter_find(ad, layer, (enum module_kind)kind);
        if (m && m->rank + m->carry_rank > 0) {
            struct factor *f = &s->factor[s->count++];
            *f = (struct factor){.module = m, .rank = m->rank, .col = s->width};
            if (m->carry_borrowed) f->carry_a = m->carry_a;
            if (m->carry_borrowed) f->carry_b = m->carry_b;
            f->slot = (uint32_t)(kind - (int)site_first[site]);
            f->width = m->rank + m->carry_rank;
            f->d_out = d_out;
            s->width += f->width;
            values += (size_t)d_out * f->width + (size_t)d_in * f->width + 64;
            if (m->r) values += (size_t)d_out * m->rank + (size_t)m->rank * m->rank + 64;
        }
    }
    return values;
}

/* Takes the next (rows, cols) of the block, aligned to 64 bytes. */
static struct mat take(char **memory, enum dtype type, size_t rows, size_t cols)
{
    struct mat m = {*memory, type, cols};
    *memory += (rows * cols * mat_size(type) + 63) / 64 * 64;
    return m;
}

/* a_at, b_at and r_at are offsets in adapter->value, so a gradient of one factor lands in its place
 * in a block of the same layout. Offsets of factors that do not train are not set and not used. */
static void site_place(struct site_factors *s, const struct adapter *ad, char **memory,
                       enum dtype type)
{
    if (s->count) s->a = take(memory, type, s->width, s->d_in);
    for (uint32_t i = 0; i < s->count; i++) {
        struct factor *f = &s->factor[i];
        const struct adapter_module *m = f->module;
        f->b = take(memory, type, f->d_out, f->width);
        if (m->r) {
            f->plain_b = take(memory, type, f->d_out, f->rank);
            f->r = take(memory, type, f->rank, f->rank);
        }
        if (ad->trains & ADAPTER_A) f->a_at = (size_t)(m->a - ad->value);
        if (ad->trains & ADAPTER_B) f->b_at = (size_t)(m->b - ad->value);
        if (m->r && (ad->trains & ADAPTER_R)) f->r_at = (size_t)(m->r - ad->value);
    }
}

void factors_close(struct factors *f)
{
    if (!f) return;
    if (f->memory) f->be->memory_give(f->ctx, f->memory);
    if (f->stage) f->be->memory_give(f->ctx, f->stage);
    free(f->site);
    free(f);
}

static void load_carry(struct factors *f);

/* The packed factors of all sites are one block of the type of the backend. `stage` holds float32
 * copies on their way to the device, large enough for the largest tensor or, for modules with R,
 * for B and R together. The bounds count each tensor with padding, so place and plan cannot
 * disagree. */
err factors_open(struct factors **out, const struct backend *be, struct backend_context *ctx,
                 const struct adapter *ad, const struct arch *arch)
{
    REQUIRE(ad->layers == arch->layers);
    enum dtype type = be->precision(ctx);
    size_t values = 64, stage = 0, sites = (size_t)arch->layers * SITES;
    struct factors *f = calloc(1, sizeof *f);
    if (!f) return err_sys(ENOMEM, "engine");
    *f = (struct factors){.be = be, .ctx = ctx, .adapter = ad, .sites = sites};
    err e = err_sys(ENOMEM, "engine: %zu modules", ad->count);
    if (!(f->site = calloc(sites, sizeof *f->site))) goto out;
    for (size_t i = 0; i < sites; i++) {
        struct site_factors *s = &f->site[i];
        values += site_plan(s, ad, arch, (uint32_t)(i / SITES), (enum site)(i % SITES)) + 64;
        if (s->width > f->width_max) f->width_max = s->width;
        if (s->count && s->d_in > f->d_in_max) f->d_in_max = s->d_in;
        if ((size_t)s->width * s->d_in > stage) stage = (size_t)s->width * s->d_in;
        for (uint32_t k = 0; k < s->count; k++) {
            const struct factor *m = &s->factor[k];
            size_t most = (size_t)m->width * (s->d_in > m->d_out ? s->d_in : m->d_out);
            most += (size_t)m->d_out * m->rank + (size_t)m->rank * m->rank;
            if (most > stage) stage = most;
        }
    }
    TRY_OUT(e, be->memory_take(&f->memory, ctx, values * mat_size(type) + sites * 512));
    TRY_OUT(e, be->memory_take(&f->stage, ctx, (stage + 64) * sizeof(float)));
    char *memory = f->memory;
    for (size_t i = 0; i < sites; i++)
        site_place(&f->site[i], ad, &memory, type);
    load_carry(f);
    factors_refresh(f);
out:
    if (err_is(e))
        factors_close(f);
    else
        *out = f;
    return e;
}

/* to (rows, cols) = scale * host, converted to the type of `to`. */
static void upload(struct factors *f, struct mat to, const float *host, size_t rows, size_t cols,
                   float scale)
{
    if (!rows || !cols) return;
    f->be->copy_in(f->ctx, f->stage, host, rows * cols * sizeof(float));
    f->be->convert(f->ctx, to, (struct mat){f->stage, DTYPE_F32, cols}, rows, cols, scale);
}

/* A module with R: b = s B R is computed in float32 and rounded once. B and R are also kept on
 * their own, because their gradients need them. */
static void refresh_small(struct factors *f, struct factor *m)
{
    const struct adapter_module *ad = m->module;
    size_t rank = m->rank, count = m->d_out * rank;
    upload(f, m->plain_b, ad->b, m->d_out, rank, 1.0f);
    upload(f, m->r, ad->r, rank, rank, 1.0f);
    f->be->copy_in(f->ctx, f->stage, ad->b, count * sizeof(float));
    f->be->copy_in(f->ctx, f->stage + count, ad->r, rank * rank * sizeof(float));
    struct mat b = {f->stage, DTYPE_F32, rank}, r = {f->stage + count, DTYPE_F32, rank};
    struct product_shape p = {PRODUCT_NN, m->d_out, rank, rank, ad->scale, false};
    f->be->product(f->ctx, m->b, b, r, &p);
}

/* The carry is frozen, so it is packed once and not in factors_refresh(). */
static void load_carry(struct factors *f)
{
    for (size_t i = 0; i < (size_t)f->adapter->layers * SITES; i++) {
        struct site_factors *s = &f->site[i];
        for (uint32_t k = 0; k < s->count; k++) {
            struct factor *m = &s->factor[k];
            const struct adapter_module *ad = m->module;
            upload(f, mat_at(s->a, m->col + m->rank, 0), ad->carry_a, ad->carry_rank, s->d_in,
                   1.0f);
            upload(f, mat_at(m->b, 0, m->rank), ad->carry_b, m->d_out, ad->carry_rank, 1.0f);
        }
    }
}

/* Scale is multiplied into B here, so products need no factor. The carry has scale 1: it is part of
 * the frozen weight. */
void factors_refresh(struct factors *f)
{
    for (size_t i = 0; i < (size_t)f->adapter->layers * SITES; i++) {
        struct site_factors *s = &f->site[i];
        for (uint32_t k = 0; k < s->count; k++) {
            struct factor *m = &s->factor[k];
            const struct adapter_module *ad = m->module;
            upload(f, mat_at(s->a, m->col, 0), ad->a, m->rank, s->d_in, 1.0f);
            if (ad->r)
                refresh_small(f, m);
            else
                upload(f, m->b, ad->b, m->d_out, m->rank, ad->scale);
        }
    }
}

static bool same_site(const struct site_factors *a, const struct site_factors *b)
{
    bool same = a->width == b->width && a->count == b->count;
    for (uint32_t i = 0; i < a->count && same; i++) {
        const struct factor *x = &a->factor[i], *y = &b->factor[i];
        bool carries = x->width > x->rank;
        same = x->rank == y->rank && x->width == y->width && x->slot == y->slot &&
               x->carry_a == y->carry_a && x->carry_b == y->carry_b && (x->carry_a || !carries) &&
               (x->r.data != NULL) == (y->module->r != NULL);
    }
    return same;
}

bool factors_adopt(struct factors *f, const struct adapter *ad, const struct arch *arch)
{
    size_t sites = (size_t)arch->layers * SITES;
    struct site_factors *site = calloc(sites, sizeof *site);
    bool same = site && sites == f->sites;
    for (size_t i = 0; i < sites && same; i++) {
        site_plan(&site[i], ad, arch, (uint32_t)(i / SITES), (enum site)(i % SITES));
        same = same_site(&f->site[i], &site[i]);
    }
    if (same) {
        char *memory = f->memory;
        for (size_t i = 0; i < sites; i++)
            site_place(&site[i], ad, &memory, f->be->precision(f->ctx));
        free(f->site);
        f->site = site;
        f->adapter = ad;
        factors_refresh(f);
    } else {
        free(site);
    }
    return same;
}

/* A module with rank 0 has only a carry and never trains; with ADAPTER_R alone only modules with R
 * train. */
bool factors_train_at(const struct factors *f, uint32_t layer, enum site site)
{
    for (int s = site; s < SITES; s++) {
        const struct site_factors *at = &f->site[layer * SITES + (uint32_t)s];
        for (uint32_t i = 0; i < at->count; i++)
            if (at->factor[i].rank && (f->adapter->trains != ADAPTER_R || at->factor[i].module->r))
                return true;
    }
    return false;
}

/* Skips a product with an empty side, which an adapter without carry or a segment without tokens
 * has. */
static void multiply(const struct low_rank *l, struct mat out, struct mat a, struct mat b,
                     struct product_shape p)
{
    if (p.m && p.n && p.k) l->be->product(l->ctx, out, a, b, &p);
}

/* Each module has its own mask, as in PEFT. The multiplication by an odd constant spreads the small
 * numbers of layer and kind over all bits. */
static uint64_t dropout_key(const struct low_rank *l, const struct factor *m)
{
    uint64_t place = (uint64_t)l->layer * MODULE_KINDS + (uint64_t)m->module->kind;
    return l->dropout_key ^ ((place + 1) * 0xd1342543de82ef95u);
}

/* x with the mask of one module, written to `to`. The mask depends on the place of the row in the
 * batch and not in the segment, so the backward pass draws the same one. */
static struct mat masked(const struct low_rank *l, struct mat to, struct mat x,
                         const struct segment *s, const struct site_factors *site,
                         const struct factor *m)
{
    struct dropout d = {.rows = s->tokens, .cols = site->d_in, .probability = l->dropout};
    d.key = dropout_key(l, m) + s->first * 0x632be59bd9b4e019u;
    struct mat out = mat_at(to, s->first, 0);
    l->be->dropout(l->ctx, out, mat_at(x, s->first, 0), &d);
    return out;
}

/* H = x A^T of one segment. Without dropout one product serves all modules of the site. With
 * dropout each module sees its own masked x, so each needs its own product; the carry is not
 * dropped, since it is part of the frozen weight. */
static void shrink(const struct low_rank *l, struct mat h, struct mat x, const struct segment *s,
                   const struct site_factors *site)
{
    struct product_shape p = {PRODUCT_NT, s->tokens, site->width, site->d_in, 1.0f, false};
    if (l->dropout <= 0) {
        multiply(l, mat_at(h, s->first, 0), mat_at(x, s->first, 0), site->a, p);
        return;
    }
    for (uint32_t i = 0; i < site->count; i++) {
        const struct factor *m = &site->factor[i];
        p.n = m->rank;
        multiply(l, mat_at(h, s->first, m->col), masked(l, l->wide, x, s, site, m),
                 mat_at(site->a, m->col, 0), p);
        p.n = m->width - m->rank; /* the carry sees all of x */
        multiply(l, mat_at(h, s->first, m->col + m->rank), mat_at(x, s->first, 0),
                 mat_at(site->a, m->col + m->rank, 0), p);
    }
}

void factors_shrink(const struct low_rank *l, struct mat h, struct mat x)
{
    for (size_t i = 0; i < l->segments; i++) {
        const struct segment *s = &l->segment[i];
        if (!s->factors || !s->tokens) continue;
        const struct site_factors *site = &s->factors->site[l->layer * SITES + l->site];
        if (site->count) shrink(l, h, x, s, site);
    }
}

/* The site of the first segment that has a module there, or NULL. All segments have the same slots
 * and shapes, because they come from one architecture. */
static const struct site_factors *any_site(const struct low_rank *l)
{
    for (size_t i = 0; i < l->segments; i++) {
        const struct factors *f = l->segment[i].factors;
        if (f && l->segment[i].tokens && f->site[l->layer * SITES + l->site].count)
            return &f->site[l->layer * SITES + l->site];
    }
    return NULL;
}

/* The module at an output of the site, or NULL if that output is not adapted. */
static const struct factor *factor_of(const struct site_factors *site, uint32_t slot)
{
    for (uint32_t k = 0; site && k < site->count; k++)
        if (site->factor[k].slot == slot) return &site->factor[k];
    return NULL;
}

/* With `fresh` every output of the site has to be set for every segment, adapted or not, because
 * the caller then adds the large product to all of them. */
bool factors_forward(const struct low_rank *l, const struct mat *y, struct mat h, struct mat x,
                     bool fresh)
{
    const struct site_factors *any = any_site(l);
    if (!any) return false;
    factors_shrink(l, h, x);
    for (size_t i = 0; i < l->segments; i++) {
        const struct segment *s = &l->segment[i];
        const struct site_factors *site =
            s->factors ? &s->factors->site[l->layer * SITES + l->site] : NULL;
        for (uint32_t slot = 0; slot < any->slots && s->tokens; slot++) {
            const struct factor *m = factor_of(site, slot);
            struct mat out = mat_at(y[slot], s->first, 0);
            if (m) {
                struct product_shape p = {PRODUCT_NT, s->tokens, m->d_out, m->width, 1.0f, !fresh};
                multiply(l, out, mat_at(h, s->first, m->col), m->b, p);
            } else if (fresh) {
                l->be->zero(l->ctx, out, s->tokens, any->d_out[slot]);
            }
        }
    }
    return true;
}

/* Adds alpha a^T b to the gradients of a segment, where a (tokens, p.m) and b (tokens, p.n) start
 * at the first token of the segment. Sums over tokens are the inner dimension p.k, which is set
 * here: the whole segment, or one row at a time when each row has its own gradient. Row gradients
 * of DP-SGD therefore cost the same arithmetic as their sum. */
static void add_gradient(const struct low_rank *l, const struct segment *s, size_t at, struct mat a,
                         struct mat b, struct product_shape p)
{
    for (size_t i = 0; i < (s->start ? s->rows : 1); i++) {
        size_t first = s->start ? s->start[i] - s->first : 0;
        struct mat out = {s->gradient + at + i * s->stride, DTYPE_F32, p.n};
        p.k = s->start ? s->start[i + 1] - s->start[i] : s->tokens;
        multiply(l, out, mat_at(a, first, 0), mat_at(b, first, 0), p);
    }
}

/* G = dy B of one module, and the gradients of its B and R. With b = s B (no R):
 *
 *   G = dy b (tokens, width)              dB = s dy^T H
 *
 * With R, where H = x A^T (tokens, r) and y = s H R^T B^T:
 *
 *   dB = s dy^T (H R^T)                   dR = s (dy B)^T H
 *   G  = s (dy B) R                       and dy carry_b for the columns of the carry
 *
 * G is needed in any case: it gives dA = G^T x and dx = G A. */
static void back_module(const struct low_rank *l, const struct factors_back *b,
                        const struct segment *s, const struct factor *m)
{
    unsigned trains = s->gradient ? s->factors->adapter->trains : 0;
    float scale = m->module->scale;
    size_t t = s->tokens, r = m->rank, carry = m->width - m->rank;
    struct mat dy = mat_at(b->dy[m->slot], s->first, 0), h = mat_at(b->h, s->first, m->col);
    struct mat g = mat_at(b->g, s->first, m->col), p = mat_at(b->p, s->first, 0);
    struct product_shape db = {PRODUCT_TN, m->d_out, r, t, scale, true};
    if (!m->module->r) {
        multiply(l, g, dy, m->b,
                 (struct product_shape){PRODUCT_NN, t, m->width, m->d_out, 1.0f, false});
        if (trains & ADAPTER_B) add_gradient(l, s, m->b_at, dy, h, db);
        return;
    }
    if (trains & ADAPTER_B) {
        multiply(l, p, h, m->r, (struct product_shape){PRODUCT_NT, t, r, r, 1.0f, false});
        add_gradient(l, s, m->b_at, dy, p, db);
    }
    multiply(l, p, dy, m->plain_b, (struct product_shape){PRODUCT_NN, t, r, m->d_out, 1.0f, false});
    if (trains & ADAPTER_R)
        add_gradient(l, s, m->r_at, p, h, (struct product_shape){PRODUCT_TN, r, r, t, scale, true});
    multiply(l, g, p, m->r, (struct product_shape){PRODUCT_NN, t, r, r, scale, false});
    multiply(l, mat_at(g, 0, r), dy, mat_at(m->b, 0, r),
             (struct product_shape){PRODUCT_NN, t, carry, m->d_out, 1.0f, false});
}

/* dx = G A over all modules of a site in one product. With dropout the part of each module has to
 * pass through its own mask first, so it is computed into l->wide, masked into l->wide2 and added;
 * the carry is added directly. */
static void back_input(const struct low_rank *l, const struct factors_back *b,
                       const struct segment *s, const struct site_factors *site)
{
    struct mat dx = mat_at(b->dx, s->first, 0);
    struct product_shape p = {PRODUCT_NN, s->tokens, site->d_in, site->width, 1.0f, false};
    if (l->dropout <= 0) {
        multiply(l, dx, mat_at(b->g, s->first, 0), site->a, p);
        return;
    }
    l->be->zero(l->ctx, dx, s->tokens, site->d_in);
    p.add = true;
    for (uint32_t i = 0; i < site->count; i++) {
        const struct factor *m = &site->factor[i];
        struct mat g = mat_at(b->g, s->first, m->col), a = mat_at(site->a, m->col, 0);
        p.k = m->width - m->rank;
        multiply(l, dx, mat_at(g, 0, m->rank), mat_at(a, m->rank, 0), p);
        if (!m->rank) continue;
        struct product_shape alone = p;
        alone.k = m->rank;
        alone.add = false;
        multiply(l, mat_at(l->wide, s->first, 0), g, a, alone);
        l->be->add(l->ctx, dx, masked(l, l->wide2, l->wide, s, site, m), s->tokens, site->d_in);
    }
}

/* Whether the gradients of A are wanted for this segment. */
static bool a_trains(const struct segment *s)
{
    return s->gradient && (s->factors->adapter->trains & ADAPTER_A);
}

/* dA of all modules of a site at once: x is read once for all. */
static void back_a_whole(const struct low_rank *l, const struct segment *s,
                         const struct site_factors *site, struct mat g, struct mat x)
{
    size_t d = site->d_in;
    struct mat all = {s->factors->stage, DTYPE_F32, d};
    for (size_t i = 0; i < (s->start ? s->rows : 1); i++) {
        size_t first = s->start ? s->start[i] - s->first : 0;
        size_t t = s->start ? s->start[i + 1] - s->start[i] : s->tokens;
        if (!t) continue;
        multiply(l, all, mat_at(g, first, 0), mat_at(x, first, 0),
                 (struct product_shape){PRODUCT_TN, site->width, d, t, 1.0f, false});
        for (uint32_t k = 0; k < site->count; k++) {
            const struct factor *m = &site->factor[k];
            struct mat da = {s->gradient + m->a_at + i * s->stride, DTYPE_F32, d};
            if (m->rank) l->be->add(l->ctx, da, mat_at(all, m->col, 0), m->rank, d);
        }
    }
}

/* dA = G^T x of each module, with its masked x if there is dropout. */
static void back_a(const struct low_rank *l, const struct factors_back *b, const struct segment *s,
                   const struct site_factors *site)
{
    struct mat x = mat_at(b->x, s->first, 0), g = mat_at(b->g, s->first, 0);
    if (l->dropout <= 0 && site->count > 1) {
        back_a_whole(l, s, site, g, x);
        return;
    }
    for (uint32_t k = 0; k < site->count; k++) {
        const struct factor *m = &site->factor[k];
        if (!m->rank) continue;
        if (l->dropout > 0) x = masked(l, l->wide, b->x, s, site, m);
        add_gradient(
            l, s, m->a_at, mat_at(g, 0, m->col), x,
            (struct product_shape){PRODUCT_TN, m->rank, site->d_in, s->tokens, 1.0f, true});
    }
}

/* Segments without a module at this site contribute 0 to dx, which must then be written, since the
 * caller adds to dx afterwards. */
bool factors_backward(const struct low_rank *l, const struct factors_back *b)
{
    const struct site_factors *any = any_site(l);
    for (size_t i = 0; any && i < l->segments; i++) {
        const struct segment *s = &l->segment[i];
        if (!s->tokens) continue;
        const struct site_factors *site =
            s->factors ? &s->factors->site[l->layer * SITES + l->site] : NULL;
        if (!site || !site->count) {
            if (b->dx.data) l->be->zero(l->ctx, mat_at(b->dx, s->first, 0), s->tokens, any->d_in);
            continue;
        }
        for (uint32_t k = 0; k < site->count; k++)
            back_module(l, b, s, &site->factor[k]);
        if (b->x.data && a_trains(s)) back_a(l, b, s, site);
        if (b->dx.data) back_input(l, b, s, site);
    }
    return any && b->dx.data;
}

void factors_backward_a(const struct low_rank *l, const struct factors_back *b)
{
    for (size_t i = 0; i < l->segments; i++) {
        const struct segment *s = &l->segment[i];
        if (!s->tokens || !a_trains(s)) continue;
        const struct site_factors *site = &s->factors->site[l->layer * SITES + l->site];
        if (site->count) back_a(l, b, s, site);
    }
}
