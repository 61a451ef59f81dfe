/* Every entry of the table of a backend against a plain computation in float64, in float32 and in
 * bfloat16. This file has memory, copies, batches and AdamW, and the list of all entries. The other
 * files operations_*.c of this folder have the other entries. With -DOPERATIONS_CUDA the programs
 * test the CUDA backend in place of the CPU. */
#include "tests/support/operations.h"

static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16};

/* ---- context, memory and copies ---- */
Test(operations, open_gives_the_precision_asked_for)
{
    struct backend_options o = {.precision = DTYPE_NONE, .threads = 1};
    cr_assert(be->name && be->name[0]);
    ok(be->open(&c, &o));
    enum dtype t = be->precision(c);
    cr_expect(t == DTYPE_F32 || t == DTYPE_BF16, "%s", dtype_name(t));
    ok(be->check(c));
    be->close(c);
    begin(DTYPE_F32);
    end();
    begin(DTYPE_BF16);
    end();
}

Test(operations, memory_starts_as_zeros)
{
    static const size_t size[] = {1, 7, 64, 4097, 100000};
    begin(DTYPE_F32);
    for (size_t i = 0; i < sizeof size / sizeof size[0]; i++) {
        char *host = malloc(size[i]), *zero = calloc(1, size[i]), *memory;
        memset(host, 1, size[i]);
        ok(be->memory_take(&memory, c, size[i]));
        device_get(host, memory, size[i]);
        cr_expect(!memcmp(host, zero, size[i]), "%zu bytes", size[i]);
        be->memory_give(c, memory);
        free(host);
        free(zero);
    }
    end();
}

Test(operations, copies_keep_bytes_at_any_place)
{
    enum { BYTES = 1000 };
    static const size_t part[][2] = {{0, BYTES}, {3, 1}, {501, 13}, {64, 128}, {7, 0}};
    uint8_t host[BYTES], back[BYTES], expected[BYTES] = {0};
    begin(DTYPE_F32);
    uint8_t *memory = device_take(BYTES);
    for (size_t i = 0; i < BYTES; i++)
        host[i] = (uint8_t)(i * 7 + 1);
    for (size_t i = 0; i < sizeof part / sizeof part[0]; i++) {
        device_put(memory + part[i][0], host, part[i][1]);
        memcpy(expected + part[i][0], host, part[i][1]);
    }
    for (size_t i = 0; i < sizeof part / sizeof part[0]; i++) {
        memset(back, 0, sizeof back);
        device_get(back, memory + part[i][0], part[i][1]);
        cr_expect(!memcmp(back, expected + part[i][0], part[i][1]), "part %zu", i);
    }
    end();
}

Test(operations, zero_stays_within_its_rows_and_columns)
{
    static const size_t size[][2] = {{1, 1}, {5, 7}, {130, 33}, {3, 1025}, {0, 4}};
    begin(DTYPE_F32);
    for (size_t i = 0; i < 2 * sizeof size / sizeof size[0]; i++) {
        const size_t *s = size[i / 2];
        struct tensor t = tensor_normal(types[i % 2], s[0], s[1], 3, 1.0);
        be->zero(c, t.m, s[0], s[1]);
        tensor_clear(&t);
        tensor_near(&t, 0.0, "zero");
    }
    end();
}

Test(operations, convert_scales_between_any_two_types)
{
    static const size_t size[][2] = {{1, 1}, {5, 7}, {67, 1001}, {3, 2049}, {0, 3}};
    static const float scale[] = {1.0f, -0.37f, 1e-3f};
    begin(DTYPE_F32);
    for (size_t i = 0; i < 4 * sizeof size / sizeof size[0]; i++)
        for (size_t k = 0; k < sizeof scale / sizeof scale[0]; k++) {
            const size_t *s = size[i / 4];
            struct tensor from = tensor_normal(types[i % 2], s[0], s[1], 5, 2.0);
            struct tensor to = tensor_new(types[i / 2 % 2], s[0], s[1], 2);
            be->convert(c, to.m, from.m, s[0], s[1], scale[k]);
            for (size_t j = 0; j < s[0] * s[1]; j++)
                to.x[j] = rounded((double)((float)from.x[j] * scale[k]), to.m.type);
            tensor_near(&to, 0.0, "convert");
        }
    end();
}

