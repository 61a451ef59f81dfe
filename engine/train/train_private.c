/* DP-SGD over the lattice of privacy/noise/clip.h. train_private.h has the algorithm. The guarantee
 * needs three things from this file: each record is drawn independently of the others, one record
 * changes the sum by at most the clip norm, and nothing but the noisy sum leaves a step. */
#include "engine/train/train_private.h"
#include "base/text.h"
#include "engine/train/train_keep.h"
#include "engine/train/train_parts.h"
#include "privacy/noise/clip.h"
#include "privacy/noise/noise.h"

#include <errno.h>
#include <math.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

/* Clipped gradients of single records, and their sum on the lattice. */
struct records {
    struct engine *e;
    const struct adapter *adapter;
    const struct dataset *data;
    const struct factors *factors;
    struct clip_bound bound;
    uint64_t sigma;
    size_t n, batch; /* values of one gradient; records of one pass */
    bool checkpoint;
    struct backend_record **record; /* of the passes, or NULL */
    struct engine_row *row;         /* (batch) */
    float *each;                    /* (batch, n) device: gradients of one pass */
    float *host;                    /* (n) */
    int32_t *whole;                 /* (n) gradient of one record on the lattice */
    int64_t *sum;                   /* (n) */
};

struct private
{
    struct training t;
    struct records r;
    struct train_options options; /* a copy with accumulate 1 and clip 0: see train_private_run() */
    const struct train_private_options *o;
    struct train_private_options own; /* a copy that points to `options` */
    uint32_t *taken;                  /* (rows) records of this step */
    size_t takes;                     /* their number */
    uint64_t frozen;                  /* frozen_hash() at the start */
};

uint64_t train_private_steps(const struct train_private_options *o)
{
    if (o->train->steps) return o->train->steps;
    double steps = ceil(o->train->epochs / o->sampling); /* a step reads q N of N records */
    return steps < 1.0 ? 1 : (uint64_t)steps;
}

/* ---- the guard */

/* One step of a fast hash, not a cryptographic one: it protects against mistakes of this program
 * and not against an attacker, and it runs over all frozen values after every step. */
static uint64_t stir(uint64_t lane, uint64_t word)
{
    lane ^= word;
    /* Rotate first: the highest bit of a factor changes only the highest bit of the product. */
    return (lane << 29 | lane >> 35) * 0x9e3779b97f4a7c15u;
}

/* Four independent lanes, so that no multiplication waits for the one before. */
static uint64_t mix(uint64_t hash, const float *value, size_t count)
{
    uint64_t lane[4] = {hash, ~hash, hash << 1, hash >> 1}, word;
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (int k = 0; k < 4; k++) {
            memcpy(&word, value + i + 2 * k, sizeof word);
            lane[k] = stir(lane[k], word);
        }
    for (; i < count; i++) {
        uint32_t half;
        memcpy(&half, value + i, sizeof half);
        lane[0] = stir(lane[0], half);
    }
    for (int k = 1; k < 4; k++)
        lane[0] = (lane[0] ^ (lane[k] >> 29) ^ lane[k]) * 0xbf58476d1ce4e5b9u;
    return lane[0];
}

/* Hash of all tensors that do not train, carry included. */
static uint64_t frozen_hash(const struct adapter *ad)
{
    uint64_t hash = 1;
    for (size_t i = 0; i < ad->count; i++) {
        const struct adapter_module *m = &ad->module[i];
        if (m->rank && !(ad->trains & ADAPTER_A)) hash = mix(hash, m->a, (size_t)m->rank * m->d_in);
        if (m->rank && !(ad->trains & ADAPTER_B))
            hash = mix(hash, m->b, (size_t)m->d_out * m->rank);
        if (m->r && !(ad->trains & ADAPTER_R)) hash = mix(hash, m->r, (size_t)m->rank * m->rank);
        if (!m->carry_rank) continue;
        hash = mix(hash, m->carry_a, (size_t)m->carry_rank * m->d_in);
        hash = mix(hash, m->carry_b, (size_t)m->d_out * m->carry_rank);
    }
    return hash;
}

