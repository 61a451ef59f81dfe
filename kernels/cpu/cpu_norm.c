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
    size_t half = rope_dim(s) / 2, rotary = 2 * half;
    float sign = s->back ? -1.0f : 1.0f;
    for (size_t h = 0; h < s->heads; h++) {
        size_t col = h * s->head_dim;
        const float *x = cpu_row(in, from, 0, col, s->head_dim);
        float rotated[CPU_CHUNK];
        for (size_t i = 0; i < half; i++) {
            rotated[i] = x[i] * cosine[i] - x[i + half] * (sign * sine[i]);
            rotated[i + half] = x[i + half] * cosine[i] + x[i] * (sign * sine[i]);
        }
        memcpy(rotated + rotary, x + rotary, (s->head_dim - rotary) * sizeof(float));
        float *y = cpu_row_out(out, to, 0, col);
        memcpy(y, rotated, s->head_dim * sizeof(float));
        cpu_row_done(to, 0, col, y, s->head_dim);
    }
}

void cpu_rope(struct backend_context *c, struct mat to, struct mat from, const struct rope_shape *s,
              const struct backend_batch *b)
{
    REQUIRE(s->head_dim <= CPU_CHUNK && rope_dim(s) <= s->head_dim);
    double since = cpu_clock();
    size_t half = rope_dim(s) / 2;
    const uint32_t *position = b->rows.position;
#pragma omp parallel for num_threads(c->threads) schedule(static) if (s->rows > 8)
    for (size_t i = 0; i < s->rows; i++)
        rope_row(mat_at(to, i, 0), mat_at(from, i, 0), s, s->cos + position[i] * half,
                 s->sin + position[i] * half);
    cpu_count(c, OP_ROPE, since);
}

CPU_INLINE float silu(float *derivative, float x) /* s + x s (1 - s), s = sigmoid(x) */
{
    float s = 1.0f / (1.0f + formula_exp(-x)), y = x * s;
    *derivative = s + y * (1.0f - s);
    return y;
}

CPU_INLINE float activate(float *derivative, float x, enum activation activation)
{
    return activation == ACTIVATION_SILU ? silu(derivative, x) : formula_gelu(derivative, x);
}

/* h of n values. The activation is a constant in each call, so that every loop becomes vector code
 * without a branch. */
CPU_INLINE void gate_values(float *h, const float *g, const float *u, size_t n,
                            enum activation activation)
{
    for (size_t i = 0; i < n; i++) {
        float slope;
        h[i] = activate(&slope, g[i], activation) * u[i];
    }
}

CPU_CLONES static void gate_row(struct mat h, struct mat gate, struct mat up,
                                const struct gate_shape *s)
{
    float gates[CPU_CHUNK], ups[CPU_CHUNK], out[CPU_CHUNK];
    for (size_t col = 0; col < s->width; col += CPU_CHUNK) {
        size_t n = s->width - col < CPU_CHUNK ? s->width - col : CPU_CHUNK;
        const float *g = cpu_row(gates, gate, 0, col, n), *u = cpu_row(ups, up, 0, col, n);
        float *y = cpu_row_out(out, h, 0, col);
        if (s->activation == ACTIVATION_SILU)
            gate_values(y, g, u, n, ACTIVATION_SILU);
        else
            gate_values(y, g, u, n, ACTIVATION_GELU_TANH);
        cpu_row_done(h, 0, col, y, n);
    }
}

void cpu_gate(struct backend_context *c, struct mat h, struct mat gate, struct mat up,
              const struct gate_shape *s)
{
    double since = cpu_clock();
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (size_t i = 0; i < s->rows; i++)
        gate_row(mat_at(h, i, 0), mat_at(gate, i, 0), mat_at(up, i, 0), s);
    cpu_count(c, OP_GATE, since);
}

CPU_INLINE void gate_gradients(float *dg, float *du, float *h, const float *d, const float *g,
                               const float *u, size_t n, enum activation activation)
{
    for (size_t i = 0; i < n; i++) {
        float slope;
        float active = activate(&slope, g[i], activation);
        dg[i] = d[i] * u[i] * slope;
        du[i] = d[i] * active;
        h[i] = active * u[i];
    }
}

CPU_CLONES static void gate_back_row(struct mat dgate, struct mat dup, struct mat dh,
                                     struct mat gate, struct mat up, const struct gate_shape *s)
{
    float gates[CPU_CHUNK], ups[CPU_CHUNK], dhs[CPU_CHUNK], dgs[CPU_CHUNK], dus[CPU_CHUNK];
    float hs[CPU_CHUNK];
    for (size_t col = 0; col < s->width; col += CPU_CHUNK) {
        size_t n = s->width - col < CPU_CHUNK ? s->width - col : CPU_CHUNK;
        const float *g = cpu_row(gates, gate, 0, col, n), *u = cpu_row(ups, up, 0, col, n);
        const float *d = cpu_row(dhs, dh, 0, col, n);
        if (s->activation == ACTIVATION_SILU)
            gate_gradients(dgs, dus, hs, d, g, u, n, ACTIVATION_SILU);
        else
            gate_gradients(dgs, dus, hs, d, g, u, n, ACTIVATION_GELU_TANH);
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
                      mat_at(up, i, 0), s);
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
