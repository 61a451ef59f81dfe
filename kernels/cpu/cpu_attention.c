/* Causal attention over rows of different lengths, with grouped heads and an optional window. The
 * work is divided by (row, key-value head), so gradients of keys and values have one writer and one
 * order of sums. Within it, blocks of 32 queries are processed; the tile kernel computes the scores
 * of a block against all keys that it sees, which are in memory at the same time.
 *
 *   forward    S = Q K^T, P = softmax(scale S), O = P V; lse = log(sum exp) is kept
 *
 * With a cap, scale S is capped in place before both softmax and its gradient, and dS^T gets the
 * factor 1 - (capped / cap)^2.
 *
 *   backward   transposed, one query per column: P^T = exp(scale K Q^T - lse), dP^T = V dO^T,
 *              dS^T = scale P^T (dP^T - rowsum(O dO)); dV += P^T dO,
 *              dK += dS^T Q, dQ^T = K^T dS^T */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_tile.h"
#include "kernels/cpu/cpu_vector.h"

#include <math.h>

enum { QUERIES = TILE_WIDTH };

struct job { /* one key-value head of one row */
    const struct attention_tensors *t, *grad;
    const struct attention_shape *s;
    enum dtype type;
    size_t first, tokens, depth;      /* depth: tokens rounded up to 32 */
    size_t kv, hd, hd_depth, hd_wide; /* head_dim rounded up to 16, and to whole panels */
    float scale;
    char *keys, *values;    /* forward: panels of K^T by blocks of keys, and of V by columns;
                               backward: K^T (hd, depth) as a left operand in keys */
    float *score, *dscore;  /* forward (QUERIES, depth); backward (depth, QUERIES) both */
    char *weight, *dweight; /* P and dS: the same shapes in the type of the kernel */
    char *left, *panel;     /* copies of left operands, and backward's panels */
    float *dk, *dv;         /* (depth, hd_wide) */
};

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* Places the memory of the job at `memory`, or only counts its size if memory is NULL. */
static size_t job_place(struct job *j, char *memory)
{
    size_t size = tile_size(j->type), at = 0, d = j->depth;
    bool back = j->grad != NULL;
    struct {
        void *to;
        size_t bytes;
    } part[] = {{&j->keys, d * (back ? j->hd : j->hd_depth) * size},
                {&j->values, back ? 0 : d * j->hd_wide * size},
                {&j->score, d * QUERIES * 4},
                {&j->dscore, back ? d * QUERIES * 4 : 0},
                {&j->weight, d * QUERIES * size},
                {&j->dweight, back ? d * QUERIES * size : 0},
                {&j->left, d * j->hd_depth * size * (back ? 2 : 1)},
                {&j->panel, back ? (2 * j->hd_depth + 2 * j->hd_wide + d) * QUERIES * size : 0},
                {&j->dk, back ? d * j->hd_wide * 4 : 0},
                {&j->dv, back ? d * j->hd_wide * 4 : 0}};
    for (size_t i = 0; i < sizeof part / sizeof part[0]; i++) {
        void *place = memory ? memory + at : NULL;
        memcpy(part[i].to, &place, sizeof place);
        at += round_up(part[i].bytes, 64) + 64;
    }
    return at;
}

static struct mat head_of(struct mat m, const struct job *j, size_t head)
{
    return mat_at(m, j->first, head * j->hd);
}

/* The first key in the window of query i. */
static size_t window_start(const struct job *j, size_t i)
{
    return j->s->window && i + 1 > j->s->window ? i + 1 - j->s->window : 0;
}

/* Turns one row of scores into exponentials and returns their sum; values outside of from .. to - 1
 * become 0. begin .. end - 1 is this range extended to whole vectors. */