/* A private update is the noisy change of the trained values. If a training bug changed a frozen
 * tensor, that change would carry information about records without noise, so the run stops. */
static err guard(const struct private *p, const struct train_step *s)
{
    if (frozen_hash(p->t.adapter) == p->frozen) return ERR_NONE;
    return err_make(ERR_STATE, "private training: step %llu: a frozen tensor has changed",
                    (unsigned long long)s->step);
}

/* ---- gradients of single records */

struct pass_each {
    struct engine *e;
    const struct factors *factors;
    float *each; /* (rows_max, value_count) device */
    const struct engine_row *row;
    size_t rows, rows_max; /* of this pass, and of the largest one */
    bool checkpoint;
    struct backend_record **record; /* or NULL */
};

/* Gradients of each row's summed negative log likelihood into `each`, of which the first `rows` are
 * set to zero before. The segment gives each row its own gradient, so all rows still run through
 * the base model in one batch. A recorded pass always has rows_max rows, the last ones empty,
 * because the sample of a step varies. */
static err run_each(const struct pass_each *p)
{
    struct batch b = {0};
    struct engine *e = p->e;
    size_t n = p->factors->adapter->value_count, bucket = p->record ? e->be->bucket : 1;
    err er;
    TRY(batch_open(&b, p->row, p->rows, BATCH_LABELS));
    TRY_OUT(er, batch_pad(&b, bucket, p->rows_max));
    struct segment segment = {.factors = p->factors, .gradient = p->each, .tokens = b.tokens};
    segment.rows = bucket > 1 ? p->rows_max : p->rows;
    segment.stride = n;
    b.segment = &segment;
    b.segments = 1;
    b.backward = true;
    b.checkpoint = p->checkpoint;
    b.scale = 1.0;
    b.record = p->record;
    e->be->zero(e->ctx, (struct mat){p->each, DTYPE_F32, n}, p->rows, n);
    er = pass_run(e, &b);
    if (!err_is(er)) er = e->be->check(e->ctx);
out:
    batch_close(&b);
    return er;
}

/* Copies the gradient of one row to the host and divides it by the number of its learned tokens, so
 * that the length of a record does not enlarge its gradient. A record without learned tokens has
 * the gradient 0. */
static err fetch(float *out, struct engine *e, const float *each, size_t n,
                 const struct engine_row *row)
{
    size_t learned = engine_learned(row->label, row->count);
    float mean = learned ? 1.0f / (float)learned : 0.0f;
    e->be->copy_out(e->ctx, out, each, n * sizeof(float));
    TRY(e->be->check(e->ctx));
    for (size_t i = 0; i < n; i++)
        out[i] *= mean;
    return ERR_NONE;
}

err train_private_gradients(float *out, struct engine *e, const struct adapter *ad,
                            const struct engine_row *row, size_t rows)
{
    struct factors *f = NULL;
    float *each = NULL;
    size_t n = ad->value_count;
    err er;
    TRY_OUT(er, factors_open(&f, e, ad));
    TRY_OUT(er, e->be->memory_take(&each, e->ctx, (rows * n + 1) * sizeof(float)));
    struct pass_each pass = {e, f, each, row, rows, rows, false, NULL};
    TRY_OUT(er, run_each(&pass));
    for (size_t i = 0; i < rows; i++)
        TRY_OUT(er, fetch(out + i * n, e, each + i * n, n, &row[i]));
out:
    if (each) e->be->memory_give(e->ctx, each);
    factors_close(f);
    return er;
}

/* ---- rows alone */

err train_private_check(const struct engine *e)
{
    bool f32 = engine_precision(e) == DTYPE_F32;
    if (e->peers)
        return err_make(ERR_INPUT,
                        "private training on %s: example-level privacy uses one device: use "
                        "--device cuda:N",
                        engine_device(e));
    if (e->be->rows_alone(e->ctx)) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "private training in %s on %s: the gradient of a record may depend on the "
                    "other records of its pass, so one record could change the sum by more than "
                    "the clip norm: use %s",
                    f32 ? "f32" : "bf16", engine_device(e),
                    f32 ? "--device cpu" : "--precision f32");
}

