/* Training with AdamW. Trained values are float32 on the device; packed copies of them in the
 * precision of the engine are refreshed after every step. Per value: the value, two moments and a
 * gradient, 16 bytes. */
#include "engine/train/train.h"
#include "base/rng.h"
#include "base/text.h"
#include "engine/train/train_parts.h"
#include "engine/train/train_penalty.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void train_set(struct train_options *o, const struct training_options *from)
{
    o->steps = (uint64_t)from->steps;
    o->epochs = from->epochs;
    o->batch = (uint32_t)from->batch;
    o->accumulate = (uint32_t)from->accumulate;
    o->lr = from->lr;
    o->schedule = (enum train_schedule)from->schedule;
    o->warmup = (uint64_t)from->warmup;
    o->weight_decay = from->weight_decay;
    o->beta1 = from->beta1;
    o->beta2 = from->beta2;
    o->eps = from->eps;
    o->clip = from->clip;
    o->dropout = from->dropout;
    o->shuffle = from->shuffle;
    o->seed = (uint64_t)from->seed;
}

void train_defaults(struct train_options *o)
{
    struct training_options defaults;
    training_options_defaults(&defaults);
    *o = (struct train_options){0};
    train_set(o, &defaults);
}

uint64_t train_steps(const struct train_options *o, size_t rows)
{
    if (o->steps) return o->steps;
    double steps = ceil(o->epochs * (double)rows / ((double)o->batch * (double)o->accumulate));
    return steps < 1.0 ? 1 : (uint64_t)steps;
}

/* Linear warm-up from 0, then with u = (t - warmup) / (steps - warmup) constant 1, linear 1 - u, or
 * cosine (1 + cos(pi u)) / 2. As in transformers the first warm-up step has factor 0. */
double train_lr_factor(enum train_schedule s, uint64_t t, uint64_t warmup, uint64_t steps)
{
    if (t < warmup) return (double)t / (double)(warmup > 1 ? warmup : 1);
    double rest = steps > warmup ? (double)(steps - warmup) : 1.0, factor = 1.0;
    if (s == TRAIN_LINEAR) factor = steps > t ? (double)(steps - t) / rest : 0.0;
    if (s == TRAIN_COSINE)
        factor = 0.5 * (1.0 + cos(3.14159265358979323846 * (double)(t - warmup) / rest));
    return factor > 0.0 ? factor : 0.0;
}

/* Comparisons are written so that NaN fails them: options may come from a file or from a run of the
 * coordinator. */
err training_check(const struct train_options *o, const struct adapter *ad,
                   const struct dataset *data)
{
    if (!ad->value_count)
        return err_make(ERR_INPUT, "training: the adapter has no values that train");
    if (!data->count || !data->learned)
        return err_make(ERR_INPUT, "training: the data has no token to learn");
    if (!o->batch || !o->accumulate || (uint64_t)o->batch * o->accumulate > (1u << 20))
        return err_make(ERR_INPUT, "training: batch %u, accumulate %u: expected at least 1",
                        o->batch, o->accumulate);
    if (!(o->lr >= 0.0) || !(o->dropout >= 0.0 && o->dropout < 1.0) || !(o->clip >= 0.0) ||
        !(o->eps >= 0.0) || !(o->beta1 >= 0.0 && o->beta1 < 1.0) ||
        !(o->beta2 >= 0.0 && o->beta2 < 1.0) || !isfinite(o->lr * o->weight_decay))
        return err_make(ERR_INPUT, "training: lr, clip, eps and weight decay must not be negative; "
                                   "dropout and betas lie in [0, 1)");
    if (!(o->prox >= 0.0) || !isfinite(o->prox))
        return err_make(ERR_INPUT, "training: prox %g: expected a number of at least 0", o->prox);
    if (!(o->prune_lambda >= 0.0) || !isfinite(o->prune_lambda) ||
        !(o->prune_gamma >= 0.0 && o->prune_gamma <= 1.0) ||
        (o->prune_lambda > 0.0 && o->prune_gamma <= 0.0))
        return err_make(ERR_INPUT,
                        "training: prune_lambda %g, prune_gamma %g: expected a lambda of at least "
                        "0 and a gamma in (0, 1]",
                        o->prune_lambda, o->prune_gamma);
    return ERR_NONE;
}

static void factors_give(struct training *t)
{
    if (t->o->packed && t->factors) {
        factors_close(*t->o->packed);
        *t->o->packed = t->factors;
    } else {
        factors_close(t->factors);
    }
}

static err factors_take(struct training *t)
{
    struct engine *e = t->e;
    struct factors **packed = t->o->packed;
    if (packed && *packed && factors_adopt(*packed, t->adapter, &e->model->arch)) {
        t->factors = *packed;
        *packed = NULL;
        return ERR_NONE;
    }
    return factors_open(&t->factors, e->be, e->ctx, t->adapter, &e->model->arch);
}

