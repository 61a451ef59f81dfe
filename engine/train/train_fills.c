/* Whether trainings may share a pass. In float32 the backend promises that the bits of a row do not
 * depend on its neighbours. In bfloat16 it does not, because products of other numbers of rows may
 * sum in another order; but a shared pass has no more tokens than are rounded up to the same number
 * of rows as one training alone, so its products are the same ones, and only the place of a row
 * differs. A trial on the engine itself shows whether that matters. */
#include "base/rng.h"
#include "engine/pass.h"
#include "engine/train/train.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { COPIES = 4, LENGTH = 13 }; /* equal rows of the shared pass; tokens of each */

struct trial {
    struct adapter adapter[COPIES]; /* all have the same values */
    struct engine_gradient gradient[COPIES];
    struct engine_row row[COPIES];
    float *alone; /* the gradient of the first row alone */
    int32_t id[LENGTH];
};

static err trial_open(struct trial *t, struct engine *e)
{
    const struct adapter_fresh fresh = {.targets = "all-linear", .rank = 4, .alpha = 4.0};
    struct rng rng;
    rng_init(&rng, "fills", 1, "tokens", 0);
    for (size_t i = 0; i < LENGTH; i++)
        t->id[i] = (int32_t)rng_below(&rng, e->model->arch.vocab);
    for (size_t i = 0; i < COPIES; i++) {
        struct adapter *ad = &t->adapter[i];
        TRY(adapter_open_fresh(ad, &e->model->arch, &fresh));
        rng_init(&rng, "fills", 1, "values", 0); /* also of B, or its A would have no gradient */
        rng_fill_uniform(&rng, ad->value, ad->value_count, 0.1);
        t->row[i] = (struct engine_row){t->id, t->id, LENGTH, ad};
        t->gradient[i] = (struct engine_gradient){calloc(ad->value_count, sizeof(float)), ad};
        if (!t->gradient[i].value) return err_sys(ENOMEM, "training");
    }
    t->alone = calloc(t->adapter[0].value_count, sizeof *t->alone);
    return t->alone ? ERR_NONE : err_sys(ENOMEM, "training");
}

static void trial_close(struct trial *t)
{
    for (size_t i = 0; i < COPIES; i++) {
        adapter_close(&t->adapter[i]);
        free(t->gradient[i].value);
    }
    free(t->alone);
}

static err try_rows(bool *same, struct trial *t, struct engine *e)
{
    const struct engine_pass_options o = {.scale = 1.0 / LENGTH};
    double nll[COPIES];
    TRY(trial_open(t, e));
    struct engine_gradient alone = {t->alone, &t->adapter[0]};
    size_t bytes = t->adapter[0].value_count * sizeof(float);
    TRY(engine_gradients(nll, e, t->row, 1, &alone, 1, &o));
    double want = nll[0];
    TRY(engine_gradients(nll, e, t->row, COPIES, t->gradient, COPIES, &o));
    *same = true;
    for (size_t i = 0; i < COPIES; i++)
        *same &=
            !memcmp(&nll[i], &want, sizeof want) && !memcmp(t->gradient[i].value, t->alone, bytes);
    return ERR_NONE;
}

/* A trial that fails, as for lack of memory, has shown nothing. Engines that share weights have the
 * same products, so one trial serves all; the owner of the weights makes it first. */
static bool rows_match(struct engine *e)
{
    struct trial t = {0};
    bool same = false;
    if (e->shared && e->fills == FILLS_UNKNOWN) e->fills = e->shared->fills;
    if (e->fills == FILLS_UNKNOWN) {
        err er = try_rows(&same, &t, e);
        e->fills = !err_is(er) && same ? FILLS : FILLS_NOT;
        trial_close(&t);
    }
    return e->fills == FILLS;
}

bool train_fills(struct engine *e, const struct train_options *o)
{
    bool one_pass = e->be == &backend_cpu && !e->peers && o->accumulate == 1 && o->dropout <= 0.0;
    return one_pass && (e->be->rows_alone(e->ctx) || rows_match(e));
}
