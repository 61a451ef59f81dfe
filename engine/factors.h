/* An adapter prepared for the products of an engine: for each site of each layer, the factors of
 * its modules on the device. Used only inside the engine.
 *
 * A site is a place where adapted modules share one input x: q, k, v; o; gate, up; down. It has one
 * frozen weight W, and the algebra of its low-rank part is in kernels/backend.h. */
#ifndef ENGINE_FACTORS_H
#define ENGINE_FACTORS_H

#include "engine/adapter.h"
#include "kernels/backend.h"

struct engine;

enum site { SITE_QKV, SITE_O, SITE_GATE_UP, SITE_DOWN, SITES };
enum { SITE_MODULES = 3 };

struct site_factors {
    uint32_t width, count; /* columns of H; modules */
    struct low_rank_module shape[SITE_MODULES];
    const struct adapter_module *module[SITE_MODULES];
    /* The carry that low_rank holds if it is borrowed, else NULL. */
    const float *carry_a[SITE_MODULES], *carry_b[SITE_MODULES];
    struct backend_low_rank *low_rank; /* NULL without modules */
};
struct factors {
    const struct backend *be;
    struct backend_context *ctx;
    const struct adapter *adapter;
    struct site_factors *site; /* (sites) */
    size_t sites;              /* layers * SITES */
    struct backend_low_rank **all;
    size_t count;  /* of all: the sites with modules */
    uint64_t held; /* memory of the device, in bytes; 0 on the CPU */
};

err factors_open(struct factors **out, const struct engine *e, const struct adapter *ad);
/* Packs another adapter in the memory of `f`. Its carry is not packed again: it must be the
 * borrowed carry that `f` holds already. False: the modules, ranks or carry differ, and f is
 * unchanged. The adapter that f was opened for may be closed. */
bool factors_adopt(struct factors *f, const struct adapter *ad, const struct arch *arch);
/* Takes the values that train from `value` (value_count) on the device. */
void factors_set(struct factors *f, const float *value);
void factors_close(struct factors *f); /* accepts NULL */
/* Whether a module of `layer` trains at `site` or at a later site of the same layer. */
bool factors_train_at(const struct factors *f, uint32_t layer, enum site site);

#endif
