/* The plan of a run: published tables of parameters, and refusals. tests/e2e/simulate_plan.sh
 * compares its bytes and times with those of simulations. */
#include "sim/cost.h"

#include "base/file.h"
#include "privacy/account/account.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static char dir[SUPPORT_PATH_BYTES];
static char path[SUPPORT_PATH_BYTES + 16];

static const char mistral_7b[] =
    "{\"model_type\":\"mistral\",\"hidden_size\":4096,\"intermediate_size\":14336,"
    "\"num_hidden_layers\":32,\"num_attention_heads\":32,\"num_key_value_heads\":8,"
    "\"vocab_size\":32000,\"rms_norm_eps\":1e-5,\"sliding_window\":null,"
    "\"torch_dtype\":\"bfloat16\"}";
static const char unknown_9b[] =
    "{\"model_type\":\"gemma3n\",\"hidden_size\":3584,\"intermediate_size\":14336,"
    "\"num_hidden_layers\":42,\"num_attention_heads\":16,\"num_key_value_heads\":8,"
    "\"head_dim\":256,\"vocab_size\":256000,\"hidden_act\":\"gelu_pytorch_tanh\"}";
static const char tiny_llama[] =
    "{\"model_type\":\"llama\",\"hidden_size\":2048,\"intermediate_size\":5632,"
    "\"num_hidden_layers\":22,\"num_attention_heads\":32,\"num_key_value_heads\":4,"
    "\"vocab_size\":32000}";

static void write_config(const char *text)
{
    support_dir_make(dir);
    snprintf(path, sizeof path, "%s/config.json", dir);
    ok(file_write(path, text, strlen(text), true));
}

/* A run of 25 clients (or 8) without rows. */
struct run {
    Fedlora__V1__RunConfig config;
    Fedlora__V1__Training training;
    char *target[2];
    struct fleet fleet;
};
static struct run run;

static void open_run(size_t clients, uint32_t rank)
{
    struct fleet_options o = {.base = dir, .split = {.members = clients}, .shapes = true};
    const struct option_list none = {0};
    ok(devices_parse(&o.devices, &none));
    ok(fleet_open(&run.fleet, &o));
    fedlora__v1__run_config__init(&run.config);
    fedlora__v1__training__init(&run.training);
    run.training.steps = 10;
    run.training.batch = 4;
    run.training.seq = 64;
    run.config.name = (char *)(uintptr_t) "plan";
    run.config.rank = rank;
    run.config.rounds = 1;
    run.config.training = &run.training;
    run.config.carry_error = -1;
}

static void close_run(void)
{
    fleet_close(&run.fleet);
    support_dir_remove(dir);
}

static struct cost cost_of(const char *method)
{
    struct cost c = {0};
    const struct cost_options o = {
        .fleet = &run.fleet, .config = &run.config, .method = method, .precision = DTYPE_F32};
    ok(cost_make(&c, &o));
    return c;
}

static void is_near(double got, double want, double most)
{
    cr_expect(fabs(got - want) <= most, "%.4f, expected %.4f", got, want);
}

/* Fed-SB (arXiv 2502.15436), table of communicated parameters: FedIT 83.89 M a client, stacking 25
 * times as many, Fed-SB at rank 200 8.96 M, which is 234 times less than stacking. */
Test(cost, counts_the_parameters_of_mistral_7b_as_published, .fini = close_run)
{
    write_config(mistral_7b);
    open_run(25, 32);
    struct cost fedit = cost_of("fedit"), flora = cost_of("flora");
    cr_expect_eq(fedit.trained.least, 83886080);
    cr_expect_eq(fedit.trained.most, 83886080);
    cr_expect_eq(flora.sent, 25ull * 83886080);
    cr_expect_eq(flora.result.values, 25ull * 83886080, "the stack that all clients fetch");
    cr_expect(flora.bound);
    run.config.rank = 200;
    struct cost sb = cost_of("fed-sb");
    cr_expect_eq(sb.trained.most, 8960000);
    cr_expect_eq(sb.result.values, 8960000);
    is_near((double)flora.result.values / (double)sb.result.values, 234, 0.5);
    cr_expect_eq(sb.frozen.values, 524288000, "left out by the published table");
}

Test(cost, counts_a_family_that_cannot_be_trained, .fini = close_run)
{
    write_config(unknown_9b);
    open_run(25, 32);
    cr_expect(strstr(run.fleet.untrainable.text, "gemma3n") != NULL, "%s",
              run.fleet.untrainable.text);
    struct cost flora = cost_of("flora");
    run.config.rank = 200;
    struct cost sb = cost_of("fed-sb");
    is_near((double)flora.trained.most / 1e6, 108.04, 0.005);
    is_near((double)sb.trained.most / 1e6, 11.76, 0.005);
    is_near((double)flora.result.values / (double)sb.result.values, 229.7, 0.05);
}

