/* Attention, its gradient and the attention of one new token over a cache, of one backend, against
 * the definitions in float64 (see operations.c). */
#include "tests/support/operations.h"
#ifdef OPERATIONS_CUDA
#include "tests/cuda_on_cpu/shim.h"
#endif

/* Device tensors of one call. q, k and v are columns of one tensor, as in the engine. */
struct call {
    struct attention_shape s;
    size_t wide, narrow; /* columns of q, and of k and v */
    struct tensor qkv, out, lse, dout, dqkv;
    struct rows_of_batch r;
};

static struct attention_tensors views(const struct call *a, const struct tensor *qkv,
                                      const struct tensor *out)
{
    return (struct attention_tensors){.q = qkv->m,
                                      .k = mat_at(qkv->m, 0, a->wide),
                                      .v = mat_at(qkv->m, 0, a->wide + a->narrow),
                                      .out = out->m,
                                      .lse = a->lse.m.data};
}

/* Distances between rows that are multiples of 16 bytes, as a backend may need for its fastest
 * kernels, or others. */
static bool aligned;
static size_t pad(size_t odd)
{
    return aligned ? 8 : odd;
}

/* `from` NULL: random inputs; else those of rows first .. first + rows - 1 of that call. */
static struct call call_new(const struct attention_shape *s, const uint32_t *length, size_t rows,
                            const struct call *from, size_t first)
{
    struct call a = {.s = *s, .r = batch_of(length, rows, 1)};
    size_t tokens = a.r.now.tokens;
    a.wide = (size_t)s->heads * s->head_dim;
    a.narrow = (size_t)s->kv_heads * s->head_dim;
    size_t all = a.wide + 2 * a.narrow;
    a.qkv = tensor_normal(precision, tokens, all, pad(4), 1.0);
    a.dout = tensor_normal(precision, tokens, a.wide, pad(2), 1.0);
    a.out = tensor_new(precision, tokens, a.wide, pad(3));
    a.lse = tensor_new(DTYPE_F32, tokens, s->heads, 0);
    a.dqkv = tensor_new(precision, tokens, all, pad(1));
    if (!from) return a;
    memcpy(a.qkv.x, from->qkv.x + from->r.start[first] * all, tokens * all * sizeof(double));
    memcpy(a.dout.x, from->dout.x + from->r.start[first] * a.wide,
           tokens * a.wide * sizeof(double));
    tensor_put(&a.qkv);
    tensor_put(&a.dout);
    return a;
}

static void call_run(const struct call *a)
{
    struct attention_tensors t = views(a, &a->qkv, &a->out), g = views(a, &a->dqkv, &a->dout);
    g.lse = NULL;
    be->attention(c, &t, &a->s, a->r.b);
    be->attention_back(c, &g, &t, &a->s, a->r.b);
    ok(be->check(c));
}

static double dot(const double *x, const double *y, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}
static void add_scaled(double *to, const double *x, double scale, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] += scale * x[i];
}

/* The score of a product q k^T, and its derivative. */
static double score_of(const struct attention_shape *s, double product, double *slope)
{
    double scale = s->scale != 0.0f ? (double)s->scale : 1.0 / sqrt((double)s->head_dim);
    double cap = (double)s->cap, t = cap != 0.0 ? tanh(product * scale / cap) : 0.0;
    *slope = scale * (1.0 - t * t);
    return cap != 0.0 ? cap * t : product * scale;
}