CPU_CLONES static float softmax_row(struct mat weight, float *score, size_t from, size_t to,
                                    size_t begin, size_t end, float scale, float *lse)
{
    float top[CPU_LANES], lane[CPU_LANES] = {0}, max = -INFINITY;
    for (size_t i = begin; i < from; i++)
        score[i] = -INFINITY;
    for (size_t i = to; i < end; i++)
        score[i] = -INFINITY;
    for (int k = 0; k < CPU_LANES; k++)
        top[k] = -INFINITY;
    for (size_t i = begin; i < end; i += CPU_LANES)
        for (int k = 0; k < CPU_LANES; k++)
            top[k] = score[i + k] > top[k] ? score[i + k] : top[k];
    for (int k = 0; k < CPU_LANES; k++)
        max = top[k] > max ? top[k] : max;
    max *= scale;
    for (size_t i = begin; i < end; i += CPU_LANES)
        for (int k = 0; k < CPU_LANES; k++) {
            float e = formula_exp(score[i + k] * scale - max);
            score[i + k] = e;
            lane[k] += e;
        }
    cpu_row_done(weight, 0, begin, score + begin, end - begin);
    float sum = cpu_lanes_sum(lane);
    *lse = max + logf(sum);
    return sum;
}

static void store_scaled(struct mat out, size_t row, const float *x, size_t n, float factor)
{
    float buffer[TILE_WIDTH];
    float *to = cpu_row_out(buffer, out, row, 0);
    for (size_t i = 0; i < n; i++)
        to[i] = x[i] * factor;
    cpu_row_done(out, row, 0, to, n);
}

/* O of one block of queries from its probabilities over keys [begin, end). */
static void forward_values(const struct job *j, struct mat out, size_t rows, const float *sum,
                           size_t begin, size_t end)
{
    size_t size = tile_size(j->type);
    float tile[QUERIES * TILE_WIDTH];
    struct tile_left left = {j->weight + begin * size, j->depth};
    struct tile_shape shape = {.type = j->type, .rows = rows, .depth = end - begin};
    shape.ldc = TILE_WIDTH;
    const char *panel = j->values;
    for (size_t col = 0; col < j->hd; col += TILE_WIDTH) {
        size_t n = j->hd - col < TILE_WIDTH ? j->hd - col : TILE_WIDTH;
        shape.width = tile_width(n);
        tile_run(tile, left, panel + begin * shape.width * size, &shape);
        panel += j->depth * shape.width * size;
        for (size_t i = 0; i < rows; i++)
            store_scaled(mat_at(out, 0, col), i, tile + i * TILE_WIDTH, n, 1.0f / sum[i]);
    }
}

static void forward_block(const struct job *j, size_t head, size_t q0)
{
    size_t rows = j->tokens - q0 < QUERIES ? j->tokens - q0 : QUERIES, size = tile_size(j->type);
    size_t begin = window_start(j, q0) / 32 * 32, end = round_up(q0 + rows, 32);
    float sum[QUERIES];
    struct mat q = mat_at(head_of(j->t->q, j, head), q0, 0);
    struct tile_left left = tile_rows(j->left, j->type, q, false, rows, j->hd);
    struct tile_shape shape = {.type = j->type, .rows = rows, .width = TILE_WIDTH};
    shape.depth = j->hd_depth;
    shape.ldc = j->depth;
    for (size_t k = begin; k < end; k += TILE_WIDTH)
        tile_run(j->score + k, left, j->keys + k * j->hd_depth * size, &shape);
    for (size_t i = 0; i < rows; i++) {
        struct mat weight = {j->weight, j->type, j->depth};
        float *lse = j->t->lse + (j->first + q0 + i) * j->s->heads + head;
        float *score = j->score + i * j->depth;
        if (j->s->cap > 0.0f) cpu_cap(score + begin, end - begin, j->scale, j->s->cap);
        sum[i] = softmax_row(mat_at(weight, i, 0), score, window_start(j, q0 + i), q0 + i + 1,
                             begin, end, j->s->cap > 0.0f ? 1.0f : j->scale, lse);
    }
    forward_values(j, mat_at(head_of(j->t->out, j, head), q0, 0), rows, sum, begin, end);
}

static void forward_job(struct job *j)
{
    size_t size = tile_size(j->type), group = j->s->heads / j->s->kv_heads;
    struct mat k = head_of(j->t->k, j, j->kv), v = head_of(j->t->v, j, j->kv);
    if (j->type == DTYPE_F32) j->weight = (char *)j->score; /* probabilities overwrite scores */
    for (size_t i = 0; i < j->depth; i += TILE_WIDTH) {
        size_t n = i >= j->tokens ? 0 : j->tokens - i < TILE_WIDTH ? j->tokens - i : TILE_WIDTH;
        tile_panel_wide(j->keys + i * j->hd_depth * size, j->type, mat_at(k, i, 0), true, j->hd, n);
    }
    char *panel = j->values;
    for (size_t col = 0; col < j->hd; col += TILE_WIDTH) {
        size_t n = j->hd - col < TILE_WIDTH ? j->hd - col : TILE_WIDTH;
        size_t width = tile_width(n), have = tile_depth(j->tokens);
        tile_panel(panel, j->type, mat_at(v, 0, col), false, j->tokens, n);
        memset(panel + have * width * size, 0, (j->depth - have) * width * size);
        panel += j->depth * width * size;
    }
    for (size_t h = j->kv * group; h < (j->kv + 1) * group; h++)
        for (size_t q0 = 0; q0 < j->tokens; q0 += QUERIES)
            forward_block(j, h, q0);
}

