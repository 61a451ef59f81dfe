/* The low-rank part of linear operations, of one backend, against the formulas of backend.h in
 * float64 (see operations.c). */
#include "tests/support/operations_site.h"

static void run_one_module(void)
{
    static const struct {
        size_t rows, n, k;
        uint32_t rank, carry;
        unsigned trains;
        bool small;
    } all[] = {{9, 7, 5, 1, 0, A | B, false},         {40, 96, 64, 16, 0, A | B, false},
               {2, 33, 24, 41, 0, A | B, false},      {65, 31, 65, 8, 3, A | B, false},
               {33, 40, 48, 6, 0, A | B | R, true},   {70, 20, 33, 5, 2, R, true},
               {12, 20, 33, 4, 0, A, false},          {12, 20, 33, 4, 1, B, false},
               {17, 64, 40, 0, 4, 0, false},          {150, 300, 257, 17, 0, A | B, false},
               {130, 64, 128, 64, 0, A | B | R, true}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        struct test_weight w = weight_of(all[i].n, all[i].k, i % 2, BOTH);
        struct spec s = {0,           (uint32_t)all[i].n, all[i].rank, all[i].carry, all[i].trains,
                         all[i].small};
        struct factors f = factors_of(&w, &s, 1, 4);
        check_whole(&f, &w, all[i].rows, i % 2);
    }
}
Test(operations_low_rank, one_module_follows_the_formulas)
{
    both(run_one_module);
}

/* ---- sizes that tensor cores take ---- */
static const char *const tensor_cores[] = {"shrink_mma_kernel", "gradient_mma_kernel"};

static void expect_tensor_cores(void)
{
    bool bf16 = precision == DTYPE_BF16;
    expect_kernels(bf16, tensor_cores, 2);
}

static void run_tiles(void)
{
    static const struct {
        size_t rows, n, k;
        uint32_t rank, carry;
        unsigned trains;
        bool small;
    } all[] = {{9, 8, 8, 1, 0, A | B, false},        {33, 24, 136, 3, 0, A | B, false},
               {65, 264, 128, 8, 2, A | B, false},   {40, 96, 64, 16, 0, A | B, false},
               {31, 40, 264, 16, 5, A, false},       {70, 136, 40, 40, 0, A | B, false},
               {33, 40, 48, 6, 0, A | B | R, true},  {130, 64, 128, 64, 0, A | B | R, true},
               {12, 72, 144, 41, 30, A | B, false},  {70, 24, 32, 5, 2, R, true},
               {17, 64, 40, 0, 4, 0, false},         {20, 16, 24, 70, 0, A | B | R, true},
               {1100, 16, 24, 9, 0, A | B | R, true}};
    expect_kernels(false, NULL, 0);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        struct test_weight w = weight_of(all[i].n, all[i].k, i % 2, BOTH);
        struct spec s = {0,           (uint32_t)all[i].n, all[i].rank, all[i].carry, all[i].trains,
                         all[i].small};
        struct factors f = factors_of(&w, &s, 1, 4);
        check_whole(&f, &w, all[i].rows, i % 2);
        if (all[i].trains) expect_tensor_cores();
    }
}
Test(operations_low_rank, one_module_of_aligned_sizes_follows_the_formulas)
{
    both(run_tiles);
}

