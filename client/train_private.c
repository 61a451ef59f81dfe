#include "client/train_private.h"
#include "base/text.h"
#include "client/train_parts.h"
#include "privacy/clip.h"
#include "privacy/noise.h"

#include <errno.h>
#include <math.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

struct private
{
    struct training t;
    struct train_options options; /* without clipping of the sum */
    const struct train_private_options *o;
    struct clip_bound bound;
    uint64_t sigma;
    uint32_t *taken; /* (rows) of this step */
    size_t takes;
    float *each;    /* (batch, value_count) device: gradients of one pass */
    float *host;    /* (value_count) */
    int32_t *whole; /* (value_count) one record's, on the lattice */
    int64_t *sum;   /* (value_count) */
    uint64_t frozen;
};

uint64_t train_private_steps(const struct train_private_options *o)
{
    if (o->train->steps) return o->train->steps;
    double steps = ceil(o->train->epochs / o->sampling); /* q N of N records a step */
    return steps < 1.0 ? 1 : (uint64_t)steps;
}

/* ---------------------------------------------------------------- the guard */

/* Four sums of products, so that no word waits for the one before. */
static uint64_t mix(uint64_t hash, const float *value, size_t count)
{
    uint64_t lane[4] = {hash, ~hash, hash << 1, hash >> 1}, word;
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (int k = 0; k < 4; k++) {
            memcpy(&word, value + i + 2 * k, sizeof word);
            lane[k] = (lane[k] ^ word) * 0x9e3779b97f4a7c15u;
        }
    for (; i < count; i++) {
        uint32_t half;
        memcpy(&half, value + i, sizeof half);
        lane[0] = (lane[0] ^ half) * 0x9e3779b97f4a7c15u;
    }
    for (int k = 1; k < 4; k++)
        lane[0] = (lane[0] ^ (lane[k] >> 29) ^ lane[k]) * 0xbf58476d1ce4e5b9u;
    return lane[0];
}

/* Of every tensor that does not train. */
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

static err guard(const struct private *p, const struct train_step *s)
{
    if (frozen_hash(p->t.adapter) == p->frozen) return ERR_NONE;
    return err_make(ERR_STATE,
                    "private training: step %llu: a tensor that does not train has changed: "
                    "stopped",
                    (unsigned long long)s->step);
}

/* ---------------------------------------------------------------- gradients by record */

static uint64_t learned_tokens(const struct engine_row *r)
{
    uint64_t n = 0;
    for (uint32_t t = 1; t < r->count; t++)
        n += r->label[t] != DATA_IGNORE;
    return n;
}

/* Gradients of every row's sum of negative log likelihoods into `each` (rows, value_count). */
static err pass_each(struct engine *e, const struct factors *f, float *each,
                     const struct engine_row *row, size_t rows, bool checkpoint)
{
    struct batch b = {0};
    size_t n = f->adapter->value_count;
    TRY(batch_open(&b, row, rows, true));
    struct segment segment = {.factors = f, .gradient = each, .tokens = b.tokens};
    segment.start = b.start;
    segment.rows = rows;
    segment.stride = n;
    b.segment = &segment;
    b.segments = 1;
    b.backward = true;
    b.checkpoint = checkpoint;
    b.scale = 1.0;
    e->be->zero(e->ctx, (struct mat){each, DTYPE_F32, n}, rows, n);
    err er = pass_run(e, &b, row);
    batch_close(&b);
    return er;
}

