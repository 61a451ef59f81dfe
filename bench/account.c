/* Measures the privacy accountants: the time to compute epsilon, the noise for a budget and the
 * number of steps that a budget allows. Also checks the three rows of the published table whose
 * meshes are too long for the tests.
 *
 *   bench_account
 *
 * It uses one core. The exit status is 1 when a value differs from the published one. */
#include "privacy/account/account.h"
#include "base/text.h"

#include <math.h>
#include <stdio.h>

static int wrong;

static void must(err e)
{
    if (err_is(e)) fprintf(stderr, "bench_account: %s\n", e.text);
    REQUIRE(!err_is(e));
}

static void plan_time(double q, double z, uint64_t steps, double delta, enum account_engine engine)
{
    struct account_event event = {.noise = z, .sampling = q, .count = steps};
    struct account_options how = {.engine = engine};
    struct account_spent spent = {0};
    uint64_t begin = text_now_ms();
    must(account_epsilon(&spent, &event, 1, delta, &how));
    printf("epsilon  %s  q %-6g noise %-4g steps %-8llu delta %-6g epsilon %-12.8g grid %-10g "
           "%6.2f s\n",
           account_engine_name(engine), q, z, (unsigned long long)steps, delta, spent.epsilon,
           spent.interval, (double)(text_now_ms() - begin) / 1000);
}

static void published(double q, double z, uint64_t steps, double want)
{
    struct account_event event = {.noise = z, .sampling = q, .count = steps};
    struct account_options prv = {.engine = ACCOUNT_PRV};
    struct account_spent spent = {0}, pld = {0};
    uint64_t begin = text_now_ms();
    must(account_epsilon(&spent, &event, 1, 1e-6, &prv));
    double took = (double)(text_now_ms() - begin) / 1000;
    must(account_epsilon(&pld, &event, 1, 1e-6, NULL));
    bool good = fabs(spent.epsilon - want) < 5e-5 && spent.lower <= pld.epsilon &&
                pld.epsilon <= spent.epsilon;
    if (!good) wrong = 1;
    printf("published  q %-4g noise %-3g steps %llu: prv %.10g, is %.10g (%.1e), pld %.8g between: "
           "%s  %6.2f s\n",
           q, z, (unsigned long long)steps, want, spent.epsilon, spent.epsilon - want, pld.epsilon,
           good ? "yes" : "NO", took);
}

static void budget_time(void)
{
    struct account_event event = {.noise = 1, .sampling = .02, .count = 5000};
    struct account_budget budget = {.epsilon = 3, .delta = 1e-6};
    double noise = 0;
    uint64_t steps = 0, begin = text_now_ms();
    must(account_noise(&noise, &event, &budget, NULL));
    printf("noise    pld  epsilon 3, delta 1e-6, q 0.02, steps 5000: %.8g  %6.2f s\n", noise,
           (double)(text_now_ms() - begin) / 1000);
    event.noise = 1.5;
    begin = text_now_ms();
    must(account_steps(&steps, &event, &budget, NULL));
    printf("steps    pld  epsilon 3, delta 1e-6, q 0.02, noise 1.5: %llu  %6.2f s\n",
           (unsigned long long)steps, (double)(text_now_ms() - begin) / 1000);
}

int main(void)
{
    plan_time(.001, .8, 50000, 1e-6, ACCOUNT_PLD);
    plan_time(.01, .6, 50000, 1e-6, ACCOUNT_PLD);
    plan_time(.05, 1.5, 50000, 1e-6, ACCOUNT_PLD);
    plan_time(.2, 1, 50000, 1e-6, ACCOUNT_PLD);
    plan_time(.5, .3, 50000, 1e-12, ACCOUNT_PLD);
    plan_time(.05, 1.5, 1000000, 1e-12, ACCOUNT_PLD);
    plan_time(.05, 1.5, 50000, 1e-6, ACCOUNT_RDP);
    budget_time();
    published(.05, 1.5, 50000, 73.1901767238329626);
    published(.05, 2, 50000, 45.2369958613306906);
    published(.05, 3, 50000, 24.9420056431444763);
    return wrong;
}
