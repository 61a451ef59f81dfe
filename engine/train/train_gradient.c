/* The mean gradient over many rows without an optimizer. Batches are summed in double in their
 * order, so that the result is accurate for any number of rows and the same on every run. */
#include "engine/train/train_penalty.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

struct sums {
    struct engine_row *row; /* (batch) */
    uint32_t *teach;        /* (rows of the data) indices of those with a learned token */
    uint32_t *order;        /* (rows of the data) of `teach` */
    float *gradient;        /* (value_count) of one batch */
    double *sum;            /* (value_count) */
    double nll;
    uint64_t learned;
};

/* Scale 1: the number of learned tokens is known only after the last batch, so the division comes
 * at the end. */
static err add_batch(struct sums *s, const struct adapter *ad, struct engine *e, size_t rows,
                     const struct train_gradient_options *o)
{
    double *nll = calloc(rows + 1, sizeof *nll);
    if (!nll) return err_sys(ENOMEM, "gradient");
    for (size_t i = 0; i < ad->value_count; i++)
        s->gradient[i] = 0.0f;
    struct engine_gradient into = {s->gradient, ad};
    struct engine_pass_options pass = {.scale = 1.0, .checkpoint = o->checkpoint};
    err er = engine_gradients(nll, e, s->row, rows, &into, 1, &pass);
    for (size_t i = 0; i < ad->value_count && !err_is(er); i++)
        s->sum[i] += (double)s->gradient[i];
    for (size_t i = 0; i < rows; i++)
        s->nll += nll[i];
    free(nll);
    return er;
}

/* The rows are a prefix of a shuffled order: a sample without replacement. */
static err add_rows(struct sums *s, const struct adapter *ad, struct engine *e,
                    const struct dataset *data, const struct train_gradient_options *o)
{
    size_t all = train_rows(s->teach, data), rows = o->rows && o->rows < all ? o->rows : all;
    struct train_options order = {.seed = o->seed, .shuffle = o->shuffle};
    train_order(s->order, all, &order, 1);
    for (size_t first = 0, n; first < rows; first += n) {
        n = rows - first < o->batch ? rows - first : o->batch;
        for (size_t i = 0; i < n; i++) {
            const struct data_row *r = &data->row[s->teach[s->order[first + i]]];
            s->row[i] = (struct engine_row){r->id, r->label, r->count, ad};
            s->learned += engine_learned(r->label, r->count);
        }
        TRY(add_batch(s, ad, e, n, o));
    }
    if (!s->learned) return err_make(ERR_INPUT, "gradient: the data has no token to learn");
    return ERR_NONE;
}

/* All sums are checked before anything is written, so *out is untouched after a failure. */
static err finish(struct train_gradient *out, const struct sums *s, size_t count)
{
    double mean = 1.0 / (double)s->learned;
    for (size_t i = 0; i < count; i++)
        if (!isfinite(s->sum[i]))
            return err_make(ERR_STATE, "gradient: value %zu is not finite", i);
    for (size_t i = 0; i < count; i++)
        out->value[i] = (float)(s->sum[i] * mean);
    out->loss = s->nll * mean;
    out->learned = s->learned;
    return ERR_NONE;
}

/* The caller owns out->value, and nothing is written to *out unless the call succeeds. Memory is 12
 * bytes per trained value: a float gradient and a double sum. */
err train_gradient_run(struct train_gradient *out, const struct adapter *ad, struct engine *e,
                       const struct dataset *data, const struct train_gradient_options *o)
{
    if (!ad->value_count)
        return err_make(ERR_INPUT, "gradient: the adapter has no values that train");
    if (!o->batch) return err_make(ERR_INPUT, "gradient: batch 0: expected at least 1");
    struct sums s = {.row = calloc(o->batch, sizeof *s.row),
                     .teach = calloc(data->count + 1, sizeof *s.teach),
                     .order = calloc(data->count + 1, sizeof *s.order),
                     .gradient = calloc(ad->value_count, sizeof *s.gradient),
                     .sum = calloc(ad->value_count, sizeof *s.sum)};
    err er =
        s.row && s.teach && s.order && s.gradient && s.sum ? ERR_NONE : err_sys(ENOMEM, "gradient");
    if (!err_is(er)) er = add_rows(&s, ad, e, data, o);
    if (!err_is(er)) er = finish(out, &s, ad->value_count);
    free(s.row);
    free(s.teach);
    free(s.order);
    free(s.gradient);
    free(s.sum);
    return er;
}
