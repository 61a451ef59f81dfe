/* Cross-entropy through the head. Each thread has its own shares of rows and takes all of them
 * through the vocabulary slice by slice. A slice of W is thus read once for many rows, and the
 * logits of a slice (rows, count) never leave the cache: they become exponentials immediately,
 * which are kept for the backward products in the precision of the engine.
 *
 * The largest logit of a row is known only at the end. The exponentials of a slice are therefore
 * relative to a power of two that is at least the largest logit so far: e = exp(z) / 2^power.
 * Before the backward product, slices with another power are multiplied by a power of two, which is
 * exact.
 *
 *   sum = sum_v e_v        nll = log(sum) + power log 2 - z_target
 *   dz_v = (e_v - [v is target] sum) / sum
 *
 * With a cap, z are the capped logits. The gradient of those before the cap has the factor slope_v
 * = 1 - (z_v / cap)^2, so e_v slope_v is kept in place of e_v, and
 *
 *   dz_v = (e_v slope_v - [v is target] slope_v sum) / sum */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_vector.h"

#include <math.h>
#include <omp.h>

/* Bytes of kept exponentials of one thread, and shares of rows that a thread has at once, at
 * most. */
enum { STORE_BYTES = 32 << 20, SHARES = 2 };

struct line { /* state of one row between slices */
    double sum;
    float target_logit, target_e; /* target_e is relative to 2^target_power, as it is kept */
    int32_t power, target_power;
};
struct head {
    struct backend_context *c;
    const struct backend_weight *w;
    struct backend_batch *batch;
    struct mat hidden, dhidden; /* (rows, d) of this block; dhidden.data NULL: the loss alone */
    size_t first, rows;         /* the learned tokens of this block */
    size_t vocab, width, slices, widest, share;
    float cap;            /* of the logits; 0: none */
    enum dtype type;      /* of the kept exponentials */
    char *kept;           /* for each share, for each slice: (share, count) */
    float *logits;        /* (share, widest) per thread; not used if float32 is kept */
    int32_t *slice_power; /* (rows, slices) */
    struct line *line;    /* (rows) */
};

static size_t share_rows(const struct head *h, size_t share)
{
    size_t row = share * h->share;
    return h->rows - row < h->share ? h->rows - row : h->share;
}

static struct mat kept_at(const struct head *h, size_t share, size_t slice)
{
    size_t first, count, size = h->type == DTYPE_F32 ? 4 : 2;
    cpu_weight_slice(&first, &count, h->w, slice);
    return (struct mat){h->kept + h->share * (share * h->vocab + first) * size, h->type, count};
}