/* A device may round the product and the sum once. */
Test(operations, add_scales_what_it_adds)
{
    static const size_t size[][2] = {{1, 1}, {5, 7}, {67, 1001}, {3, 2049}, {0, 3}};
    static const float scale[] = {1.0f, -0.37f};
    begin(DTYPE_F32);
    for (size_t i = 0; i < 2 * sizeof size / sizeof size[0]; i++)
        for (size_t k = 0; k < sizeof scale / sizeof scale[0]; k++) {
            const size_t *s = size[i / 2];
            struct tensor from = tensor_normal(types[i % 2], s[0], s[1], 5, 2.0);
            struct tensor to = tensor_normal(DTYPE_F32, s[0], s[1], 2, 1.0);
            be->add(c, to.m, from.m, s[0], s[1], scale[k]);
            for (size_t j = 0; j < s[0] * s[1]; j++)
                to.x[j] += from.x[j] * (double)scale[k];
            tensor_near(&to, 1e-6, "add");
        }
    end();
}

static void run_nothing(void)
{
    struct tensor x = tensor_normal(DTYPE_F32, 40, 24, 0, 1.0);
    struct tensor y = tensor_new(precision, 40, 24, 0);
    struct backend_profile before, after;
    struct norm_shape s = {40, 1, 24, 1e-5f};
    float *weight = device_take(24 * sizeof *weight), *inv = device_take(40 * sizeof *inv);
    be->profile(&before, c);
    be->norm(c, y.m, inv, (struct mat){0}, x.m, weight, &s);
    ok(be->check(c));
    be->profile(&after, c);
    cr_expect_gt(after.calls[OP_NORM], before.calls[OP_NORM]);
    for (int op = 0; op < OP_COUNT; op++)
        cr_expect(after.seconds[op] >= before.seconds[op], "%s",
                  backend_op_name((enum backend_op)op));
}
Test(operations, profile_counts_the_operations)
{
    both(run_nothing);
}

/* ---- batches ---- */
/* to (learned, cols) = the learned rows of `from`, and sums of them added at their places. */
static void check_learned(const struct rows_of_batch *r, size_t cols, enum dtype type)
{
    size_t tokens = r->now.tokens, learned = r->now.learned, first = learned / 3;
    struct tensor all = tensor_normal(DTYPE_F32, tokens, cols, 3, 1.0);
    struct tensor sum = tensor_normal(DTYPE_F32, tokens, cols, 1, 1.0);
    struct tensor part = tensor_new(type, learned - first, cols, 2);
    struct tensor add = tensor_normal(type, learned - first, cols, 2, 1.0);
    be->learned_take(c, part.m, all.m, r->b, first, learned - first, cols);
    be->learned_add(c, sum.m, add.m, r->b, first, learned - first, cols);
    for (size_t i = first; i < learned; i++)
        for (size_t j = 0; j < cols; j++) {
            part.x[(i - first) * cols + j] = rounded(all.x[r->index[i] * cols + j], type);
            sum.x[r->index[i] * cols + j] += add.x[(i - first) * cols + j];
        }
    tensor_near(&part, 0.0, "learned_take");
    tensor_near(&sum, 1e-6, "learned_add");
}

static void run_batches(void)
{
    static const uint32_t most[] = {70, 40, 21}, less[] = {3, 0, 1}, one[] = {131}, none[] = {0};
    struct rows_of_batch r = batch_of(most, 3, 50);
    check_learned(&r, 33, DTYPE_F32);
    check_learned(&r, 1027, precision);
    struct {
        const uint32_t *length;
        size_t rows;
    } next[] = {{less, 3}, {one, 1}, {none, 1}, {most, 3}, {less, 1}};
    for (size_t i = 0; i < sizeof next / sizeof next[0]; i++) { /* other sizes in the same batch */
        struct rows_of_batch other = rows_make(next[i].length, next[i].rows, 50);
        other.b = r.b;
        rows_set(&other);
        check_learned(&other, 20, DTYPE_F32);
    }
}
Test(operations, batches_select_the_learned_rows)
{
    both(run_batches);
}