/* A pass over one made-up record, as long as the longest one: it computes every product of the real
 * passes, so that a device chooses and tries their algorithms. */
static err try_shapes(struct records *r)
{
    uint32_t longest = 0;
    for (size_t i = 0; i < r->data->count; i++)
        if (r->data->row[i].count > longest) longest = r->data->row[i].count;
    int32_t *id = calloc((size_t)longest + 1, sizeof *id);
    if (!id) return err_sys(ENOMEM, "private training");
    const struct engine_row row = {id, id, longest, r->adapter};
    struct pass_each pass = {r->e, r->factors, r->each,       &row,
                             1,    r->batch,   r->checkpoint, r->record};
    err e = run_each(&pass);
    free(id);
    return err_is(e) ? e : train_private_check(r->e);
}

/* ---- their noisy sum */

/* The caller sets e, adapter, data and factors before, and calls records_close() after a failure
 * too. Memory for gradients is batch * n floats:
 * this bounds the number of records in one pass. */
static err records_open(struct records *r, const struct train_private_options *o)
{
    r->n = r->adapter->value_count;
    r->batch = o->train->batch;
    r->checkpoint = o->train->checkpoint;
    TRY(clip_bound_set(&r->bound, o->clip));
    r->sigma = clip_sigma(&r->bound, o->noise);
    r->row = calloc(r->batch, sizeof *r->row);
    r->host = calloc(r->n, sizeof *r->host);
    r->whole = calloc(r->n, sizeof *r->whole);
    r->sum = calloc(r->n, sizeof *r->sum);
    if (!r->row || !r->host || !r->whole || !r->sum) return err_sys(ENOMEM, "private training");
    TRY(r->e->be->memory_take(&r->each, r->e->ctx, r->batch * r->n * sizeof(float)));
    return try_shapes(r);
}

/* The sum without noise is wiped, because freed memory may be reused or dumped. */
static void records_close(struct records *r)
{
    if (r->each) r->e->be->memory_give(r->e->ctx, r->each);
    if (r->sum) sodium_memzero(r->sum, r->n * sizeof *r->sum);
    free(r->row);
    free(r->host);
    free(r->whole);
    free(r->sum);
}

/* Adds the clipped gradients of some records to the sum. clip_quantise() fails for a gradient that
 * is not finite; the record then counts as zero, because stopping would reveal that it is in the
 * data. */
static err records_pass(struct records *r, const uint32_t *taken, size_t rows)
{
    for (size_t i = 0; i < rows; i++) {
        const struct data_row *d = &r->data->row[taken[i]];
        r->row[i] = (struct engine_row){d->id, d->label, d->count, r->adapter};
    }
    struct pass_each pass = {r->e, r->factors, r->each,       r->row,
                             rows, r->batch,   r->checkpoint, r->record};
    TRY(run_each(&pass));
    TRY(train_private_check(r->e));
    for (size_t i = 0; i < rows; i++) {
        struct clip_result result;
        struct clip_tensor tensor = {.now = r->host, .count = r->n};
        TRY(fetch(r->host, r->e, r->each + i * r->n, r->n, &r->row[i]));
        err e = clip_quantise(r->whole, &result, &r->bound, 1.0, &tensor, 1);
        for (size_t k = 0; k < r->n && !err_is(e); k++)
            r->sum[k] += r->whole[k];
    }
    return ERR_NONE;
}

/* r->host = (sum over these records + noise) / expected. `expected` is q N and not the number of
 * drawn records, which is private. The noise is drawn before the first record is read, so a failure
 * of the generator cannot depend on the data. */