/* One row's gradient to the host, divided by its learned tokens. */
static void fetch(float *out, struct engine *e, const float *each, size_t n,
                  const struct engine_row *row)
{
    uint64_t learned = learned_tokens(row);
    float mean = learned ? 1.0f / (float)learned : 0.0f;
    e->be->copy_out(e->ctx, out, each, n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        out[i] *= mean;
}

err train_private_gradients(float *out, struct engine *e, const struct adapter *ad,
                            const struct engine_row *row, size_t rows)
{
    struct factors *f = NULL;
    float *each = NULL;
    size_t n = ad->value_count;
    err er;
    TRY_OUT(er, factors_open(&f, e->be, e->ctx, ad, &e->model->arch));
    TRY_OUT(er, e->be->memory_take(&each, e->ctx, (rows * n + 1) * sizeof(float)));
    TRY_OUT(er, pass_each(e, f, each, row, rows, false));
    for (size_t i = 0; i < rows; i++)
        fetch(out + i * n, e, each + i * n, n, &row[i]);
out:
    if (each) e->be->memory_give(e->ctx, each);
    factors_close(f);
    return er;
}

/* ---------------------------------------------------------------- one step */

/* Records that take part, each by itself with chance q: 64 bits below floor(q 2^64). */
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

static err add_records(struct private *p, size_t first, size_t rows)
{
    struct training *t = &p->t;
    size_t n = t->adapter->value_count;
    for (size_t i = 0; i < rows; i++) {
        const struct data_row *r = &t->data->row[p->taken[first + i]];
        t->row[i] = (struct engine_row){r->id, r->label, r->count, t->adapter};
    }
    TRY(pass_each(t->e, t->factors, p->each, t->row, rows, t->o->checkpoint));
    for (size_t i = 0; i < rows; i++) {
        struct clip_result result;
        struct clip_tensor tensor = {.now = p->host, .count = n};
        fetch(p->host, t->e, p->each + i * n, n, &t->row[i]);
        err er = clip_quantise(p->whole, &result, &p->bound, 1.0, &tensor, 1);
        if (err_is(er))
            return err_make(ERR_STATE, "private training: a record's gradient is not finite");
        for (size_t k = 0; k < n; k++)
            p->sum[k] += p->whole[k];
    }
    return ERR_NONE;
}

/* The noisy mean over the expected number of records, to the optimizer's gradient. */
static void release(struct private *p, struct noise *noise)
{
    size_t n = p->t.adapter->value_count;
    double scale = ldexp(1.0, -p->bound.scale_log2) / (p->o->sampling * (double)p->t.data->count);
    noise_add(p->sum, n, noise);
    for (size_t i = 0; i < n; i++)
        p->host[i] = (float)((double)p->sum[i] * scale);
    p->t.e->be->copy_in(p->t.e->ctx, p->t.gradient, p->host, n * sizeof(float));
}

static err one_step(struct private *p, struct train_step *s)
{
    struct training *t = &p->t;
    struct noise noise = {0};
    size_t n = t->adapter->value_count, batch = p->options.batch;
    err er;
    TRY_OUT(er, noise_draw(&noise, n, p->sigma));
    memset(p->sum, 0, n * sizeof *p->sum);
    sample(p);
    for (size_t i = 0; i < p->takes; i += batch)
        TRY_OUT(er, add_records(p, i, p->takes - i < batch ? p->takes - i : batch));
    release(p, &noise);
    s->lr =
        p->options.lr * train_lr_factor(p->options.schedule, s->step, p->options.warmup, t->steps);
    TRY_OUT(er, training_update(t, s));
    er = guard(p, s);
out:
    noise_close(&noise);
    return er;
}

/* ---------------------------------------------------------------- the run */

static err check(const struct train_private_options *o)
{
    if (!(o->sampling > 0.0 && o->sampling <= 1.0))
        return err_make(ERR_INPUT, "private training: sampling %g: expected a rate in (0, 1]",
                        o->sampling);
    if (!(o->noise > 0.0 && o->noise <= 65536.0))
        return err_make(
            ERR_INPUT, "private training: noise %g: expected a multiplier in (0, 65536]", o->noise);
    if (o->train->dropout > 0.0)
        return err_make(ERR_INPUT, "private training: dropout %g: not with example-level privacy",
                        o->train->dropout);
    return ERR_NONE;
}

static err open_run(struct private *p)
{
    size_t n = p->t.adapter->value_count;
    if (sodium_init() < 0) return err_make(ERR_MACHINE, "libsodium cannot start");
    p->taken = calloc(p->t.data->count, sizeof *p->taken);
    p->host = calloc(n, sizeof *p->host);
    p->whole = calloc(n, sizeof *p->whole);
    p->sum = calloc(n, sizeof *p->sum);
    if (!p->taken || !p->host || !p->whole || !p->sum) return err_sys(ENOMEM, "private training");
    TRY(training_open(&p->t));
    p->frozen = frozen_hash(p->t.adapter);
    return p->t.e->be->memory_take(&p->each, p->t.e->ctx, p->options.batch * n * sizeof(float));
}

static void close_run(struct private *p)
{
    if (p->each) p->t.e->be->memory_give(p->t.e->ctx, p->each);
    if (p->sum) sodium_memzero(p->sum, p->t.adapter->value_count * sizeof *p->sum);
    training_close(&p->t);
    free(p->taken);
    free(p->host);
    free(p->whole);
    free(p->sum);
}

err train_private_run(struct train_result *out, struct adapter *adapter, struct engine *e,
                      const struct dataset *data, const struct train_private_options *o)
{
    struct private p = {.o = o, .options = *o->train};
    struct train_result result = {0};
    p.options.accumulate = 1;
    p.options.clip = 0.0;
    p.t = (struct training){.e = e, .adapter = adapter, .data = data, .o = &p.options};
    TRY(training_check(&p.options, adapter, data));
    TRY(check(o));
    TRY(clip_bound_set(&p.bound, o->clip));
    p.sigma = clip_sigma(&p.bound, o->noise);
    p.t.steps = train_private_steps(o);
    double gamma = p.options.prune_gamma;
    if (gamma > 0.0) result.tail_before = train_tail(adapter, gamma);
    err er = open_run(&p);
    for (uint64_t i = 0; i < p.t.steps && !err_is(er); i++) {
        struct train_step s = {.step = i, .steps = p.t.steps};
        uint64_t since = text_now_ms();
        er = one_step(&p, &s);
        if (err_is(er)) break;
        s.seconds = (double)(text_now_ms() - since) / 1000.0;
        result.steps++;
        result.seconds += s.seconds;
        if (p.options.on_step && !p.options.on_step(p.options.user, &s))
            er = err_make(ERR_STOPPED, "training stopped after step %llu", (unsigned long long)i);
    }
    if (gamma > 0.0) result.tail_after = train_tail(adapter, gamma);
    if (!err_is(er)) *out = result;
    close_run(&p);
    return er;
}