static void run_wide_modules(float dropout)
{
    static const uint32_t length[] = {9, 1, 30, 0, 12, 20, 5};
    struct test_weight w = weight_of(WIDE_N, WIDE_K, true, BOTH);
    struct factors three = factors_of(&w, wide_qkv, 3, 0), two = factors_of(&w, wide_qv, 2, 7);
    struct rows_of_batch r = batch_of(length, 7, 1);
    r.now.dropout = dropout;
    r.now.dropout_key = 0x123456789abcdefu;
    rows_set(&r);
    expect_kernels(false, NULL, 0);
    const struct part whole[] = {{&three, 0, 77, true, 0, 0}};
    check_site(&w, &r, whole, 1, false);
    expect_tensor_cores();
    const struct part parts[] = {{&two, 0, 10, true, 0, 2}, {&three, 10, 62, true, 0, 0}};
    check_site(&w, &r, parts, 2, true);
    expect_tensor_cores();
    const struct part rows[] = {{&three, 0, 77, true, 0, 7}};
    check_site(&w, &r, rows, 1, true);
    expect_tensor_cores();
}
static void run_wide_kept(void)
{
    run_wide_modules(0.0f);
}
static void run_wide_dropped(void)
{
    run_wide_modules(0.4f);
}
Test(operations_low_rank, modules_of_aligned_sizes_share_a_weight)
{
    both(run_wide_kept);
}
Test(operations_low_rank, dropout_masks_the_input_of_modules_of_aligned_sizes)
{
    both(run_wide_dropped);
}

/* ---- sums over more than 2,048 tokens, which CUDA divides into chunks. All values are integers,
 * so that sums in any order are equal. */
static void device_integers(struct mat to, double *value, size_t n)
{
    uint16_t *narrow = host_take(n, sizeof *narrow);
    float *wide = host_take(n, sizeof *wide);
    struct rng *rng = next_rng();
    for (size_t i = 0; i < n; i++) {
        value[i] = (double)rng_below(rng, 5) - 2.0;
        wide[i] = (float)value[i];
        narrow[i] = bf16_from_f32(wide[i]);
    }
    device_put(to.data, precision == DTYPE_F32 ? (void *)wide : narrow, n * type_size(precision));
}

static void run_long(void)
{
    /* 4,096 rows have the longest chunks. */
    enum { LONG = 2085, ROWS = INSTRUMENTED ? 96 : 4096, K = 8, RANK = 2 };
    static const struct spec spec = {0, ROWS, RANK, 0, B, false};
    struct test_weight w = weight_of(ROWS, K, false, BOTH);
    struct factors f = factors_zero(&w, &spec, 1, 0, 0);
    struct rows_of_batch r = batch_flat(LONG);
    struct mat dy = {device_take(LONG * ROWS * type_size(precision)), precision, ROWS};
    struct mat x = {device_take(LONG * K * type_size(precision)), precision, K};
    struct mat h = {device_take(LONG * RANK * type_size(precision)), precision, RANK};
    double *dy_x = host_take(LONG * ROWS, sizeof *dy_x), *h_x = host_take(LONG * RANK, sizeof *h_x);
    double *want = host_take(ROWS * RANK, sizeof *want);
    float *got = host_take(ROWS * RANK, sizeof *got);
    float *gradient = device_take(f.values * sizeof *gradient);
    device_integers(dy, dy_x, LONG * ROWS);
    device_integers(h, h_x, LONG * RANK);
    add_tn(want, dy_x, ROWS, h_x, RANK, LONG, ROWS, RANK, 0.5);
    struct low_rank_use use = {f.l, 0, LONG, gradient, 0, 0, 0};
    struct low_rank_site site = {&use, 1, h, h, h};
    expect_kernels(false, NULL, 0);
    be->low_rank_gradient(c, &site, dy, x, r.b);
    device_get(got, gradient + f.module[0].m.b_at, ROWS * RANK * sizeof *got);
    for (size_t i = 0; i < ROWS * RANK; i++)
        cr_assert_eq((double)got[i], want[i], "%s: value %zu: %g, expected %g",
                     dtype_name(precision), i, (double)got[i], want[i]);
    static const char *const sums[] = {"gradient_sum_kernel"};
    expect_kernels(true, sums, 1);
}
Test(operations_low_rank, gradients_add_up_long_sequences)
{
    both(run_long);
}

static const struct spec qkv[] = {
    {0, 33, 5, 0, A | B, false}, {33, 16, 3, 2, A | B, false}, {49, 17, 8, 0, A | B | R, true}};
