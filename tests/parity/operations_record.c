/* repeat(): a record gives what the work itself would give, also after memory that it used has been
 * given back, and failures of a record are failures of the pass. On the CPU, which records nothing,
 * the work runs each time. */
#include "tests/support/operations.h"

#ifdef OPERATIONS_CUDA
#include "tests/cuda_on_cpu/shim.h"
enum { RECORDS = 1 };
#else
enum { RECORDS = 0 };
#endif

enum { WIDTH = 24, HEAD = BACKEND_FORWARD | BACKEND_BACKWARD | BACKEND_HEAD, KEYS = 16 };

/* The loss of all learned tokens through one head, which needs scratch memory of the device. */
struct loss {
    struct rows_of_batch r;
    struct test_weight w;
    struct tensor hidden, dhidden;
    size_t rows; /* of the call */
    int calls;
};
static void work_loss(void *user)
{
    struct loss *l = user;
    l->calls++;
    be->head_loss(c, l->dhidden.m, l->hidden.m, l->w.w, l->r.b, 0, l->rows);
}
static struct loss loss_of(uint32_t tokens, size_t vocab, unsigned products)
{
    struct loss l = {.r = batch_of(&tokens, 1, (uint32_t)vocab)};
    l.w = weight_of(vocab, WIDTH, false, products);
    l.rows = l.r.now.learned;
    l.hidden = tensor_normal(precision, l.rows, WIDTH, 0, 1.0);
    l.dhidden = tensor_result(DTYPE_F32, l.rows, WIDTH, 0);
    return l;
}
/* Sets other targets and calls repeat(); the gradient must be that of the same call without it. */
static void expect_repeated(struct loss *l, struct backend_record **record, uint64_t key)
{
    struct rng *rng = next_rng();
    for (size_t i = 0; i < l->r.now.learned; i++)
        l->r.target[i] = (int32_t)rng_below(rng, (uint32_t)l->w.n);
    rows_set(&l->r);
    be->head_loss(c, l->dhidden.m, l->hidden.m, l->w.w, l->r.b, 0, l->rows);
    ok(be->check(c));
    double *want = tensor_get(&l->dhidden, "loss");
    be->zero(c, l->dhidden.m, l->rows, WIDTH);
    be->repeat(c, record, key, work_loss, l);
    ok(be->check(c));
    rows_same(want, 0, tensor_get(&l->dhidden, "loss"), 0, l->rows, WIDTH, "repeated");
}
static void expect_calls(const struct loss *l, int recorded, int all)
{
    cr_expect_eq(l->calls, RECORDS ? recorded : all, "%d calls", l->calls);
}

static void run_repeated(void)
{
    struct backend_record *record = NULL;
    struct loss l = loss_of(20, 300, HEAD);
    for (int i = 0; i < 5; i++)
        expect_repeated(&l, &record, 7);
    expect_calls(&l, 2, 5); /* once directly, once for the capture */
    be->record_close(record);
}
Test(operations_record, the_third_call_with_a_key_needs_no_work)
{
    both(run_repeated);
}

static void run_eviction(void)
{
    struct backend_record *record = NULL;
    struct loss l = loss_of(8, 60, HEAD);
    for (int again = 0; again < 2; again++)
        for (uint64_t key = 0; key < KEYS; key++)
            expect_repeated(&l, &record, key);
    expect_calls(&l, 2 * KEYS, 2 * KEYS);
    l.calls = 0;
    expect_repeated(&l, &record, 0);
    expect_calls(&l, 0, 1);
    expect_repeated(&l, &record, KEYS); /* takes the place of key 1 */
    expect_calls(&l, 1, 2);
    expect_repeated(&l, &record, 0);
    expect_repeated(&l, &record, 2);
    expect_calls(&l, 1, 4);
    expect_repeated(&l, &record, 1);
    expect_calls(&l, 2, 5);
    be->record_close(record);
}
Test(operations_record, a_seventeenth_key_takes_the_place_of_the_oldest)
{
    both(run_eviction);
}

/* A larger call between the repeated ones moves the scratch memory that the record used. */
static void run_moved(void)
{
    struct backend_record *record = NULL;
    struct loss small = loss_of(12, 80, HEAD), large = loss_of(40, 500, HEAD);
    for (int i = 0; i < 3; i++)
        expect_repeated(&small, &record, 1);
    expect_calls(&small, 2, 3);
    work_loss(&large);
    for (int i = 0; i < 3; i++)
        expect_repeated(&small, &record, 1);
    expect_calls(&small, 4, 6);
    void *memory = NULL;
    ok(be->memory_take(&memory, c, 1000));
    be->memory_give(c, memory);
    expect_repeated(&small, &record, 1);
    expect_calls(&small, 5, 7);
    be->record_close(record);
}
Test(operations_record, memory_given_back_ends_a_record)
{
    both(run_moved);
}