struct repeated { /* work of one key: to = embeddings, sum += learned rows of it */
    struct rows_of_batch *r;
    struct test_weight *w;
    struct tensor *to, *sum;
    int calls;
};
static void work_embed(void *user)
{
    struct repeated *p = user;
    p->calls++;
    be->embed(c, p->to->m, p->w->w, p->r->b);
    be->learned_add(c, p->sum->m, p->to->m, p->r->b, 0, p->r->now.learned, p->w->k);
}
static void work_zero(void *user)
{
    struct repeated *p = user;
    p->calls++;
    be->zero(c, p->sum->m, p->sum->rows, p->sum->cols);
}
static void expect_embedded(const struct repeated *p)
{
    size_t k = p->w->k;
    for (size_t t = 0; t < p->r->now.tokens; t++)
        for (size_t j = 0; j < k; j++)
            p->to->x[t * k + j] = p->w->x[(size_t)p->r->now.id[t] * k + j];
    for (size_t i = 0; i < p->r->now.learned; i++)
        for (size_t j = 0; j < k; j++)
            p->sum->x[p->r->now.index[i] * k + j] += p->to->x[i * k + j];
}

/* The batch changes between the calls, as it does from step to step. */
static void run_repeat(void)
{
    static const uint32_t length[] = {9, 4, 13};
    struct rows_of_batch r = batch_of(length, 3, 21);
    struct part_kind part = {DTYPE_BF16, 21, 0};
    struct test_weight w = weight_of_parts(&part, 1, 24, false, BACKEND_EMBED);
    struct tensor to = tensor_new(DTYPE_F32, 26, 24, 0),
                  sum = tensor_normal(DTYPE_F32, 26, 24, 0, 1.0);
    struct repeated p = {&r, &w, &to, &sum, 0};
    struct backend_record *record = NULL;
    for (int i = 0; i < 4; i++) {
        struct rows_of_batch next = rows_make(length, 3, 21);
        next.b = r.b;
        r = next;
        rows_set(&r);
        if (i == 2) {
            be->repeat(c, &record, 2, work_zero, &p);
            tensor_clear(&sum);
        }
        be->repeat(c, &record, 1, work_embed, &p);
        expect_embedded(&p);
        tensor_near(&to, near_of(precision), "repeat: embed");
        tensor_near(&sum, near_of(precision), "repeat: learned_add");
    }
    cr_expect_geq(p.calls, 2);
    be->record_close(record);
    be->record_close(NULL);
    be->batch_close(NULL);
    be->weight_close(NULL);
    be->low_rank_close(NULL);
}
Test(operations, repeat_runs_the_work_on_the_newest_batch)
{
    both(run_repeat);
}

/* ---- AdamW ---- */
struct adamw_case {
    size_t n;
    double prox, clip, decay, scale; /* scale of the gradient */
};

/* One step in float64. norm2: the sum of the squared gradients before clipping, and the squared
 * distance from `start`. */
static void plain_adamw(double norm2[2], double *value, double *first, double *second,
                        double *gradient, const float *start, const struct adamw_case *k,
                        const struct adamw *a)
{
    double factor = 1.0;
    norm2[0] = norm2[1] = 0.0;
    for (size_t i = 0; i < k->n; i++) {
        double away = value[i] - (double)start[i];
        norm2[1] += away * away;
        if (k->prox > 0) gradient[i] += k->prox * away;
        norm2[0] += gradient[i] * gradient[i];
    }
    if (k->clip > 0) factor = fmin(1.0, k->clip / (sqrt(norm2[0]) + 1e-6));
    for (size_t i = 0; i < k->n; i++) {
        double g = gradient[i] * factor;
        first[i] = a->beta1 * first[i] + (1.0 - a->beta1) * g;
        second[i] = a->beta2 * second[i] + (1.0 - a->beta2) * g * g;
        double m = first[i] / (1.0 - pow(a->beta1, (double)a->step));
        double v = second[i] / (1.0 - pow(a->beta2, (double)a->step));
        value[i] = value[i] * (1.0 - a->lr * a->weight_decay) - a->lr * m / (sqrt(v) + a->eps);
    }
}