struct column { /* values per query of a block, one query per lane, for the transposed scores */
    float lse[QUERIES], mean[QUERIES];
    int32_t first[QUERIES], last[QUERIES]; /* keys seen */
};

/* Turns scores and their gradients, of one key against the queries of a block, into P and dS. With
 * a cap the scores are capped already. */
CPU_CLONES static void backward_rows(struct mat weight, struct mat dweight, const float *score,
                                     const float *dscore, size_t begin, size_t rows,
                                     const struct job *j, const struct column *c)
{
    float cap = j->s->cap, scale = cap > 0.0f ? 1.0f : j->scale;
    for (size_t r = 0; r < rows; r++) {
        float p[QUERIES], ds[QUERIES];
        const float *s = score + r * QUERIES, *d = dscore + r * QUERIES;
        int32_t key = (int32_t)(begin + r);
        for (int i = 0; i < QUERIES; i++) {
            float e = formula_exp(s[i] * scale - c->lse[i]);
            p[i] = key >= c->first[i] && key <= c->last[i] ? e : 0.0f;
            ds[i] = p[i] * (d[i] - c->mean[i]) * j->scale;
        }
        for (int i = 0; i < QUERIES && cap > 0.0f; i++)
            ds[i] *= 1.0f - s[i] / cap * (s[i] / cap);
        float *to = cpu_row_out(p, weight, r, 0);
        if (to != p) memcpy(to, p, sizeof p);
        cpu_row_done(weight, r, 0, p, QUERIES);
        to = cpu_row_out(ds, dweight, r, 0);
        if (to != ds) memcpy(to, ds, sizeof ds);
        cpu_row_done(dweight, r, 0, ds, QUERIES);
    }
}

/* out[i] = x_i . y_i */
CPU_CLONES static void dots(float *out, struct mat x, struct mat y, size_t rows, size_t n)
{
    float a[CPU_CHUNK], b[CPU_CHUNK];
    for (size_t i = 0; i < rows; i++) {
        float lane[CPU_LANES] = {0};
        cpu_lanes_dot(lane, cpu_row(a, x, i, 0, n), cpu_row(b, y, i, 0, n), n);
        out[i] = cpu_lanes_sum(lane);
    }
}

static void fill_columns(struct column *c, const struct job *j, size_t head, size_t q0, size_t rows)
{
    dots(c->mean, mat_at(head_of(j->t->out, j, head), q0, 0),
         mat_at(head_of(j->grad->out, j, head), q0, 0), rows, j->hd);
    for (size_t i = 0; i < QUERIES; i++) {
        size_t query = q0 + i;
        bool there = i < rows;
        if (!there) c->mean[i] = 0.0f;
        c->lse[i] = there ? j->t->lse[(j->first + query) * j->s->heads + head] : 0.0f;
        c->first[i] = there ? (int32_t)window_start(j, query) : 1;
        c->last[i] = there ? (int32_t)query : 0;
    }
}

/* to (keys, hd) += weight^T-rows (keys, QUERIES) x (QUERIES, hd) */
static void accumulate(const struct job *j, float *to, const char *weight, const char *panel,
                       size_t begin, size_t keys)
{
    struct tile_left left = {weight, QUERIES};
    struct tile_shape s = {.type = j->type, .rows = keys, .depth = QUERIES, .add = true};
    s.ldc = j->hd_wide;
    for (size_t col = 0; col < j->hd; col += TILE_WIDTH) {
        s.width = tile_width(j->hd - col);
        tile_run(to + begin * j->hd_wide + col, left, panel, &s);
        panel += QUERIES * s.width * tile_size(j->type);
    }
}

