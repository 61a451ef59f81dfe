/* The steps of one training, or of several in lockstep. The products with the base round the rows
 * of a pass up to BACKEND_ROWS, so a training with few tokens in a step pays for rows that it does
 * not have. Therefore a pass is filled with the rows of several trainings, each a segment with its
 * own factors and gradient, as long as it has at most BACKEND_ROWS tokens. Then the products have
 * the same shape as for one training alone, and another one would cost a second block of rows. */
#include "base/rng.h"
#include "base/text.h"
#include "engine/train/train.h"
#include "engine/train/train_keep.h"
#include "engine/train/train_parts.h"

#include <errno.h>
#include <stdlib.h>

struct lane { /* one training */
    struct train_job *job;
    struct training t;
    struct train_step step;
    struct train_result result;
    double sum;        /* of the losses of its steps times their learned tokens */
    size_t first, end; /* its tokens in the pass */
    bool waits;        /* for the pass of its step */
};
struct many {
    struct engine *e;
    struct lane *lane; /* (count) */
    size_t count;
    struct lane **pass;      /* (count) the lanes of one pass */
    size_t sharing;          /* their number */
    struct segment *segment; /* (count) */
    struct engine_row *row;  /* (rows of all lanes) those of a pass that several lanes share */
};

size_t train_tokens(const struct dataset *data, const struct train_options *o)
{
    return data->count ? (size_t)((data->tokens * o->batch + data->count - 1) / data->count) : 0;
}

/* ---- lanes */

static void lane_continue(struct lane *l, const struct train_snapshot *s)
{
    struct train_result *r = &l->result;
    r->steps = s->steps;
    r->tokens = s->tokens;
    r->learned = s->learned;
    r->seconds = s->seconds;
    r->first_loss = s->first_loss;
    r->last_loss = s->last_loss;
    l->sum = s->loss_sum;
}

/* A snapshot after the step. Failing to take one is an error only if the step was none. */
static void lane_keep(struct lane *l)
{
    const struct train_result *r = &l->result;
    const struct train_snapshot s = {.steps = r->steps,
                                     .tokens = r->tokens,
                                     .learned = r->learned,
                                     .seconds = r->seconds,
                                     .first_loss = r->first_loss,
                                     .last_loss = r->last_loss,
                                     .loss_sum = l->sum};
    err e = train_keep_step(&l->t, &s, err_is(l->job->error));
    if (!err_is(l->job->error)) l->job->error = e;
}

static err lane_open(struct lane *l, struct engine *e)
{
    const struct train_job *job = l->job;
    const struct train_options *o = job->options;
    TRY(training_check(o, job->adapter, job->data));
    l->t = (struct training){.e = e, .adapter = job->adapter, .data = job->data, .o = o};
    l->result.values = job->adapter->value_count;
    if (o->prune_gamma > 0.0) l->result.tail_before = train_tail(job->adapter, o->prune_gamma);
    TRY(training_open(&l->t));
    if (!l->t.rows) return err_make(ERR_INPUT, "training: the data has no token to learn");
    l->t.steps = train_steps(o, l->t.rows);
    TRY(training_reserve_all(&l->t));
    TRY(train_keep_resume(&l->t));
    if (o->keep && o->keep->resume) lane_continue(l, o->keep->resume);
    return ERR_NONE;
}

static void lane_close(struct lane *l)
{
    struct train_job *job = l->job;
    struct train_result *r = &l->result;
    if (!l->t.e) return; /* the options or the data were refused */
    if (r->steps) training_fetch_after(&job->error, &l->t, r->steps);
    r->mean_loss = r->learned ? l->sum / (double)r->learned : 0.0;
    if (job->options->prune_gamma > 0.0)
        r->tail_after = train_tail(job->adapter, job->options->prune_gamma);
    if (!err_is(job->error)) job->result = *r;
    training_close(&l->t);
}

