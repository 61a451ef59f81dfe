#include "engine/member/member_adapter.h"

#include "agg/round/method.h"
#include "base/file.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BASE FEDLORA_SOURCE_DIR "/tests/models/llama"
#define DIGEST "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define OK(call)                                                                                   \
    do {                                                                                           \
        err ok_ = (call);                                                                          \
        cr_assert_eq(ok_.kind, ERR_OK, "%s: %s", #call, ok_.text);                                 \
    } while (0)

enum { MODULES = 3 };

struct bench {
    char dir[64], state[128], frozen[128], update[128];
    struct model model;
    struct method_module module[MODULES];
    char name[MODULES][LIMIT_TENSOR_NAME_BYTES];
    struct method_start start;
    struct member_round round;
};

/* The first state of a run of `method` over the tiny base's q, v and down of layer 0. */
static void bench_open(struct bench *b, const char *method, uint32_t rank)
{
    static const enum module_kind kinds[MODULES] = {MODULE_Q, MODULE_V, MODULE_DOWN};
    snprintf(b->dir, sizeof b->dir, "/tmp/member_adapter.XXXXXX");
    cr_assert_not_null(mkdtemp(b->dir));
    snprintf(b->state, sizeof b->state, "%s/state", b->dir);
    snprintf(b->frozen, sizeof b->frozen, "%s/frozen", b->dir);
    snprintf(b->update, sizeof b->update, "%s/update", b->dir);
    OK(model_open(&b->model, BASE));
    for (int i = 0; i < MODULES; i++) {
        model_module_name(b->name[i], 0, kinds[i]);
        b->module[i].name = b->name[i];
        model_module_shape(&b->module[i].d_out, &b->module[i].d_in, &b->model.arch, kinds[i]);
    }
    b->start = (struct method_start){.run = "r",
                                     .base = DIGEST,
                                     .seed = 7,
                                     .rank = rank,
                                     .alpha = rank,
                                     .module = b->module,
                                     .module_count = MODULES,
                                     .threads = 1};
    b->round = (struct member_round){.run = "r",
                                     .member = "ann",
                                     .method = method,
                                     .base = DIGEST,
                                     .state_path = b->state,
                                     .frozen_digest = "",
                                     .round = 1,
                                     .rank = rank,
                                     .alpha = 2.0 * rank,
                                     .seed = 7,
                                     .trains = ADAPTER_A | ADAPTER_B};
}

static void bench_state(struct bench *b)
{
    OK(method_start(method_find(b->round.method), b->state, &b->start));
}

static void bench_close(struct bench *b)
{
    char command[128];
    model_close(&b->model);
    snprintf(command, sizeof command, "rm -rf %s", b->dir);
    cr_assert_eq(system(command), 0);
}

Test(member_adapter, a_fresh_method_starts_from_the_keyed_a_and_zero_b)
{
    struct bench b = {0};
    struct member_adapter a = {0};
    bench_open(&b, "flora", 4);
    bench_state(&b);
    OK(member_adapter_open(&a, &b.model.arch, &b.round));
    const struct adapter_module *q = adapter_find(&a.adapter, 0, MODULE_Q);
    cr_assert_not_null(q);
    cr_assert_eq(q->rank, 4);
    cr_assert_float_eq(q->scale, 2.0f, 1e-7);
    float *expected = calloc((size_t)4 * q->d_in, sizeof *expected);
    const struct method_fresh key = {
        .seed = 7, .run = "r", .member = "ann", .module = b.name[0], .round = 1};
    method_fresh_a(expected, 4, q->d_in, &key);
    cr_assert_eq(memcmp(q->a, expected, (size_t)4 * q->d_in * sizeof *expected), 0);
    for (uint32_t i = 0; i < q->d_out * 4; i++)
        cr_assert_eq(q->b[i], 0);
    free(expected);
    member_adapter_close(&a);
    bench_close(&b);
}

Test(member_adapter, an_update_is_what_the_method_admits_and_always_the_same_bytes)
{
    struct bench b = {0};
    struct member_adapter a = {0};
    struct adapter_file state = {0};
    struct digest first, second;
    bench_open(&b, "flora", 4);
    bench_state(&b);
    for (int i = 0; i < 2; i++) {
        OK(member_adapter_open(&a, &b.model.arch, &b.round));
        for (size_t k = 0; k < a.adapter.value_count; k++)
            a.adapter.value[k] += 0.001f * (float)(k % 17);
        OK(member_adapter_write(b.update, &a, &b.round, 0));
        OK(digest_of_file(i == 0 ? &first : &second, b.update));
        member_adapter_close(&a);
    }
    cr_assert(digest_equal(&first, &second));
    OK(adapter_file_map(&state, b.state));
    struct method_expect expect = {
        .state = &state, .member = "ann", .round = 1, .rank = 4, .alpha = 8};
    OK(method_check_update(method_find("flora"), b.update, &expect));
    expect.round = 2;
    cr_assert_eq(method_check_update(method_find("flora"), b.update, &expect).kind, ERR_STATE);
    expect.round = 1;
    expect.rank = 8;
    cr_assert_eq(method_check_update(method_find("flora"), b.update, &expect).kind, ERR_INPUT);
    adapter_file_close(&state);
    bench_close(&b);
}

/* out (d_out, d_in) += s b r a, in double. */
static void add_product(double *out, const struct adapter_module *m, const float *r, double s)
{
    for (uint32_t i = 0; i < m->d_out; i++)
        for (uint32_t j = 0; j < m->d_in; j++)
            for (uint32_t p = 0; p < m->rank; p++)
                for (uint32_t q = 0; q < m->rank; q++)
                    out[(size_t)i * m->d_in + j] += s * m->b[(size_t)i * m->rank + p] *
                                                    r[(size_t)p * m->rank + q] *
                                                    m->a[(size_t)q * m->d_in + j];
}

static double *whole_change(const struct adapter_module *m)
{
    double *out = calloc((size_t)m->d_out * m->d_in, sizeof *out);
    float *one = calloc((size_t)m->rank * m->rank + 1, sizeof *one);
    for (uint32_t i = 0; i < m->rank; i++)
        one[(size_t)i * m->rank + i] = 1;
    add_product(out, m, m->r ? m->r : one, m->scale);
    free(one);
    for (uint32_t i = 0; i < m->d_out; i++)
        for (uint32_t j = 0; j < m->d_in; j++)
            for (uint32_t c = 0; c < m->carry_rank; c++)
                out[(size_t)i * m->d_in + j] += (double)m->carry_b[(size_t)i * m->carry_rank + c] *
                                                m->carry_a[(size_t)c * m->d_in + j];
    return out;
}

/* A fed-sb state with every entry of R set, as it is after rounds. */
static void make_full_state(struct bench *b)
{
    struct adapter_file state = {0};
    const struct method *method = method_find("fed-sb");
    static char digest_hex[DIGEST_TEXT_BYTES];
    struct digest digest;
    OK(method_make_frozen(method, b->frozen, &b->start));
    OK(digest_of_file(&digest, b->frozen));
    digest_text(digest_hex, &digest);
    b->start.frozen_path = b->frozen;
    b->start.frozen_digest = digest_hex;
    bench_state(b);
    OK(adapter_file_open(&state, b->state));
    for (size_t i = 0; i < state.count; i++) {
        struct adapter_file_factor *r = &state.module[i].factor[ADAPTER_FILE_R];
        uint32_t n = state.module[i].rank;
        float *value = calloc((size_t)n * n, sizeof *value);
        for (uint32_t k = 0; k < n * n; k++)
            value[k] = sinf((float)(k + 3 * i));
        *r = (struct adapter_file_factor){.f32 = value, .rows = n, .cols = n};
    }
    OK(adapter_file_write(b->state, &state.meta, state.module, state.count, true));
    for (size_t i = 0; i < state.count; i++)
        free((void *)(uintptr_t)state.module[i].factor[ADAPTER_FILE_R].f32);
    adapter_file_close(&state);
    b->round.frozen_path = b->frozen;
    b->round.frozen_digest = digest_hex;
    b->round.trains = ADAPTER_R;
}

Test(member_adapter, a_member_that_trains_a_block_of_r_still_holds_the_whole_model)
{
    struct bench b = {0};
    struct member_adapter whole = {0}, block = {0};
    bench_open(&b, "fed-sb", 8);
    make_full_state(&b);
    OK(member_adapter_open(&whole, &b.model.arch, &b.round));
    b.round.rank = 3;
    OK(member_adapter_open(&block, &b.model.arch, &b.round));
    const struct adapter_module *w = adapter_find(&whole.adapter, 0, MODULE_V);
    const struct adapter_module *k = adapter_find(&block.adapter, 0, MODULE_V);
    cr_assert_eq(w->rank, 8);
    cr_assert_eq(k->rank, 3);
    cr_assert_eq(block.adapter.value_count, MODULES * 3 * 3);
    double *expected = whole_change(w), *got = whole_change(k), most = 0, difference = 0;
    for (size_t i = 0; i < (size_t)w->d_out * w->d_in; i++) {
        most = fmax(most, fabs(expected[i]));
        difference = fmax(difference, fabs(expected[i] - got[i]));
    }
    cr_assert_gt(most, 1e-3);
    cr_assert_lt(difference, 1e-6 * most, "%g of %g", difference, most);
    OK(member_adapter_write(b.update, &block, &b.round, 0));
    struct adapter_file state = {0};
    OK(adapter_file_map(&state, b.state));
    const struct method_expect expect = {.state = &state, .member = "ann", .round = 1, .rank = 3};
    OK(method_check_update(method_find("fed-sb"), b.update, &expect));
    adapter_file_close(&state);
    free(expected);
    free(got);
    member_adapter_close(&whole);
    member_adapter_close(&block);
    bench_close(&b);
}

/* The state's B is zero at the start; here it is not. */
static void fill_b(struct bench *b)
{
    struct adapter_file state = {0};
    OK(adapter_file_open(&state, b->state));
    for (size_t i = 0; i < state.count; i++) {
        struct adapter_file_factor *f = &state.module[i].factor[ADAPTER_FILE_B];
        float *value = calloc((size_t)f->rows * f->cols, sizeof *value);
        for (uint32_t k = 0; k < f->rows * f->cols; k++)
            value[k] = cosf((float)(k + 5 * i));
        f->f32 = value;
    }
    OK(adapter_file_write(b->state, &state.meta, state.module, state.count, true));
    for (size_t i = 0; i < state.count; i++)
        free((void *)(uintptr_t)state.module[i].factor[ADAPTER_FILE_B].f32);
    adapter_file_close(&state);
}

static void expect_same_change(const struct member_adapter *a, const struct member_adapter *b,
                               enum module_kind kind)
{
    const struct adapter_module *m = adapter_find(&a->adapter, 0, kind);
    double *x = whole_change(m), *y = whole_change(adapter_find(&b->adapter, 0, kind));
    double most = 0, difference = 0;
    for (size_t i = 0; i < (size_t)m->d_out * m->d_in; i++) {
        most = fmax(most, fabs(x[i]));
        difference = fmax(difference, fabs(x[i] - y[i]));
    }
    cr_expect_gt(most, 1e-3);
    cr_expect_lt(difference, 1e-6 * most, "%g of %g", difference, most);
    free(x);
    free(y);
}

Test(member_adapter, a_module_that_is_not_ours_is_frozen_whole_and_not_sent)
{
    struct bench b = {0};
    struct member_adapter whole = {0}, part = {0};
    struct adapter_file state = {0}, update = {0};
    bench_open(&b, "fedit", 4);
    bench_state(&b);
    fill_b(&b);
    OK(member_adapter_open(&whole, &b.model.arch, &b.round));
    char *ours[] = {b.name[0], b.name[2]};
    b.round.adapts = ours;
    b.round.adapts_count = 2;
    b.round.alpha = 4;
    OK(member_adapter_open(&part, &b.model.arch, &b.round));
    expect_same_change(&whole, &part, MODULE_Q);
    expect_same_change(&whole, &part, MODULE_V);
    cr_expect_eq(adapter_find(&part.adapter, 0, MODULE_V)->rank, 0);
    OK(member_adapter_write(b.update, &part, &b.round, 0));
    OK(adapter_file_open(&update, b.update));
    cr_assert_eq(update.count, 2);
    cr_expect_null(adapter_file_find(&update, b.name[1]));
    OK(adapter_file_map(&state, b.state));
    const char *sorted[] = {b.name[2], b.name[0]};
    struct method_expect expect = {.state = &state,
                                   .member = "ann",
                                   .round = 1,
                                   .rank = 4,
                                   .alpha = 4,
                                   .module = sorted,
                                   .module_count = 2};
    OK(method_check_update(method_find("fedit"), b.update, &expect));
    expect.module_count = 1;
    cr_expect_eq(method_check_update(method_find("fedit"), b.update, &expect).kind, ERR_INPUT);
    expect.module = NULL;
    cr_expect_eq(method_check_update(method_find("fedit"), b.update, &expect).kind, ERR_INPUT);
    adapter_file_close(&state);
    adapter_file_close(&update);
    member_adapter_close(&whole);
    member_adapter_close(&part);
    bench_close(&b);
}

Test(member_adapter, an_evaluation_has_the_whole_state_whatever_our_part_is)
{
    struct bench b = {0};
    struct member_adapter whole = {0}, seen = {0};
    bench_open(&b, "fedit", 4);
    bench_state(&b);
    fill_b(&b);
    OK(member_adapter_open(&whole, &b.model.arch, &b.round));
    b.round = (struct member_round){.run = "r",
                                    .member = "ann",
                                    .method = "fedit",
                                    .base = DIGEST,
                                    .state_path = b.state,
                                    .frozen_digest = "",
                                    .round = 1,
                                    .evaluates = true};
    OK(member_adapter_open(&seen, &b.model.arch, &b.round));
    expect_same_change(&whole, &seen, MODULE_DOWN);
    member_adapter_close(&whole);
    member_adapter_close(&seen);
    bench_close(&b);
}

Test(member_adapter, a_pruned_update_is_the_leading_part_at_the_same_scale)
{
    struct bench b = {0};
    struct member_adapter a = {0};
    struct adapter_file update = {0};
    bench_open(&b, "fedit", 4);
    bench_state(&b);
    fill_b(&b);
    OK(member_adapter_open(&a, &b.model.arch, &b.round));
    OK(member_adapter_write(b.update, &a, &b.round, 3));
    OK(adapter_file_open(&update, b.update));
    const struct adapter_file_module *u = adapter_file_find(&update, b.name[1]);
    const struct adapter_module *m = adapter_find(&a.adapter, 0, MODULE_V);
    cr_assert_eq(u->rank, 3);
    cr_expect_float_eq(u->scale, m->scale, 1e-12);
    for (uint32_t i = 0; i < m->d_out; i++)
        for (uint32_t j = 0; j < 3; j++)
            cr_assert_eq(u->factor[ADAPTER_FILE_B].f32[i * 3 + j], m->b[i * 4 + j]);
    cr_expect_eq(memcmp(u->factor[ADAPTER_FILE_A].f32, m->a, 3 * m->d_in * sizeof *m->a), 0);
    adapter_file_close(&update);
    member_adapter_close(&a);
    bench_close(&b);
}

/* A member of rank 3 of a state of rank 8, both over the same random B. */
static void open_part(struct member_adapter *whole, struct member_adapter *part, struct bench *b,
                      const char *method)
{
    bench_open(b, method, 8);
    bench_state(b);
    fill_b(b);
    OK(member_adapter_open(whole, &b->model.arch, &b->round));
    b->round.rank = 3;
    b->round.alpha = 3; /* the state's scale is 1 */
    OK(member_adapter_open(part, &b->model.arch, &b->round));
    cr_assert_eq(adapter_find(&part->adapter, 0, MODULE_V)->rank, 3);
    cr_expect_float_eq(adapter_find(&part->adapter, 0, MODULE_V)->scale, 1, 1e-7);
}

static void expect_admitted(const struct bench *b, const struct member_adapter *part, uint32_t sent,
                            uint32_t assigned)
{
    struct adapter_file state = {0};
    OK(member_adapter_write(b->update, part, &b->round, sent));
    OK(adapter_file_map(&state, b->state));
    const struct method_expect expect = {
        .state = &state, .member = "ann", .round = 1, .rank = assigned, .alpha = assigned};
    OK(method_check_update(method_find(b->round.method), b->update, &expect));
    adapter_file_close(&state);
}

Test(member_adapter, a_smaller_member_of_flexlora_trains_the_leading_part_beside_the_rest)
{
    struct bench b = {0};
    struct member_adapter whole = {0}, part = {0};
    open_part(&whole, &part, &b, "flexlora");
    expect_same_change(&whole, &part, MODULE_V);
    expect_same_change(&whole, &part, MODULE_DOWN);
    cr_expect_eq(adapter_find(&part.adapter, 0, MODULE_V)->carry_rank, 5);
    expect_admitted(&b, &part, 0, 3);
    member_adapter_close(&whole);
    member_adapter_close(&part);
    bench_close(&b);
}

Test(member_adapter, a_smaller_member_of_hetlora_has_the_leading_part_alone_and_may_prune_it)
{
    struct bench b = {0};
    struct member_adapter whole = {0}, part = {0};
    open_part(&whole, &part, &b, "hetlora");
    const struct adapter_module *w = adapter_find(&whole.adapter, 0, MODULE_V);
    const struct adapter_module *p = adapter_find(&part.adapter, 0, MODULE_V);
    cr_expect_eq(p->carry_rank, 0);
    for (uint32_t i = 0; i < w->d_out; i++)
        for (uint32_t j = 0; j < 3; j++)
            cr_assert_eq(p->b[i * 3 + j], w->b[i * 8 + j]);
    cr_expect_eq(memcmp(p->a, w->a, 3 * w->d_in * sizeof *w->a), 0);
    expect_admitted(&b, &part, 0, 3);
    expect_admitted(&b, &part, 2, 3);
    member_adapter_close(&whole);
    member_adapter_close(&part);
    bench_close(&b);
}

static void refuses(struct bench *b, const char *text)
{
    struct member_adapter a = {0};
    err e = member_adapter_open(&a, &b->model.arch, &b->round);
    cr_assert_eq(e.kind, ERR_INPUT, "%d: %s", e.kind, e.text);
    cr_assert(strstr(e.text, text) != NULL, "\"%s\" does not say \"%s\"", e.text, text);
}

Test(member_adapter, refuses_a_state_that_is_not_for_this_run_base_or_model)
{
    struct bench b = {0};
    bench_open(&b, "flora", 4);
    bench_state(&b);
    b.round.run = "other";
    refuses(&b, "expected \"other\"");
    b.round.run = "r";
    b.round.base = "11112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    refuses(&b, "is for the base");
    b.round.base = DIGEST;
    b.round.method = "nothing";
    refuses(&b, "method \"nothing\"");
    b.round.method = "flora";
    b.round.alpha = NAN;
    refuses(&b, "no scale");
    b.round.alpha = 8;
    b.round.rank = 0;
    refuses(&b, "no factors to train");
    b.round.rank = 4;
    b.model.arch.layers = 0;
    refuses(&b, "module");
    bench_close(&b);
}