/* Accepts one that training_open() could open only in part. */
void training_close(struct training *t)
{
    const struct backend *be = t->e->be;
    float *block[] = {t->value, t->first, t->second, t->gradient, t->added};
    for (size_t i = 0; i < sizeof block / sizeof block[0]; i++)
        if (block[i]) be->memory_give(t->e->ctx, block[i]);
    factors_give(t);
    free(t->start);
    free(t->penalty);
    free(t->row);
    free(t->order);
}

/* The penalty is computed on the host in double, since it needs norms over single modules; it costs
 * one copy of the trained values per step. */
static err penalty_open(struct training *t)
{
    size_t bytes = t->adapter->value_count * sizeof(float);
    if (!train_penalty_on(t->o)) return ERR_NONE;
    t->start = malloc(bytes);
    t->penalty = malloc(bytes);
    if (!t->start || !t->penalty) return err_sys(ENOMEM, "training");
    memcpy(t->start, t->adapter->value, bytes);
    return t->e->be->memory_take(&t->added, t->e->ctx, bytes);
}

/* The moments start at zero, which memory_take() guarantees. */
err training_open(struct training *t)
{
    struct engine *e = t->e;
    size_t bytes = t->adapter->value_count * sizeof(float);
    t->row = calloc((size_t)t->o->batch * t->o->accumulate, sizeof *t->row);
    t->order = calloc(t->data->count, sizeof *t->order);
    if (!t->row || !t->order) return err_sys(ENOMEM, "training");
    TRY(e->be->memory_take(&t->value, e->ctx, bytes));
    TRY(e->be->memory_take(&t->first, e->ctx, bytes));
    TRY(e->be->memory_take(&t->second, e->ctx, bytes));
    TRY(e->be->memory_take(&t->gradient, e->ctx, bytes));
    TRY(penalty_open(t));
    e->be->copy_in(e->ctx, t->value, t->adapter->value, bytes);
    return factors_take(t);
}

/* Fisher-Yates shuffle, with a generator keyed by the epoch, so that the order of an epoch can be
 * computed without the earlier ones. */
void train_order(uint32_t *order, size_t count, const struct train_options *o, uint64_t epoch)
{
    struct rng rng;
    rng_init(&rng, "shuffle", o->seed, "rows", epoch);
    for (uint32_t i = 0; i < count; i++)
        order[i] = i;
    for (uint32_t i = (uint32_t)count; o->shuffle && i > 1; i--) {
        uint32_t k = (uint32_t)rng_below(&rng, i), other = order[i - 1];
        order[i - 1] = order[k];
        order[k] = other;
    }
}

/* Row number `number` of the training, counted over all epochs. Batches run across the end of an
 * epoch, so every step has the same number of rows. */
static const struct data_row *row_at(struct training *t, uint64_t number)
{
    uint64_t epoch = number / t->data->count + 1;
    if (t->epoch != epoch) {
        train_order(t->order, t->data->count, t->o, epoch);
        t->epoch = epoch;
    }
    return &t->data->row[t->order[number % t->data->count]];
}

/* A new mask for each pass, reproducible from the seed. */
static uint64_t dropout_key(const struct training *t, uint64_t pass)
{
    struct rng rng;
    rng_init(&rng, "dropout", t->o->seed, "masks", pass);
    uint64_t high = rng_u32(&rng);
    return high << 32 | rng_u32(&rng);
}

/* One forward and backward pass over `row`. Adds the gradient of scale * sum of likelihoods to
 * t->gradient and the likelihoods to *nll. */
static err one_pass(struct training *t, const struct engine_row *row, size_t rows, double scale,
                    uint64_t pass, double *nll)
{
    struct batch b = {0};
    err er = batch_open(&b, row, rows, true);
    if (err_is(er)) return er;
    struct segment segment = {.factors = t->factors, .gradient = t->gradient, .tokens = b.tokens};
    b.segment = &segment;
    b.segments = 1;
    b.backward = true;
    b.checkpoint = t->o->checkpoint;
    b.scale = scale;
    b.dropout = (float)t->o->dropout;
    if (t->o->dropout > 0.0) b.dropout_key = dropout_key(t, pass);
    er = pass_run(t->e, &b, row);
    for (size_t i = 0; i < b.learned; i++)
        *nll += b.nll[i];
    batch_close(&b);
    return er;
}

/* The gradient of the penalty is added before clipping, so the clip bounds the whole step. */
static void add_penalty(struct training *t, struct train_step *s)
{
    const struct backend *be = t->e->be;
    size_t n = t->adapter->value_count;
    if (!t->penalty) return;
    s->penalty = train_penalty(t->penalty, t->adapter, t->start, t->o);
    be->copy_in(t->e->ctx, t->added, t->penalty, n * sizeof(float));
    be->add(t->e->ctx, (struct mat){t->gradient, DTYPE_F32, n},
            (struct mat){t->added, DTYPE_F32, n}, 1, n);
}

