/* Each rule of a member's policy, just inside it and just outside. */
#include "client/session/session_policy.h"

#include <criterion/criterion.h>
#include <string.h>

static char why[SESSION_POLICY_WHY];
static char *targets[] = {(char *)(uintptr_t) "model.layers.0.self_attn.q_proj",
                          (char *)(uintptr_t) "model.layers.1.self_attn.v_proj"};
static const char base[] = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/* A run without privacy: 10 steps of q and v. */
static struct session_policy_run run_of(Fedlora__V1__HelloReply *hello, Fedlora__V1__Training *t)
{
    *hello = (Fedlora__V1__HelloReply)FEDLORA__V1__HELLO_REPLY__INIT;
    *t = (Fedlora__V1__Training)FEDLORA__V1__TRAINING__INIT;
    hello->method = (char *)(uintptr_t) "flora";
    hello->training = t;
    hello->targets = targets;
    hello->n_targets = 2;
    t->steps = 10;
    t->batch = 4;
    return (struct session_policy_run){.hello = hello, .base = base, .rows = 100};
}

static void expect(const struct session_policy *p, const struct session_policy_run *run,
                   const char *rule)
{
    bool allows = session_policy_allows(why, p, run);
    cr_expect_eq(allows, !rule, "%s, expected %s", why, rule ? rule : "no refusal");
    if (rule) cr_expect(strstr(why, rule), "\"%s\" does not name %s", why, rule);
}

Test(session_policy, names_the_rule_that_a_run_breaks)
{
    Fedlora__V1__HelloReply hello;
    Fedlora__V1__Training t;
    const struct session_policy_run run = run_of(&hello, &t);
    expect(NULL, &run, NULL);
    expect(&(struct session_policy){0}, &run, NULL);
    expect(&(struct session_policy){.methods = "fedit , flora"}, &run, NULL);
    expect(&(struct session_policy){.methods = "fedit,flora2"}, &run, "policy.methods: ");
    expect(&(struct session_policy){.bases = base}, &run, NULL);
    expect(&(struct session_policy){.bases = "00"}, &run, "policy.bases: ");
    expect(&(struct session_policy){.targets = "v, q_proj"}, &run, NULL);
    expect(&(struct session_policy){.targets = "q"}, &run,
           "policy.targets: the run adapts model.lay");
    expect(&(struct session_policy){.max_steps = 10}, &run, NULL);
    expect(&(struct session_policy){.max_steps = 9}, &run, "policy.max_steps: the run trains 10");
}

/* 2.5 epochs of 100 rows are 250 rows, in steps of 8. */
Test(session_policy, counts_the_steps_of_epochs)
{
    Fedlora__V1__HelloReply hello;
    Fedlora__V1__Training t;
    Fedlora__V1__Privacy privacy = FEDLORA__V1__PRIVACY__INIT;
    const struct session_policy_run run = run_of(&hello, &t);
    t.steps = 0;
    t.epochs = 2.5;
    t.accumulate = 2;
    expect(&(struct session_policy){.max_steps = 32}, &run, NULL);
    expect(&(struct session_policy){.max_steps = 31}, &run, "2.5 epochs are more than 31 steps");
    hello.privacy = &privacy;
    expect(&(struct session_policy){.max_steps = 1000}, &run, "counted in epochs");
}

Test(session_policy, asks_for_privacy_of_a_unit_and_a_size)
{
    Fedlora__V1__HelloReply hello;
    Fedlora__V1__Training t;
    Fedlora__V1__Privacy privacy = FEDLORA__V1__PRIVACY__INIT;
    const struct session_policy_run run = run_of(&hello, &t);
    const struct session_policy client = {.unit = POLICY_UNIT_CLIENT},
                                example = {.unit = POLICY_UNIT_EXAMPLE}, eight = {.epsilon = 8},
                                less = {.epsilon = 7.9}, delta = {.delta = 1e-6};
    expect(&client, &run, "policy.privacy: the run has no differential privacy");
    expect(&eight, &run, "policy.epsilon: the run has no differential privacy");
    expect(&delta, &run, "policy.delta: the run has no differential privacy");
    hello.privacy = &privacy;
    privacy.unit = (char *)(uintptr_t) "client";
    privacy.epsilon = 8;
    privacy.delta = 1e-5;
    expect(&client, &run, NULL);
    expect(&example, &run, "policy.privacy: the run's unit is client, expected example");
    expect(&eight, &run, NULL);
    expect(&less, &run, "policy.epsilon: the run spends epsilon 8");
    expect(&delta, &run, "policy.delta: the run has delta 1e-05");
    privacy.delta = 1e-6;
    expect(&delta, &run, NULL);
}

static bool trains_at(const char *hours, int hour, int minute)
{
    const struct session_policy p = {.hours = hours};
    const struct tm now = {.tm_hour = hour, .tm_min = minute};
    cr_assert(!err_is(session_policy_check(&p)), "%s", hours);
    return session_policy_now(why, &p, &now, 0);
}

Test(session_policy, knows_hours_that_go_past_midnight)
{
    cr_expect(trains_at("8-18", 8, 0) && trains_at("8-18", 17, 59));
    cr_expect(!trains_at("8-18", 7, 59) && !trains_at("8-18", 18, 0));
    cr_expect(trains_at("20:30-06", 20, 30) && trains_at("20:30-06", 5, 59));
    cr_expect(trains_at("20:30-06", 0, 0));
    cr_expect(!trains_at("20:30-06", 6, 0) && !trains_at("20:30-06", 20, 29));
    cr_expect(trains_at("00:00-24:00", 23, 59));
}

Test(session_policy, limits_the_minutes_of_a_day)
{
    const struct session_policy p = {.max_minutes = 2};
    const struct tm now = {.tm_hour = 12};
    cr_expect(session_policy_now(why, &p, &now, 119999));
    cr_expect_not(session_policy_now(why, &p, &now, 120000));
    cr_expect(strstr(why, "policy.max_minutes"));
}

Test(session_policy, refuses_values_that_no_run_can_meet)
{
    static const char *const hours[] = {"",       "8",     "8-",   "8-8",  "8-25",
                                        "8:60-9", "8:5-9", "8-9x", "-1-3", "024-3"};
    for (size_t i = 0; i < sizeof hours / sizeof *hours; i++)
        cr_expect_eq(session_policy_check(&(struct session_policy){.hours = hours[i]}).kind,
                     ERR_INPUT, "%s", hours[i]);
    cr_expect_eq(session_policy_check(&(struct session_policy){.targets = "q,x"}).kind, ERR_INPUT);
    cr_expect_eq(session_policy_check(&(struct session_policy){.bases = "abc"}).kind, ERR_INPUT);
    cr_expect(!err_is(session_policy_check(
        &(struct session_policy){.bases = base, .targets = "gate_proj,up", .hours = "1-2"})));
    cr_expect(!err_is(session_policy_check(NULL)));
}

Test(session_policy, looks_at_runs_only_if_something_is_limited)
{
    cr_expect_not(session_policy_is_set(NULL));
    cr_expect_not(session_policy_is_set(&(struct session_policy){.hours = "1-2"}));
    cr_expect(session_policy_is_set(&(struct session_policy){.approve = POLICY_APPROVE_ASK}));
    cr_expect(session_policy_is_set(&(struct session_policy){.delta = 0.1}));
}
