/* The passes that callers ask for: likelihoods, logits, gradients, evaluation. */
#include "engine/pass.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* About 2048 tokens fill the products of all cores, and their activations are small compared
 * with the weights. */
enum { EVALUATE_TOKENS = 2048, ADAPTERS_MAX = 64 };

struct live { /* the packed adapters of one call, and the segments of its rows */
    struct factors *factors[ADAPTERS_MAX];
    float *gradient[ADAPTERS_MAX]; /* device */
    size_t count;
    struct segment *segment;
    size_t segments;
};

/* Accepts one that live_open() could fill only in part. */
static void live_close(struct live *l, struct engine *e)
{
    for (size_t i = 0; i < l->count; i++) {
        factors_close(l->factors[i]);
        if (l->gradient[i]) e->be->memory_give(e->ctx, l->gradient[i]);
    }
    free(l->segment);
    *l = (struct live){0};
}

/* Finds the packed factors of an adapter, or packs them: rows of one adapter share them. The search
 * is linear because a call has few adapters. */
static err live_adapter(size_t *out, struct live *l, struct engine *e, const struct adapter *ad)
{
    for (size_t i = 0; i < l->count; i++)
        if (l->factors[i]->adapter == ad) {
            *out = i;
            return ERR_NONE;
        }
    if (l->count == ADAPTERS_MAX)
        return err_make(ERR_LIMIT, "batch: more than %d adapters", ADAPTERS_MAX);
    TRY(factors_open(&l->factors[l->count], e, ad));
    *out = l->count++;
    return ERR_NONE;
}

/* Neighbouring rows with the same adapter form one segment, so the low-rank products have as many
 * rows as possible. Rows without an adapter have a segment with factors NULL. */
static err live_open(struct live *out, struct engine *e, const struct engine_row *row, size_t rows)
{
    struct live l = {.segment = calloc(rows + 1, sizeof *l.segment)};
    if (!l.segment) return err_sys(ENOMEM, "engine");
    size_t at = 0;
    for (size_t i = 0; i < rows; at += row[i++].count) {
        size_t which = 0;
        if (row[i].adapter) {
            err er = live_adapter(&which, &l, e, row[i].adapter);
            if (err_is(er)) {
                live_close(&l, e);
                return er;
            }
        }
        struct factors *f = row[i].adapter ? l.factors[which] : NULL;
        if (!l.segments || l.segment[l.segments - 1].factors != f)
            l.segment[l.segments++] = (struct segment){.factors = f, .first = at};
        l.segment[l.segments - 1].tokens += row[i].count;
    }
    *out = l;
    return ERR_NONE;
}

/* Ids index the embedding and labels index the logits, so values from a caller are checked once
 * here and not in the kernels. */
static err check_rows(const struct engine *e, const struct engine_row *row, size_t rows)
{
    for (size_t i = 0; i < rows; i++)
        for (uint32_t t = 0; t < row[i].count; t++) {
            int32_t id = row[i].id[t];
            if (id < 0 || (uint32_t)id >= e->model->arch.vocab)
                return err_make(ERR_INPUT, "row %zu: token id %d, expected 0 to %u", i, id,
                                e->model->arch.vocab - 1);
            int32_t label = row[i].label ? row[i].label[t] : DATA_IGNORE;
            if (label != DATA_IGNORE && (label < 0 || (uint32_t)label >= e->model->arch.vocab))
                return err_make(ERR_INPUT, "row %zu: label %d, expected -100 or 0 to %u", i, label,
                                e->model->arch.vocab - 1);
        }
    return ERR_NONE;
}

/* Adds the likelihoods of learned tokens per row. b->index is sorted, so one walk over both lists
 * is enough. Sums are double: a row may have thousands of tokens. */
static void sum_rows(double *nll, const struct batch *b)
{
    for (size_t i = 0, k = 0; i < b->rows; i++) {
        double sum = 0.0;
        for (; k < b->learned && b->index[k] < b->start[i + 1]; k++)
            sum += b->nll[k];
        nll[i] = sum;
    }
}

