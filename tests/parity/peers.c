/* Training on several devices: the rows of each pass are divided, and the result is that of one
 * device apart from rounding. On the CPU several contexts stand for the devices; with the shim of
 * CUDA there are up to four. */
#include "engine/train/train_parts.h"
#include "engine/train/train_private.h"
#include "tests/support/engine_fixture.h"

#include <criterion/criterion.h>
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 7, LENGTH = 20, STEPS = 3 };

static double losses[2][STEPS]; /* of the devices that are compared */

/* The engine of `devices` devices. Contexts of the CPU have no names, so they are put together
 * here. */
static struct engine *open_devices(const struct model *m, enum dtype precision, size_t devices)
{
    struct engine_options o = {.device = support_device(), .precision = precision, .threads = 1};
    struct engine *e = NULL;
    char list[64] = "cuda:0";
    if (!strcmp(support_device(), "cpu")) {
        ok(engine_open(&e, m, &o));
        e->peer = calloc(devices, sizeof(struct engine *));
        for (; e->peers + 1 < devices; e->peers++)
            ok(engine_open(&e->peer[e->peers], m, &o));
        return e;
    }
    void *shim = dlopen(getenv("FEDLORA_CUDA"), RTLD_NOW | RTLD_LOCAL);
    void (*devices_set)(int) = NULL;
    *(void **)&devices_set = shim ? dlsym(shim, "shim_devices_set") : NULL;
    cr_assert(devices_set);
    devices_set(4);
    for (size_t i = 1; i < devices; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), ",cuda:%zu", i);
    o.device = list;
    ok(engine_open(&e, m, &o));
    cr_assert_eq(e->peers, devices - 1);
    cr_expect_str_eq(engine_device(e), devices > 1 ? list : "cuda");
    return e;
}

static void setup_open(struct setup *s, enum dtype precision, size_t devices)
{
    struct rng rng;
    setup_model(s, "llama");
    s->engine = open_devices(&s->model, precision, devices);
    setup_fresh(s, 4);
    rng_init(&rng, "test", 1, "rows", 0);
    for (uint32_t i = 0; i < ROWS; i++)
        setup_row(s, &rng, i == 2 ? 0 : LENGTH - i, 0); /* one row is empty */
}

static bool keep_loss(void *user, const struct train_step *step)
{
    double *loss = user;
    loss[step->step] = step->loss;
    return true;
}

static struct train_options options_of(uint32_t batch)
{
    struct train_options o;
    train_defaults(&o);
    o.steps = STEPS;
    o.batch = batch;
    o.accumulate = 2;
    o.lr = 1e-2;
    o.clip = 0.5;
    o.prox = 0.1;
    o.on_step = keep_loss;
    o.user = losses[0];
    return o;
}

static void train(struct setup *s, double *loss, enum dtype precision, size_t devices,
                  uint32_t batch)
{
    struct train_result result;
    setup_open(s, precision, devices);
    struct train_options o = options_of(batch);
    o.user = loss;
    ok(train_run(&result, &s->adapter, s->engine, &s->data, &o));
    cr_expect_eq(result.steps, STEPS);
}

static void compare(size_t devices, uint32_t batch, enum dtype precision, double most)
{
    struct setup one, more;
    train(&one, losses[0], precision, 1, batch);
    train(&more, losses[1], precision, devices, batch);
    for (int i = 0; i < STEPS; i++)
        cr_expect_float_eq(losses[1][i] / losses[0][i], 1.0, most, "%zu devices, step %d: %g, %g",
                           devices, i, losses[1][i], losses[0][i]);
    double far = support_distance(more.adapter.value, one.adapter.value, one.adapter.value_count);
    cr_expect_lt(far, 20 * most, "%zu devices: %g", devices, far);
    setup_close(&one);
    setup_close(&more);
}

Test(peers, train_as_one_device_does)
{
    compare(2, 4, DTYPE_F32, 2e-6);
    compare(3, 4, DTYPE_F32, 2e-6);
}

Test(peers, a_device_may_have_no_row)
{
    compare(4, 2, DTYPE_F32, 2e-6);
}

Test(peers, give_the_same_bytes_twice)
{
    struct setup s[2];
    train(&s[0], losses[0], DTYPE_F32, 2, 3);
    train(&s[1], losses[1], DTYPE_F32, 2, 3);
    cr_expect(
        !memcmp(s[0].adapter.value, s[1].adapter.value, s[0].adapter.value_count * sizeof(float)));
    cr_expect(!memcmp(losses[0], losses[1], sizeof losses[0]));
    setup_close(&s[0]);
    setup_close(&s[1]);
}

