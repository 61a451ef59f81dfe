/* fedlora simulate: a whole federation in this process, in virtual time (sim/simulate.h). */
#include "client/command/method_help.h"
#include "client/command/setup.h"
#include "client/command/simulate_plan.h"
#include "client/command/simulate_sweep.h"

#include <stdio.h>

#define AT(member) offsetof(struct simulate_command, member)
/* All verbs read the same configuration file, so they have one table. */
static const struct option_row rows[] = {
    /* Rows, and how they are dealt to the members. */
    {.flag = "data",
     .key = "data.train",
     .kind = OPTION_TEXT,
     .at = AT(train),
     .value = "FILE|DIR",
     .help = "training data, JSON Lines: one file whose rows are dealt to the clients, or a "
             "folder with a file ID.jsonl for each client (required, but not by simulate plan)"},
    {.flag = "split",
     .key = "data.split",
     .kind = OPTION_CHOICE,
     .at = AT(split),
     .fallback = "iid",
     .choices = deal_kinds,
     .help = "how the rows of one file are dealt: at random, by the value of a field, by "
             "shares of the labels drawn from a Dirichlet distribution, or by shards of "
             "sorted labels"},
    {.flag = "by",
     .key = "data.by",
     .kind = OPTION_TEXT,
     .at = AT(by),
     .value = "FIELD",
     .help = "field of a row with its label, for --split field, dirichlet and shards"},
    SETUP_ROW_TEMPLATE(AT(template), "data.template"),
    {.flag = "split-alpha",
     .key = "data.alpha",
     .kind = OPTION_NUM,
     .at = AT(split_alpha),
     .fallback = "0.5",
     .least = 1e-3,
     .most = 1e6,
     .help = "parameter of --split dirichlet; the smaller, the more the clients differ"},
    {.flag = "shards",
     .key = "data.shards",
     .kind = OPTION_INT,
     .at = AT(shards),
     .fallback = "2",
     .least = 1,
     .most = 1000,
     .help = "shards of each client with --split shards"},
    {.flag = "size-sigma",
     .key = "data.size_sigma",
     .kind = OPTION_NUM,
     .at = AT(size_sigma),
     .fallback = "0",
     .least = 0,
     .most = 5,
     .help = "spread of the clients' numbers of rows, which are log-normal; 0: equal"},
    {.flag = "clients",
     .key = "fleet.members",
     .kind = OPTION_INT,
     .at = AT(clients),
     .fallback = "10",
     .least = 1,
     .most = LIMIT_POPULATION,
     .help = "number of simulated clients; more than 10000 need --cohort; with --split field and "
             "with a folder it follows from the data"},
    {.flag = "test",
     .key = "data.test",
     .kind = OPTION_TEXT,
     .at = AT(test),
     .value = "FILE",
     .help = "held-out rows, JSON Lines, on which the states are measured; default: none"},
    {.flag = "held-out",
     .key = "data.held_out",
     .kind = OPTION_TEXT,
     .at = AT(held_out),
     .fallback = "0",
     .value = "PART",
     .help = "part of each client's rows on which the last state is measured instead of trained: "
             "0.1 or 10%"},
    {.flag = "ranks",
     .key = "fleet.ranks",
     .kind = OPTION_TEXT,
     .at = AT(ranks),
     .value = "R,R,...",
     .help = "ranks of the clients, in turn, where they are not equal; a --class may have its own"},
    /* The members' machines and what goes wrong. All of it is assumed and nothing is measured, so
     * the same file gives the same order of events on every machine. */
    {.flag = "class",
     .key = "devices.class",
     .kind = OPTION_LIST,
     .at = AT(classes),
     .value = "NAME:...",
     .help =
         "machines of a share of the clients, as "
         "NAME:share=30%:speed=200:up=20Mbit:down=50Mbit:rank=16:drop=10% with the speed in "
         "tokens a second; may be repeated; also online=40%/8h (on for a share of each period), "
         "watts=30 and memory=4GB (of the device); default: all train 1000 tokens a second"},
    {.flag = "trace",
     .key = "devices.trace",
     .kind = OPTION_TEXT,
     .at = AT(trace),
     .value = "FILE.csv",
     .help = "speeds and times of single clients, with the columns "
             "member,tokens_per_s,up,down,on_from,on_to; default: those of their class"},
    {.flag = "jitter",
     .key = "devices.jitter",
     .kind = OPTION_NUM,
     .at = AT(jitter),
     .fallback = "0",
     .least = 0,
     .most = 5,
     .help = "spread of the time of a task, which is log-normal"},
    {.flag = "crash",
     .key = "faults.coordinator",
     .kind = OPTION_NUM,
     .at = AT(crash),
     .fallback = "0",
     .least = 0,
     .most = 1,
     .help = "probability that the coordinator crashes after an update and starts again"},
    {.flag = "attack",
     .key = "faults.attack",
     .kind = OPTION_TEXT,
     .at = AT(attack),
     .value = "KIND SHARE",
     .help = "faulty updates of a share of the clients, as \"sign-flip 5%\"; KIND is sign-flip, "
             "scale:FACTOR, noise:SIGMA, nan or label-shuffle; default: none"},
    {.flag = "vanish",
     .key = "faults.vanish",
     .kind = OPTION_NUM,
     .at = AT(vanish),
     .fallback = "0",
     .least = 0,
     .most = 1,
     .help = "share of the clients that leave in a random round and never come back"},
    /* Measuring the states, and when to end. */
    {.flag = "check-every",
     .key = "evaluate.every",
     .kind = OPTION_INT,
     .at = AT(every),
     .fallback = "1",
     .least = 0,
     .most = LIMIT_ROUNDS,
     .help = "measure every N-th round's state, and the last one, on --test; 0: never"},
    {.flag = "check-rows",
     .key = "evaluate.check_rows",
     .kind = OPTION_INT,
     .at = AT(check_rows),
     .fallback = "0",
     .least = 0,
     .most = INT32_MAX,
     .help = "rows of --test before the last round; 0: all"},
    {.flag = "stop",
     .key = "evaluate.stop",
     .kind = OPTION_TEXT,
     .at = AT(early),
     .value = "RULE",
     .help = "end before the last round: \"loss < 0.5\", \"accuracy > 60%\" or \"loss not better "
             "for 5 rounds\", measured on --test; default: no rule"},
    {.flag = "reference-base",
     .key = "reference.base",
     .kind = OPTION_FLAG,
     .at = AT(base_line),
     .help = "measure the base model too, as a reference line"},
    {.flag = "reference-pooled",
     .key = "reference.pooled",
     .kind = OPTION_FLAG,
     .at = AT(pooled_line),
     .help = "train one client with the rows of all, and as many tokens, as a reference line"},
    {.flag = "reference-alone",
     .key = "reference.alone",
     .kind = OPTION_FLAG,
     .at = AT(alone_line),
     .help = "train each client alone, as reference lines: their mean and the worst"},
    {.flag = "reference-lr",
     .key = "reference.lr",
     .kind = OPTION_NUM,
     .at = AT(reference_lr),
     .fallback = "0",
     .least = 0,
     .most = 10,
     .help = "learning rate of the reference lines that train; 0: that of the run, or of a sweep's "
             "first cell"},
    /* Several simulations from one file: its lists, with these changes. */
    {.flag = "set",
     .kind = OPTION_LIST,
     .at = AT(sets),
     .value = "KEY=VALUE",
     .help = "a key of FILE.ini with another value, or with other values of its list in [sweep]; "
             "may be repeated"},
    {.flag = "seeds",
     .kind = OPTION_TEXT,
     .at = AT(seeds),
     .value = "N,N,...",
     .help = "repeat everything with these seeds; short for a list run.seed in [sweep]"},
    {.flag = "cell",
     .kind = OPTION_INT,
     .at = AT(cell),
     .fallback = "0",
     .least = 0,
     .most = SWEEP_CELLS,
     .help = "run only the N-th cell of a sweep; several processes may do so in one folder at the "
             "same time; 0: all"},
    /* This call alone: the results do not depend on these. */
    {.flag = "workers",
     .kind = OPTION_INT,
     .at = AT(workers),
     .fallback = "0",
     .least = 0,
     .most = 1024,
     .help = "clients that train at the same time, on one processor core each; 0: as many as "
             "there are cores, or one on a GPU, which needs --device cuda"},
    {.flag = "checkpoint",
     .kind = OPTION_FLAG,
     .at = AT(checkpoint),
     .help = "recompute activations in the backward pass: less memory, slower"},
    {.flag = "run",
     .kind = OPTION_TEXT,
     .at = AT(name),
     .value = "NAME",
     .help = "name of the run; default: the name of FILE.ini, or \"simulated\""},
    {.flag = "output",
     .letter = 'o',
     .kind = OPTION_TEXT,
     .at = AT(output),
     .value = "DIR",
     .help = "folder for the results, which is created; default: the name of the run"},
    COMMAND_ROW_FORCE(AT(force)),
    {.flag = "write",
     .kind = OPTION_TEXT,
     .at = AT(write),
     .value = "DIR",
     .help = "simulate split: folder for a file ID.jsonl for each client, for fedlora join"},
    {.flag = "methods",
     .kind = OPTION_TEXT,
     .at = AT(methods),
     .value = "M,M,...|all",
     .help = "simulate plan: a row for each of these methods, instead of --method"},
};

