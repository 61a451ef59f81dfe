/* Norms, rotation, the gated unit and AdamW. Memory bandwidth limits them, so each reads and writes
 * its operands once. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_vector.h"

#include <math.h>

CPU_CLONES static void norm_vector(struct mat y, float *inv, struct mat copy, struct mat x,
                                   const float *weight, const struct norm_shape *s)
{
    float in[CPU_CHUNK], out[CPU_CHUNK], lane[CPU_LANES] = {0};
    for (size_t col = 0; col < s->width; col += CPU_CHUNK) {
        size_t n = s->width - col < CPU_CHUNK ? s->width - col : CPU_CHUNK;
        const float *v = cpu_row(in, x, 0, col, n);
        cpu_lanes_dot(lane, v, v, n);
    }
    float scale = 1.0f / sqrtf(cpu_lanes_sum(lane) / (float)s->width + s->eps);
    *inv = scale;
    for (size_t col = 0; col < s->width; col += CPU_CHUNK) {
        size_t n = s->width - col < CPU_CHUNK ? s->width - col : CPU_CHUNK;
        const float *v = cpu_row(in, x, 0, col, n);
        float *to = cpu_row_out(out, y, 0, col);
        for (size_t i = 0; i < n; i++)
            to[i] = v[i] * scale * weight[col + i];
        cpu_row_done(y, 0, col, to, n);
        if (copy.data) cpu_row_put(copy, 0, col, v, n);
    }
}

static struct mat optional_at(struct mat m, size_t row, size_t col)
{
    return m.data ? mat_at(m, row, col) : m;
}

void cpu_norm(struct backend_context *c, struct mat y, float *inv, struct mat copy, struct mat x,
              const float *weight, const struct norm_shape *s)
{
    double since = cpu_clock();
#pragma omp parallel for num_threads(c->threads) schedule(static) if (s->rows > 8)
    for (size_t i = 0; i < s->rows; i++)
        for (size_t g = 0; g < s->groups; g++)
            norm_vector(mat_at(y, i, g * s->width), inv + i * s->groups + g,
                        optional_at(copy, i, g * s->width), mat_at(x, i, g * s->width), weight, s);
    cpu_count(c, OP_NORM, since);
}

/* With n = inv * x and y = n * w: dx = inv * (w dy - n * mean(n w dy)). */
CPU_CLONES static void norm_back_vector(struct mat dx, struct mat narrow, struct mat dy,
                                        struct mat x, float inv, const float *weight,
                                        const struct norm_shape *s, bool set)
{
    float in[CPU_CHUNK], up[CPU_CHUNK], wdy[CPU_CHUNK], old[CPU_CHUNK], out[CPU_CHUNK];
    float lane[CPU_LANES] = {0};
    for (size_t col = 0; col < s->width; col += CPU_CHUNK) {
        size_t n = s->width - col < CPU_CHUNK ? s->width - col : CPU_CHUNK;
        const float *v = cpu_row(in, x, 0, col, n), *g = cpu_row(up, dy, 0, col, n);
        for (size_t i = 0; i < n; i++)
            wdy[i] = g[i] * weight[col + i];
        cpu_lanes_dot(lane, v, wdy, n);
    }
    float mean = cpu_lanes_sum(lane) / (float)s->width * inv * inv;
    for (size_t col = 0; col < s->width; col += CPU_CHUNK) {
        size_t n = s->width - col < CPU_CHUNK ? s->width - col : CPU_CHUNK;
        const float *v = cpu_row(in, x, 0, col, n), *g = cpu_row(up, dy, 0, col, n);
        const float *z = set ? NULL : cpu_row(old, dx, 0, col, n);
        float *to = cpu_row_out(out, dx, 0, col);
        if (set)
            for (size_t i = 0; i < n; i++)
                to[i] = inv * (g[i] * weight[col + i] - v[i] * mean);
        else
            for (size_t i = 0; i < n; i++)
                to[i] = z[i] + inv * (g[i] * weight[col + i] - v[i] * mean);
        cpu_row_done(dx, 0, col, to, n);
        if (narrow.data) cpu_row_put(narrow, 0, col, to, n);
    }
}