/* The query at token t of the row that starts at `start`, for one head. */
static void plain_query(const struct call *a, size_t start, size_t t, size_t head)
{
    size_t hd = a->s.head_dim, all = a->wide + 2 * a->narrow;
    size_t kv = head / (a->s.heads / a->s.kv_heads), at_k = a->wide + kv * hd;
    size_t at_v = at_k + a->narrow, window = a->s.window;
    size_t from = window && t - start + 1 > window ? t + 1 - window : start;
    const double *x = a->qkv.x, *q = x + t * all + head * hd,
                 *g = a->dout.x + t * a->wide + head * hd;
    double *dx = a->dqkv.x, *out = a->out.x + t * a->wide + head * hd;
    double p[256], slope[256], most = -INFINITY, sum = 0.0, mean = 0.0;
    for (size_t j = from; j <= t; j++) {
        p[j - from] = score_of(&a->s, dot(q, x + j * all + at_k, hd), &slope[j - from]);
        most = fmax(most, p[j - from]);
    }
    for (size_t j = from; j <= t; j++)
        sum += p[j - from] = exp(p[j - from] - most);
    a->lse.x[t * a->s.heads + head] = most + log(sum);
    for (size_t j = from; j <= t; j++) {
        p[j - from] /= sum;
        add_scaled(out, x + j * all + at_v, p[j - from], hd);
        add_scaled(dx + j * all + at_v, g, p[j - from], hd);
        mean += p[j - from] * dot(g, x + j * all + at_v, hd);
    }
    for (size_t j = from; j <= t; j++) {
        double ds = p[j - from] * (dot(g, x + j * all + at_v, hd) - mean);
        ds *= slope[j - from];
        add_scaled(dx + t * all + head * hd, x + j * all + at_k, ds, hd);
        add_scaled(dx + j * all + at_k, q, ds, hd);
    }
}

/* The columns [col, col + cols) of two tensors of the same shape. */
static void columns_near(const struct tensor *t, const double *got, size_t col, size_t cols,
                         const char *name)
{
    double *x = host_take(t->rows * cols, sizeof *x), *y = host_take(t->rows * cols, sizeof *y);
    for (size_t i = 0; i < t->rows; i++) {
        memcpy(x + i * cols, got + i * t->cols + col, cols * sizeof *x);
        memcpy(y + i * cols, t->x + i * t->cols + col, cols * sizeof *y);
    }
    values_sums(x, y, t->rows, cols, precision, name);
}

static void check_attention(const struct attention_shape *s, const uint32_t *length, size_t rows)
{
    struct call a = call_new(s, length, rows, NULL, 0);
    for (size_t i = 0; i < rows; i++)
        for (size_t t = a.r.start[i]; t < a.r.start[i + 1]; t++)
            for (size_t head = 0; head < s->heads; head++)
                plain_query(&a, a.r.start[i], t, head);
    call_run(&a);
    tensor_sums(&a.out, precision, "attention: out");
    tensor_near(&a.lse, 1e-5, "attention: lse");
    const double *got = tensor_get(&a.dqkv, "attention_back");
    values_sums(got, a.dqkv.x, a.dqkv.rows, a.dqkv.cols, precision, "attention_back");
    if (s->window != 1) { /* else dq and dk are 0 */
        columns_near(&a.dqkv, got, 0, a.wide, "attention_back: dq");
        columns_near(&a.dqkv, got, a.wide, a.narrow, "attention_back: dk");
    }
    columns_near(&a.dqkv, got, a.wide + a.narrow, a.narrow, "attention_back: dv");
    tensor_near(&a.qkv, 0.0, "attention_back: qkv");
}

static void run_attention(void)
{
    static const uint32_t length[] = {1, 65, 0, 2, 130}, short_rows[] = {7, 33};
    static const struct attention_shape shape[] = {
        {2, 2, 8, 0, 0, 0},
        {3, 1, 20, 0, 0, 0},
        {4, 2, 64, 0, 0, 0},
        {2, 1, 128, 0, 0, 0},
        {2, 1, 20, 1, 0, 0},
        {2, 1, 96, 0, 0, 0},
        {2, 1, 96, 1, 0, 0},
        /* Scores of normal q and k are near scale sqrt(head_dim), so that the caps matter. */
        {4, 4, 8, 3, 0.2f, 0},
        {1, 1, 6, 0, 0, 1.5f},
        {3, 3, 64, 40, 0, 1.5f},
        {2, 1, 96, 0, 0.2f, 3.0f},
        {2, 1, 128, 64, 0.15f, 2.0f},
        {1, 1, 136, 40, 0.2f, 2.0f},
    };
    for (size_t i = 0; i < sizeof shape / sizeof shape[0]; i++) {
        aligned = shape[i].head_dim % 32 == 0;
        check_attention(&shape[i], length, 5);
        aligned = false;
        check_attention(&shape[i], short_rows, 2);
    }
}
Test(operations_attention, attention_and_its_gradient_follow_the_definition)
{
    both(run_attention);
}