Test(cost, counts_the_upload_of_tinyllama_as_published, .fini = close_run)
{
    write_config(tiny_llama);
    open_run(8, 16);
    run.target[0] = (char *)(uintptr_t) "q";
    run.target[1] = (char *)(uintptr_t) "v";
    run.config.targets = run.target;
    run.config.n_targets = 2;
    struct cost c = cost_of("fedit");
    cr_expect_eq(c.trained.most, 2252800);
    is_near((double)c.trained.most * sizeof(float) / 1e6, 9.01, 0.005);
    cr_expect_gt(c.up.most, c.trained.most * sizeof(float), "and the header of the file");
    cr_expect_lt(c.up.most, c.trained.most * sizeof(float) + 20000);
    cr_expect_eq(c.tokens, 8 * 10 * 4 * 64);
}

/* The coordinator's own answer: 1,000 members at rate 0.2, three rounds, epsilon 8 at 1e-4. */
Test(cost, chooses_the_noise_that_the_coordinator_would, .fini = close_run)
{
    Fedlora__V1__Privacy p = FEDLORA__V1__PRIVACY__INIT;
    struct account_spent spent = {0};
    write_config(tiny_llama);
    open_run(1000, 8);
    p.unit = (char *)(uintptr_t) "client";
    p.epsilon = 8;
    p.delta = 1e-4;
    p.sampling = 0.2;
    p.clip = 0.1;
    p.force = true;
    run.config.privacy = &p;
    run.config.rounds = 3;
    run.config.deadline_ms = 900000;
    struct cost c = cost_of("fed-sb");
    const struct account_event event = {.noise = c.noise.most, .sampling = 0.2, .count = 3};
    ok(account_epsilon(&spent, &event, 1, 1e-4, NULL));
    is_near(spent.epsilon, c.epsilon, 1e-9);
    is_near(c.epsilon, 8, 1e-4);
    is_near(c.ratio, c.noise.most / 200 * sqrt(154 * 64), 1e-9);
    cr_expect_eq(c.virtual_ms, 3 * 900000 + 1, "drawn rounds end at their deadline");
    is_near(c.clients, 200, 1e-9);
    p.force = false;
    p.clip = 0.1;
    p.epsilon = 0.5;
    const struct cost_options o = {.fleet = &run.fleet, .config = &run.config, .method = "fed-sb"};
    refused(cost_make(&c, &o), ERR_INPUT, "hopeless");
    const struct cost_options flora = {
        .fleet = &run.fleet, .config = &run.config, .method = "flora"};
    refused(cost_make(&c, &flora), ERR_INPUT, "privacy");
}

static void refuse_base(const char *text, const char *part)
{
    struct fleet fleet = {0};
    const struct option_list none = {0};
    struct fleet_options o = {.base = path, .split = {.members = 2}, .shapes = true};
    write_config(text);
    ok(devices_parse(&o.devices, &none));
    refused(fleet_open(&fleet, &o), ERR_INPUT, part);
    support_dir_remove(dir);
}

Test(cost, refuses_damaged_configurations)
{
    refuse_base("", "config.json");
    refuse_base("[]", "expected an object");
    refuse_base("{\"model_type\":\"llama\"}", "num_hidden_layers");
    refuse_base("{\"hidden_size\":8}", "model_type");
    char text[512];
    static const char form[] =
        "{\"model_type\":\"other\",\"hidden_size\":%s,\"intermediate_size\":%s,"
        "\"num_hidden_layers\":%s,\"num_attention_heads\":%s,\"vocab_size\":32000%s}";
    static const char *const wrong[][6] = {
        {"4294967295", "64", "2", "1", "", "hidden size"},
        {"1e300", "64", "2", "4", "", "hidden_size"},
        {"-4", "64", "2", "4", "", "hidden_size"},
        {"64", "99999999999999999999", "2", "4", "", "config.json"},
        {"64", "64", "1000000", "4", "", "layers"},
        {"64", "64", "2", "0", "", "heads"},
        {"64", "64", "2", "3", "", "hidden_size 64 is no multiple"},
        {"64", "64", "2", "4", ",\"num_key_value_heads\":3", "key/value heads"},
        {"64", "64", "2", "4", ",\"num_local_experts\":8", "without experts"},
        {"\"64\"", "64", "2", "4", "", "hidden_size"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const char *const *w = wrong[i];
        snprintf(text, sizeof text, form, w[0], w[1], w[2], w[3], w[4]);
        refuse_base(text, w[5]);
    }
}

/* The largest sizes that all limits allow, and totals that no counter can hold. */
Test(cost, counts_without_overflow, .fini = close_run)
{
    write_config("{\"model_type\":\"other\",\"hidden_size\":1048576,\"intermediate_size\":1048576,"
                 "\"num_hidden_layers\":512,\"num_attention_heads\":1,\"head_dim\":1048576,"
                 "\"vocab_size\":1048576}");
    open_run(200, 4096);
    struct cost c = cost_of("fedit");
    cr_expect_eq(c.trained.most, 7ull * 512 * 4096 * 2 * 1048576);
    run.config.rounds = 100000;
    const struct cost_options o = {.fleet = &run.fleet, .config = &run.config, .method = "fedit"};
    refused(cost_make(&c, &o), ERR_LIMIT, "counted");
}