static void check_adamw(const struct adamw_case *k)
{
    struct tensor value = tensor_normal(DTYPE_F32, 1, k->n, 0, 1.0);
    struct tensor first = tensor_new(DTYPE_F32, 1, k->n, 0);
    struct tensor second = tensor_new(DTYPE_F32, 1, k->n, 0);
    struct tensor gradient = tensor_new(DTYPE_F32, 1, k->n, 0);
    float *start = floats_normal(k->n, DTYPE_F32, 1.0), *on_device = device_take(k->n * 4);
    device_put(on_device, start, k->n * sizeof *start);
    tensor_put(&first);
    tensor_put(&second);
    struct optimizer o = {.value = value.m.data, .first = first.m.data, .second = second.m.data};
    o.gradient = gradient.m.data;
    o.n = k->n;
    if (k->prox > 0) o.start = on_device;
    o.prox = k->prox;
    struct adamw a = {1e-2, 0.9, 0.99, 1e-8, k->decay, 0, k->clip};
    for (a.step = 1; a.step <= 3; a.step++) {
        double norm2[2] = {-1.0, -1.0}, want[2];
        fill_normal(gradient.x, k->n, DTYPE_F32, k->scale);
        tensor_put(&gradient);
        be->adamw(c, norm2, &o, &a);
        ok(be->check(c));
        plain_adamw(want, value.x, first.x, second.x, gradient.x, start, k, &a);
        for (int i = 0; i < (k->prox > 0 ? 2 : 1); i++)
            cr_assert_float_eq(norm2[i], want[i], 1e-5 * want[i], "norm2[%d]: %.9g, expected %.9g",
                               i, norm2[i], want[i]);
        if (k->clip <= 0 || k->prox > 0) tensor_near(&gradient, 1e-5, "adamw: gradient");
        tensor_near(&first, 1e-5, "adamw: first");
        tensor_near(&second, 1e-5, "adamw: second");
        tensor_near(&value, 1e-5, "adamw: value");
    }
}

Test(operations, adamw_takes_steps_as_pytorch_does)
{
    static const struct adamw_case all[] = {
        {1, 0.0, 0.0, 0.0, 1.0},    {5, 0.0, 0.0, 0.1, 1e-3},    {1000, 0.0, 1.0, 0.01, 1.0},
        {1000, 0.3, 0.0, 0.0, 1.0}, {4099, 0.3, 2.5, 0.1, 10.0}, {70001, 0.0, 1e9, 0.0, 1e-2},
        {17, 0.0, 1.0, 0.0, 1e15},
    };
    begin(DTYPE_F32);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        check_adamw(&all[i]);
    end();
}

Test(operations, adamw_changes_nothing_when_the_gradient_is_not_finite)
{
    enum { N = 300 };
    begin(DTYPE_F32);
    for (int bad = 0; bad < 3; bad++)
        for (int clip = 0; clip < 2; clip++) {
            struct tensor t[4];
            for (int i = 0; i < 4; i++)
                t[i] = tensor_normal(DTYPE_F32, 1, N, 0, 1.0);
            t[3].x[N - 1] = bad == 0 ? NAN : bad == 1 ? INFINITY : -INFINITY;
            tensor_put(&t[3]);
            struct optimizer o = {.value = t[0].m.data, .first = t[1].m.data, .n = N};
            o.second = t[2].m.data;
            o.gradient = t[3].m.data;
            struct adamw a = {1e-2, 0.9, 0.99, 1e-8, 0.1, 1, clip ? 1.0 : 0.0};
            double norm2[2] = {0.0, 0.0};
            be->adamw(c, norm2, &o, &a);
            ok(be->check(c));
            cr_expect(!isfinite(norm2[0]), "%g", norm2[0]);
            for (int i = 0; i < 3; i++)
                tensor_near(&t[i], 0.0, "adamw: not finite");
        }
    end();
}

/* ---- the list of all entries ---- */
#define ENTRY(member, test)                                                                        \
    {                                                                                              \
#member, offsetof(struct backend, member), test                                            \
    }
