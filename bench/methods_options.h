/* The options of bench/methods.c. */
#ifndef BENCH_METHODS_OPTIONS_H
#define BENCH_METHODS_OPTIONS_H

#include "base/training_options.h"

#include <stdio.h>

struct bench_options {
    const char *base, *data, *test, *method, *out, *label, *ranks, *targets, *frozen;
    int64_t rank, rounds, steps, batch, seq, seed, threads, check_rows;
    double alpha, scale, lr, carry_error, epsilon, delta, clip_norm, sampling;
    int schedule;
    bool help;
    struct option_list option;
};

#define AT(member) offsetof(struct bench_options, member)
#define INT(name, word, value, low, text)                                                          \
    {                                                                                              \
        .flag = word, .kind = OPTION_INT, .at = AT(name), .fallback = value, .least = low,         \
        .most = 1e6, .help = text                                                                  \
    }
#define NUM(name, word, value, text)                                                               \
    {                                                                                              \
        .flag = word, .kind = OPTION_NUM, .at = AT(name), .fallback = value, .least = 0,           \
        .most = 1e6, .help = text                                                                  \
    }
#define TEXT(name, value, needed, text)                                                            \
    {                                                                                              \
        .flag = #name, .kind = OPTION_TEXT, .at = AT(name), .fallback = value, .required = needed, \
        .help = text                                                                               \
    }
static const struct option_row rows[] = {
    TEXT(base, NULL, true, "base model: a Hugging Face directory or a .gguf file"),
    TEXT(data, NULL, true, "folder with one JSON Lines file per member"),
    TEXT(test, NULL, false, "JSON Lines file of test rows; default: test.jsonl in --data"),
    TEXT(method, "flora", false, "aggregation method"),
    TEXT(out, NULL, true, "JSON Lines file to append the result to"),
    TEXT(label, "", false, "label stored with the result"),
    TEXT(ranks, "", false,
         "ranks of the members in order of name, such as 64,32,16; empty: --rank for all"),
    TEXT(targets, "q,v", false, "modules to adapt, separated by commas"),
    TEXT(frozen, NULL, false, "file of frozen factors; default: factors from the seed"),
    {.flag = "schedule",
     .kind = OPTION_CHOICE,
     .at = AT(schedule),
     .fallback = "linear",
     .choices = training_schedules,
     .help = "learning rate after the warm-up of each round"},
    INT(rank, "rank", "4", 1, "rank of the state"),
    INT(rounds, "rounds", "3", 1, "number of rounds"),
    INT(steps, "steps", "10", 1, "optimizer steps of each member per round"),
    INT(batch, "batch", "8", 1, "rows per step"),
    INT(seq, "seq", "0", 0, "largest number of tokens in a row; longer rows are cut; 0: no limit"),
    INT(seed, "seed", "1", 0, "seed of A, of the basis and of the order of rows"),
    INT(threads, "threads", "0", 0, "number of processor threads; 0: all"),
    INT(check_rows, "check-rows", "0", 0,
        "test rows to measure after every round but the last; 0: all"),
    NUM(alpha, "alpha", "16", "LoRA alpha of every member"),
    NUM(scale, "scale", "0", "if above 0, alpha is this times the member's rank"),
    NUM(lr, "lr", "1e-3", "learning rate"),
    NUM(carry_error, "carry-error", "1e-4", "largest relative error of recompressing the carry"),
    NUM(epsilon, "epsilon", "0", "privacy budget of each record for the whole run; 0: no privacy"),
    NUM(delta, "delta", "1e-5", "delta of the budget --epsilon"),
    NUM(clip_norm, "clip-norm", "1",
        "L2 norm to which a record's gradient is clipped, with --epsilon"),
    NUM(sampling, "sampling", "0",
        "probability that a record is in a step; without --epsilon: share of the records in a "
        "batch"),
    {.flag = "option",
     .kind = OPTION_LIST,
     .at = AT(option),
     .help = "option of the method, KEY=VALUE; may be repeated"},
    {.flag = "help", .kind = OPTION_FLAG, .at = AT(help), .help = "print this help"},
};

/* Options from the command line, checked; with --help the help is printed instead of the check. */
static err read_options(struct bench_options *out, int argc, char **argv, struct arena *arena)
{
    const struct option_table table = {rows, sizeof rows / sizeof *rows};
    const struct option_set set = {&table, 1};
    struct option_list rest = {0};
    struct bytes help = {.max = 1 << 16};
    err e = option_defaults(out, &set, arena);
    if (!err_is(e)) e = option_read_args(out, &set, argc - 1, argv + 1, &rest, arena);
    if (!err_is(e) && !out->help) e = option_check(out, &set);
    if (!err_is(e) && out->help) {
        e = option_help(&help, &set);
        if (!err_is(e)) printf("%s", (const char *)help.data);
    }
    bytes_close(&help);
    return e;
}

#endif