/* A row alone in a batch, and beside others, in float32 and in bfloat16. */
static void run_alone(void)
{
    static const uint32_t length[] = {9, 65, 1, 130, 40};
    static const struct attention_shape shape[] = {{4, 2, 64, 0, 0, 0},
                                                   {2, 1, 20, 33, 0, 0},
                                                   {2, 1, 96, 0, 0.2f, 2.0f},
                                                   {2, 1, 128, 70, 0, 0}};
    for (size_t i = 0; i < sizeof shape / sizeof shape[0]; i++) {
        aligned = shape[i].head_dim % 32 == 0;
        struct call all = call_new(&shape[i], length, 5, NULL, 0);
        call_run(&all);
        const double *out = tensor_get(&all.out, "out"), *dqkv = tensor_get(&all.dqkv, "dqkv");
        for (size_t first = 0; first < 5; first += 2) {
            size_t rows = first == 2 ? 2 : 1, at = all.r.start[first];
            struct call some = call_new(&shape[i], length + first, rows, &all, first);
            call_run(&some);
            rows_same(out, at, tensor_get(&some.out, "out"), 0, some.r.now.tokens, all.wide,
                      "attention, row alone");
            rows_same(dqkv, at, tensor_get(&some.dqkv, "dqkv"), 0, some.r.now.tokens,
                      all.wide + 2 * all.narrow, "attention_back, row alone");
        }
        struct call again = call_new(&shape[i], length, 5, &all, 0);
        call_run(&again);
        rows_same(dqkv, 0, tensor_get(&again.dqkv, "dqkv"), 0, all.r.now.tokens,
                  all.wide + 2 * all.narrow, "attention_back twice");
    }
}
Test(operations_attention, a_row_does_not_depend_on_other_rows)
{
    both(run_alone);
}

/* ---- one new token per sequence ---- */
enum { SEQUENCES = 5, POSITIONS_MOST = 1200 };

struct
    cache { /* (capacity, kv_heads head_dim) twice; tensors have canaries behind the filled part */
    struct tensor keys, values;
};

static void plain_decode(double *out, const struct cache *cache, const double *q, size_t positions,
                         const struct attention_shape *s)
{
    size_t hd = s->head_dim, from = s->window && positions > s->window ? positions - s->window : 0;
    for (size_t head = 0; head < s->heads; head++) {
        size_t at = head / (s->heads / s->kv_heads) * hd, cols = cache->keys.cols;
        double p[POSITIONS_MOST], most = -INFINITY, sum = 0.0;
        for (size_t j = from; j < positions; j++) {
            double slope, product = dot(q + head * hd, cache->keys.x + j * cols + at, hd);
            p[j] = score_of(s, product, &slope);
            most = fmax(most, p[j]);
        }
        for (size_t j = from; j < positions; j++)
            sum += p[j] = exp(p[j] - most);
        for (size_t j = from; j < positions; j++)
            add_scaled(out + head * hd, cache->values.x + j * cols + at, p[j] / sum, hd);
    }
}

static void check_decode(const struct attention_shape *s, const uint32_t filled[SEQUENCES])
{
    size_t wide = (size_t)s->heads * s->head_dim, narrow = (size_t)s->kv_heads * s->head_dim;
    struct cache cache[SEQUENCES];
    struct decode_row row[SEQUENCES];
    for (size_t i = 0; i < SEQUENCES; i++) {
        cache[i].keys = tensor_normal(precision, filled[i] + 4, narrow, 0, 1.0);
        cache[i].values = tensor_normal(precision, filled[i] + 4, narrow, 0, 1.0);
        row[i] = (struct decode_row){cache[i].keys.m, cache[i].values.m, filled[i]};
    }
    for (size_t step = 0; step < 3; step++) {
        struct tensor qkv = tensor_normal(precision, SEQUENCES, wide + 2 * narrow, 2, 1.0);
        struct tensor out = tensor_new(precision, SEQUENCES, wide, 1);
        struct attention_tensors t = {.q = qkv.m, .k = mat_at(qkv.m, 0, wide), .out = out.m};
        t.v = mat_at(qkv.m, 0, wide + narrow);
        be->attention_decode(c, &t, row, SEQUENCES, s);
        ok(be->check(c));
        for (size_t i = 0; i < SEQUENCES; i++) {
            const double *new = qkv.x + i *qkv.cols;
            size_t at = (size_t)row[i].positions++ * narrow;
            memcpy(cache[i].keys.x + at, new + wide, narrow * sizeof *new);
            memcpy(cache[i].values.x + at, new + wide + narrow, narrow * sizeof *new);
            plain_decode(out.x + i * wide, &cache[i], new, row[i].positions, s);
        }
        tensor_sums(&out, precision, "attention_decode");
    }
    for (size_t i = 0; i < SEQUENCES; i++) {
        tensor_near(&cache[i].keys, 0.0, "attention_decode: keys");
        tensor_near(&cache[i].values, 0.0, "attention_decode: values");
    }
}