/* The converted copies of weights that stay as in the file share one place, so another weight used
 * in between must not be taken for the recorded one. */
static void run_converted(void)
{
    struct backend_record *record = NULL;
    struct loss one = loss_of(12, 80, HEAD | BACKEND_KEEP), two = loss_of(12, 80, HEAD);
    struct part_kind part = {DTYPE_Q8_0, 80, 0};
    one.w = weight_of_parts(&part, 1, 32, false, HEAD | BACKEND_KEEP);
    two.w = weight_of_parts(&part, 1, 32, false, HEAD | BACKEND_KEEP);
    struct loss *all[] = {&one, &two};
    for (int i = 0; i < 2; i++) {
        all[i]->hidden = tensor_normal(precision, all[i]->rows, 32, 0, 1.0);
        all[i]->dhidden = tensor_result(DTYPE_F32, all[i]->rows, 32, 0);
    }
    double *want = NULL;
    for (int i = 0; i < 4; i++) {
        be->repeat(c, &record, 1, work_loss, &one);
        work_loss(&two);
        be->zero(c, one.dhidden.m, one.rows, 32);
        be->repeat(c, &record, 1, work_loss, &one);
        double *got = tensor_get(&one.dhidden, "converted");
        if (i == 0) want = got;
        rows_same(want, 0, got, 0, one.rows, 32, "converted");
        double *other = tensor_get(&two.dhidden, "converted");
        work_loss(&two);
        rows_same(other, 0, tensor_get(&two.dhidden, "converted"), 0, two.rows, 32, "converted");
    }
    be->record_close(record);
}
Test(operations_record, a_record_converts_its_own_weights)
{
    both(run_converted);
}

#ifdef OPERATIONS_CUDA
/* Work that needs more scratch memory in its second call cannot be captured. */
static void run_uncapturable(void)
{
    struct backend_record *record = NULL;
    struct loss l = loss_of(60, 300, HEAD);
    struct shim_counts before, after;
    shim_counts_get(&before);
    for (int i = 0; i < 4; i++) {
        l.rows = i == 0 ? 4 : l.r.now.learned;
        be->repeat(c, &record, 1, work_loss, &l);
        ok(be->check(c));
    }
    double *got = tensor_get(&l.dhidden, "uncapturable");
    work_loss(&l);
    rows_same(tensor_get(&l.dhidden, "uncapturable"), 0, got, 0, l.rows, WIDTH, "uncapturable");
    shim_counts_get(&after);
    cr_expect_eq(after.graphs, before.graphs);
    cr_expect_eq(l.calls, 6); /* four, one in vain, and the last */
    be->record_close(record);
}
Test(operations_record, work_that_cannot_be_captured_runs_directly)
{
    both(run_uncapturable);
}

/* The start, the end and the instantiation of a capture fail in turn. */
static void run_refused(void)
{
    for (uint64_t nth = 1; nth <= 3; nth++) {
        struct backend_record *record = NULL;
        struct loss l = loss_of(12, 80, HEAD);
        struct shim_counts before, after;
        expect_repeated(&l, &record, 1);
        shim_counts_get(&before);
        shim_fault_at(SHIM_FAULT_CAPTURE, nth);
        for (int i = 0; i < 3; i++)
            expect_repeated(&l, &record, 1);
        shim_counts_get(&after);
        cr_expect_eq(after.graphs, before.graphs);
        be->record_close(record);
    }
}
Test(operations_record, a_refused_capture_is_not_tried_again)
{
    both(run_refused);
}

static void run_failed(void)
{
    static const enum shim_fault faults[] = {SHIM_FAULT_LAUNCH, SHIM_FAULT_GRAPH};
    for (size_t i = 0; i < 2; i++) {
        struct backend_record *record = NULL;
        struct loss l = loss_of(12, 80, HEAD);
        expect_repeated(&l, &record, 1);
        shim_fault_at(faults[i], 1);
        be->repeat(c, &record, 1, work_loss, &l);
        refused(be->check(c), ERR_MACHINE, "cuda:0: ");
        expect_repeated(&l, &record, 1);
        be->record_close(record);
    }
}
Test(operations_record, a_failed_launch_in_a_record_fails_the_pass)
{
    both(run_failed);
}
#endif