/* All devices have the values of the first one after a step. */
Test(peers, have_the_values_of_the_first_device)
{
    struct setup s;
    setup_open(&s, DTYPE_F32, 3);
    struct train_options o = options_of(4);
    struct training t = {.e = s.engine, .adapter = &s.adapter, .data = &s.data, .o = &o};
    struct train_step step = {.lr = 0.1};
    size_t n = s.adapter.value_count, bytes = n * sizeof(float);
    float *gradient = malloc(bytes), *first = malloc(bytes), *other = malloc(bytes);
    ok(training_open(&t));
    for (size_t i = 0; i < n; i++)
        gradient[i] = (float)(i % 13) - 6.0f;
    const struct backend *be = s.engine->be;
    be->copy_in(s.engine->ctx, t.gradient, gradient, bytes);
    for (size_t i = 0; i < 2; i++)
        be->copy_in(t.peer[i].e->ctx, t.peer[i].gradient, gradient, bytes);
    ok(training_update(&t, &step));
    be->copy_out(s.engine->ctx, first, t.gradient, bytes);
    ok(be->check(s.engine->ctx));
    for (size_t i = 0; i < n; i++)
        cr_assert_float_eq(first[i], 3.0f * gradient[i], 1e-5f);
    be->copy_out(s.engine->ctx, first, t.value, bytes);
    ok(be->check(s.engine->ctx));
    for (size_t i = 0; i < 2; i++) {
        be->copy_out(t.peer[i].e->ctx, other, t.peer[i].value, bytes);
        ok(be->check(t.peer[i].e->ctx));
        cr_expect(!memcmp(first, other, bytes), "device %zu", i + 1);
    }
    cr_expect(memcmp(first, s.adapter.value, bytes) != 0);
    training_close(&t);
    free(gradient);
    free(first);
    free(other);
    setup_close(&s);
}

static int checks_left;
static err (*real_check)(struct backend_context *c);
static err failing_check(struct backend_context *c)
{
    err e = real_check(c);
    return --checks_left == 0 ? err_make(ERR_MACHINE, "cuda:1: a fault") : e;
}

Test(peers, a_failure_of_the_second_device_ends_the_training)
{
    struct setup s;
    struct train_result result = {0};
    setup_open(&s, DTYPE_F32, 2);
    struct train_options o = options_of(4);
    size_t bytes = s.adapter.value_count * sizeof(float);
    float *before = malloc(bytes);
    memcpy(before, s.adapter.value, bytes);
    struct backend table = *s.engine->peer[0]->be;
    real_check = table.check;
    table.check = failing_check;
    checks_left = 2;
    s.engine->peer[0]->be = &table;
    refused(train_run(&result, &s.adapter, s.engine, &s.data, &o), ERR_MACHINE, "cuda:1: a fault");
    cr_expect_eq(result.steps, 0);
    cr_expect(!memcmp(before, s.adapter.value, bytes));
    free(before);
    setup_close(&s);
}

Test(peers, lists_of_devices_are_read)
{
    static const struct {
        const char *names, *first, *last;
        size_t count;
    } good[] = {{"cpu", "cpu", "cpu", 1},
                {"cuda:1", "cuda:1", "cuda:1", 1},
                {"cuda:1,cuda:0", "cuda:1", "cuda:0", 2},
                {"cuda,cuda:12,cuda:3", "cuda:0", "cuda:3", 3}};
    struct backend_list list;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        ok(backend_list_set(&list, good[i].names));
        cr_expect_eq(list.count, good[i].count);
        cr_expect_str_eq(list.name[0], good[i].first);
        cr_expect_str_eq(list.name[list.count - 1], good[i].last);
    }
    static const char *const bad[] = {"cuda:0,cpu", "cuda:0,", ",cuda:0", "cuda:0,cuda:x",
                                      "a name that no device has"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        refused(backend_list_set(&list, bad[i]), ERR_INPUT, "expected cpu, cuda, cuda:N, a list");
    refused(backend_list_set(&list, "cuda:1,cuda,cuda:01"), ERR_INPUT, "cuda:1 is named twice");
    refused(backend_list_set(&list, "cuda,cuda:0"), ERR_INPUT, "cuda:0 is named twice");
}