static err simulate_main(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct simulate_command *o = options;
    TRY(simulate_check_verb(o, SIMULATE_RUN));
    return simulate_sweep(o, arguments, arena);
}

/* Deals the rows with the options and the seed of `fedlora simulate`, so the files that --write
 * leaves for `fedlora join` hold the rows of the simulated clients. */
static err split_main(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct simulate_command *o = options;
    struct fleet_options how;
    struct fleet fleet = {0};
    TRY(simulate_check_verb(o, SIMULATE_SPLIT));
    TRY(simulate_cell(&o, o, arguments, arena));
    TRY(simulate_fleet_options(&how, o, arena));
    TRY(fleet_open(&fleet, &how));
    printf("%s", fleet.histogram);
    if (!fleet.histogram[0])
        for (size_t i = 0; i < fleet.members; i++)
            printf("%-20s %7zu\n", fleet.member[i].id, fleet.member[i].data.count);
    err e = o->write ? fleet_write(&fleet, &how, o->write) : ERR_NONE;
    fleet_close(&fleet);
    return e;
}

/* All verbs read the same options. */
#define SIMULATE_VERB                                                                              \
    .rows = rows, .row_count = sizeof rows / sizeof *rows, .describes_run = true,                  \
    .reads_file = true, .skipped = run_options_deployed,                                           \
    .options_size = sizeof(struct simulate_command), .most = 1, .details = method_help

