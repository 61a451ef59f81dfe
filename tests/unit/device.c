/* The machines of simulated members. */
#include "sim/device.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

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
                          "phone:share=0.9:up=500kbit:drop=5%:memory=4GB"};
    struct devices d = parse(2, text);
    cr_expect_str_eq(d.class[0].name, "site");
    cr_expect_float_eq(d.class[0].share, 0.1, 1e-12);
    cr_expect_float_eq(d.class[0].up, 1e8, 1);
    cr_expect_float_eq(d.class[0].down, 1e9, 1);
    cr_expect_eq(d.class[0].rank, 64);
    cr_expect_float_eq(d.class[1].up, 5e5, 1);
    cr_expect_float_eq(d.class[1].drop, 0.05, 1e-12);
    cr_expect_eq(d.class[0].memory, 0);
    cr_expect_eq(d.class[1].memory, 4000000000);
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
    refuse("phone:online=40%", "online=40%: expected SHARE/PERIOD");
    refuse("phone:online=40%/0s", "expected at least a millisecond");
    refuse("phone:online=140%/8h", "class phone: online=140%: expected");
    refuse("phone:watts=-1", "class phone: watts=-1: expected");
    refuse("phone:memory=-1", "class phone: ");
    refuse("phone:memry=4GB", "did you mean memory?");
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

/* ---- devices that are not always on ---- */

Test(device, a_task_takes_longer_on_a_device_that_is_off_between)
{
    const char *text[] = {"a:speed=1000:online=25%/8s:watts=30"};
    struct devices d = parse(1, text);
    bool drops = false;
    size_t different = 0;
    uint64_t first = 0;
    for (int i = 0; i < 200; i++) {
        char member[16];
        snprintf(member, sizeof member, "m%d", i);
        /* Five seconds of work, two in each period of eight: in three or four of them. */
        struct device_work work = {.member = member, .round = 1, .tokens = 5000, .from_ms = 777};
        uint64_t ms = device_ms(&drops, &d, 0, &work);
        uint64_t start = device_start_ms(&d, 0, member, work.from_ms);
        cr_expect(ms >= 5000 + 2 * 6000 && ms <= 5000 + 3 * 6000, "%zu", (size_t)ms);
        cr_expect(start >= 777 && start < 777 + 6000);
        const uint64_t between[2] = {work.from_ms, work.from_ms + ms};
        cr_expect_float_eq(device_joules(&d, 0, member, between), 5 * 30.0, 1e-9);
        const uint64_t early[2] = {work.from_ms, start};
        cr_expect_float_eq(device_joules(&d, 0, member, early), 0, 1e-9);
        if (i == 0) first = start;
        different += start != first;
    }
    cr_expect_gt(different, 100, "members are on at different times");
}

static void write_text(char path[SUPPORT_PATH_BYTES + 16], const char *dir, const char *text)
{
    snprintf(path, SUPPORT_PATH_BYTES + 16, "%s/trace.csv", dir);
    FILE *file = fopen(path, "w");
    cr_assert_not_null(file);
    fputs(text, file);
    fclose(file);
}

#define HEAD "member,tokens_per_s,up,down,on_from,on_to\n"

Test(device, a_trace_gives_members_their_own_speeds_and_times)
{
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 16];
    const char *text[] = {"a:speed=1000:up=8Mbit"};
    struct devices d = parse(1, text);
    struct arena arena = {0};
    bool drops = false;
    support_dir_make(dir);
    write_text(path, dir, HEAD "m2,100,,,20s,30s\nm1,500,16Mbit,,,\nm2,,,,0,10s\r\n");
    ok(devices_trace(&d, path, &arena));
    cr_expect_eq(d.traces, 3);
    cr_expect_eq(d.trace_ms, 30000);
    struct device_work work = {.member = "m1", .round = 1, .tokens = 1000, .up_bytes = 1000000};
    cr_expect_eq(device_ms(&drops, &d, 0, &work), 2000 + 500, "its own rates");
    work.member = "m3";
    cr_expect_eq(device_ms(&drops, &d, 0, &work), 1000 + 1000, "those of its class");
    work.member = "m2";
    cr_expect_eq(device_ms(&drops, &d, 0, &work), 2000);
    work.from_ms = 9000; /* one second, then off until 20 s */
    cr_expect_eq(device_ms(&drops, &d, 0, &work), 12000);
    work.from_ms = 12000; /* begins in the second line, which is slower */
    cr_expect_eq(device_start_ms(&d, 0, "m2", 12000), 20000);
    work.tokens = 800;
    cr_expect_eq(device_ms(&drops, &d, 0, &work), 8000 + 8000 + 1000);
    work.from_ms = 31000; /* the trace repeats */
    cr_expect_eq(device_ms(&drops, &d, 0, &work), 1800);
    arena_close(&arena);
    support_dir_remove(dir);
}

static void refuse_trace(const char *text, const char *part)
{
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 16];
    struct devices d = {0};
    struct arena arena = {0};
    support_dir_make(dir);
    write_text(path, dir, text);
    refused(devices_trace(&d, path, &arena), ERR_INPUT, part);
    arena_close(&arena);
    support_dir_remove(dir);
}

Test(device, refuses_wrong_traces_by_line)
{
    refuse_trace("member,speed\nm1,5\n", "the first line is \"member,speed\": expected member,");
    refuse_trace(HEAD, "no line of a member");
    refuse_trace(HEAD "m1,5,,\n", "line 2: 4 fields, expected 6");
    refuse_trace(HEAD "m1,5,,,,,\n", "line 2: more than 6 fields");
    refuse_trace(HEAD "m 1,5,,,,\n", "line 2: \"m 1\" is not the name of a member");
    refuse_trace(HEAD "m1,fast,,,,\n", "line 2");
    refuse_trace(HEAD "m1,5,,,9s,8s\n", "line 2: on_to 8s is not after on_from 9s");
    refuse_trace(HEAD "m1,5,,,0,9s\nm1,5,,,5s,12s\n", "line 3: the times of m1 overlap");
    refuse_trace(HEAD "m1,5,,,,\nm1,5,,,5s,12s\n", "overlap");
}
