/* Packed weights, products with them and the loss through the head, of one backend, against plain
 * loops in float64 (see operations.c). */
#include "tests/support/operations.h"
#ifdef OPERATIONS_CUDA
#include "shim.h"
#endif

enum { BOTH = BACKEND_FORWARD | BACKEND_BACKWARD, HEAD = BOTH | BACKEND_HEAD };

struct linear_case {
    size_t rows, n, k;
};

/* y = x W^T + bias and dx = dy W of one weight, with results of type y_type and dx_type. */
static void check_linear(const struct test_weight *w, size_t rows, bool add, enum dtype y_type,
                         enum dtype dx_type, bool back)
{
    size_t n = w->n, k = w->k, margin = rows < 64 ? 3 : 0;
    struct tensor x = tensor_normal(precision, rows, k, margin, 1.0);
    struct tensor y = tensor_normal(y_type, rows, n, margin, 1.0);
    struct tensor dy = tensor_normal(precision, rows, n, margin, 1.0);
    struct tensor dx = tensor_result(dx_type, rows, k, margin);
    struct rows_of_batch r = batch_flat(rows);
    y.free_rows = true;
    if (!add) tensor_clear(&y);
    for (size_t i = 0; w->bias && i < rows * n; i++)
        y.x[i] += (double)w->bias[i % n];
    add_product(y.x, x.x, w->x, rows, n, k);
    be->linear(c, y.m, x.m, w->w, NULL, r.b, rows, add);
    tensor_sums(&y, y_type, add ? "linear, added" : "linear");
    if (!back) return;
    add_product_back(dx.x, dy.x, w->x, rows, n, k);
    be->linear_back(c, dx.m, dy.m, w->w, NULL, r.b, rows);
    tensor_sums(&dx, dx_type, "linear_back");
}

static void run_linear(void)
{
    static const struct linear_case all[] = {{1, 1, 1},     {2, 7, 5},       {7, 33, 17},
                                             {8, 65, 33},   {40, 320, 64},   {65, 96, 80},
                                             {64, 48, 130}, {129, 257, 131}, {300, 1001, 333}};
    for (size_t i = 0; i < sizeof all / sizeof all[0] - INSTRUMENTED; i++) {
        const struct linear_case *s = &all[i];
        struct test_weight w = weight_of(s->n, s->k, i % 2, BOTH);
        check_linear(&w, s->rows, false, precision, precision, true);
        check_linear(&w, s->rows, true, DTYPE_F32, DTYPE_F32, true);
        if (i % 3 == 0) check_linear(&w, s->rows, true, precision, DTYPE_F32, true);
    }
}
Test(operations_linear, linear_multiplies_any_sizes)
{
    both(run_linear);
}

/* ---- file types ---- */
static void run_file_types(void)
{
    enum dtype type[DTYPE_COUNT];
    size_t types = file_types(type);
    for (size_t i = 0; i < types; i += 2) { /* b and d are the types between */
        enum dtype a = type[i], b = type[(i + 3) % types], d = type[(i + 7) % types];
        const struct part_kind one[] = {{a, 40, 0}}, two[] = {{a, 24, 3}, {b, 7, 0}};
        const struct part_kind three[] = {{a, 40, 2}, {b, 20, 1}, {d, 13, 0}};
        unsigned products = BOTH | (i % 4 ? BACKEND_KEEP : 0);
        struct test_weight w = weight_of_parts(one, 1, 256, false, products);
        check_linear(&w, 9, false, precision, precision, true);
        w = weight_of_parts(two, 2, 512, true, BOTH);
        check_linear(&w, 9, false, precision, precision, true);
        w = weight_of_parts(three, 3, 256, i % 4, BOTH | BACKEND_KEEP);
        check_linear(&w, 70, false, precision, precision, true);
        w = weight_of_parts(three, 3, 256, true, BACKEND_FORWARD);
        check_linear(&w, 3, true, DTYPE_F32, DTYPE_F32, false);
    }
}
Test(operations_linear, weights_are_read_in_every_file_type)
{
    both(run_file_types);
}