const struct command command_simulate = {
    .name = "simulate",
    .purpose = "simulate a federation with many clients in this process",
    .usage = "[FILE.ini] --base B --data F --method M --rounds N [options] [-o DIR]",
    .example = "fedlora simulate --base SmolLM2 --data rows.jsonl --clients 100 --method flora "
               "--rounds 10 --steps 4",
    SIMULATE_VERB,
    .run = simulate_main,
};

const struct command command_simulate_split = {
    .name = "simulate split",
    .purpose = "show how rows are dealt to simulated clients",
    .usage = "[FILE.ini] --base B --data F [options] [--write DIR]",
    .example = "fedlora simulate split --base SmolLM2 --data rows.jsonl --clients 100 --split "
               "dirichlet --by label --split-alpha 0.1",
    SIMULATE_VERB,
    .run = split_main,
};

/* Needs no training data, unlike the other verbs, because costs follow from shapes and counts. */
static err plan_main(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct simulate_command *o = options;
    TRY(simulate_cell(&o, o, arguments, arena));
    return simulate_plan(o, arguments, arena);
}

const struct command command_simulate_plan = {
    .name = "simulate plan",
    .purpose = "compute the cost of a federation without training it",
    .usage = "[FILE.ini] --base B|config.json --method M --rounds N [options] [--methods all]",
    .example = "fedlora simulate plan --base mistral-7b/config.json --methods all --rank 32 "
               "--clients 25 --rounds 3 --steps 10",
    SIMULATE_VERB,
    .run = plan_main,
};
