/* Training with AdamW. Trained values are float32 on the device; packed copies of them in the
 * precision of the engine are made from them after every step, and the adapter on the host gets
 * them at the end. Per value: the value, two moments and a gradient, 16 bytes. */
#include "engine/train/train.h"
#include "base/rng.h"
#include "engine/engine_plan.h"
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

/* From the labels and not from data->unlearned, because the rows of a caller may come from
 * elsewhere than a file. */
size_t train_rows(uint32_t *index, const struct dataset *data)
{
    size_t n = 0;
    for (size_t i = 0; i < data->count; i++)
        if (engine_learned(data->row[i].label, data->row[i].count)) index[n++] = (uint32_t)i;
    return n;
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
    return factors_open(&t->factors, e, t->adapter);
}

/* Accepts one that training_open() could open only in part. */
void training_close(struct training *t)
{
    const struct backend *be = t->e->be;
    be->record_close(t->record);
    float *block[] = {t->value, t->first, t->second, t->gradient, t->start};
    for (size_t i = 0; i < sizeof block / sizeof block[0]; i++)
        if (block[i]) be->memory_give(t->e->ctx, block[i]);
    factors_give(t);
    training_peers_close(t);
    free(t->penalty);
    free(t->batch);
    free(t->row);
    free(t->teach);
    free(t->order);
}

/* Moments start at zero, which memory_take() guarantees, or where the last training ended. */
err training_open(struct training *t)
{
    struct engine *e = t->e;
    uint64_t before = e->be->memory_held(e->ctx);
    size_t bytes = t->adapter->value_count * sizeof(float);
    /* Behind the rows of all passes is room for those of one, see training_deal(). */
    t->row = calloc((size_t)t->o->batch * (t->o->accumulate + 1), sizeof *t->row);
    t->batch = calloc(t->o->accumulate * training_devices(t), sizeof *t->batch);
    t->order = calloc(t->data->count, sizeof *t->order);
    t->teach = calloc(t->data->count, sizeof *t->teach);
    if (!t->row || !t->batch || !t->order || !t->teach) return err_sys(ENOMEM, "training");
    t->rows = train_rows(t->teach, t->data);
    TRY(e->be->memory_take(&t->value, e->ctx, bytes));
    TRY(e->be->memory_take(&t->first, e->ctx, bytes));
    TRY(e->be->memory_take(&t->second, e->ctx, bytes));
    TRY(e->be->memory_take(&t->gradient, e->ctx, bytes));
    if (t->o->prox > 0.0) TRY(e->be->memory_take(&t->start, e->ctx, bytes));
    t->blocks_held = e->be->memory_held(e->ctx) - before;
    if (t->o->prune_lambda > 0.0 && !(t->penalty = malloc(bytes)))
        return err_sys(ENOMEM, "training");
    e->be->copy_in(e->ctx, t->value, t->adapter->value, bytes);
    if (t->start) e->be->copy_in(e->ctx, t->start, t->adapter->value, bytes);
    if (t->o->moments) {
        e->be->copy_in(e->ctx, t->first, t->o->moments->first, bytes);
        e->be->copy_in(e->ctx, t->second, t->o->moments->second, bytes);
    }
    TRY(factors_take(t));
    return training_peers_open(t);
}

err training_reserve_on(struct training *t, struct engine *e, const struct factors *f,
                        uint64_t blocks_held, const struct pass_size *s)
{
    struct pass_size size = *s;
    size.backward = true;
    size.checkpoint = t->o->checkpoint;
    pass_size_widths(&size, f);
    /* Nothing more is taken then, because training_open() has taken the blocks of the adapter. So
     * the free memory of the system is not read, which would cost thousands of simulated members
     * more than a check is worth. */
    if (e->be == &backend_cpu && !t->each_row && pass_fits(e, &size)) return pass_reserve(e, &size);
    struct engine_plan_adapter adapter = {.values = t->adapter->value_count};
    adapter.taken = blocks_held + f->held;
    adapter.each_row = t->each_row;
    TRY(engine_plan_check(e, &size, &adapter, engine_capacity(e)));
    return pass_reserve(e, &size);
}

err training_reserve(struct training *t, const struct pass_size *s)
{
    return training_reserve_on(t, t->e, t->factors, t->blocks_held, s);
}

/* The generator is keyed by the epoch, so that the order of an epoch can be computed without the
 * earlier ones. */