static void check_embed(const struct test_weight *w, enum dtype type)
{
    static const uint32_t length[] = {1, 0, 30, 6};
    struct rows_of_batch r = batch_of(length, 4, (uint32_t)w->n);
    struct tensor to = tensor_new(type, r.now.tokens, w->k, 3);
    r.id[0] = 0;
    r.id[1] = r.id[2] = (int32_t)w->n - 1;
    rows_set(&r);
    be->embed(c, to.m, w->w, r.b);
    for (size_t i = 0; i < to.rows * to.cols; i++)
        to.x[i] = w->x[(size_t)r.id[i / w->k] * w->k + i % w->k];
    /* The bits of quant_to_f32(); in bfloat16 they may be rounded or not. */
    tensor_near(&to, precision == DTYPE_F32 ? 0.0 : near_of(precision), "embed");
}
static void run_embed(void)
{
    enum dtype type[DTYPE_COUNT];
    size_t types = file_types(type);
    for (size_t i = 0; i < types; i++) {
        struct part_kind part = {type[i], type[i] == DTYPE_Q6_K ? 999 : 50, 0};
        size_t k = type[i] == DTYPE_F32 ? 33 : 512;
        static const unsigned more[] = {0, BACKEND_KEEP};
        for (size_t j = 0; j < 2; j++) {
            struct test_weight w = weight_of_parts(&part, 1, k, false, BACKEND_EMBED | more[j]);
            check_embed(&w, j ? precision : DTYPE_F32);
        }
        struct test_weight w = weight_of_parts(&part, 1, k, false, BACKEND_EMBED | HEAD);
        if (i % 3 == 0) check_embed(&w, precision);
    }
}
Test(operations_linear, embed_takes_the_rows_of_the_ids)
{
    both(run_embed);
}

/* ---- the loss ---- */
struct head_case {
    size_t vocab, width;
    uint32_t tokens;
    double scale; /* of the hidden values */
    unsigned products;
    bool scales; /* each learned token has its own gradient_scale */
    float cap;
};

/* nll and dhidden of one learned token. */
static double plain_loss(double *dhidden, const double *hidden, const struct test_weight *w,
                         size_t target, double scale)
{
    double *z = calloc(w->n, sizeof *z), most = -INFINITY, sum = 0.0, nll;
    add_product(z, hidden, w->x, 1, w->n, w->k);
    for (size_t v = 0; v < w->n && w->cap > 0.0; v++)
        z[v] = w->cap * tanh(z[v] / w->cap);
    for (size_t v = 0; v < w->n; v++)
        most = fmax(most, z[v]);
    for (size_t v = 0; v < w->n; v++)
        sum += exp(z[v] - most);
    nll = log(sum) + most - z[target];
    for (size_t v = 0; v < w->n; v++) {
        double slope = w->cap > 0.0 ? 1.0 - pow(z[v] / w->cap, 2.0) : 1.0;
        z[v] = scale * slope * (exp(z[v] - most) / sum - (v == target));
    }
    add_product_back(dhidden, z, w->x, 1, w->n, w->k);
    free(z);
    return nll;
}

/* The learned tokens go through the head in blocks of BLOCK. */
static void check_head(const struct head_case *h)
{
    enum { BLOCK = 29 };
    weight_cap = h->cap;
    struct test_weight w = weight_of(h->vocab, h->width, false, h->products);
    weight_cap = 0.0f;
    struct rows_of_batch r = batch_of(&h->tokens, 1, (uint32_t)h->vocab);
    size_t learned = r.now.learned, d = h->width;
    double *nll = host_take(learned, sizeof *nll), *want = host_take(learned, sizeof *want);
    float *scales = host_take(learned, sizeof *scales);
    for (size_t i = 0; i < learned; i++)
        scales[i] = h->scales ? 0.25f * (float)(i % 7) : 0.5f;
    if (h->scales) r.now.gradient_scales = scales;
    rows_set(&r);
    for (size_t first = 0; first < learned; first += BLOCK) {
        size_t rows = learned - first < BLOCK ? learned - first : BLOCK;
        size_t margin = first && h->vocab < 5000 ? 3 : 0;
        struct tensor hidden = tensor_normal(precision, rows, d, margin, h->scale);
        struct tensor dhidden = tensor_result(DTYPE_F32, rows, d, margin);
        for (size_t i = 0; i < rows; i++)
            want[first + i] = plain_loss(dhidden.x + i * d, hidden.x + i * d, &w,
                                         (size_t)r.target[first + i], (double)scales[first + i]);
        be->head_loss(c, dhidden.m, hidden.m, w.w, r.b, first, rows);
        tensor_sums(&dhidden, precision, "head_loss: dhidden");
    }
    be->batch_nll(c, nll, r.b);
    ok(be->check(c));
    double tolerance = precision == DTYPE_F32 ? 1e-5 : 1e-3;
    values_near(nll, want, 1, learned, tolerance, "head_loss: nll");
}

