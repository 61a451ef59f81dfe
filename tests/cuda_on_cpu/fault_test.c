/* The CUDA backend after failures: each call of the runtime that can fail does so in turn, and what
 * no kernel can compute is refused. A failure is one error of check() or of the function that takes
 * memory, and all memory is given back. */
#include "tests/cuda_on_cpu/shim.h"
#include "tests/support/operations.h"

enum { N = 24, K = 40, RANK = 4, TOKENS = 9, VOCAB = 32, VALUES = RANK * (N + K) };
enum { BOTH = BACKEND_FORWARD | BACKEND_BACKWARD };

struct pass { /* all that a small pass opens, and its results in host memory */
    struct backend_weight *packed, *kept, *head;
    struct backend_low_rank *l;
    struct backend_batch *b;
    struct backend_record *record;
    char *memory;
    float out[TOKENS * N];
    double nll[TOKENS], norm2[2];
};

static err pass_weights(struct pass *p, const float *value)
{
    struct weight_source s = {.n = N, .k = K, .parts = 1, .bias = value, .products = BOTH};
    s.part[0] = (struct weight_part){value, DTYPE_F32, N, 0};
    TRY(be->weight_pack(&p->packed, c, &s));
    s.products = BOTH | BACKEND_KEEP | BACKEND_EMBED;
    TRY(be->weight_pack(&p->kept, c, &s));
    s = (struct weight_source){.n = VOCAB, .k = K, .parts = 1, .products = BOTH | BACKEND_HEAD};
    s.part[0] = (struct weight_part){value, DTYPE_F32, VOCAB, 0};
    return be->weight_pack(&p->head, c, &s);
}

static err pass_batch(struct pass *p)
{
    static const int32_t id[TOKENS] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    static const uint32_t position[TOKENS] = {0, 1, 2, 3, 4, 5, 6, 7, 8}, start[] = {0, TOKENS};
    struct batch_rows rows = {.tokens = TOKENS, .rows = 1, .learned = TOKENS};
    TRY(be->batch_open(&p->b, c, &rows));
    rows.id = rows.target = id;
    rows.start = start;
    rows.position = rows.index = position;
    rows.gradient_scale = 1.0f;
    be->batch_set(c, p->b, &rows);
    return ERR_NONE;
}

struct tensors {
    struct mat x, y, h, dx;
    float *gradient, *value, *first, *second;
};
/* Bytes of the block; only counts with NULL. */
static size_t tensors_place(struct tensors *t, char *block)
{
    enum { ROOM = 64 };
    size_t at = 0, margin = be->low_rank_room(c, RANK);
    t->x = mat_take(block, &at, precision, ROOM, K + margin);
    t->y = mat_take(block, &at, precision, ROOM, N + margin);
    t->h = mat_take(block, &at, precision, ROOM, RANK);
    t->dx = mat_take(block, &at, DTYPE_F32, ROOM, K + margin);
    t->gradient = mat_take(block, &at, DTYPE_F32, 1, VALUES).data;
    t->value = mat_take(block, &at, DTYPE_F32, 1, VALUES).data;
    t->first = mat_take(block, &at, DTYPE_F32, 1, VALUES).data;
    t->second = mat_take(block, &at, DTYPE_F32, 1, VALUES).data;
    return at;
}

struct head {
    const struct pass *p;
    const struct tensors *t;
};
static void work_head(void *user)
{
    const struct head *h = user;
    be->head_loss(c, h->t->dx, h->t->x, h->p->head, h->p->b, 0, TOKENS);
}