/* The rows of the next step, with their numbers of tokens. */
static void take_rows(struct lane *l)
{
    struct training *t = &l->t;
    struct train_step *s = &l->step;
    size_t rows = (size_t)t->o->batch * t->o->accumulate;
    *s = (struct train_step){.step = l->result.steps, .steps = t->steps};
    for (size_t i = 0; i < rows; i++) {
        const struct data_row *r = training_row(t, s->step * rows + i);
        t->row[i] = (struct engine_row){r->id, r->label, r->count, t->adapter};
        s->tokens += r->count;
        s->learned += engine_learned(r->label, r->count);
    }
    for (size_t i = 0; i < rows; i += t->o->batch)
        training_deal(t, t->row + i);
}

/* The gradient starts with that of the penalty, or at zero. */
static void start_gradient(struct lane *l)
{
    struct training *t = &l->t;
    struct engine *e = t->e;
    size_t n = t->adapter->value_count;
    training_penalty(t, &l->step);
    if (t->penalty)
        e->be->copy_in(e->ctx, t->gradient, t->penalty, n * sizeof(float));
    else
        e->be->zero(e->ctx, (struct mat){t->gradient, DTYPE_F32, n}, 1, n);
    training_peers_zero(t);
}

/* The loss is the mean over the learned tokens of the whole step: the scale is known before the
 * first pass, so accumulated passes give the gradient of one large batch and not the mean of batch
 * means, which would weigh short rows more. */
static double scale_of(const struct lane *l)
{
    return l->step.learned ? 1.0 / (double)l->step.learned : 0.0;
}

static void end_step(struct lane *l, double nll)
{
    struct train_result *r = &l->result;
    const struct train_options *o = l->t.o;
    struct train_step *s = &l->step;
    s->loss = nll * scale_of(l);
    if (!err_is(l->job->error)) l->job->error = training_finite(s);
    if (err_is(l->job->error)) return;
    if (r->steps == 0) r->first_loss = s->loss;
    r->last_loss = s->loss;
    r->steps++;
    r->tokens += s->tokens;
    r->learned += s->learned;
    r->seconds += s->seconds;
    l->sum += s->loss * (double)s->learned;
    if (o->on_step && !o->on_step(o->user, s))
        l->job->error =
            err_make(ERR_STOPPED, "training stopped after step %llu", (unsigned long long)s->step);
    lane_keep(l);
}

/* ---- passes */

/* The device of a pass, with the factors, the gradient and the record there. */
struct place {
    struct engine *e;
    struct factors *factors;
    float *gradient;
    struct backend_record **record;
};

static struct place place_of(struct training *t, size_t device)
{
    if (!device) return (struct place){t->e, t->factors, t->gradient, &t->record};
    struct training_peer *p = &t->peer[device - 1];
    return (struct place){p->e, p->factors, p->gradient, &p->record};
}

/* A new mask for each pass, reproducible from the seed. */
static uint64_t dropout_key(const struct training *t, uint64_t pass)
{
    struct rng rng;
    rng_init(&rng, "dropout", t->o->seed, "masks", pass);
    uint64_t high = rng_u32(&rng);
    return high << 32 | rng_u32(&rng);
}

/* The lanes of the next pass: the first one that waits, and later ones that fit beside it. False:
 * no lane waits. */
static bool choose(struct many *m)
{
    size_t tokens = 0;
    m->sharing = 0;
    for (size_t i = 0; i < m->count; i++) {
        struct lane *l = &m->lane[i];
        if (!l->waits) continue;
        if (m->sharing && (tokens + l->step.tokens > BACKEND_ROWS ||
                           m->pass[0]->t.o->checkpoint != l->t.o->checkpoint))
            continue;
        tokens += l->step.tokens;
        l->waits = false;
        m->pass[m->sharing++] = l;
    }
    return m->sharing > 0;
}

/* The rows of all lanes of a pass, and their places among its tokens. */
static size_t gather(struct many *m)
{
    size_t rows = 0, tokens = 0;
    for (size_t i = 0; i < m->sharing; i++) {
        struct lane *l = m->pass[i];
        for (size_t k = 0; k < l->t.o->batch; k++)
            m->row[rows++] = l->t.row[k];
        l->first = tokens;
        l->end = tokens += l->step.tokens;
    }
    return rows;
}

