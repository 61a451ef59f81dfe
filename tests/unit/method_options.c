/* The table of options: words in, JSON in the state, and back. */
#include "agg/round/method_options.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

static unsigned both(uint32_t round)
{
    (void)round;
    return METHOD_A | METHOD_B;
}

static unsigned only_b(uint32_t round)
{
    (void)round;
    return METHOD_B;
}

/* B in odd rounds, A in even ones. */
static unsigned in_turn(uint32_t round)
{
    return round % 2 ? METHOD_B : METHOD_A;
}

static const struct method averaging = {
    .name = "ffa", .averages = true, .factors = only_b, .options = {"basis"}};
static const struct method turning = {.name = "rolora", .averages = true, .factors = in_turn};
static const struct method product = {.name = "flora", .carries = true, .factors = both};
static const struct method factors = {.name = "fedit", .averages = true, .factors = both};
static const struct method flex = {
    .name = "flexlora", .carries = true, .factors = both, .options = {"tail"}};
static const struct method het = {.name = "hetlora", .factors = both};

static err parse(struct method_options *out, const struct method *m, const char *a, const char *b)
{
    const char *const words[] = {a, b};
    return method_options_parse(out, m, words, b ? 2 : 1);
}

static void wrong(const struct method *m, const char *a, const char *b, const char *text)
{
    struct method_options o;
    refused(parse(&o, m, a, b), ERR_INPUT, text);
}

Test(method_options, nothing_given_is_the_default_and_leaves_no_word_in_the_state)
{
    struct method_options o;
    struct arena arena = {0};
    const char *text = NULL;
    ok(method_options_parse(&o, &product, NULL, 0));
    cr_expect_eq(o.server, METHOD_SERVER_NONE);
    cr_expect_eq(o.robust, METHOD_ROBUST_NONE);
    cr_expect_eq(o.server_beta1, 0.9);
    cr_expect_eq(o.energy, 0.99);
    ok(method_options_text(&text, &o, &arena));
    cr_expect_str_eq(text, "");
    arena_close(&arena);
}

Test(method_options, words_become_sorted_json_that_reads_back_as_the_same)
{
    const char *const words[] = {"server=fedadam", "server_tau=0.1", "prox=0.001",
                                 "basis=gradient"};
    struct method_options o, again;
    struct arena arena = {0};
    const char *text = NULL, *twice = NULL;
    ok(method_options_parse(&o, &averaging, words, 4));
    ok(method_options_text(&text, &o, &arena));
    cr_expect_str_eq(text, "{\"basis\":\"gradient\",\"prox\":0.001,\"server\":\"fedadam\","
                           "\"server_lr\":0.01,\"server_tau\":0.10000000000000001}");
    ok(method_options_read(&again, &averaging, text));
    ok(method_options_text(&twice, &again, &arena));
    cr_expect_str_eq(text, twice);
    cr_expect_eq(again.server, METHOD_SERVER_FEDADAM);
    cr_expect_eq(again.server_lr, 0.01);
    cr_expect_eq(again.server_tau, 0.1);
    cr_expect_eq(again.basis, METHOD_BASIS_GRADIENT);
    cr_expect_eq(method_setup_rounds(&again), 2);
    arena_close(&arena);
}

Test(method_options, whole_numbers_keep_every_digit)
{
    static const struct method florist = {
        .name = "florist", .carries = true, .factors = both, .options = {"bytes"}};
    struct method_options o, again;
    struct arena arena = {0};
    const char *text = NULL;
    ok(parse(&o, &florist, "bytes=123456789012", NULL));
    ok(method_options_text(&text, &o, &arena));
    cr_expect_str_eq(text, "{\"bytes\":123456789012}");
    ok(method_options_read(&again, &florist, text));
    cr_expect_eq(again.bytes, 123456789012u);
    arena_close(&arena);
}