static void pass_queue(struct pass *p, const struct tensors *t)
{
    struct low_rank_use use = {p->l, 0, TOKENS, t->gradient, 0, 0, 0};
    struct low_rank_site site = {&use, 1, t->h, t->h, t->h};
    struct head head = {p, t};
    struct optimizer o = {t->value, t->first, t->second, t->gradient, VALUES, NULL, 0.0};
    struct adamw a = {1e-3, 0.9, 0.999, 1e-8, 0.0, 1, 1.0};
    be->low_rank_set(c, &p->l, 1, t->value);
    be->embed(c, t->x, p->kept, p->b);
    be->linear(c, t->y, t->x, p->packed, &site, p->b, TOKENS, false);
    be->linear_back(c, t->x, t->y, p->packed, &site, p->b, TOKENS);
    be->low_rank_gradient(c, &site, t->y, t->x, p->b);
    for (int i = 0; i < 3; i++)
        be->repeat(c, &p->record, 1, work_head, &head);
    be->batch_nll(c, p->nll, p->b);
    be->adamw(c, p->norm2, &o, &a);
    be->copy_out(c, p->out, t->y.data, TOKENS * N * sizeof(float) / 2);
}

static err use_device(void)
{
    static float value[VOCAB * K];
    const unsigned trains = LOW_RANK_A | LOW_RANK_B;
    struct backend_options o = {.precision = DTYPE_BF16};
    struct low_rank_module m = {0, N, 0, RANK, RANK, 1.0f, false, trains, 0, RANK * K, 0, 0};
    struct pass p = {0};
    struct tensors t;
    err e;
    for (int i = 0; i < VOCAB * K; i++)
        value[i] = (float)(i % 7) - 3.0f;
    TRY(be->open(&c, &o));
    precision = DTYPE_BF16;
    TRY_OUT(e, pass_weights(&p, value));
    TRY_OUT(e, pass_batch(&p));
    TRY_OUT(e, be->low_rank_open(&p.l, c, p.packed, &m, 1));
    be->low_rank_load(c, p.l, 0, &(struct low_rank_values){.a = value, .b = value});
    TRY_OUT(e, be->memory_take(&p.memory, c, tensors_place(&t, NULL)));
    tensors_place(&t, p.memory);
    pass_queue(&p, &t);
    e = be->check(c);
out:
    be->record_close(p.record);
    be->low_rank_close(p.l);
    if (p.memory) be->memory_give(c, p.memory);
    be->batch_close(p.b);
    be->weight_close(p.packed);
    be->weight_close(p.kept);
    be->weight_close(p.head);
    be->close(c);
    return e;
}

/* The sanitizers are too slow for every call. */
#if defined(__SANITIZE_THREAD__)
enum { STEP = 12 };
#elif defined(__SANITIZE_ADDRESS__)
enum { STEP = 4 };
#else
enum { STEP = 1 };
#endif

static void each_fails(enum shim_fault kind, uint64_t calls)
{
    cr_assert_gt(calls, 10);
    for (uint64_t nth = 1; nth <= calls; nth += STEP) {
        shim_fault_at(kind, nth);
        err e = use_device();
        shim_fault_clear();
        cr_assert(err_is(e), "fault %d, call %zu: no error", (int)kind, (size_t)nth);
        cr_assert(e.kind == ERR_MACHINE && !strncmp(e.text, "cuda:0: ", 8), "call %zu: %s",
                  (size_t)nth, e.text);
        cr_assert_eq(shim_memory_used(0), 0, "fault %d, call %zu: memory is left", (int)kind,
                     (size_t)nth);
    }
    shim_fault_at(kind, calls + 1);
    ok(use_device());
    shim_fault_clear();
}
static struct shim_counts counts_of_pass(void)
{
    struct shim_counts before, after;
    shim_counts_get(&before);
    ok(use_device());
    shim_counts_get(&after);
    after.allocations = (after.allocations - before.allocations) / 2; /* without cudaFree */
    after.copies += after.memsets - before.copies - before.memsets;
    after.launches -= before.launches;
    return after;
}

Test(cuda_fault, each_allocation_can_fail)
{
    each_fails(SHIM_FAULT_MALLOC, counts_of_pass().allocations);
}
Test(cuda_fault, each_copy_can_fail)
{
    each_fails(SHIM_FAULT_COPY, counts_of_pass().copies);
}
Test(cuda_fault, each_launch_can_fail)
{
    each_fails(SHIM_FAULT_LAUNCH, counts_of_pass().launches);
}