static void run_decode(void)
{
    static const struct attention_shape shape[] = {
        {2, 2, 8, 0, 0, 0},  {3, 1, 20, 0, 0, 0},  {4, 2, 64, 0, 0, 0},      {2, 1, 128, 0, 0, 0},
        {2, 1, 20, 1, 0, 0}, {4, 2, 64, 50, 0, 0}, {2, 1, 20, 0, 0.4f, 1.5f}};
    static const uint32_t filled[SEQUENCES] = {0, 1, 63, 64, 130};
    for (size_t i = 0; i < sizeof shape / sizeof shape[0]; i++)
        check_decode(&shape[i], filled);
}
Test(operations_attention, decode_appends_to_the_cache_and_attends_to_it)
{
    both(run_decode);
}

/* CUDA divides contexts of more than 512 positions; with a window of 600, from its first one on. */
static void run_decode_long(void)
{
    static const struct attention_shape shape[] = {{2, 1, 20, 0, 0, 0},
                                                   {1, 1, 136, 600, 0.2f, 2.0f}};
    static const uint32_t filled[SEQUENCES] = {510, 3, 700, 1023, 1};
    for (size_t i = 0; i < sizeof shape / sizeof shape[0]; i++)
        check_decode(&shape[i], filled);
#ifdef OPERATIONS_CUDA
    cr_expect_gt(shim_launches_of("join_kernel"), 0);
#endif
}
Test(operations_attention, decode_attends_to_long_contexts)
{
    both(run_decode_long);
}

/* A sequence gives the same bits alone and beside longer ones. */
static void run_decode_alone(void)
{
    const struct attention_shape s = {2, 1, 20, 0, 0, 0};
    static const uint32_t filled[SEQUENCES] = {1100, 3, 511, 512, 600};
    struct decode_row row[SEQUENCES];
    struct tensor qkv = tensor_normal(precision, SEQUENCES, 80, 0, 1.0);
    struct tensor all = tensor_new(precision, SEQUENCES, 40, 0);
    struct tensor one = tensor_new(precision, 1, 40, 0);
    struct attention_tensors t = {.q = qkv.m, .k = mat_at(qkv.m, 0, 40), .out = all.m};
    t.v = mat_at(qkv.m, 0, 60);
    for (size_t i = 0; i < SEQUENCES; i++) {
        struct tensor keys = tensor_normal(precision, filled[i] + 1, 20, 0, 1.0);
        struct tensor values = tensor_normal(precision, filled[i] + 1, 20, 0, 1.0);
        row[i] = (struct decode_row){keys.m, values.m, filled[i]};
    }
    be->attention_decode(c, &t, row, SEQUENCES, &s);
    const double *want = tensor_get(&all, "decode");
    for (size_t i = 0; i < SEQUENCES; i++) {
        struct attention_tensors alone = {.q = mat_at(qkv.m, i, 0), .k = mat_at(qkv.m, i, 40)};
        alone.v = mat_at(qkv.m, i, 60);
        alone.out = one.m;
        be->attention_decode(c, &alone, &row[i], 1, &s);
        rows_same(want, i, tensor_get(&one, "decode"), 0, 1, 40, "attention_decode, alone");
    }
}
Test(operations_attention, a_decoded_row_does_not_depend_on_other_rows)
{
    both(run_decode_alone);
}
