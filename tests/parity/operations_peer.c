/* Copies and sums between two contexts of one backend, and the memory that a context counts, see
 * operations.c. With the shim of CUDA the contexts are on two devices. */
#include "tests/support/operations.h"

static struct backend_context *open_other(void)
{
    struct backend_options o = {.precision = DTYPE_F32, .threads = 1, .device = SMALL};
    struct backend_context *other;
    ok(be->open(&other, &o));
    return other;
}

/* The values of `from` change after the call, and it has to have read them before. */
static void check_peers(size_t n)
{
    struct backend_context *other = open_other();
    float *from, *to = device_take(n * sizeof(float)), *sum = device_take(n * sizeof(float));
    float *a = floats_normal(n, DTYPE_F32, 1.0), *b = floats_normal(n, DTYPE_F32, 1.0);
    float *got = host_take(n, sizeof *got), *added = host_take(n, sizeof *added);
    struct mat row = {NULL, DTYPE_F32, n};
    ok(be->memory_take(&from, other, n * sizeof(float)));
    row.data = from;
    be->copy_in(c, sum, b, n * sizeof(float));
    be->copy_in(other, from, a, n * sizeof(float));
    be->peer_copy(c, to, other, from, n);
    be->peer_add(c, sum, other, from, n);
    be->zero(other, row, 1, n);
    be->copy_out(c, got, to, n * sizeof(float));
    be->copy_out(c, added, sum, n * sizeof(float));
    be->peer_copy(other, from, c, sum, n);
    ok(be->check(c));
    ok(be->check(other));
    cr_expect(!memcmp(got, a, n * sizeof(float)), "copy of %zu values", n);
    for (size_t i = 0; i < n; i++)
        cr_assert_eq(added[i], b[i] + a[i], "value %zu of %zu", i, n);
    be->copy_out(other, got, from, n * sizeof(float));
    ok(be->check(other));
    cr_expect(!memcmp(got, added, n * sizeof(float)), "copy of %zu values back", n);
    be->memory_give(other, from);
    be->close(other);
}

Test(operations_peer, contexts_copy_and_add)
{
    static const size_t size[] = {1, 3, 257, 70001};
    begin(DTYPE_F32);
    for (size_t i = 0; i < sizeof size / sizeof size[0]; i++)
        check_peers(size[i]);
    end();
}

/* weight_bytes() says before what weight_pack() takes. */
static void run_weights(void)
{
    static const struct part_kind parts[] = {{DTYPE_Q8_0, 40, 0}, {DTYPE_F16, 24, 0}};
    for (unsigned keep = 0; keep < 2; keep++) {
        unsigned products = BACKEND_FORWARD | BACKEND_BACKWARD | (keep ? BACKEND_KEEP : 0);
        struct weight_source s = {.n = 64, .k = 256, .parts = 2, .products = products};
        struct backend_weight_bytes bytes = {0};
        for (int i = 0; i < 2; i++)
            s.part[i] = (struct weight_part){.type = parts[i].type, .rows = parts[i].rows};
        be->weight_bytes(&bytes, c, &s);
        uint64_t before = be->memory_held(c), scratch;
        struct test_weight w = weight_of_parts(parts, 2, 256, false, products);
        scratch = SMALL ? 64 * 256 * 4 : 0; /* what packing has used, at most */
        uint64_t taken = be->memory_held(c) - before;
        cr_expect(w.w && bytes.scratch > 0);
        if (!SMALL && keep) continue; /* the CPU maps the file */
        cr_expect(taken >= bytes.held && taken <= bytes.held + scratch, "%zu, expected %zu",
                  (size_t)taken, (size_t)bytes.held);
    }
}
Test(operations_peer, weights_take_what_is_counted)
{
    both(run_weights);
}

Test(operations_peer, a_device_has_free_memory)
{
    begin(DTYPE_F32);
    cr_expect(be->devices() >= 1 && be->memory_free(c) > 0);
    end();
}