/* ---- what no kernel, and no algorithm, computes */
Test(cuda_fault, sizes_beyond_those_of_the_kernels_are_refused)
{
    begin(DTYPE_BF16);
    struct mat m = {device_take(64), DTYPE_F32, 1 << 20};
    struct norm_shape wide = {1, 1, 1 << 20, 1e-5f};
    struct attention_shape s = {4, 2, 320, 0, 0, 0};
    struct attention_tensors t = {m, m, m, m, m.data};
    struct rows_of_batch r = batch_flat(3);
    be->zero(c, m, (size_t)1 << 32, (size_t)1 << 10);
    refused(be->check(c), ERR_LIMIT, "cuda: 4294967296 x 1024 values in one operation");
    be->norm(c, m, m.data, m, m, m.data, &wide);
    refused(be->check(c), ERR_LIMIT, "vectors of 1048576 values, expected at most");
    be->attention(c, &t, &s, r.b);
    refused(be->check(c), ERR_INPUT, "head_dim 320");
    s.head_dim = 64;
    s.kv_heads = 3;
    be->attention_back(c, &t, &t, &s, r.b);
    refused(be->check(c), ERR_INPUT, "4 heads, 3 key-value heads");
    struct weight_source odd = {.n = 2, .k = 33, .parts = 1, .products = BOTH};
    struct backend_weight *w = NULL;
    odd.part[0] = (struct weight_part){m.data, DTYPE_Q8_0, 2, 0};
    refused(be->weight_pack(&w, c, &odd), ERR_INPUT, "Q8_0 has rows of 33 values");
    odd.products |= BACKEND_KEEP;
    refused(be->weight_pack(&w, c, &odd), ERR_INPUT, "Q8_0 has rows of 33 values");
    end();
}

Test(cuda_fault, a_product_without_an_algorithm_fails)
{
    begin(DTYPE_BF16);
    struct test_weight w = weight_of(N, K, false, BOTH);
    struct tensor x = tensor_normal(precision, TOKENS, K, 0, 1.0);
    struct tensor y = tensor_result(precision, TOKENS, N, 0);
    shim_products(0);
    be->linear(c, y.m, x.m, w.w, NULL, NULL, TOKENS, false);
    refused(be->check(c), ERR_MACHINE, "cuda:0: cuBLAS: choosing an algorithm");
    shim_products(SHIM_PRODUCT_ALL);
    be->linear(c, y.m, x.m, w.w, NULL, NULL, TOKENS, false);
    ok(be->check(c));
    shim_products(0); /* for another number of rows the algorithm is asked again */
    be->linear(c, y.m, x.m, w.w, NULL, NULL, TOKENS - 1, false);
    refused(be->check(c), ERR_MACHINE, "cuda:0: cuBLAS: preparing a product");
    shim_products(SHIM_PRODUCT_ALL);
    end();
}

/* With a profile each operation is waited for, and passes are not recorded. */
Test(cuda_fault, a_profile_measures_each_operation)
{
    struct backend_profile profile;
    struct backend_options o = {.precision = DTYPE_F32, .profile = true};
    begin(DTYPE_F32);
    be->close(c);
    ok(be->open(&c, &o));
    struct tensor x = tensor_normal(DTYPE_F32, TOKENS, K, 0, 1.0);
    struct mat m = x.m;
    struct rows_of_batch r = batch_flat(TOKENS);
    struct test_weight w = weight_of(VOCAB, K, false, BOTH | BACKEND_HEAD);
    struct pass p = {.head = w.w, .b = r.b};
    struct tensors t = {.x = m, .dx = m};
    struct head head = {&p, &t};
    struct shim_counts before, after;
    shim_counts_get(&before);
    for (int i = 0; i < 3; i++)
        be->repeat(c, &p.record, 1, work_head, &head);
    be->profile(&profile, c);
    shim_counts_get(&after);
    cr_expect_eq(profile.calls[OP_HEAD], 3);
    cr_expect(profile.seconds[OP_HEAD] > 0.0);
    cr_expect_eq(after.graphs, before.graphs);
    be->record_close(p.record);
    end();
}
