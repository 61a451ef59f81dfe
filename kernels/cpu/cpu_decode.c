/* Attention of one new token per sequence over the cached keys and values of the sequence. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_vector.h"

#include <math.h>

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
CPU_CLONES static void exponentials(float *x, size_t n, float scale, float less)
{
    for (size_t j = 0; j < n; j++)
        x[j] = formula_exp(x[j] * scale - less);
}

/* Reads the keys of one position at a time, directly from the cache. */
static void decode_one(float *score, struct mat out, struct mat q, const struct decode_row *row,
                       const struct attention_shape *s, size_t i, size_t head)
{
    float qs[CPU_CHUNK], buffer[CPU_CHUNK], sum_out[CPU_CHUNK] = {0}, sum = 0.0f, max = -INFINITY;
    size_t hd = s->head_dim, kv = head / (s->heads / s->kv_heads);
    size_t positions = (size_t)row->positions + 1; /* with the new one */
    size_t from = s->window && positions > s->window ? positions - s->window : 0;
    float scale = attention_scale(s);
    const float *x = cpu_row(qs, q, i, head * hd, hd);
    for (size_t j = from; j < positions; j++) {
        dots(score + j, x, cpu_row(buffer, row->keys, j, kv * hd, hd), 1, hd);
        if (s->cap > 0.0f) cpu_cap(score + j, 1, scale, s->cap);
        max = score[j] > max ? score[j] : max;
    }
    if (s->cap > 0.0f) scale = 1.0f; /* the scores are scaled and capped already */
    exponentials(score + from, positions - from, scale, max * scale);
    for (size_t j = from; j < positions; j++) {
        sum += score[j];
        weighted(sum_out, score + j, cpu_row(buffer, row->values, j, kv * hd, hd), 1, hd);
    }
    for (size_t j = 0; j < hd; j++)
        sum_out[j] /= sum;
    store_heads(out, sum_out, i, 1, head, hd);
}

void cpu_attention_decode(struct backend_context *c, const struct attention_tensors *t,
                          const struct decode_row *row, size_t rows,
                          const struct attention_shape *s)
{
    double since = cpu_clock();
    size_t longest = 0, jobs = rows * s->heads, width = (size_t)s->kv_heads * s->head_dim;
    for (size_t i = 0; i < rows; i++) {
        cpu_convert(c, mat_at(row[i].keys, row[i].positions, 0), mat_at(t->k, i, 0), 1, width,
                    1.0f);
        cpu_convert(c, mat_at(row[i].values, row[i].positions, 0), mat_at(t->v, i, 0), 1, width,
                    1.0f);
        if (row[i].positions >= longest) longest = row[i].positions + (size_t)1;
    }
    float *scratch = cpu_scratch(c, (size_t)c->threads * longest * sizeof(float));
    if (!scratch) return;
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (size_t job = 0; job < jobs; job++)
        decode_one(scratch + (size_t)cpu_thread() * longest, t->out, t->q, row + job / s->heads, s,
                   job / s->heads, job % s->heads);
    cpu_count(c, OP_ATTENTION, since);
}