/* With o == NULL the pass is forward only. */
static err run_live(double *nll, struct engine *e, const struct engine_row *row, size_t rows,
                    struct live *live, const struct engine_pass_options *o)
{
    struct batch b = {0};
    err er;
    TRY_OUT(er, batch_open(&b, row, rows, BATCH_LABELS));
    b.segment = live->segment;
    b.segments = live->segments;
    if (o) {
        b.backward = true;
        b.scale = o->scale;
        b.checkpoint = o->checkpoint;
        b.dropout = (float)o->dropout;
        b.dropout_key = o->dropout_key;
    }
    TRY_OUT(er, pass_run(e, &b));
    TRY_OUT(er, e->be->check(e->ctx));
    sum_rows(nll, &b);
out:
    batch_close(&b);
    return er;
}

/* The adapters are packed for this call only; engine_evaluate() keeps them over all its batches. */
err engine_nll(double *nll, struct engine *e, const struct engine_row *row, size_t rows)
{
    struct live live;
    TRY(check_rows(e, row, rows));
    TRY(live_open(&live, e, row, rows));
    err er = run_live(nll, e, row, rows, &live, NULL);
    live_close(&live, e);
    return er;
}

/* Gradients are summed on the device in one block per adapter and copied to the host once at the
 * end. The extra float avoids a request for 0 bytes. */
static err take_gradients(struct live *live, struct engine *e,
                          const struct engine_gradient *gradient, size_t gradients)
{
    for (size_t i = 0; i < live->count; i++)
        for (size_t k = 0; k < gradients; k++)
            if (gradient[k].adapter == live->factors[i]->adapter)
                TRY(e->be->memory_take(&live->gradient[i], e->ctx,
                                       (gradient[k].adapter->value_count + 1) * sizeof(float)));
    for (size_t s = 0; s < live->segments; s++)
        for (size_t i = 0; i < live->count; i++)
            if (live->segment[s].factors == live->factors[i])
                live->segment[s].gradient = live->gradient[i];
    return ERR_NONE;
}

/* Adds and does not set, so that a caller can sum over several batches. */
static err give_gradients(const struct live *live, struct engine *e,
                          const struct engine_gradient *gradient, size_t gradients)
{
    for (size_t i = 0; i < live->count; i++)
        for (size_t k = 0; k < gradients; k++) {
            if (gradient[k].adapter != live->factors[i]->adapter) continue;
            size_t n = gradient[k].adapter->value_count;
            float *host = malloc((n + 1) * sizeof(float));
            if (!host) return err_sys(ENOMEM, "engine");
            e->be->copy_out(e->ctx, host, live->gradient[i], n * sizeof(float));
            err er = e->be->check(e->ctx);
            for (size_t j = 0; j < n && !err_is(er); j++)
                gradient[k].value[j] += host[j];
            free(host);
            TRY(er);
        }
    return ERR_NONE;
}

/* Gradients are returned only for the adapters in `gradient`. Rows with another adapter, or with
 * none, contribute only their likelihoods. */
err engine_gradients(double *nll, struct engine *e, const struct engine_row *row, size_t rows,
                     const struct engine_gradient *gradient, size_t gradients,
                     const struct engine_pass_options *o)
{
    struct live live;
    TRY(check_rows(e, row, rows));
    TRY(live_open(&live, e, row, rows));
    err er = take_gradients(&live, e, gradient, gradients);
    if (!err_is(er)) er = run_live(nll, e, row, rows, &live, o);
    if (!err_is(er)) er = give_gradients(&live, e, gradient, gradients);
    live_close(&live, e);
    return er;
}

/* Logits (count, vocab) can be large (2048 x 128,256 floats are 1 GiB), so they are computed for
 * BACKEND_ROWS tokens at a time and copied out. Rows of the slice are padded to 16 columns, as
 * products require. */