void train_order(uint32_t *order, size_t count, const struct train_options *o, uint64_t epoch)
{
    struct rng rng;
    rng_init(&rng, "shuffle", o->seed, "rows", epoch);
    for (uint32_t i = 0; i < count; i++)
        order[i] = i;
    if (o->shuffle) rng_shuffle(&rng, order, count);
}

/* Batches run across the end of an epoch, so every step has the same number of rows. */
const struct data_row *training_row(struct training *t, uint64_t number)
{
    uint64_t epoch = number / t->rows + 1;
    if (t->epoch != epoch) {
        train_order(t->order, t->rows, t->o, epoch);
        t->epoch = epoch;
    }
    return &t->data->row[t->teach[t->order[number % t->rows]]];
}

/* The largest sizes of all passes on a device. The order of the rows is known before the first
 * step, so this walks through it. */
static struct pass_size largest_pass(struct training *t, size_t device)
{
    struct pass_size most = {.rows = training_share(t, device)};
    uint64_t passes = t->steps * t->o->accumulate;
    for (uint64_t i = 0; i < passes; i++) {
        size_t tokens = 0, learned = 0;
        for (uint64_t k = device; k < t->o->batch; k += training_devices(t)) {
            const struct data_row *r = training_row(t, i * t->o->batch + k);
            tokens += r->count;
            learned += engine_learned(r->label, r->count);
            if (r->count > most.positions) most.positions = r->count;
        }
        if (tokens > most.tokens) most.tokens = tokens;
        if (learned > most.learned) most.learned = learned;
    }
    return most;
}

err training_reserve_all(struct training *t)
{
    struct pass_size most = largest_pass(t, 0);
    TRY(training_reserve(t, &most));
    for (size_t i = 0; i < t->e->peers; i++) {
        const struct training_peer *p = &t->peer[i];
        most = largest_pass(t, i + 1);
        TRY(training_reserve_on(t, p->e, p->factors, p->blocks_held, &most));
    }
    return ERR_NONE;
}

/* The penalty needs norms over single modules, so it is computed on the host in double, from values
 * that training_update() fetches after every step. */
void training_penalty(struct training *t, struct train_step *s)
{
    if (t->penalty) s->penalty = train_penalty(t->penalty, t->adapter, t->o);
}

static err fetch(const struct training *t)
{
    struct engine *e = t->e;
    e->be->copy_out(e->ctx, t->adapter->value, t->value, t->adapter->value_count * sizeof(float));
    return e->be->check(e->ctx);
}

void training_fetch_after(err *er, const struct training *t, uint64_t steps)
{
    struct engine *e = t->e;
    struct train_moments *moments = t->o->moments;
    size_t bytes = t->adapter->value_count * sizeof(float);
    if (err_is(*er) && er->kind != ERR_STOPPED) return;
    if (moments) {
        e->be->copy_out(e->ctx, moments->first, t->first, bytes);
        e->be->copy_out(e->ctx, moments->second, t->second, bytes);
        moments->steps += steps;
    }
    err fetched = fetch(t);
    if (err_is(fetched)) *er = fetched;
}

err training_update(struct training *t, struct train_step *s)
{
    struct engine *e = t->e;
    const struct train_options *o = t->o;
    double norm2[2] = {0};
    struct adamw a = {.lr = s->lr, .beta1 = o->beta1, .beta2 = o->beta2, .eps = o->eps};
    a.weight_decay = o->weight_decay;
    a.step = s->step + 1 + (o->moments ? o->moments->steps : 0);
    a.clip = o->clip;
    struct optimizer optimizer = {.value = t->value, .first = t->first, .second = t->second};
    optimizer.gradient = t->gradient;
    optimizer.n = t->adapter->value_count;
    optimizer.start = t->start;
    optimizer.prox = o->prox;
    training_peers_add(t);
    e->be->adamw(e->ctx, norm2, &optimizer, &a);
    factors_set(t->factors, t->value);
    training_peers_follow(t);
    TRY(training_check_all(t));
    s->grad_norm = sqrt(norm2[0]);
    s->penalty += 0.5 * o->prox * norm2[1];
    return t->penalty && isfinite(s->grad_norm) ? fetch(t) : ERR_NONE;
}

err training_finite(const struct train_step *s)
{
    if (isfinite(s->grad_norm) && isfinite(s->loss)) return ERR_NONE;
    return err_make(ERR_STATE, "training: step %llu: loss %g, gradient norm %g: not finite",
                    (unsigned long long)s->step, s->loss, s->grad_norm);
}