static const struct spec qv[] = {{0, 33, 6, 3, A | R, true}, {49, 17, 20, 0, B, false}};
enum { QKV = 66, WIDTH = 65 };

static void run_three_modules(void)
{
    struct test_weight w = weight_of(QKV, WIDTH, true, BOTH);
    struct factors three = factors_of(&w, qkv, 3, 0), two = factors_of(&w, qv, 2, 7);
    check_whole(&three, &w, 3, false);
    check_whole(&three, &w, 70, false);
    check_whole(&two, &w, 41, true);
}
Test(operations_low_rank, modules_of_different_ranks_share_a_weight)
{
    both(run_three_modules);
}

static void run_uses(void)
{
    static const uint32_t length[] = {9, 1, 30, 0, 12, 20, 5};
    struct test_weight w = weight_of(QKV, WIDTH, false, BOTH);
    struct factors three = factors_of(&w, qkv, 3, 0), two = factors_of(&w, qv, 2, 7);
    struct rows_of_batch r = batch_of(length, 7, 1);
    const struct part apart[] = {{&three, 0, 10, true, 0, 0},
                                 {NULL, 10, 30, false, 0, 0},
                                 {&two, 40, 12, true, 0, 0},
                                 {&three, 52, 20, false, 0, 0}};
    check_site(&w, &r, apart, 4, false); /* the last 5 tokens have no use */
    const struct part none[] = {{NULL, 0, 77, false, 0, 0}};
    check_site(&w, &r, none, 1, true);
    const struct part rows[] = {{&two, 0, 10, true, 0, 2}, {&three, 10, 62, true, 2, 4}};
    check_site(&w, &r, rows, 2, false);
    const struct part all_rows[] = {{&three, 0, 77, true, 0, 7}};
    check_site(&w, &r, all_rows, 1, true);
}
Test(operations_low_rank, uses_have_their_own_factors_and_gradients)
{
    both(run_uses);
}

static void run_dropout(void)
{
    static const uint32_t length[] = {9, 1, 30, 0, 12, 20, 5};
    struct test_weight w = weight_of(QKV, WIDTH, false, BOTH);
    struct factors three = factors_of(&w, qkv, 3, 0), two = factors_of(&w, qv, 2, 7);
    struct rows_of_batch r = batch_of(length, 7, 1);
    r.now.dropout = 0.4f;
    r.now.dropout_key = 0x123456789abcdefu;
    rows_set(&r);
    const struct part whole[] = {{&three, 0, 77, true, 0, 0}};
    check_site(&w, &r, whole, 1, false);
    const struct part parts[] = {{&two, 0, 10, true, 0, 2}, {&three, 10, 62, true, 0, 0}};
    check_site(&w, &r, parts, 2, true);
}
Test(operations_low_rank, dropout_masks_the_input_of_each_module)
{
    both(run_dropout);
}

