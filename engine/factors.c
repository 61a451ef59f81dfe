#include "engine/factors.h"

#include "engine/pass.h"

#include <errno.h>
#include <stdlib.h>

/* The modules of each site, in the order of the rows of its weight. */
static const struct {
    enum site site;
    enum module_kind kind;
    uint32_t
        place; /* in the layer, for the mask of dropout; those of a fused base are free there */
} site_modules[] = {
    {SITE_QKV, MODULE_Q, 0},      {SITE_QKV, MODULE_K, 1},
    {SITE_QKV, MODULE_V, 2},      {SITE_QKV, MODULE_QKV, 0},
    {SITE_O, MODULE_O, 3},        {SITE_GATE_UP, MODULE_GATE, 4},
    {SITE_GATE_UP, MODULE_UP, 5}, {SITE_GATE_UP, MODULE_GATE_UP, 4},
    {SITE_DOWN, MODULE_DOWN, 6},
};
enum { PLACES = 7 }; /* of a layer */

static struct backend_weight *site_weight(const struct engine_layer *w, enum site site)
{
    struct backend_weight *const all[SITES] = {w->qkv, w->o, w->gate_up, w->down};
    return all[site];
}

/* Places in adapter->value, so a gradient of one factor lands in its place in a block of the same
 * layout. */
static void place_trained(struct low_rank_module *s, const struct adapter_module *m,
                          const struct adapter *ad)
{
    if (!m->rank) return;
    if (ad->trains & ADAPTER_A) s->trains |= LOW_RANK_A, s->a_at = (size_t)(m->a - ad->value);
    if (ad->trains & ADAPTER_B) s->trains |= LOW_RANK_B, s->b_at = (size_t)(m->b - ad->value);
    if (m->r && (ad->trains & ADAPTER_R))
        s->trains |= LOW_RANK_R, s->r_at = (size_t)(m->r - ad->value);
}

static void site_plan(struct site_factors *s, const struct adapter *ad, const struct arch *arch,
                      uint32_t layer, enum site site)
{
    uint32_t d_out, d_in, row = 0;
    for (size_t k = 0; k < sizeof site_modules / sizeof *site_modules; k++) {
        enum module_kind kind = site_modules[k].kind;
        if (site_modules[k].site != site || !model_has_module(arch, kind)) continue;
        uint32_t first = row;
        model_module_shape(&d_out, &d_in, arch, kind);
        row += d_out;
        const struct adapter_module *m = adapter_find(ad, layer, kind);
        if (!m || m->rank + m->carry_rank == 0) continue;
        uint32_t i = s->count++;
        s->module[i] = m;
        s->shape[i] = (struct low_rank_module){.row = first,
                                               .rows = d_out,
                                               .col = s->width,
                                               .rank = m->rank,
                                               .width = m->rank + m->carry_rank,
                                               .scale = m->scale,
                                               .small = m->r != NULL,
                                               .place = layer * PLACES + site_modules[k].place};
        place_trained(&s->shape[i], m, ad);
        s->width += s->shape[i].width;
        if (m->carry_borrowed) s->carry_a[i] = m->carry_a, s->carry_b[i] = m->carry_b;
    }
}

void factors_close(struct factors *f)
{
    if (!f) return;
    for (size_t i = 0; f->site && i < f->sites; i++)
        f->be->low_rank_close(f->site[i].low_rank);
    free(f->site);
    free(f->all);
    free(f);
}

/* The carry is frozen, so it is loaded once and not when a new adapter takes its place. */
static void load(const struct factors *f, bool carry)
{
    for (size_t i = 0; i < f->sites; i++)
        for (uint32_t k = 0; k < f->site[i].count; k++) {
            const struct adapter_module *m = f->site[i].module[k];
            struct low_rank_values v = {.a = m->a, .b = m->b, .r = m->r};
            if (carry) v.carry_a = m->carry_a, v.carry_b = m->carry_b;
            f->be->low_rank_load(f->ctx, f->site[i].low_rank, k, &v);
        }
}

err factors_open(struct factors **out, const struct engine *e, const struct adapter *ad)
{
    const struct arch *arch = &e->model->arch;
    size_t sites = (size_t)arch->layers * SITES;
    REQUIRE(ad->layers == arch->layers);
    struct factors *f = calloc(1, sizeof *f);
    if (!f) return err_sys(ENOMEM, "engine");
    *f = (struct factors){.be = e->be, .ctx = e->ctx, .adapter = ad, .sites = sites};
    err er = err_sys(ENOMEM, "engine: %zu modules", ad->count);
    uint64_t before = e->be->memory_held(e->ctx);
    if (!(f->site = calloc(sites, sizeof *f->site))) goto out;
    if (!(f->all = calloc(sites, sizeof *f->all))) goto out;
    for (size_t i = 0; i < sites; i++) {
        struct site_factors *s = &f->site[i];
        uint32_t layer = (uint32_t)(i / SITES);
        site_plan(s, ad, arch, layer, (enum site)(i % SITES));
        if (!s->count) continue;
        TRY_OUT(er, e->be->low_rank_open(&s->low_rank, e->ctx,
                                         site_weight(&e->layer[layer], (enum site)(i % SITES)),
                                         s->shape, s->count));
        f->all[f->count++] = s->low_rank;
    }
    er = ERR_NONE;
    load(f, true);
    f->held = e->be->memory_held(e->ctx) - before;
out:
    if (err_is(er))
        factors_close(f);
    else
        *out = f;
    return er;
}

void factors_set(struct factors *f, const float *value)
{
    f->be->low_rank_set(f->ctx, f->all, f->count, value);
}

static bool same_site(const struct site_factors *a, const struct site_factors *b)
{
    bool same = a->width == b->width && a->count == b->count;
    for (uint32_t i = 0; i < a->count && same; i++) {
        const struct low_rank_module *x = &a->shape[i], *y = &b->shape[i];
        bool carries = x->width > x->rank;
        same = x->row == y->row && x->rank == y->rank && x->width == y->width &&
               x->small == y->small && x->scale == y->scale && x->trains == y->trains &&
               x->a_at == y->a_at && x->b_at == y->b_at && x->r_at == y->r_at &&
               a->carry_a[i] == b->carry_a[i] && a->carry_b[i] == b->carry_b[i] &&
               (a->carry_a[i] || !carries);
    }
    return same;
}

/* Equal modules have equal places in the trained block, so only the pointers to the adapter
 * change. */
bool factors_adopt(struct factors *f, const struct adapter *ad, const struct arch *arch)
{
    size_t sites = (size_t)arch->layers * SITES;
    struct site_factors *site = calloc(sites, sizeof *site);
    bool same = site && sites == f->sites;
    for (size_t i = 0; i < sites && same; i++) {
        site_plan(&site[i], ad, arch, (uint32_t)(i / SITES), (enum site)(i % SITES));
        site[i].low_rank = f->site[i].low_rank;
        same = same_site(&f->site[i], &site[i]);
    }
    if (same) {
        free(f->site);
        f->site = site;
        f->adapter = ad;
        load(f, false);
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
            if (at->shape[i].trains) return true;
    }
    return false;
}