/* Rows of `out` from the columns of a tile. The tile is transposed in registers first, because
 * values that were just stored one by one cannot be loaded as a vector without waiting. */
CPU_CLONES static void store_columns(struct mat out, const float *tile, size_t rows, size_t n)
{
    float turned[QUERIES * TILE_ROWS];
    for (size_t k = 0; k < n; k++)
        for (size_t i = 0; i < QUERIES; i++)
            turned[i * TILE_ROWS + k] = tile[k * TILE_WIDTH + i];
    for (size_t i = 0; i < rows; i++) {
        if (out.type == DTYPE_F32)
            memcpy(mat_at(out, i, 0).data, turned + i * TILE_ROWS, n * sizeof(float));
        cpu_row_done(out, i, 0, turned + i * TILE_ROWS, n);
    }
}

/* dQ of the block = (K^T dS^T)^T. */
static void query_gradient(const struct job *j, size_t head, size_t q0, size_t rows, size_t begin,
                           size_t keys)
{
    size_t size = tile_size(j->type), depth = round_up(keys, 32);
    char *panel = j->panel + (2 * j->hd_depth + 2 * j->hd_wide) * QUERIES * size;
    struct mat ds = {j->dweight, j->type, QUERIES};
    float tile[TILE_ROWS * TILE_WIDTH];
    tile_panel(panel, j->type, ds, false, keys, QUERIES);
    memset(panel + tile_depth(keys) * QUERIES * size, 0,
           (depth - tile_depth(keys)) * QUERIES * size);
    struct tile_shape s = {.type = j->type, .width = TILE_WIDTH, .depth = depth};
    s.ldc = TILE_WIDTH;
    for (size_t col = 0; col < j->hd; col += TILE_ROWS) {
        s.rows = j->hd - col < TILE_ROWS ? j->hd - col : TILE_ROWS;
        struct tile_left left = {j->keys + (col * j->depth + begin) * size, j->depth};
        tile_run(tile, left, panel, &s);
        store_columns(mat_at(head_of(j->grad->q, j, head), q0, col), tile, rows, s.rows);
    }
}

static void backward_block(const struct job *j, size_t head, size_t q0, struct tile_left k,
                           struct tile_left v)
{
    size_t rows = j->tokens - q0 < QUERIES ? j->tokens - q0 : QUERIES, size = tile_size(j->type);
    size_t begin = window_start(j, q0) / 32 * 32, keys = q0 + rows - begin;
    struct mat q = mat_at(head_of(j->t->q, j, head), q0, 0);
    struct mat g = mat_at(head_of(j->grad->out, j, head), q0, 0);
    char *qt = j->panel, *gt = qt + j->hd_depth * QUERIES * size;
    char *qn = gt + j->hd_depth * QUERIES * size, *gn = qn + j->hd_wide * QUERIES * size;
    tile_panel_wide(qt, j->type, q, true, j->hd, rows);
    tile_panel_wide(gt, j->type, g, true, j->hd, rows);
    for (size_t col = 0, at = 0; col < j->hd; col += TILE_WIDTH) {
        size_t n = j->hd - col < TILE_WIDTH ? j->hd - col : TILE_WIDTH;
        size_t bytes = QUERIES * tile_width(n) * size,
               have = tile_depth(rows) * tile_width(n) * size;
        tile_panel(qn + at, j->type, mat_at(q, 0, col), false, rows, n);
        tile_panel(gn + at, j->type, mat_at(g, 0, col), false, rows, n);
        memset(qn + at + have, 0, bytes - have);
        memset(gn + at + have, 0, bytes - have);
        at += bytes;
    }
    struct tile_shape s = {.type = j->type, .rows = keys, .width = TILE_WIDTH, .ldc = QUERIES};
    s.depth = j->hd_depth;
    k.data = (const char *)k.data + begin * k.ld * size;
    v.data = (const char *)v.data + begin * v.ld * size;
    tile_run(j->score, k, qt, &s);
    tile_run(j->dscore, v, gt, &s);
    struct column column;
    fill_columns(&column, j, head, q0, rows);
    struct mat weight = {j->weight, j->type, QUERIES}, dweight = {j->dweight, j->type, QUERIES};
    if (j->s->cap > 0.0f) cpu_cap(j->score, keys * QUERIES, j->scale, j->s->cap);
    backward_rows(weight, dweight, j->score, j->dscore, begin, keys, j, &column);
    accumulate(j, j->dv, j->weight, gn, begin, keys);
    accumulate(j, j->dk, j->dweight, qn, begin, keys);
    query_gradient(j, head, q0, rows, begin, keys);
}