static err records_release(struct records *r, const uint32_t *taken, size_t takes, double expected)
{
    struct noise noise = {0};
    double scale = ldexp(1.0, -r->bound.scale_log2) / expected;
    err e = ERR_NONE;
    TRY(noise_draw(&noise, r->n, r->sigma));
    memset(r->sum, 0, r->n * sizeof *r->sum);
    for (size_t i = 0; i < takes; i += r->batch)
        TRY_OUT(e, records_pass(r, taken + i, takes - i < r->batch ? takes - i : r->batch));
    noise_add(r->sum, r->n, &noise);
    for (size_t i = 0; i < r->n; i++)
        r->host[i] = (float)((double)r->sum[i] * scale);
out:
    noise_close(&noise);
    return e;
}

/* ---- one step */

/* Poisson sampling: each record takes part independently with probability q, decided by 64 random
 * bits below floor(q 2^64). The privacy analysis needs exactly this; a shuffled batch of fixed size
 * would need another one. The system's generator is used and not the seeded one, because a known
 * sample would lose the amplification. */
static void sample(struct private *p)
{
    double q = p->o->sampling;
    uint64_t limit = q < 1.0 ? (uint64_t)ldexp(q, 64) : 0, drawn;
    p->takes = 0;
    for (uint32_t i = 0; i < p->t.data->count; i++) {
        randombytes_buf(&drawn, sizeof drawn);
        if (q >= 1.0 || drawn < limit) p->taken[p->takes++] = i;
    }
}

/* An empty sample is a normal step: the update is then noise alone, and skipping it would reveal
 * that the sample was empty. */
static err one_step(struct private *p, struct train_step *s)
{
    struct training *t = &p->t;
    sample(p);
    TRY(records_release(&p->r, p->taken, p->takes, p->o->sampling * (double)t->data->count));
    training_penalty(t, s);
    for (size_t i = 0; t->penalty && i < p->r.n; i++)
        p->r.host[i] += t->penalty[i];
    t->e->be->copy_in(t->e->ctx, t->gradient, p->r.host, p->r.n * sizeof(float));
    s->lr =
        p->options.lr * train_lr_factor(p->options.schedule, s->step, p->options.warmup, t->steps);
    TRY(training_update(t, s));
    TRY(training_finite(s));
    return guard(p, s);
}

/* ---- the run */

/* Dropout is refused because pass_each() does not implement it. */
static err check(const struct train_private_options *o)
{
    if (!(o->sampling > 0.0 && o->sampling <= 1.0))
        return err_make(ERR_INPUT, "private training: sampling %g: expected a rate in (0, 1]",
                        o->sampling);
    if (!(o->noise > 0.0 && o->noise <= 65536.0))
        return err_make(
            ERR_INPUT, "private training: noise %g: expected a multiplier in (0, 65536]", o->noise);
    if (o->train->dropout > 0.0)
        return err_make(ERR_INPUT,
                        "private training: dropout %g is not possible with example-level privacy",
                        o->train->dropout);
    if (sodium_init() < 0) return err_make(ERR_MACHINE, "libsodium cannot start");
    return ERR_NONE;
}

static int descending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x > y ? -1 : x < y;
}

/* The records of a pass are drawn later, so room is made for the longest ones. p->taken holds their
 * lengths for a moment. */
static err reserve(struct private *p)
{
    const struct dataset *data = p->t.data;
    struct pass_size most = {.rows = p->options.batch};
    for (size_t i = 0; i < data->count; i++)
        p->taken[i] = data->row[i].count;
    qsort(p->taken, data->count, sizeof *p->taken, descending);
    for (size_t i = 0; i < data->count && i < most.rows; i++)
        most.tokens += p->taken[i];
    most.learned = most.tokens;
    most.positions = p->taken[0];
    p->t.each_row = true;
    return training_reserve(&p->t, &most);
}

/* The hash of the frozen tensors is taken before the first step. */
static err open_run(struct private *p)
{
    p->own = *p->o;
    p->own.train = &p->options;
    p->taken = calloc(p->t.data->count, sizeof *p->taken);
    if (!p->taken) return err_sys(ENOMEM, "private training");
    TRY(training_open(&p->t));
    TRY(reserve(p));
    p->frozen = frozen_hash(p->t.adapter);
    p->r = (struct records){
        .e = p->t.e, .adapter = p->t.adapter, .data = p->t.data, .factors = p->t.factors};
    p->r.record = &p->t.record;
    return records_open(&p->r, &p->own);
}

