/* Cross-entropy through the head. Rows go by blocks whose float32 logits stay within some tens of
 * megabytes, and the vocabulary by slices: of a slice, all rows of the block lie side by side
 * (rows, count). */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_vector.h"

#include <math.h>

enum { BLOCK_LOGITS = 8 << 20, BLOCK_ROWS = 256 };

struct head {
    const struct backend_weight *w;
    size_t rows, slices;
    float *logits;    /* slice after slice, each (block, count) */
    uint16_t *narrow; /* (block, count) one slice as bf16, or NULL */
    size_t block;
    double sum[BLOCK_ROWS]; /* of each row's exponentials */
};

static float *slice_row(const struct head *h, size_t slice, size_t row, size_t *count)
{
    size_t first;
    cpu_weight_slice(&first, count, h->w, slice);
    return h->logits + first * h->block + row * *count;
}

CPU_CLONES static float largest(const float *x, size_t n, float max)
{
    float top[CPU_LANES];
    size_t i = 0;
    for (int j = 0; j < CPU_LANES; j++)
        top[j] = max;
    for (; i + CPU_LANES <= n; i += CPU_LANES)
        for (int j = 0; j < CPU_LANES; j++)
            top[j] = x[i + j] > top[j] ? x[i + j] : top[j];
    for (; i < n; i++)
        top[0] = x[i] > top[0] ? x[i] : top[0];
    for (int j = 0; j < CPU_LANES; j++)
        max = top[j] > max ? top[j] : max;
    return max;
}

/* x = e^(x - max); their sum, in short float sums. */
CPU_CLONES static double exponentials(float *x, size_t n, float max)
{
    double sum = 0.0;
    for (size_t first = 0; first < n; first += CPU_CHUNK) {
        size_t count = n - first < CPU_CHUNK ? n - first : CPU_CHUNK, i = 0;
        float lane[CPU_LANES] = {0};
        float *y = x + first;
        for (size_t k = 0; k < count; k++)
            y[k] = cpu_exp(y[k] - max);
        for (; i + CPU_LANES <= count; i += CPU_LANES)
            for (int j = 0; j < CPU_LANES; j++)
                lane[j] += y[i + j];
        for (int j = 0; i < count; i++, j++)
            lane[j] += y[i];
        sum += (double)cpu_lanes_sum(lane);
    }
    return sum;
}

/* to = x * factor: the gradient of one row of a slice; to may be x. */
CPU_CLONES static void scale_row(struct mat to, const float *x, size_t n, float factor)
{
    float buffer[CPU_CHUNK];
    for (size_t col = 0; col < n; col += CPU_CHUNK) {
        size_t count = n - col < CPU_CHUNK ? n - col : CPU_CHUNK;
        float *y = cpu_row_out(buffer, to, 0, col);
        for (size_t i = 0; i < count; i++)
            y[i] = x[col + i] * factor;
        cpu_row_done(to, 0, col, y, count);
    }
}

/* The negative log likelihood of one row. Leaves e = exp(x - max) in place of the logits, less
 * their sum at the target: times factor / sum that is the gradient. */
static double softmax_row(const struct head *h, size_t row, size_t target, double *sum)
{
    size_t count;
    float max = -INFINITY, *chosen = NULL;
    for (size_t i = 0, first = 0; i < h->slices; i++, first += count) {
        float *x = slice_row(h, i, row, &count);
        max = largest(x, count, max);
        if (target >= first && target < first + count) chosen = x + (target - first);
    }
    REQUIRE(chosen);
    double at_target = (double)*chosen - (double)max;
    *sum = 0.0;
    for (size_t i = 0; i < h->slices; i++) {
        float *x = slice_row(h, i, row, &count);
        *sum += exponentials(x, count, max);
    }
    *chosen = (float)((double)*chosen - *sum);
    return log(*sum) - at_target;
}

static void block_backward(struct backend_context *c, struct mat dhidden, const struct head *h,
                           double factor)
{
    struct linear_rows r = {h->rows, false, true};
    for (size_t i = 0; i < h->slices; i++) {
        size_t count;
        struct mat dy = {slice_row(h, i, 0, &count), DTYPE_F32, 0};
        if (h->narrow) dy = (struct mat){h->narrow, DTYPE_BF16, 0};
        dy.ld = count;
#pragma omp parallel for num_threads(c->threads) schedule(static)
        for (size_t row = 0; row < h->rows; row++) {
            size_t n;
            const float *x = slice_row(h, i, row, &n);
            scale_row(mat_at(dy, row, 0), x, n, (float)(factor / h->sum[row]));
        }
        r.add = i > 0;
        cpu_linear_slice(c, dhidden, dy, h->w, i, &r);
    }
}

static bool head_open(struct head *h, struct backend_context *c, bool back)
{
    size_t vocab = cpu_weight_rows(h->w), widest = 0;
    h->slices = cpu_weight_slices(h->w);
    h->block = BLOCK_LOGITS / vocab / BACKEND_ROWS * BACKEND_ROWS;
    if (h->block < BACKEND_ROWS) h->block = BACKEND_ROWS;
    if (h->block > BLOCK_ROWS) h->block = BLOCK_ROWS;
    for (size_t i = 0; i < h->slices; i++) {
        size_t first, count;
        cpu_weight_slice(&first, &count, h->w, i);
        if (count > widest) widest = count;
    }
    bool narrow = back && c->precision != DTYPE_F32;
    h->logits = cpu_scratch(c, h->block * (vocab * sizeof(float) + (narrow ? widest * 2 : 0)));
    if (!h->logits) return false;
    if (narrow) h->narrow = (uint16_t *)(void *)(h->logits + h->block * vocab);
    return true;
}

void cpu_head_loss(struct backend_context *c, struct mat dhidden, struct mat hidden,
                   const struct backend_weight *w, const struct head_loss *loss)
{
    double since = cpu_clock();
    struct backend_profile before = c->profile;
    struct head h = {.w = w};
    bool back = dhidden.data != NULL;
    if (!head_open(&h, c, back)) return;
    for (size_t row = 0; row < loss->rows; row += h.block) {
        h.rows = loss->rows - row < h.block ? loss->rows - row : h.block;
        struct linear_rows r = {h.rows, false, false};
        for (size_t i = 0; i < h.slices; i++) {
            size_t count;
            struct mat y = {slice_row(&h, i, 0, &count), DTYPE_F32, 0};
            y.ld = count;
            cpu_linear_slice(c, y, mat_at(hidden, row, 0), w, i, &r);
        }
#pragma omp parallel for num_threads(c->threads) schedule(static)
        for (size_t i = 0; i < h.rows; i++)
            loss->nll[row + i] = softmax_row(&h, i, (size_t)loss->target[row + i], &h.sum[i]);
        if (back) block_backward(c, mat_at(dhidden, row, 0), &h, (double)loss->gradient_scale);
    }
    c->profile = before; /* its parts are counted as the head's, not as themselves */
    cpu_count(c, OP_HEAD, since);
}