/* Masks of equal keys are equal; masks of other keys, modules or tokens are not. */
Test(operations_low_rank, dropout_keeps_its_share_of_the_values)
{
    enum { TOKENS = INSTRUMENTED ? 50 : 300, K = 64, N = TOKENS * K };
    begin(DTYPE_F32);
    struct test_weight w = weight_of(8, K, false, BOTH);
    for (int i = 0; i < 3; i++) {
        float probability = i == 0 ? 0.05f : i == 1 ? 0.5f : 0.9f;
        struct site s = {.w = &w, .r = batch_flat(TOKENS), .parts = 1};
        s.part[0] = (struct part){.tokens = TOKENS};
        s.r.now.dropout = probability;
        double *mask[4], equal[4] = {0}, kept = 0.0;
        for (int k = 0; k < 4; k++) { /* twice the same; another module; another key */
            s.r.now.dropout_key = k == 3 ? 6 : 5;
            rows_set(&s.r);
            mask[k] = probe_mask(&s, k == 2 ? 12 : 11);
            for (size_t j = 0; j < N; j++)
                equal[k] += (mask[k][j] > 0) == (mask[0][j] > 0);
        }
        double p = (double)probability, same = p * p + (1 - p) * (1 - p), shifted = 0.0;
        double noise = 5 * sqrt(N * p * (1 - p)), noise_same = 5 * sqrt(N * same * (1 - same));
        for (size_t j = 0; j < N; j++) {
            kept += mask[0][j] > 0;
            shifted += (mask[0][j] > 0) == (mask[0][(j + K) % N] > 0); /* the next token */
        }
        cr_expect_float_eq(kept, N * (1 - p), noise, "kept %g of %d", kept, N);
        cr_expect_eq(equal[1], N);
        cr_expect_float_eq(equal[2], N * same, noise_same, "other module: %g equal", equal[2]);
        cr_expect_float_eq(equal[3], N * same, noise_same, "other key: %g equal", equal[3]);
        cr_expect_float_eq(shifted, N * same, noise_same, "next token: %g equal", shifted);
    }
    end();
}

static void run_load(void)
{
    struct test_weight w = weight_of(QKV, WIDTH, false, BOTH);
    struct factors f = factors_zero(&w, qkv, 3, 0, 0);
    static const unsigned step[] = {0, A, B, R, CARRY, R, B, A};
    for (size_t k = 0; k < sizeof step / sizeof step[0]; k++) {
        for (size_t i = 0; i < 3 && step[k]; i++)
            module_load(&f, i, step[k]);
        check_whole(&f, &w, 10, false);
    }
}
Test(operations_low_rank, load_replaces_the_factors_that_are_given)
{
    both(run_load);
}

/* Two weights whose factors lie in one trained block. */
static void run_set(void)
{
    struct test_weight w = weight_of(QKV, WIDTH, false, BOTH),
                       other = weight_of(QKV, 40, true, BOTH);
    struct factors f[2] = {factors_zero(&w, qkv, 3, 0, 0), {0}};
    f[1] = factors_zero(&other, qv, 2, 5, f[0].values);
    size_t values = f[1].values;
    float *device = device_take(values * sizeof *device);
    for (int step = 0; step < 2; step++) {
        float *value = floats_normal(values, DTYPE_F32, 0.3);
        for (size_t i = 0; i < 2; i++)
            for (size_t k = 0; k < f[i].modules && step == 0; k++)
                module_load(&f[i], k, EVERY);
        for (size_t i = 0; i < values; i++) /* the references have no rounding of factors */
            value[i] = (float)rounded((double)value[i], precision);
        device_put(device, value, values * sizeof *value);
        struct backend_low_rank *all[2] = {f[0].l, f[1].l};
        be->low_rank_set(c, all, 2, device);
        for (size_t i = 0; i < 2; i++)
            for (size_t k = 0; k < f[i].modules; k++) {
                struct test_module *t = &f[i].module[k];
                size_t rank = t->m.rank;
                if (t->m.trains & A) memcpy(t->a, value + t->m.a_at, rank * f[i].k * 4);
                if (t->m.trains & B) memcpy(t->b, value + t->m.b_at, t->m.rows * rank * 4);
                if (t->m.trains & R) memcpy(t->r, value + t->m.r_at, rank * rank * 4);
            }
        check_whole(&f[0], &w, 20, false);
        check_whole(&f[1], &other, 20, false);
    }
}
Test(operations_low_rank, set_takes_the_trained_factors_from_the_device)
{
    both(run_set);
}

/* ---- bits ---- */
struct bits {
    double *y, *dx;
    float *gradient;
    size_t stride;
};

