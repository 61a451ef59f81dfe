/* Causal attention over rows of different lengths, grouped heads, optional window. Work goes by
 * (row, key-value head), so gradients of keys and values have one writer and one order of sums. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_vector.h"

#include <math.h>
#include <stdlib.h>

struct job {               /* one key-value head of one row, as float32 */
    float *k, *v;          /* (tokens, head_dim) */
    float *dk, *dv;        /* the same; backward only */
    float *score, *dscore; /* (tokens) */
    size_t first, tokens, kv, hd;
    size_t window;
    float scale;
};

static void load_heads(float *out, struct mat m, size_t first, size_t tokens, size_t head,
                       size_t hd)
{
    for (size_t i = 0; i < tokens; i++) {
        float buffer[CPU_CHUNK];
        memcpy(out + i * hd, cpu_row(buffer, m, first + i, head * hd, hd), hd * sizeof(float));
    }
}

static void store_heads(struct mat m, const float *x, size_t first, size_t tokens, size_t head,
                        size_t hd)
{
    for (size_t i = 0; i < tokens; i++) {
        float buffer[CPU_CHUNK];
        float *to = cpu_row_out(buffer, m, first + i, head * hd);
        memcpy(to, x + i * hd, hd * sizeof(float));
        cpu_row_done(m, first + i, head * hd, to, hd);
    }
}

CPU_CLONES static void dots(float *out, const float *x, const float *rows, size_t n, size_t hd)
{
    for (size_t j = 0; j < n; j++) {
        float lane[CPU_LANES] = {0};
        cpu_lanes_dot(lane, x, rows + j * hd, hd);
        out[j] = cpu_lanes_sum(lane);
    }
}
/* out += sum of w[j] rows[j] */
CPU_CLONES static void weighted(float *restrict out, const float *w, const float *restrict rows,
                                size_t n, size_t hd)
{
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < hd; i++)
            out[i] += w[j] * rows[j * hd + i];
}
/* rows[j] += w[j] x */
CPU_CLONES static void spread(float *restrict rows, const float *w, const float *restrict x,
                              size_t n, size_t hd)
{
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < hd; i++)
            rows[j * hd + i] += w[j] * x[i];
}
CPU_CLONES static void exponentials(float *x, size_t n, float scale, float less)
{
    for (size_t j = 0; j < n; j++)
        x[j] = cpu_exp(x[j] * scale - less);
}

static size_t window_start(const struct job *job, size_t i)
{
    return job->window && i + 1 > job->window ? i + 1 - job->window : 0;
}

static void forward_one(const struct job *job, const struct attention_tensors *t,
                        const struct attention_shape *s, size_t head, size_t i)
{
    float buffer[CPU_CHUNK], out[CPU_CHUNK] = {0}, sum = 0.0f, max = -INFINITY;
    size_t row = job->first + i, from = window_start(job, i), n = i + 1 - from, hd = job->hd;
    const float *q = cpu_row(buffer, t->q, row, head * hd, hd);
    dots(job->score, q, job->k + from * hd, n, hd);
    for (size_t j = 0; j < n; j++)
        max = job->score[j] > max ? job->score[j] : max;
    exponentials(job->score, n, job->scale, max * job->scale);
    for (size_t j = 0; j < n; j++)
        sum += job->score[j];
    weighted(out, job->score, job->v + from * hd, n, hd);
    for (size_t j = 0; j < hd; j++)
        out[j] /= sum;
    store_heads(t->out, out, row, 1, head, hd);
    t->lse[row * s->heads + head] = max * job->scale + logf(sum);
}

static void backward_one(const struct job *job, const struct attention_tensors *grad,
                         const struct attention_tensors *t, const struct attention_shape *s,
                         size_t head, size_t i)
{
    float qs[CPU_CHUNK], os[CPU_CHUNK], gs[CPU_CHUNK], dq[CPU_CHUNK] = {0}, lane[CPU_LANES] = {0};
    size_t row = job->first + i, from = window_start(job, i), n = i + 1 - from, hd = job->hd;
    const float *q = cpu_row(qs, t->q, row, head * hd, hd);
    const float *o = cpu_row(os, t->out, row, head * hd, hd);
    const float *g = cpu_row(gs, grad->out, row, head * hd, hd);
    cpu_lanes_dot(lane, o, g, hd);
    float mean = cpu_lanes_sum(lane);
    dots(job->score, q, job->k + from * hd, n, hd);
    exponentials(job->score, n, job->scale, t->lse[row * s->heads + head]);
    dots(job->dscore, g, job->v + from * hd, n, hd);
    spread(job->dv + from * hd, job->score, g, n, hd);
    for (size_t j = 0; j < n; j++)
        job->dscore[j] = job->score[j] * (job->dscore[j] - mean) * job->scale;
    weighted(dq, job->dscore, job->k + from * hd, n, hd);
    spread(job->dk + from * hd, job->dscore, q, n, hd);
    store_heads(grad->q, dq, row, 1, head, hd);
}

