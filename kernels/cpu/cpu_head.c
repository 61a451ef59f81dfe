/* Cross-entropy through the head. Rows go by blocks small enough for their float32 logits to stay
 * within a few tens of megabytes; over those logits, forward and backward go by slices of the
 * vocabulary. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_vector.h"

#include <math.h>

enum { BLOCK_LOGITS = 16 << 20, BLOCK_ROWS = 256 };

/* The negative log likelihood of one row; leaves exp(x - max) / sum * scale in place of the logits,
 * less `scale` at the target: the gradient. */
CPU_CLONES static double softmax_row(float *x, size_t n, size_t target, float scale, bool gradient)
{
    float top[CPU_LANES];
    for (int j = 0; j < CPU_LANES; j++)
        top[j] = -INFINITY;
    size_t i = 0;
    for (; i + CPU_LANES <= n; i += CPU_LANES)
        for (int j = 0; j < CPU_LANES; j++)
            top[j] = x[i + j] > top[j] ? x[i + j] : top[j];
    for (; i < n; i++)
        top[0] = x[i] > top[0] ? x[i] : top[0];
    float max = top[0];
    for (int j = 1; j < CPU_LANES; j++)
        max = top[j] > max ? top[j] : max;
    double chosen = (double)x[target] - (double)max, sum = 0.0;
    for (size_t first = 0; first < n; first += CPU_CHUNK) { /* short float sums, one double sum */
        size_t count = n - first < CPU_CHUNK ? n - first : CPU_CHUNK;
        float lane[CPU_LANES] = {0};
        float *y = x + first;
        for (size_t k = 0; k < count; k++)
            y[k] = cpu_exp(y[k] - max);
        for (i = 0; i + CPU_LANES <= count; i += CPU_LANES)
            for (int j = 0; j < CPU_LANES; j++)
                lane[j] += y[i + j];
        for (int j = 0; i < count; i++, j++)
            lane[j] += y[i];
        sum += (double)cpu_lanes_sum(lane);
    }
    if (gradient) {
        float factor = (float)((double)scale / sum);
        for (i = 0; i < n; i++)
            x[i] *= factor;
        x[target] -= scale;
    }
    return log(sum) - chosen;
}

static void block_backward(struct backend_context *c, struct mat dhidden, struct mat logits,
                           struct mat narrow, const struct backend_weight *w, size_t rows)
{
    for (size_t i = 0; i < cpu_weight_slices(w, true); i++) {
        size_t first, count;
        cpu_weight_slice(&first, &count, w, i, true);
        struct mat dy = mat_at(logits, 0, first);
        if (narrow.data) {
            backend_cpu.convert(c, narrow, dy, rows, count, 1.0f);
            dy = narrow;
        }
        cpu_linear_slice_back(c, dhidden, dy, w, i, rows, i > 0);
    }
}

void cpu_head_loss(struct backend_context *c, struct mat dhidden, struct mat hidden,
                   const struct backend_weight *w, const struct head_loss *loss)
{
    double since = cpu_clock();
    struct backend_profile before = c->profile;
    size_t vocab = cpu_weight_rows(w), ld = (vocab + 15) / 16 * 16;
    size_t block = BLOCK_LOGITS / ld / BACKEND_ROWS * BACKEND_ROWS, width = 0;
    if (block < BACKEND_ROWS) block = BACKEND_ROWS;
    if (block > BLOCK_ROWS) block = BLOCK_ROWS;
    for (size_t i = 0; i < cpu_weight_slices(w, true); i++) {
        size_t first, count;
        cpu_weight_slice(&first, &count, w, i, true);
        if (count > width) width = count;
    }
    bool back = dhidden.data != NULL, convert = back && c->precision != DTYPE_F32;
    float *scratch = cpu_scratch(c, block * ld * sizeof(float) + convert * block * width * 2);
    if (!scratch) return;
    struct mat logits = {scratch, DTYPE_F32, ld};
    struct mat narrow = {convert ? (void *)(scratch + block * ld) : NULL, DTYPE_BF16, width};
    for (size_t row = 0; row < loss->rows; row += block) {
        size_t rows = loss->rows - row < block ? loss->rows - row : block;
        cpu_linear(c, logits, mat_at(hidden, row, 0), w, rows, false);
#pragma omp parallel for num_threads(c->threads) schedule(static)
        for (size_t i = 0; i < rows; i++)
            loss->nll[row + i] = softmax_row(scratch + i * ld, vocab, (size_t)loss->target[row + i],
                                             loss->gradient_scale, back);
        if (back) block_backward(c, mat_at(dhidden, row, 0), logits, narrow, w, rows);
    }
    c->profile = before; /* its parts are counted as the head's, not as themselves */
    cpu_count(c, OP_HEAD, since);
}