/* Clips to norm o->clip as PyTorch does, with 1e-6 in the denominator, so results agree with it. A
 * loss or gradient that is not finite stops the training: AdamW would turn every value into NaN
 * with the next step. The values are copied back after every step, because on_step() may save the
 * adapter. */
err training_update(struct training *t, struct train_step *s)
{
    struct engine *e = t->e;
    const struct train_options *o = t->o;
    size_t n = t->adapter->value_count;
    double squares = 0.0;
    add_penalty(t, s);
    e->be->sum_squares(e->ctx, &squares, t->gradient, n);
    s->grad_norm = sqrt(squares);
    if (!isfinite(s->grad_norm) || !isfinite(s->loss))
        return err_make(ERR_STATE, "training: step %llu: loss %g, gradient norm %g: not finite",
                        (unsigned long long)s->step, s->loss, s->grad_norm);
    double clip = o->clip > 0.0 ? o->clip / (s->grad_norm + 1e-6) : 1.0;
    struct adamw a = {.lr = s->lr, .beta1 = o->beta1, .beta2 = o->beta2, .eps = o->eps};
    a.weight_decay = o->weight_decay;
    a.step = s->step + 1;
    a.gradient_scale = clip < 1.0 ? clip : 1.0;
    e->be->adamw(e->ctx, t->value, t->first, t->second, t->gradient, n, &a);
    e->be->copy_out(e->ctx, t->adapter->value, t->value, n * sizeof(float));
    factors_refresh(t->factors);
    return e->be->check(e->ctx);
}

/* One optimizer step over batch * accumulate rows. The loss is the mean over the learned tokens of
 * the whole step: the scale 1 / learned is known before the first pass, so accumulated passes give
 * the gradient of one large batch and not the mean of batch means, which would weigh short rows
 * more. */
static err one_step(struct training *t, struct train_step *s)
{
    struct engine *e = t->e;
    size_t batch = t->o->batch, rows = batch * t->o->accumulate;
    double nll = 0.0;
    for (size_t i = 0; i < rows; i++) {
        const struct data_row *r = row_at(t, s->step * rows + i);
        t->row[i] = (struct engine_row){r->id, r->label, r->count, t->adapter};
        s->tokens += r->count;
        for (uint32_t k = 1; k < r->count; k++)
            s->learned += r->label[k] != DATA_IGNORE;
    }
    size_t n = t->adapter->value_count;
    e->be->zero(e->ctx, (struct mat){t->gradient, DTYPE_F32, n}, 1, n);
    double scale = s->learned ? 1.0 / (double)s->learned : 0.0;
    for (uint32_t i = 0; i < t->o->accumulate; i++)
        TRY(one_pass(t, t->row + i * batch, batch, scale, s->step * t->o->accumulate + i, &nll));
    s->loss = nll * scale;
    s->lr = t->o->lr * train_lr_factor(t->o->schedule, s->step, t->o->warmup, t->steps);
    return training_update(t, s);
}

/* *out is set only on success. An interruption by on_step() returns ERR_STOPPED and leaves the
 * adapter as it is after that step. */
err train_run(struct train_result *out, struct adapter *adapter, struct engine *e,
              const struct dataset *data, const struct train_options *o)
{
    TRY(training_check(o, adapter, data));
    struct training t = {.e = e, .adapter = adapter, .data = data, .o = o};
    struct train_result result = {.values = adapter->value_count};
    double sum = 0.0;
    t.steps = train_steps(o, data->count);
    if (o->prune_gamma > 0.0) result.tail_before = train_tail(adapter, o->prune_gamma);
    err er = training_open(&t);
    for (uint64_t i = 0; i < t.steps && !err_is(er); i++) {
        struct train_step s = {.step = i, .steps = t.steps};
        uint64_t since = text_now_ms();
        er = one_step(&t, &s);
        if (err_is(er)) break;
        s.seconds = (double)(text_now_ms() - since) / 1000.0;
        if (i == 0) result.first_loss = s.loss;
        result.last_loss = s.loss;
        result.steps++;
        result.tokens += s.tokens;
        result.learned += s.learned;
        result.seconds += s.seconds;
        sum += s.loss * (double)s.learned;
        if (o->on_step && !o->on_step(o->user, &s))
            er = err_make(ERR_STOPPED, "training stopped after step %llu", (unsigned long long)i);
    }
    result.mean_loss = result.learned ? sum / (double)result.learned : 0.0;
    if (o->prune_gamma > 0.0) result.tail_after = train_tail(adapter, o->prune_gamma);
    if (!err_is(er)) *out = result;
    training_close(&t);
    return er;
}