/* Rows [first, first + rows) of a batch of these lengths, each with its own gradient. */
static struct bits bits_run(const struct test_weight *w, const struct factors *f,
                            const uint32_t *length, size_t first, size_t rows, const double *x,
                            const double *dy)
{
    struct rows_of_batch r = batch_of(length + first, rows, 1);
    size_t tokens = r.now.tokens, before = 0, room = be->low_rank_room(c, f->width);
    for (size_t i = 0; i < first; i++)
        before += length[i];
    struct site s = {.w = w, .r = r, .parts = 1};
    s.part[0] = (struct part){f, 0, tokens, true, 0, rows};
    struct tensor in = tensor_new(precision, tokens, w->k, room);
    struct tensor back = tensor_new(precision, tokens, w->n, room);
    memcpy(in.x, x + before * w->k, tokens * w->k * sizeof *x);
    memcpy(back.x, dy + before * w->n, tokens * w->n * sizeof *dy);
    tensor_put(&in);
    tensor_put(&back);
    struct tensor y = tensor_result(precision, tokens, w->n, 0);
    struct tensor dx = tensor_result(precision, tokens, w->k, 0);
    struct tensor h = tensor_wide(&s), g = tensor_wide(&s), p = tensor_wide(&s);
    struct bits out = {.stride = f->values};
    float *block = device_take(rows * f->values * sizeof *block);
    struct low_rank_use use = {f->l, 0, tokens, block, 0, rows, f->values};
    struct low_rank_site site = {&use, 1, h.m, g.m, p.m};
    be->linear(c, y.m, in.m, w->w, &site, r.b, tokens < BACKEND_FEW ? BACKEND_FEW : tokens, false);
    be->linear_back(c, dx.m, back.m, w->w, &site, r.b, tokens);
    be->low_rank_gradient(c, &site, back.m, in.m, r.b);
    out.gradient = host_take(rows * f->values, sizeof(float));
    device_get(out.gradient, block, rows * f->values * sizeof(float));
    out.y = tensor_get(&y, "y");
    out.dx = tensor_get(&dx, "dx");
    return out;
}

static void run_bits(size_t n, size_t k, const struct spec *spec, bool others)
{
    static const uint32_t length[] = {9, 40, 3, 21, 66};
    size_t tokens = 139, before = 0;
    struct test_weight w = weight_of(n, k, true, BOTH);
    struct factors f = factors_of(&w, spec, 3, 0);
    double *x = host_take(tokens * k, sizeof *x), *dy = host_take(tokens * n, sizeof *dy);
    fill_normal(x, tokens * k, precision, 1.0);
    fill_normal(dy, tokens * n, precision, 1.0);
    struct bits all = bits_run(&w, &f, length, 0, 5, x, dy);
    for (size_t i = 0; i < 5 && others; before += length[i++]) {
        struct bits one = bits_run(&w, &f, length, i, 1, x, dy);
        rows_same(all.y, before, one.y, 0, length[i], n, "low-rank linear, row alone");
        rows_same(all.dx, before, one.dx, 0, length[i], k, "low-rank linear_back, row alone");
        cr_assert(!memcmp(all.gradient + i * all.stride, one.gradient, all.stride * sizeof(float)),
                  "gradient of row %zu", i);
    }
    struct bits again = bits_run(&w, &f, length, 0, 5, x, dy);
    rows_same(all.y, 0, again.y, 0, tokens, n, "low-rank linear twice");
    rows_same(all.dx, 0, again.dx, 0, tokens, k, "low-rank linear_back twice");
    cr_assert(!memcmp(all.gradient, again.gradient, 5 * all.stride * sizeof(float)));
}
/* On CUDA bfloat16 rows keep their bits too. */
static void run_bits_alone(void)
{
    run_bits(QKV, WIDTH, qkv, precision == DTYPE_F32 || SMALL);
    expect_kernels(false, NULL, 0);
    run_bits(WIDE_N, WIDE_K, wide_qkv, precision == DTYPE_F32 || SMALL);
    expect_tensor_cores();
}
Test(operations_low_rank, a_row_and_its_gradient_do_not_depend_on_other_rows)
{
    both(run_bits_alone);
}