void cpu_norm_back(struct backend_context *c, struct mat dx, struct mat narrow, struct mat dy,
                   struct mat x, const float *inv, const float *weight, const struct norm_shape *s,
                   bool set)
{
    double since = cpu_clock();
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (size_t i = 0; i < s->rows; i++)
        for (size_t g = 0; g < s->groups; g++)
            norm_back_vector(mat_at(dx, i, g * s->width), optional_at(narrow, i, g * s->width),
                             mat_at(dy, i, g * s->width), mat_at(x, i, g * s->width),
                             inv[i * s->groups + g], weight, s, set);
    cpu_count(c, OP_NORM, since);
}

CPU_CLONES static void rope_row(struct mat to, struct mat from, const struct rope_shape *s,
                                const float *restrict cosine, const float *restrict sine)
{
    float in[CPU_CHUNK], out[CPU_CHUNK];
    size_t half = s->head_dim / 2;
    float sign = s->back ? -1.0f : 1.0f;
    for (size_t h = 0; h < s->heads; h++) {
        size_t col = h * s->head_dim;
        const float *x = cpu_row(in, from, 0, col, s->head_dim);
        float rotated[CPU_CHUNK];
        for (size_t i = 0; i < half; i++) {
            rotated[i] = x[i] * cosine[i] - x[i + half] * (sign * sine[i]);
            rotated[i + half] = x[i + half] * cosine[i] + x[i] * (sign * sine[i]);
        }
        float *y = cpu_row_out(out, to, 0, col);
        memcpy(y, rotated, s->head_dim * sizeof(float));
        cpu_row_done(to, 0, col, y, s->head_dim);
    }
}

void cpu_rope(struct backend_context *c, struct mat to, struct mat from, const struct rope_shape *s,
              const struct backend_batch *b)
{
    REQUIRE(s->head_dim <= CPU_CHUNK);
    double since = cpu_clock();
    size_t half = s->head_dim / 2;
    const uint32_t *position = b->rows.position;
#pragma omp parallel for num_threads(c->threads) schedule(static) if (s->rows > 8)
    for (size_t i = 0; i < s->rows; i++)
        rope_row(mat_at(to, i, 0), mat_at(from, i, 0), s, s->cos + position[i] * half,
                 s->sin + position[i] * half);
    cpu_count(c, OP_ROPE, since);
}

CPU_CLONES static void gate_row(struct mat h, struct mat gate, struct mat up, size_t width)
{
    float gates[CPU_CHUNK], ups[CPU_CHUNK], out[CPU_CHUNK];
    for (size_t col = 0; col < width; col += CPU_CHUNK) {
        size_t n = width - col < CPU_CHUNK ? width - col : CPU_CHUNK;
        const float *g = cpu_row(gates, gate, 0, col, n), *u = cpu_row(ups, up, 0, col, n);
        float *y = cpu_row_out(out, h, 0, col);
        for (size_t i = 0; i < n; i++)
            y[i] = g[i] * (1.0f / (1.0f + formula_exp(-g[i]))) * u[i];
        cpu_row_done(h, 0, col, y, n);
    }
}

void cpu_gate(struct backend_context *c, struct mat h, struct mat gate, struct mat up,
              const struct gate_shape *s)
{
    double since = cpu_clock();
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (size_t i = 0; i < s->rows; i++)
        gate_row(mat_at(h, i, 0), mat_at(gate, i, 0), mat_at(up, i, 0), s->width);
    cpu_count(c, OP_GATE, since);
}