CPU_CLONES static float largest(const float *x, size_t n)
{
    float top[CPU_LANES], max = -INFINITY;
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

static float slope_of(float capped, float cap)
{
    return cap > 0.0f ? 1.0f - capped / cap * (capped / cap) : 1.0f;
}

/* to = exp(x) / 2^power, times the slopes with a cap; `to` may be x. Returns the sum of the
 * exponentials: float sums of 1024 values, added in double. */
CPU_CLONES static double exponentials(struct mat to, float *x, size_t n, int32_t power, float cap)
{
    float slope[CPU_CHUNK];
    double sum = 0.0;
    for (size_t first = 0; first < n; first += CPU_CHUNK) {
        size_t count = n - first < CPU_CHUNK ? n - first : CPU_CHUNK, i = 0;
        float lane[CPU_LANES] = {0};
        float *y = x + first;
        for (size_t k = 0; k < count && cap > 0.0f; k++)
            slope[k] = 1.0f - y[k] / cap * (y[k] / cap);
        for (size_t k = 0; k < count; k++)
            y[k] = cpu_exp_scaled(y[k], power);
        for (; i + CPU_LANES <= count; i += CPU_LANES)
            for (int j = 0; j < CPU_LANES; j++)
                lane[j] += y[i + j];
        for (int j = 0; i < count; i++, j++)
            lane[j] += y[i];
        sum += (double)cpu_lanes_sum(lane);
        for (size_t k = 0; k < count && cap > 0.0f; k++)
            y[k] *= slope[k];
        if (to.data) cpu_row_done(to, 0, first, y, count);
    }
    return sum;
}

CPU_CLONES static void scale_row(struct mat row, size_t n, float factor)
{
    float in[CPU_CHUNK], out[CPU_CHUNK];
    for (size_t col = 0; col < n; col += CPU_CHUNK) {
        size_t count = n - col < CPU_CHUNK ? n - col : CPU_CHUNK;
        const float *x = cpu_row(in, row, 0, col, count);
        float *y = cpu_row_out(out, row, 0, col);
        for (size_t i = 0; i < count; i++)
            y[i] = x[i] * factor;
        cpu_row_done(row, 0, col, y, count);
    }
}

static int32_t power_of(float max, int32_t before)
{
    float power = ceilf(max * 1.44269504f);
    if (!(power > -1e6f)) return before;
    return power > 1e6f ? 1000000 : power > (float)before ? (int32_t)power : before;
}

/* Turns the logits x (count) of one row and slice into the kept exponentials. */
static void take_slice(const struct head *h, size_t row, size_t slice, struct mat kept, float *x)
{
    struct line *l = &h->line[row];
    size_t first, count;
    size_t target = (size_t)h->batch->rows.target[h->first + row]; /* -1 is in no slice */
    cpu_weight_slice(&first, &count, h->w, slice);
    bool here = target >= first && target < first + count;
    if (h->cap > 0.0f) cpu_cap(x, count, 1.0f, h->cap);
    int32_t power = power_of(largest(x, count), slice ? l->power : -1000000);
    if (here) l->target_logit = x[target - first];
    double sum = exponentials(kept, x, count, power, h->cap);
    if (here) {
        l->target_e = x[target - first];
        l->target_power = power;
    }
    l->sum = (slice ? ldexp(l->sum, l->power - power) : 0.0) + sum;
    l->power = power;
    h->slice_power[row * h->slices + slice] = power;
}

static bool forward_share(const struct head *h, size_t share, size_t slice)
{
    struct mat kept = h->kept ? kept_at(h, share, slice) : (struct mat){0};
    size_t first, count, row = share * h->share;
    cpu_weight_slice(&first, &count, h->w, slice);
    float *own = h->logits + (size_t)cpu_thread() * h->share * h->widest;
    bool in_place = kept.data && h->type == DTYPE_F32;
    struct mat y = {in_place ? kept.data : own, DTYPE_F32, count};
    struct linear_rows r = {.rows = share_rows(h, share)};
    if (!cpu_slice_run(h->c, y, mat_at(h->hidden, row, 0), h->w, slice, &r)) return false;
    for (size_t i = 0; i < r.rows; i++)
        take_slice(h, row + i, slice, kept.data ? mat_at(kept, i, 0) : kept, mat_at(y, i, 0).data);
    return true;
}

/* dhidden += dz W for one share and slice. The division by sum is left to finish_share(), where it
 * is one multiplication per row of dhidden. */
static bool backward_share(const struct head *h, size_t share, size_t slice)
{
    struct mat kept = kept_at(h, share, slice);
    size_t first, count, row = share * h->share;
    cpu_weight_slice(&first, &count, h->w, slice);
    struct linear_rows r = {.rows = share_rows(h, share), .add = true, .back = true};
    for (size_t i = 0; i < r.rows; i++) {
        const struct line *l = &h->line[row + i];
        size_t target = (size_t)h->batch->rows.target[h->first + row + i];
        int32_t away = h->slice_power[(row + i) * h->slices + slice] - l->power;
        if (away) scale_row(mat_at(kept, i, 0), count, ldexpf(1.0f, away));
        if (target < first || target >= first + count) continue;
        float e = ldexpf(l->target_e, l->target_power - l->power);
        float buffer, *to = cpu_row_out(&buffer, kept, i, target - first);
        *to = (float)((double)e - (double)slope_of(l->target_logit, h->cap) * l->sum);
        cpu_row_done(kept, i, target - first, to, 1);
    }
    return cpu_slice_run(h->c, mat_at(h->dhidden, row, 0), kept, h->w, slice, &r);
}

static void finish_share(const struct head *h, size_t share, bool back)
{
    size_t row = share * h->share;
    for (size_t i = row; i < row + share_rows(h, share); i++) {
        const struct line *l = &h->line[i];
        const struct batch_rows *r = &h->batch->rows;
        float scale = r->gradient_scales ? r->gradient_scales[h->first + i] : r->gradient_scale;
        float factor = (float)((double)scale / l->sum);
        bool none = r->target[h->first + i] < 0;
        if (none && back)
            memset(mat_at(h->dhidden, i, 0).data, 0, h->width * sizeof(float));
        else if (none)
            h->batch->nll[h->first + i] = 0.0;
        else if (back)
            scale_row(mat_at(h->dhidden, i, 0), h->width, factor);
        else
            h->batch->nll[h->first + i] =
                log(l->sum) + (double)l->power * 0.69314718055994530942 - (double)l->target_logit;
    }
}

/* The whole forward pass of all shares comes before the first backward product, because the final
 * sum and power of a row are needed there. Threads share only the operands that they make together,
 * so all of them run through all slices, also after a failure. */
static bool run_thread(const struct head *h)
{
    size_t me = (size_t)cpu_thread(), threads = (size_t)omp_get_num_threads();
    size_t shares = (h->rows + h->share - 1) / h->share;
    bool back = h->dhidden.data != NULL, good = true;
    for (size_t slice = 0; slice < h->slices; slice++) {
        cpu_slice_make(h->c, h->w, slice, false);
        for (size_t i = me; i < shares && good; i += threads)
            good = forward_share(h, i, slice);
    }
    for (size_t i = me; i < shares && good; i += threads) {
        size_t rows = (share_rows(h, i) + BACKEND_ROWS - 1) / BACKEND_ROWS * BACKEND_ROWS;
        finish_share(h, i, false);
        for (size_t row = 0; back && row < rows; row++)
            memset(mat_at(h->dhidden, i * h->share + row, 0).data, 0, h->width * sizeof(float));
    }
#pragma omp barrier /* the last forward operand and the first backward one may share memory */
    for (size_t slice = 0; back && slice < h->slices; slice++) {
        cpu_slice_make(h->c, h->w, slice, true);
        for (size_t i = me; i < shares && good; i += threads)
            good = backward_share(h, i, slice);
    }
    for (size_t i = me; back && i < shares && good; i += threads)
        finish_share(h, i, true);
    return good;
}

/* Prepares the products of all shapes of a block: the last share may have fewer rows, and the last
 * slice fewer columns. */
static void prepare(const struct head *h)
{
    size_t shares = (h->rows + h->share - 1) / h->share;
    size_t rows[2] = {share_rows(h, 0), share_rows(h, shares - 1)};
    size_t slice[2] = {0, h->slices - 1};
    for (int i = 0; i < 4; i++) {
        size_t first, count;
        cpu_weight_slice(&first, &count, h->w, slice[i & 1]);
        struct linear_rows forward = {.rows = rows[i >> 1]},
                           back = {.rows = rows[i >> 1], .add = true, .back = true};
        struct mat y = {NULL, DTYPE_F32, count}, dy = {NULL, h->type, count};
        cpu_slice_prepare(h->c, y, h->hidden, h->w, slice[i & 1], &forward);
        if (h->dhidden.data) cpu_slice_prepare(h->c, h->dhidden, dy, h->w, slice[i & 1], &back);
    }
}

static size_t take(size_t *at, size_t bytes)
{
    size_t here = *at;
    *at += (bytes + 127) / 64 * 64;
    return here;
}

/* Chooses the number of rows of a block so that the kept exponentials fit, and places its memory.
 * Returns 0 after a recorded failure. */
static size_t head_open(struct head *h, size_t rows, bool back)
{
    size_t size = h->type == DTYPE_F32 ? 4 : 2, at = 0, threads = (size_t)h->c->threads;
    cpu_weight_shape(&h->vocab, &h->width, h->w);
    h->slices = cpu_weight_slices(h->w);
    for (size_t i = 0; i < h->slices; i++) {
        size_t first, count;
        cpu_weight_slice(&first, &count, h->w, i);
        if (count > h->widest) h->widest = count;
    }
    size_t fit = STORE_BYTES / (h->vocab * size);
    h->share = CPU_SHARE;
    while (h->share > fit && h->share > BACKEND_ROWS)
        h->share /= 2;
    size_t block = h->share * threads * (fit >= SHARES * h->share ? SHARES : 1);
    if (block > rows) block = (rows + h->share - 1) / h->share * h->share;
    size_t kept = take(&at, back ? block * h->vocab * size : 0);
    size_t logits = take(&at, threads * h->share * h->widest * sizeof(float));
    size_t power = take(&at, block * h->slices * sizeof *h->slice_power);
    size_t line = take(&at, block * sizeof *h->line);
    char *memory = cpu_scratch(h->c, at);
    if (!memory) return 0;
    if (back) h->kept = memory + kept;
    h->logits = (float *)(void *)(memory + logits);
    h->slice_power = (int32_t *)(void *)(memory + power);
    h->line = (struct line *)(void *)(memory + line);
    return block;
}

void cpu_head_loss(struct backend_context *c, struct mat dhidden, struct mat hidden,
                   const struct backend_weight *w, struct backend_batch *b, size_t first,
                   size_t rows)
{
    double since = cpu_clock();
    struct head h = {.c = c, .w = w, .batch = b, .type = c->precision};
    h.cap = cpu_weight_cap(w);
    size_t block = rows ? head_open(&h, rows, dhidden.data != NULL) : 0;
    for (size_t row = 0; block && row < rows && !err_is(c->first); row += block) {
        h.first = first + row;
        h.rows = rows - row < block ? rows - row : block;
        h.hidden = mat_at(hidden, row, 0);
        h.dhidden = dhidden.data ? mat_at(dhidden, row, 0) : dhidden;
        prepare(&h);
        if (err_is(c->first)) break;
        int failed = 0;
#pragma omp parallel num_threads(c->threads) reduction(| : failed)
        failed |= !run_thread(&h);
        if (failed) cpu_fail(c, err_make(ERR_MACHINE, "oneDNN: a product of the head failed"));
    }
    cpu_count(c, OP_HEAD, since);
}