static void run_job(float *scratch, const struct attention_tensors *grad,
                    const struct attention_tensors *t, const struct attention_shape *s,
                    size_t number)
{
    size_t row = number / s->kv_heads, group = s->heads / s->kv_heads, hd = s->head_dim;
    size_t tokens = s->start[row + 1] - s->start[row];
    struct job job = {
        .first = s->start[row], .tokens = tokens, .kv = number % s->kv_heads, .hd = hd};
    job.window = s->window;
    job.scale = 1.0f / sqrtf((float)hd);
    job.k = scratch;
    job.v = job.k + tokens * hd;
    job.dk = job.v + tokens * hd;
    job.dv = job.dk + tokens * hd;
    job.score = job.dv + tokens * hd;
    job.dscore = job.score + tokens;
    load_heads(job.k, t->k, job.first, tokens, job.kv, hd);
    load_heads(job.v, t->v, job.first, tokens, job.kv, hd);
    if (grad) memset(job.dk, 0, 2 * tokens * hd * sizeof(float));
    for (size_t h = job.kv * group; h < (job.kv + 1) * group; h++)
        for (size_t i = 0; i < tokens; i++)
            if (grad)
                backward_one(&job, grad, t, s, h, i);
            else
                forward_one(&job, t, s, h, i);
    if (!grad) return;
    store_heads(grad->k, job.dk, job.first, tokens, job.kv, hd);
    store_heads(grad->v, job.dv, job.first, tokens, job.kv, hd);
}

static void run_jobs(struct backend_context *c, const struct attention_tensors *grad,
                     const struct attention_tensors *t, const struct attention_shape *s)
{
    REQUIRE(s->head_dim <= CPU_CHUNK && s->heads % s->kv_heads == 0);
    size_t longest = 0, jobs = (size_t)s->rows * s->kv_heads;
    for (size_t i = 0; i < s->rows; i++)
        if (s->start[i + 1] - s->start[i] > longest) longest = s->start[i + 1] - s->start[i];
    size_t own = longest * (4 * (size_t)s->head_dim + 2);
    float *scratch = cpu_scratch(c, (size_t)c->threads * own * sizeof(float));
    if (!scratch) return;
#pragma omp parallel for num_threads(c->threads) schedule(dynamic)
    for (size_t i = 0; i < jobs; i++)
        run_job(scratch + (size_t)cpu_thread() * own, grad, t, s, i);
}

void cpu_attention(struct backend_context *c, const struct attention_tensors *t,
                   const struct attention_shape *s)
{
    double since = cpu_clock();
    run_jobs(c, NULL, t, s);
    cpu_count(c, OP_ATTENTION, since);
}

void cpu_attention_back(struct backend_context *c, const struct attention_tensors *grad,
                        const struct attention_tensors *t, const struct attention_shape *s)
{
    double since = cpu_clock();
    run_jobs(c, grad, t, s);
    cpu_count(c, OP_ATTENTION_BACK, since);
}

/* Keys of one position at a time, straight from the cache. */
static void decode_one(float *score, struct mat out, struct mat q, const struct decode_row *row,
                       const struct attention_shape *s, size_t i, size_t head)
{
    float qs[CPU_CHUNK], buffer[CPU_CHUNK], sum_out[CPU_CHUNK] = {0}, sum = 0.0f, max = -INFINITY;
    size_t hd = s->head_dim, kv = head / (s->heads / s->kv_heads);
    size_t from = s->window && row->positions > s->window ? row->positions - s->window : 0;
    float scale = 1.0f / sqrtf((float)hd);
    const float *x = cpu_row(qs, q, i, head * hd, hd);
    for (size_t j = from; j < row->positions; j++) {
        dots(score + j, x, cpu_row(buffer, row->keys, j, kv * hd, hd), 1, hd);
        max = score[j] > max ? score[j] : max;
    }
    exponentials(score + from, row->positions - from, scale, max * scale);
    for (size_t j = from; j < row->positions; j++) {
        sum += score[j];
        weighted(sum_out, score + j, cpu_row(buffer, row->values, j, kv * hd, hd), 1, hd);
    }
    for (size_t j = 0; j < hd; j++)
        sum_out[j] /= sum;
    store_heads(out, sum_out, i, 1, head, hd);
}

void cpu_attention_decode(struct backend_context *c, struct mat out, struct mat q,
                          const struct decode_row *row, const struct attention_shape *s)
{
    double since = cpu_clock();
    size_t longest = 0, jobs = (size_t)s->rows * s->heads;
    for (size_t i = 0; i < s->rows; i++)
        if (row[i].positions > longest) longest = row[i].positions;
    float *scratch = cpu_scratch(c, (size_t)c->threads * longest * sizeof(float));
    if (!scratch) return;
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (size_t job = 0; job < jobs; job++)
        decode_one(scratch + (size_t)cpu_thread() * longest, out, q, row + job / s->heads, s,
                   job / s->heads, job % s->heads);
    cpu_count(c, OP_ATTENTION, since);
}