/* silu'(g) = s + g s (1 - s), s = sigmoid(g) */
CPU_CLONES static void gate_back_row(struct mat dgate, struct mat dup, struct mat dh,
                                     struct mat gate, struct mat up, size_t width)
{
    float gates[CPU_CHUNK], ups[CPU_CHUNK], dhs[CPU_CHUNK], dgs[CPU_CHUNK], dus[CPU_CHUNK];
    float hs[CPU_CHUNK];
    for (size_t col = 0; col < width; col += CPU_CHUNK) {
        size_t n = width - col < CPU_CHUNK ? width - col : CPU_CHUNK;
        const float *g = cpu_row(gates, gate, 0, col, n), *u = cpu_row(ups, up, 0, col, n);
        const float *d = cpu_row(dhs, dh, 0, col, n);
        for (size_t i = 0; i < n; i++) {
            float s = 1.0f / (1.0f + formula_exp(-g[i]));
            float silu = g[i] * s;
            dgs[i] = d[i] * u[i] * (s + silu * (1.0f - s));
            dus[i] = d[i] * silu;
            hs[i] = silu * u[i];
        }
        cpu_row_put(dgate, 0, col, dgs, n);
        cpu_row_put(dup, 0, col, dus, n);
        cpu_row_put(dh, 0, col, hs, n);
    }
}

void cpu_gate_back(struct backend_context *c, struct mat dgate, struct mat dup, struct mat dh,
                   struct mat gate, struct mat up, const struct gate_shape *s)
{
    double since = cpu_clock();
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (size_t i = 0; i < s->rows; i++)
        gate_back_row(mat_at(dgate, i, 0), mat_at(dup, i, 0), mat_at(dh, i, 0), mat_at(gate, i, 0),
                      mat_at(up, i, 0), s->width);
    cpu_count(c, OP_GATE, since);
}

static double sum_squares(const float *x, size_t n)
{
    double sum = 0.0, lane[8] = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++)
            lane[j] += (double)x[i + j] * (double)x[i + j];
    for (; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    for (int j = 0; j < 8; j++)
        sum += lane[j];
    return sum;
}

/* gradient += prox (value - start). Returns |value - start|^2. */
static double proximal(const struct optimizer *o)
{
    double sum = 0.0;
    for (size_t i = 0; i < o->n; i++) {
        double away = (double)o->value[i] - (double)o->start[i];
        sum += away * away;
        o->gradient[i] += (float)(o->prox * away);
    }
    return sum;
}

/* The order of operations of PyTorch, so results agree: weight decay, moments, then
 *
 *   value -= lr / bias1 * m / (sqrt(v) / sqrt(bias2) + eps)
 *
 * with bias1 = 1 - beta1^step and bias2 = 1 - beta2^step. */
CPU_CLONES static void adamw_block(float *restrict value, float *restrict first,
                                   float *restrict second, const float *restrict gradient, size_t n,
                                   const struct adamw *a, float scale)
{
    double bias1 = 1.0 - pow(a->beta1, (double)a->step);
    double bias2 = 1.0 - pow(a->beta2, (double)a->step);
    float rate = (float)(a->lr / bias1), root = (float)sqrt(bias2);
    float keep = (float)(1.0 - a->lr * a->weight_decay);
    float beta1 = (float)a->beta1, beta2 = (float)a->beta2, eps = (float)a->eps;
    float one1 = (float)(1.0 - a->beta1), one2 = (float)(1.0 - a->beta2);
    for (size_t i = 0; i < n; i++) {
        float g = gradient[i] * scale;
        first[i] = beta1 * first[i] + one1 * g;
        second[i] = beta2 * second[i] + one2 * (g * g);
        value[i] = value[i] * keep - rate * first[i] / (sqrtf(second[i]) / root + eps);
    }
}

/* 1e-6 in the denominator of the clip, as PyTorch has it. */
void cpu_adamw(struct backend_context *c, double norm2[2], const struct optimizer *o,
               const struct adamw *a)
{
    double since = cpu_clock();
    size_t block = 16384;
    norm2[1] = o->prox > 0.0 ? proximal(o) : 0.0;
    norm2[0] = sum_squares(o->gradient, o->n);
    double clip = a->clip > 0.0 ? a->clip / (sqrt(norm2[0]) + 1e-6) : 1.0;
    float scale = (float)(clip < 1.0 ? clip : 1.0);
    if (!isfinite(norm2[0])) return;
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (size_t i = 0; i < o->n; i += block)
        adamw_block(o->value + i, o->first + i, o->second + i, o->gradient + i,
                    o->n - i < block ? o->n - i : block, a, scale);
    cpu_count(c, OP_ADAMW, since);
}
