/* The machines of simulated members. */
#include "sim/device.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>

static struct devices parse(size_t count, const char **text)
{
    struct devices d = {.seed = 7};
    const struct option_list list = {count, text};
    ok(devices_parse(&d, &list));
    return d;
}

Test(device, reads_classes_with_percent_and_bits)
{
    const char *text[] = {"site:share=10%:speed=2000:up=100Mbit:down=1Gbit:rank=64",
                          "phone:share=0.9:up=500kbit:drop=5%"};
    struct devices d = parse(2, text);
    cr_expect_str_eq(d.class[0].name, "site");
    cr_expect_float_eq(d.class[0].share, 0.1, 1e-12);
    cr_expect_float_eq(d.class[0].up, 1e8, 1);
    cr_expect_float_eq(d.class[0].down, 1e9, 1);
    cr_expect_eq(d.class[0].rank, 64);
    cr_expect_float_eq(d.class[1].up, 5e5, 1);
    cr_expect_float_eq(d.class[1].drop, 0.05, 1e-12);
    cr_expect_float_eq(d.class[1].speed, 1000, 1e-9, "the default");
}

static void refuse(const char *text, const char *part)
{
    struct devices d = {0};
    const struct option_list list = {1, &text};
    refused(devices_parse(&d, &list), ERR_INPUT, part);
}

Test(device, refuses_wrong_classes_by_name)
{
    refuse("share=10%", "expected a name first");
    refuse("phone:speed=-1", "class phone: speed=-1: expected");
    refuse("phone:sped=10", "did you mean speed?");
    refuse("phone:rank=x", "class phone");
    refuse("phone:up=10Tbit", "class phone");
    refuse("phone:share=50%", "add up to 50 %, not 100 %");
}

Test(device, deals_exact_shares)
{
    const char *text[] = {"a:share=10%", "b:share=30%", "c:share=60%"};
    struct devices d = parse(3, text);
    uint32_t class[1000];
    size_t count[3] = {0};
    devices_deal(class, &d, 1000);
    for (int i = 0; i < 1000; i++)
        count[class[i]]++;
    cr_expect_eq(count[0], 100);
    cr_expect_eq(count[1], 300);
    cr_expect_eq(count[2], 600);
}

Test(device, a_task_takes_the_time_of_its_tokens_and_transfers)
{
    const char *text[] = {"a:speed=200:up=8Mbit:down=80Mbit"};
    struct devices d = parse(1, text);
    const struct device_work work = {
        .member = "m1", .round = 1, .tokens = 1000, .down_bytes = 20000000, .up_bytes = 3000000};
    bool drops = true;
    /* 1000 / 200 + 8 * 2e7 / 8e7 + 8 * 3e6 / 8e6 = 5 + 2 + 3 seconds */
    cr_expect_eq(device_ms(&drops, &d, 0, &work), 10000);
    cr_expect_not(drops);
}

Test(device, jitter_and_drops_follow_from_member_and_round)
{
    const char *text[] = {"a:speed=1000:drop=20%"};
    struct devices d = parse(1, text);
    d.jitter = 0.5;
    enum { N = 4000 };
    double sum = 0, squares = 0;
    size_t dropped = 0, equal = 0;
    for (uint32_t i = 0; i < N; i++) {
        const struct device_work work = {.member = "m1", .round = i, .tokens = 1000000};
        bool drops = false, again = false;
        uint64_t ms = device_ms(&drops, &d, 0, &work);
        equal += ms == device_ms(&again, &d, 0, &work) && drops == again;
        double x = log((double)ms / 1e6);
        sum += x / N;
        squares += x * x / N;
        dropped += drops;
    }
    cr_expect_eq(equal, (size_t)N);
    cr_expect_float_eq(sum, 0, 0.03);
    cr_expect_float_eq(sqrt(squares), 0.5, 0.02);
    cr_expect_float_eq((double)dropped / N, 0.2, 0.02);
}