/* A segment for each lane of a pass, and the scale of its loss. */
static err divide(struct batch *b, struct many *m)
{
    float *scale;
    TRY(arena_take(&scale, &b->arena, b->learned, sizeof *scale));
    for (size_t i = 0, k = 0; i < m->sharing; i++) {
        const struct lane *l = m->pass[i];
        m->segment[i] = (struct segment){.factors = l->t.factors,
                                         .gradient = l->t.gradient,
                                         .first = l->first,
                                         .tokens = l->end - l->first};
        for (; k < b->learned && b->index[k] < l->end; k++)
            scale[k] = (float)scale_of(l);
    }
    b->scales = scale;
    return ERR_NONE;
}

/* Queues forward and backward pass number `number` of a step, which add the gradient of scale * sum
 * of likelihoods to that of each lane. `row` has the rows of a lane alone. */
static err one_pass(struct many *m, size_t number, const struct engine_row *row, size_t rows)
{
    struct lane *l = m->pass[0];
    struct training *t = &l->t;
    struct batch *b = &t->batch[number];
    size_t devices = training_devices(t);
    struct place p = place_of(t, number % devices);
    bool shared = m->sharing > 1;
    TRY(batch_open(b, shared ? m->row : row, shared ? gather(m) : rows, BATCH_LABELS));
    TRY(batch_pad(b, p.e->be->bucket, b->rows));
    m->segment[0] =
        (struct segment){.factors = p.factors, .gradient = p.gradient, .tokens = b->tokens};
    if (shared) TRY(divide(b, m));
    b->record = p.record;
    b->segment = m->segment;
    b->segments = m->sharing;
    b->backward = true;
    b->checkpoint = t->o->checkpoint;
    b->scale = scale_of(l);
    b->dropout = (float)t->o->dropout;
    if (t->o->dropout > 0.0)
        b->dropout_key = dropout_key(t, l->step.step * t->o->accumulate * devices + number);
    err er = pass_run(p.e, b);
    b->segment = NULL;
    b->segments = 0;
    return er;
}

/* Queues all passes of a step, those of a pass on all devices one after the other. *opened counts
 * the batches that have to be closed. */
static err queue_passes(struct many *m, size_t *opened)
{
    const struct training *t = &m->pass[0]->t;
    size_t devices = training_devices(t), row = 0;
    for (; *opened < t->o->accumulate * devices; ++*opened) {
        size_t rows = training_share(t, *opened % devices);
        err er = one_pass(m, *opened, t->row + row, rows);
        row += rows;
        if (!err_is(er)) continue;
        ++*opened;
        return er;
    }
    return ERR_NONE;
}

/* The sum of a lane's negative log likelihoods. Its tokens lie one after the other, so a walk over
 * all learned tokens adds them in the order of a lane alone. */
static double nll_of(const struct many *m, const struct lane *l, size_t opened)
{
    const struct batch *batch = m->pass[0]->t.batch;
    double nll = 0.0;
    for (size_t i = 0; i < opened; i++)
        for (size_t k = 0; k < batch[i].learned; k++) {
            size_t at = batch[i].index[k];
            if (m->sharing == 1 || (at >= l->first && at < l->end)) nll += batch[i].nll[k];
        }
    return nll;
}

/* The AdamW steps of all lanes of a pass. A failure of the pass is one of each lane; the backend
 * reports it once, so a shared pass is waited for before the first update. */
static void update(struct many *m, err er)
{
    bool failed = err_is(er);
    if (!failed && m->sharing > 1) er = m->e->be->check(m->e->ctx);
    for (size_t i = 0; i < m->sharing; i++) {
        struct lane *l = m->pass[i];
        const struct train_options *o = l->t.o;
        l->step.lr = o->lr * train_lr_factor(o->schedule, l->step.step, o->warmup, l->t.steps);
        l->job->error = err_is(er) ? er : training_update(&l->t, &l->step);
        failed |= err_is(l->job->error);
    }
    if (failed) { /* what is queued still has to write into the batches */
        err other = training_check_all(&m->pass[0]->t);
        (void)other;
    }
}

