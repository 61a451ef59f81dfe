#include "engine/train/train_penalty.h"

#include <math.h>
#include <string.h>

/* floor(gamma rank), at least 1. 1e-9 is added because 0.7 * 10 is 6.99... in double. */
uint32_t train_cut(uint32_t rank, double gamma)
{
    REQUIRE(gamma > 0.0 && gamma <= 1.0);
    uint32_t cut = (uint32_t)floor(gamma * (double)rank + 1e-9);
    return cut > 1 ? cut : 1;
}

/* A tail that became smaller in training is one that the data does not need (HetLoRA), so it is
 * cut. */
uint32_t train_pruned_rank(uint32_t rank, double gamma, const struct train_result *r)
{
    return r->tail_after < r->tail_before ? train_cut(rank, gamma) : rank;
}

/* The tail of a factor: `rows` runs of `cols` values, `ld` apart. The tail A[c:, :] is one run of
 * rows, the tail B[:, c:] is the end of each row. */
struct tail {
    const float *value;
    size_t rows, cols, ld;
};

/* Frobenius norm, in double. */
static double tail_norm(const struct tail *t)
{
    double sum = 0.0;
    for (size_t i = 0; i < t->rows; i++)
        for (size_t j = 0; j < t->cols; j++)
            sum += (double)t->value[i * t->ld + j] * (double)t->value[i * t->ld + j];
    return sqrt(sum);
}

/* The tails of A (rank, d_in) and B (d_out, rank) behind the first `cut` components. */
static void tails(struct tail out[2] /* A, B */, const struct adapter_module *m, double gamma)
{
    uint32_t cut = m->rank ? train_cut(m->rank, gamma) : 0;
    size_t rest = m->rank - cut;
    out[0] = (struct tail){m->a + (size_t)cut * m->d_in, rest, m->d_in, m->d_in};
    out[1] = (struct tail){m->b + cut, rest ? m->d_out : 0, rest, m->rank};
}

double train_tail(const struct adapter *ad, double gamma)
{
    double sum = 0.0;
    for (size_t i = 0; i < ad->count; i++) {
        struct tail t[2];
        if (!ad->module[i].rank) continue;
        tails(t, &ad->module[i], gamma);
        sum += tail_norm(&t[0]) * tail_norm(&t[1]);
    }
    return sum;
}

/* d|X| / dX = X / |X|. At X = 0 the subgradient 0 is taken, so a tail that is zero stays zero. */
static void tail_gradient(float *gradient, const struct adapter *ad, const struct tail *t,
                          double norm, double factor)
{
    if (norm <= 0.0) return;
    size_t at = (size_t)(t->value - ad->value);
    for (size_t i = 0; i < t->rows; i++)
        for (size_t j = 0; j < t->cols; j++)
            gradient[at + i * t->ld + j] +=
                (float)(factor / norm * (double)t->value[i * t->ld + j]);
}

/* The gradient with respect to one tail has the norm of the other one as its factor. Tails that do
 * not train count in the value but get no gradient. */
double train_penalty(float *gradient, const struct adapter *ad, const struct train_options *o)
{
    static const unsigned trains[2] = {ADAPTER_A, ADAPTER_B};
    double sum = 0.0;
    memset(gradient, 0, ad->value_count * sizeof *gradient);
    for (size_t i = 0; i < ad->count; i++) {
        struct tail t[2];
        if (!ad->module[i].rank) continue;
        tails(t, &ad->module[i], o->prune_gamma);
        double norm[2] = {tail_norm(&t[0]), tail_norm(&t[1])};
        sum += norm[0] * norm[1];
        for (int k = 0; k < 2; k++)
            if (ad->trains & trains[k])
                tail_gradient(gradient, ad, &t[k], norm[k], o->prune_lambda * norm[1 - k]);
    }
    return o->prune_lambda * sum;
}