static void backward_job(struct job *j)
{
    size_t size = tile_size(j->type), group = j->s->heads / j->s->kv_heads, half;
    struct mat k = head_of(j->t->k, j, j->kv), v = head_of(j->t->v, j, j->kv);
    half = j->depth * j->hd_depth * size;
    struct tile_left keys = tile_rows(j->left, j->type, k, false, j->tokens, j->hd);
    struct tile_left values = tile_rows(j->left + half, j->type, v, false, j->tokens, j->hd);
    memset(j->keys, 0, j->hd * j->depth * size);
    tile_turn(j->keys, j->depth, j->type, k, j->hd, j->tokens);
    memset(j->dk, 0, j->depth * j->hd_wide * 4);
    memset(j->dv, 0, j->depth * j->hd_wide * 4);
    for (size_t h = j->kv * group; h < (j->kv + 1) * group; h++)
        for (size_t q0 = 0; q0 < j->tokens; q0 += QUERIES)
            backward_block(j, h, q0, keys, values);
    struct mat dk = head_of(j->grad->k, j, j->kv), dv = head_of(j->grad->v, j, j->kv);
    for (size_t i = 0; i < j->tokens; i++)
        for (size_t col = 0; col < j->hd; col += TILE_WIDTH) {
            size_t n = j->hd - col < TILE_WIDTH ? j->hd - col : TILE_WIDTH;
            store_scaled(mat_at(dk, 0, col), i, j->dk + i * j->hd_wide + col, n, 1.0f);
            store_scaled(mat_at(dv, 0, col), i, j->dv + i * j->hd_wide + col, n, 1.0f);
        }
}

static void job_shape(struct job *j, const struct backend_context *c, size_t tokens)
{
    j->type = tile_type(c->precision);
    j->tokens = tokens;
    j->depth = round_up(tokens, 32);
    j->hd = j->s->head_dim;
    j->hd_depth = tile_depth(j->hd);
    j->hd_wide = round_up(j->hd, TILE_WIDTH);
    j->scale = attention_scale(j->s);
}

static void run_jobs(struct backend_context *c, const struct attention_tensors *grad,
                     const struct attention_tensors *t, const struct attention_shape *s,
                     const struct batch_rows *b)
{
    REQUIRE(s->head_dim <= CPU_CHUNK && s->heads % s->kv_heads == 0);
    size_t longest = 0, jobs = b->rows * s->kv_heads;
    for (size_t i = 0; i < b->rows; i++)
        if (b->start[i + 1] - b->start[i] > longest) longest = b->start[i + 1] - b->start[i];
    struct job size = {.t = t, .grad = grad, .s = s};
    job_shape(&size, c, longest);
    size_t own = round_up(job_place(&size, NULL), 64);
    char *scratch = cpu_scratch(c, (size_t)c->threads * own);
    if (!scratch) return;
#pragma omp parallel num_threads(c->threads)
    {
        tile_begin(size.type, size.hd_depth);
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < jobs; i++) {
            size_t row = i / s->kv_heads;
            struct job j = {.t = t, .grad = grad, .s = s, .first = b->start[row]};
            j.kv = i % s->kv_heads;
            job_shape(&j, c, b->start[row + 1] - b->start[row]);
            job_place(&j, scratch + (size_t)cpu_thread() * own);
            if (grad)
                backward_job(&j);
            else
                forward_job(&j);
        }
        tile_end(size.type);
    }
}

void cpu_attention(struct backend_context *c, const struct attention_tensors *t,
                   const struct attention_shape *s, const struct backend_batch *b)
{
    double since = cpu_clock();
    run_jobs(c, NULL, t, s, &b->rows);
    cpu_count(c, OP_ATTENTION, since);
}

void cpu_attention_back(struct backend_context *c, const struct attention_tensors *grad,
                        const struct attention_tensors *t, const struct attention_shape *s,
                        const struct backend_batch *b)
{
    double since = cpu_clock();
    run_jobs(c, grad, t, s, &b->rows);
    cpu_count(c, OP_ATTENTION_BACK, since);
}