Test(method_options, what_a_method_cannot_have_is_refused_with_the_reason)
{
    wrong(&product, "server=fedadam", NULL, "keeps a second moment of each trained value");
    wrong(&het, "server=fedavgm", NULL, "adds momentum to the carry, but");
    wrong(&flex, "server=fedavgm", NULL, "flexlora with tail=drop has no carry");
    wrong(&product, "robust=median", NULL, "compares single values");
    wrong(&factors, "robust=trimmed", NULL, "expected norm, krum or geometric");
    wrong(&product, "energy=0.9", NULL, "option energy: flora has no such option, only florist");
    wrong(&product, "basis=weights", NULL, "flora has no such option, only fed-sb, ffa");
    struct method_options o;
    ok(parse(&o, &product, "server=fedavgm", NULL));
    cr_expect_eq(o.server_lr, 1);
    ok(parse(&o, &flex, "server=fedavgm", "tail=carry"));
    ok(parse(&o, &factors, "server=fedyogi", NULL));
    ok(parse(&o, &turning, "robust=trimmed", "robust_trim=0.1"));
    ok(parse(&o, &averaging, "robust=median", NULL));
}

Test(method_options, words_that_say_nothing_are_refused_by_name)
{
    wrong(&product, "server", NULL, "option \"server\": expected key=value");
    wrong(&product, "=1", NULL, "expected key=value");
    wrong(&product, "servr=none", NULL, "did you mean server?");
    wrong(&product, "server=adam", NULL, "option server=adam: expected none|fedavgm|");
    wrong(&product, "prox=-1", NULL, "option prox");
    wrong(&product, "prox=nan", NULL, "option prox");
    wrong(&product, "prox=", NULL, "option prox");
    wrong(&product, "prox=1", "prox=1", "given twice");
    wrong(&product, "server_lr=1", NULL, "server_lr has no effect without a server optimizer");
    wrong(&product, "robust=krum", "robust_norm=1",
          "robust_norm has no effect without robust=norm");
    wrong(&product, "robust=krum", "robust_faulty=0", "option robust_faulty");
    struct method_options o;
    refused(method_options_read(&o, &product, "[1]"), ERR_INPUT,
            "fedlora.options: expected a JSON object");
    refused(method_options_read(&o, &product, "{\"prox\":true}"), ERR_INPUT,
            "fedlora.options: option prox");
    refused(method_options_read(&o, &product, "{\"energy\":0.5}"), ERR_INPUT, "only florist");
}

Test(method_options, a_failed_parse_leaves_the_output_alone)
{
    struct method_options o = {.prox = 7};
    refused(parse(&o, &product, "prox=1", "no=1"), ERR_INPUT, "not known");
    cr_expect_eq(o.prox, 7);
}

Test(method_options, the_table_names_every_key_with_its_values_and_a_help_text)
{
    size_t count = 0;
    const struct method_option *table = method_options_table(&count);
    cr_expect_eq(count, 18);
    for (size_t i = 0; i < count; i++) {
        char takers[256];
        method_options_takers(takers, sizeof takers, table[i].key);
        cr_expect(table[i].key[0] && table[i].values[0] && table[i].normal[0] && table[i].help[0]);
        cr_expect_eq(table[i].own, takers[0] != 0, "%s: taken by \"%s\"", table[i].key, takers);
        for (size_t j = 0; j < i; j++)
            cr_expect_str_neq(table[i].key, table[j].key);
    }
}

Test(method_options, tasks_follow_the_round_and_the_gradient_rounds_come_first)
{
    struct method_options plain, gradient;
    struct method_task task;
    ok(method_options_parse(&plain, &turning, NULL, 0));
    method_task(&task, &turning, &plain, 1);
    cr_expect(task.trains == METHOD_B && !task.gradient);
    method_task(&task, &turning, &plain, 2);
    cr_expect(task.trains == METHOD_A && !task.gradient);
    ok(parse(&gradient, &averaging, "basis=gradient", NULL));
    method_task(&task, &averaging, &gradient, 1);
    cr_expect(task.trains == METHOD_B && task.gradient);
    method_task(&task, &averaging, &gradient, 2);
    cr_expect(task.trains == METHOD_A && task.gradient);
    method_task(&task, &averaging, &gradient, 3);
    cr_expect(task.trains == METHOD_B && !task.gradient);
}