err engine_logits(float *out, struct engine *e, const struct engine_row *row)
{
    const struct arch *a = &e->model->arch;
    struct live live;
    struct batch b = {0};
    TRY(check_rows(e, row, 1));
    TRY(live_open(&live, e, row, 1));
    float *slice = NULL, *inv = NULL;
    err er;
    TRY_OUT(er, batch_open(&b, row, 1, BATCH_NONE));
    b.segment = live.segment;
    b.segments = live.segments;
    TRY_OUT(er, pass_run(e, &b));
    size_t ld = (a->vocab + 15) / 16 * 16;
    TRY_OUT(er, e->be->memory_take(&slice, e->ctx, BACKEND_ROWS * ld * sizeof(float)));
    TRY_OUT(er, e->be->memory_take(&inv, e->ctx, BACKEND_ROWS * sizeof(float)));
    for (size_t t = 0; t < b.tokens; t += BACKEND_ROWS) {
        size_t n = b.tokens - t < BACKEND_ROWS ? b.tokens - t : BACKEND_ROWS;
        struct norm_shape norm = {n, 1, a->d_model, a->rms_eps};
        struct mat logits = {slice, DTYPE_F32, ld}, none = {0};
        e->be->norm(e->ctx, e->pass.normed, inv, none, mat_at(e->pass.resid, t, 0), e->final_norm,
                    &norm);
        e->be->linear(e->ctx, logits, e->pass.normed, e->head, NULL, e->pass.batch, n, false);
        for (size_t i = 0; i < n; i++)
            e->be->copy_out(e->ctx, out + (t + i) * a->vocab, mat_at(logits, i, 0).data,
                            a->vocab * sizeof(float));
    }
    er = e->be->check(e->ctx);
out:
    if (slice) e->be->memory_give(e->ctx, slice);
    if (inv) e->be->memory_give(e->ctx, inv);
    batch_close(&b);
    live_close(&live, e);
    return er;
}

/* Fills `row` with rows from `first` on, about `limit` tokens and at least one row, and returns
 * their number. A batch never depends on the results of others, so any size gives the same
 * losses. */
static size_t batch_rows(struct engine_row *row, const struct dataset *data, size_t first,
                         size_t most, const struct engine_evaluate_options *o)
{
    size_t n = 0, tokens = 0, limit = o->batch_tokens ? o->batch_tokens : EVALUATE_TOKENS;
    while (first + n < data->count && n < most) {
        const struct data_row *r = &data->row[first + n];
        if (n && tokens + r->count > limit) break;
        row[n++] = (struct engine_row){r->id, r->label, r->count, o->adapter};
        tokens += r->count;
    }
    return n;
}

/* The adapter is packed at the first batch and kept for all of them. The total is summed in double
 * in the order of the rows, so it does not depend on the batch size. */
err engine_evaluate(struct engine_evaluation *out, double *row_nll, struct engine *e,
                    const struct dataset *data, const struct engine_evaluate_options *o)
{
    enum { ROWS = 512 };
    struct engine_row *row = calloc(ROWS, sizeof *row);
    double *nll = calloc(ROWS, sizeof *nll), sum = 0.0;
    struct engine_evaluation result = {0};
    struct live live = {0};
    err er = row && nll ? ERR_NONE : err_sys(ENOMEM, "engine");
    for (size_t first = 0, n; first < data->count && !err_is(er); first += n) {
        n = batch_rows(row, data, first, ROWS, o);
        TRY_OUT(er, check_rows(e, row, n));
        size_t tokens = 0;
        for (size_t i = 0; i < n; i++)
            tokens += row[i].count;
        if (!first) TRY_OUT(er, live_open(&live, e, row, 1));
        live.segment[0].tokens = tokens; /* all rows use the same adapter, packed once */
        TRY_OUT(er, run_live(nll, e, row, n, &live, NULL));
        for (size_t i = 0; i < n; i++) {
            sum += nll[i];
            if (row_nll) row_nll[first + i] = nll[i];
            size_t learned = engine_learned(row[i].label, row[i].count);
            result.tokens += learned;
            result.rows += learned > 0;
        }
        if (o->progress && !o->progress(o->user, first + n, data->count))
            er = err_make(ERR_STOPPED, "evaluation stopped after %zu rows", first + n);
    }
out:
    live_close(&live, e);
    if (!err_is(er)) {
        result.loss = result.tokens ? sum / (double)result.tokens : NAN;
        *out = result;
    }
    free(row);
    free(nll);
    return er;
}