static void run_heads(void)
{
    static const struct head_case all[] = {
        {5, 7, 1, 1.0, HEAD, false, 0},
        {5, 24, 100, 1.0, HEAD, false, 0},
        {5, 24, 100, 1.0, HEAD, true, 0},
        {1000, 33, SMALL ? 20 : 200, 1.0, HEAD | BACKEND_EMBED, false, 0},
        {1000, 24, SMALL ? 20 : 60, 1e4, HEAD, false, 0},
        {1000, 64, SMALL ? 20 : 120, 1.0, HEAD, true, 0},
        {1537, 64, SMALL ? 12 : 60, 1e-3, HEAD | BACKEND_KEEP, false, 0},
        {50000, 24, SMALL ? 9 : 50, 3.0, HEAD, false, 0},
        {50000, 8, SMALL ? 3 : 9, 1e3, HEAD, false, 0},
        {5, 24, 100, 1.0, HEAD, true, 3.0f},
        {1000, 33, SMALL ? 20 : 60, 2.0, HEAD, false, 5.0f},
        {50000, 24, SMALL ? 9 : 40, 3.0, HEAD, false, 8.0f},
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        check_head(&all[i]);
}
Test(operations_linear, head_loss_gives_the_likelihood_and_its_gradient)
{
    both(run_heads);
}

/* Entries with the target -1, even of hidden values that are not numbers, get zeros and leave the
 * bits of the others. */
static void run_head_filled(void)
{
    enum { WIDTH = 24, VOCAB_FILLED = 600 };
    uint32_t tokens = 60;
    struct test_weight w = weight_of(VOCAB_FILLED, WIDTH, false, HEAD);
    struct rows_of_batch r = batch_of(&tokens, 1, VOCAB_FILLED);
    size_t n = r.now.learned;
    struct tensor hidden = tensor_normal(precision, n, WIDTH, 0, 1.0);
    struct tensor dhidden = tensor_result(DTYPE_F32, n, WIDTH, 0);
    double *nll = host_take(n, sizeof *nll), *want_nll = host_take(n, sizeof *nll), *want = NULL;
    for (int filled = 0; filled < 2; filled++) {
        for (size_t i = 0; i < n && filled; i++) {
            if (i % 3) continue;
            r.target[i] = -1;
            want_nll[i] = 0.0;
            for (size_t k = 0; k < WIDTH; k++) {
                hidden.x[i * WIDTH + k] = NAN;
                want[i * WIDTH + k] = 0.0;
            }
        }
        tensor_put(&hidden);
        rows_set(&r);
        be->head_loss(c, dhidden.m, hidden.m, w.w, r.b, 0, n);
        be->batch_nll(c, filled ? nll : want_nll, r.b);
        ok(be->check(c));
        double *got = tensor_get(&dhidden, "dhidden");
        if (!filled) want = got;
        if (filled) rows_same(want, 0, got, 0, n, WIDTH, "filled: dhidden");
    }
    rows_same(want_nll, 0, nll, 0, n, 1, "filled: nll");
}
Test(operations_linear, head_loss_gives_zeros_where_there_is_no_target)
{
    both(run_head_filled);
}

/* Without gradient, and with the logits themselves by linear(). */
static void check_head_alone(size_t vocab, float cap)
{
    static const uint32_t length[] = {5, 12};
    size_t d = 20;
    struct part_kind part = {DTYPE_BF16, (uint32_t)vocab, 0};
    weight_cap = cap;
    struct test_weight w = weight_of_parts(&part, 1, d, false, HEAD);
    weight_cap = 0.0f;
    struct rows_of_batch r = batch_of(length, 2, (uint32_t)vocab);
    size_t learned = r.now.learned;
    struct tensor hidden = tensor_normal(precision, learned, d, 0, 1.0);
    double *nll = host_take(learned, sizeof *nll), *want = host_take(learned, sizeof *want);
    double *unused = host_take(d, sizeof *unused);
    for (size_t i = 0; i < learned; i++)
        want[i] = plain_loss(unused, hidden.x + i * d, &w, (size_t)r.target[i], 0.0);
    for (int again = 0; again < 2; again++) { /* a batch can be set and evaluated again */
        rows_set(&r);
        be->head_loss(c, (struct mat){0}, hidden.m, w.w, r.b, 0, learned);
        be->batch_nll(c, nll, r.b);
        ok(be->check(c));
        values_near(nll, want, 1, learned, precision == DTYPE_F32 ? 1e-5 : 1e-3, "nll alone");
    }
    struct tensor y = tensor_result(DTYPE_F32, learned, vocab, 16);
    y.free_cols = true;
    be->linear(c, y.m, hidden.m, w.w, NULL, r.b, learned, false);
    add_product(y.x, hidden.x, w.x, learned, vocab, d);
    for (size_t i = 0; cap > 0.0f && i < learned * vocab; i++)
        y.x[i] = w.cap * tanh(y.x[i] / w.cap);
    tensor_sums(&y, DTYPE_F32, "logits");
}
static void run_head_alone(void)
{
    check_head_alone(SMALL ? 2000 : 40000, 0.0f);
    check_head_alone(900, 2.5f);
}
Test(operations_linear, head_loss_needs_no_gradient)
{
    both(run_head_alone);
}

/* ---- bits ---- */
struct results { /* of one call with all rows, or of one with some of them */
    double *y, *dx, *dhidden, *nll;
};

enum { BITS_ROWS = 141, BITS_N = 96, BITS_K = 333, VOCAB = 1700 };

struct bits_inputs {
    struct test_weight w, head;
    double *x, *dy;
    struct rows_of_batch r;
};

/* The products and the loss of rows [first, first + rows). */
static struct results run_part(const struct bits_inputs *in, size_t first, size_t rows)
{
    struct tensor x = tensor_new(precision, rows, BITS_K, 0);
    struct tensor dy = tensor_new(precision, rows, BITS_N, 0);
    struct tensor y = tensor_result(precision, rows, BITS_N, 0);
    struct tensor dx = tensor_result(precision, rows, BITS_K, 0);
    struct tensor dhidden = tensor_result(DTYPE_F32, rows, BITS_K, 0);
    struct results out = {.nll = host_take(BITS_ROWS, sizeof(double))};
    memcpy(x.x, in->x + first * BITS_K, rows * BITS_K * sizeof *x.x);
    memcpy(dy.x, in->dy + first * BITS_N, rows * BITS_N * sizeof *dy.x);
    tensor_put(&x);
    tensor_put(&dy);
    struct rows_of_batch r = batch_flat(2 * rows); /* more than `rows` are learned */
    r.now.learned = rows;
    for (size_t i = 0; i < rows; i++)
        r.target[i] = (int32_t)((first + i) * 7919 % VOCAB);
    rows_set(&r);
    if (rows >= BACKEND_FEW) be->linear(c, y.m, x.m, in->w.w, NULL, r.b, rows, false);
    be->linear_back(c, dx.m, dy.m, in->w.w, NULL, r.b, rows);
    be->head_loss(c, dhidden.m, x.m, in->head.w, r.b, 0, rows);
    be->batch_nll(c, out.nll, r.b);
    ok(be->check(c));
    out.y = tensor_get(&y, "y");
    out.dx = tensor_get(&dx, "dx");
    out.dhidden = tensor_get(&dhidden, "dhidden");
    return out;
}
static struct bits_inputs bits_inputs(void)
{
    static double x[BITS_ROWS * BITS_K], dy[BITS_ROWS * BITS_N];
    struct bits_inputs in = {.x = x, .dy = dy};
    in.w = weight_of(BITS_N, BITS_K, true, BOTH);
    in.head = weight_of(VOCAB, BITS_K, false, HEAD);
    fill_normal(x, BITS_ROWS * BITS_K, precision, 1.0);
    fill_normal(dy, BITS_ROWS * BITS_N, precision, 1.0);
    return in;
}
static void compare(const struct results *all, const struct results *part, size_t first,
                    size_t rows)
{
    if (rows >= BACKEND_FEW) rows_same(all->y, first, part->y, 0, rows, BITS_N, "linear");
    rows_same(all->dx, first, part->dx, 0, rows, BITS_K, "linear_back");
    rows_same(all->dhidden, first, part->dhidden, 0, rows, BITS_K, "head_loss");
    rows_same(all->nll, first, part->nll, 0, rows, 1, "nll");
}

Test(operations_linear, a_float32_row_does_not_depend_on_other_rows)
{
    static const size_t part[][2] = {{0, 1},   {140, 1},  {70, 3},  {5, BACKEND_FEW},
                                     {33, 31}, {13, 100}, {1, 128}, {76, 65}};
    begin(DTYPE_F32);
    struct bits_inputs in = bits_inputs();
    struct results all = run_part(&in, 0, BITS_ROWS);
    for (size_t i = 0; i < sizeof part / sizeof part[0]; i++) {
        struct results some = run_part(&in, part[i][0], part[i][1]);
        compare(&all, &some, part[i][0], part[i][1]);
    }
    end();
}

static void run_twice(void)
{
    struct bits_inputs in = bits_inputs();
    struct results one = run_part(&in, 0, BITS_ROWS), other = run_part(&in, 0, BITS_ROWS);
    compare(&one, &other, 0, BITS_ROWS);
}
Test(operations_linear, the_same_call_gives_the_same_bits)
{
    both(run_twice);
}

/* ---- whether rows depend on each other ---- */
Test(operations_linear, a_context_knows_whether_rows_are_alone)
{
    begin(DTYPE_F32);
    struct test_weight w = weight_of(48, 300, false, BOTH);
    check_linear(&w, 9, false, DTYPE_F32, DTYPE_F32, true);
    cr_expect(be->rows_alone(c));
    end();
    if (!can_bf16()) return;
    begin(DTYPE_BF16);
    w = weight_of(48, 300, false, BOTH);
    check_linear(&w, 9, false, DTYPE_BF16, DTYPE_BF16, true);
    cr_expect_eq(be->rows_alone(c), SMALL);
    end();
}

#ifdef OPERATIONS_CUDA
/* The algorithm that was tried is refused for another number of rows, and the next one adds in an
 * order that depends on their number. */
Test(operations_linear, a_context_notices_an_algorithm_that_comes_later)
{
    for (int i = 0; i < 2; i++) {
        begin(i ? DTYPE_BF16 : DTYPE_F32);
        struct test_weight w = weight_of(48, 300, false, BOTH);
        check_linear(&w, 9, false, precision, precision, true);
        shim_products(SHIM_PRODUCT_BY_ROWS);
        check_linear(&w, 9, false, precision, precision, true);
        cr_expect(be->rows_alone(c), "the same number of rows");
        check_linear(&w, 10, false, precision, precision, true);
        cr_expect(!be->rows_alone(c));
        shim_products(SHIM_PRODUCT_ALL);
        end();
    }
}

Test(operations_linear, a_context_knows_that_no_algorithm_is_right)
{
    begin(DTYPE_BF16);
    shim_products(SHIM_PRODUCT_BY_ROWS | SHIM_PRODUCT_RIGHT_F32);
    struct test_weight w = weight_of(48, 300, false, BOTH);
    check_linear(&w, 9, false, DTYPE_BF16, DTYPE_BF16, false);
    cr_expect(!be->rows_alone(c));
    shim_products(SHIM_PRODUCT_ALL);
    end();
}
#endif