/* Accepts one that open_run() could open only in part. */
static void close_run(struct private *p)
{
    records_close(&p->r);
    training_close(&p->t);
    free(p->taken);
}

/* The snapshot has released values only: no losses and no counts of tokens. */
static err keep_step(struct private *p, const struct train_result *r, bool stopped)
{
    const struct train_snapshot s = {.steps = r->steps, .seconds = r->seconds};
    return train_keep_step(&p->t, &s, stopped);
}

/* The sum is not clipped again (clip 0): clipping is per record, and a second clip after the noise
 * would only bias it. accumulate is 1 because the sample of a step is divided into passes of
 * `batch` records in records_release(). No loss is set in the steps and in the result, as losses
 * are computed from the records without noise. */
err train_private_run(struct train_result *out, struct adapter *adapter, struct engine *e,
                      const struct dataset *data, const struct train_private_options *o)
{
    struct private p = {.o = o, .options = *o->train};
    struct train_result result = {.values = adapter->value_count};
    p.options.accumulate = 1;
    p.options.clip = 0.0;
    p.t = (struct training){.e = e, .adapter = adapter, .data = data, .o = &p.options};
    TRY(training_check(&p.options, adapter, data));
    TRY(check(o));
    TRY(train_private_check(e));
    p.t.steps = train_private_steps(o);
    double gamma = p.options.prune_gamma;
    if (gamma > 0.0) result.tail_before = train_tail(adapter, gamma);
    err er = open_run(&p);
    if (!err_is(er)) er = train_keep_resume(&p.t);
    if (!err_is(er) && p.options.keep && p.options.keep->resume) {
        result.steps = p.options.keep->resume->steps;
        result.seconds = p.options.keep->resume->seconds;
    }
    for (uint64_t i = result.steps; i < p.t.steps && !err_is(er); i++) {
        struct train_step s = {.step = i, .steps = p.t.steps};
        uint64_t since = text_now_ms();
        er = one_step(&p, &s);
        if (err_is(er)) break;
        s.seconds = (double)(text_now_ms() - since) / 1000.0;
        result.steps++;
        result.seconds += s.seconds;
        if (p.options.on_step && !p.options.on_step(p.options.user, &s))
            er = err_make(ERR_STOPPED, "training stopped after step %llu", (unsigned long long)i);
        err kept = keep_step(&p, &result, err_is(er));
        if (!err_is(er)) er = kept;
    }
    if (result.steps) training_fetch_after(&er, &p.t, result.steps);
    if (gamma > 0.0) result.tail_after = train_tail(adapter, gamma);
    if (!err_is(er)) *out = result;
    close_run(&p);
    return er;
}

/* All records take part, so the event has rate 1 and the denominator is N. */
err train_private_gradient(float *out, const struct adapter *adapter, struct engine *e,
                           const struct dataset *data, const struct train_private_options *o)
{
    struct factors *f = NULL;
    struct records r = {.e = e, .adapter = adapter, .data = data};
    uint32_t *everyone = NULL;
    err er;
    TRY(training_check(o->train, adapter, data));
    TRY(check(o));
    TRY_OUT(er, factors_open(&f, e, adapter));
    r.factors = f;
    TRY_OUT(er, records_open(&r, o));
    everyone = calloc(data->count, sizeof *everyone);
    er = everyone ? ERR_NONE : err_sys(ENOMEM, "private gradient");
    for (uint32_t i = 0; i < data->count && !err_is(er); i++)
        everyone[i] = i;
    if (!err_is(er)) er = records_release(&r, everyone, data->count, (double)data->count);
    if (!err_is(er)) memcpy(out, r.host, r.n * sizeof *out);
out:
    free(everyone);
    records_close(&r);
    factors_close(f);
    return er;
}