static const struct {
    const char *name;
    size_t offset;
    const char *test;
} entry[] = {
    ENTRY(name, "open_gives_the_precision_asked_for"),
    ENTRY(bucket, "records: all tests"),
    ENTRY(devices, "peers: lists_of_devices_are_read"),
    ENTRY(open, "open_gives_the_precision_asked_for"),
    ENTRY(close, "all tests"),
    ENTRY(precision, "open_gives_the_precision_asked_for"),
    ENTRY(check, "all tests"),
    ENTRY(profile, "profile_counts_the_operations"),
    ENTRY(rows_alone, "operations_linear: a_context_knows_..."),
    ENTRY(memory_free, "operations_peer: a_device_has_free_memory"),
    ENTRY(memory_held, "operations_peer: weights_take_what_is_counted"),
    ENTRY(weight_bytes, "operations_peer: weights_take_what_is_counted"),
    ENTRY(scratch_bytes, "memory_plan: counts_what_a_step_takes"),
    ENTRY(memory_take, "memory_starts_as_zeros"),
    ENTRY(memory_give, "memory_starts_as_zeros"),
    ENTRY(copy_in, "copies_keep_bytes_at_any_place"),
    ENTRY(copy_out, "copies_keep_bytes_at_any_place"),
    ENTRY(zero, "zero_stays_within_its_rows_and_columns"),
    ENTRY(convert, "convert_scales_between_any_two_types"),
    ENTRY(add, "add_scales_what_it_adds"),
    ENTRY(peer_copy, "operations_peer: all tests"),
    ENTRY(peer_add, "operations_peer: all tests"),
    ENTRY(batch_open, "batches_select_the_learned_rows"),
    ENTRY(batch_set, "batches_select_the_learned_rows"),
    ENTRY(batch_nll, "operations_linear: head_loss_..."),
    ENTRY(batch_close, "batches_select_the_learned_rows"),
    ENTRY(repeat, "repeat_runs_the_work_on_the_newest_batch"),
    ENTRY(record_close, "repeat_runs_the_work_on_the_newest_batch"),
    ENTRY(weight_pack, "operations_linear: weights_are_read_..."),
    ENTRY(weight_close, "operations_linear: all tests"),
    ENTRY(embed, "operations_linear: embed_..."),
    ENTRY(low_rank_room, "operations_low_rank: all tests"),
    ENTRY(low_rank_open, "operations_low_rank: all tests"),
    ENTRY(low_rank_close, "operations_low_rank: all tests"),
    ENTRY(low_rank_load, "operations_low_rank: load_..."),
    ENTRY(low_rank_set, "operations_low_rank: set_..."),
    ENTRY(linear, "operations_linear: linear_..., operations_low_rank"),
    ENTRY(low_rank_shrink, "operations_low_rank: all tests"),
    ENTRY(linear_back, "operations_linear: linear_..., operations_low_rank"),
    ENTRY(low_rank_gradient, "operations_low_rank: all tests"),
    ENTRY(head_loss, "operations_linear: head_loss_..."),
    ENTRY(learned_take, "batches_select_the_learned_rows"),
    ENTRY(learned_add, "batches_select_the_learned_rows"),
    ENTRY(norm, "operations_elementwise: norms_..."),
    ENTRY(norm_back, "operations_elementwise: norms_..."),
    ENTRY(rope, "operations_elementwise: rope_..."),
    ENTRY(attention, "operations_attention: attention_..."),
    ENTRY(attention_back, "operations_attention: attention_..."),
    ENTRY(attention_decode, "operations_attention: decode_..."),
    ENTRY(gate, "operations_elementwise: gate_..."),
    ENTRY(gate_back, "operations_elementwise: gate_..."),
    ENTRY(adamw, "adamw_takes_steps_as_pytorch_does"),
};
_Static_assert(sizeof(struct backend) == sizeof entry / sizeof entry[0] * sizeof(void *),
               "struct backend has an entry that this list, and so perhaps no test, knows");

Test(operations, every_entry_is_there_and_listed_once)
{
    for (size_t i = 0; i < sizeof entry / sizeof entry[0]; i++) {
        void *function;
        memcpy(&function, (const char *)be + entry[i].offset, sizeof function);
        cr_expect_not_null(function, "%s", entry[i].name);
        cr_expect(entry[i].test[0]);
        cr_expect_eq(entry[i].offset, i * sizeof function, "%s: not in the order of the table",
                     entry[i].name);
    }
}