/* One optimizer step of the lanes of a pass, each over batch * accumulate rows. Everything is
 * queued, and training_update() waits once. */
static void one_step(struct many *m)
{
    size_t opened = 0;
    uint64_t since = text_now_ms();
    for (size_t i = 0; i < m->sharing; i++)
        start_gradient(m->pass[i]);
    err er = queue_passes(m, &opened);
    update(m, er);
    double seconds = (double)(text_now_ms() - since) / 1000.0 / (double)m->sharing;
    for (size_t i = 0; i < m->sharing; i++) {
        struct lane *l = m->pass[i];
        l->step.seconds = seconds;
        l->job->shared += m->sharing > 1;
        end_step(l, err_is(l->job->error) ? 0.0 : nll_of(m, l, opened));
    }
    for (size_t i = 0; i < opened; i++)
        batch_close(&m->pass[0]->t.batch[i]);
}

/* ---- all steps */

static void run_all(struct many *m)
{
    for (bool any = true; any;) {
        any = false;
        for (size_t i = 0; i < m->count; i++) {
            struct lane *l = &m->lane[i];
            l->waits = l->t.e && !err_is(l->job->error) && l->result.steps < l->t.steps;
            if (l->waits) take_rows(l);
            any |= l->waits;
        }
        while (choose(m))
            one_step(m);
    }
}

/* The lanes are opened first, because that checks the number of rows. */
static err many_open(struct many *m, struct train_job *const *job)
{
    size_t rows = 0;
    m->lane = calloc(m->count, sizeof *m->lane);
    m->pass = calloc(m->count, sizeof(struct lane *));
    m->segment = calloc(m->count, sizeof *m->segment);
    if (!m->lane || !m->pass || !m->segment) return err_sys(ENOMEM, "training");
    for (size_t i = 0; i < m->count; i++) {
        m->lane[i].job = job[i];
        job[i]->error = lane_open(&m->lane[i], m->e);
        if (!err_is(job[i]->error)) rows += job[i]->options->batch;
    }
    if (m->count > 1 && !(m->row = calloc(rows + 1, sizeof *m->row)))
        return err_sys(ENOMEM, "training: %zu rows", rows);
    return ERR_NONE;
}

static void run_lockstep(struct train_job *const *job, size_t count, struct engine *e)
{
    struct many m = {.e = e, .count = count};
    if (!count) return;
    err er = many_open(&m, job);
    for (size_t i = 0; i < count && err_is(er); i++)
        job[i]->error = er;
    if (m.lane) run_all(&m);
    for (size_t i = 0; m.lane && i < count; i++)
        lane_close(&m.lane[i]);
    free(m.lane);
    free(m.pass);
    free(m.segment);
    free(m.row);
}

/* Trainings that share no passes run one after the other, which takes less memory than lockstep. On
 * CUDA the order also keeps the bits of each training, because there the factors of one adapter at
 * a time lie beside the weights, and one product computes both. */
void train_many(struct train_job *job, size_t count, struct engine *e)
{
    struct train_job **fills = calloc(count, sizeof(struct train_job *)), *one;
    size_t filling = 0;
    for (size_t i = 0; i < count; i++) {
        one = &job[i];
        one->shared = 0;
        if (fills && count > 1 && train_fills(e, one->options))
            fills[filling++] = one;
        else
            run_lockstep(&one, 1, e);
    }
    run_lockstep(fills, filling, e);
    free(fills);
}

/* *out is set only on success. An interruption by on_step() returns ERR_STOPPED and leaves the
 * adapter as it is after that step; another error leaves it as it was. */
err train_run(struct train_result *out, struct adapter *adapter, struct engine *e,
              const struct dataset *data, const struct train_options *o)
{
    struct train_job job = {.adapter = adapter, .data = data, .options = o};
    train_many(&job, 1, e);
    if (!err_is(job.error)) *out = job.result;
    return job.error;
}
