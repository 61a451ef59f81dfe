#include "coordinator/subcommand.h"

#include "base/text.h"
#include "coordinator/subcommand_pages.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* In the order in which --help lists them. */
/* clang-format off */
static const struct subcommand *const subcommands[] = {
    &subcommand_ca_init,
    &subcommand_ca_renew,
    &subcommand_token,
    &subcommand_store,
    &subcommand_metrics,
    &subcommand_backup,
    &subcommand_verify,
    &subcommand_restore,
};
/* clang-format on */
enum { SUBCOMMANDS = sizeof subcommands / sizeof *subcommands, HELP_BYTES_MAX = 65536 };

#define AT(member) .at = offsetof(struct subcommand_common, member)
static const struct option_row common_rows[] = {
    {.flag = "json",
     .kind = OPTION_FLAG,
     AT(json),
     .help = "print the result as one JSON document"},
    {.flag = "help", .letter = 'h', .kind = OPTION_FLAG, AT(help), .help = "print this help"},
};
static const struct option_row config_rows[] = {
    {.flag = "config",
     .kind = OPTION_TEXT,
     AT(file),
     .value = "FILE",
     .help = "the configuration file of the service"},
    {.flag = "set",
     .kind = OPTION_LIST,
     AT(set),
     .value = "SECTION.KEY=VALUE",
     .help = "override one value of the configuration file; may be repeated"},
};

/* Options of the service begin with a dash, so the first word decides. */
bool subcommand_asked(int argc, char **argv)
{
    return argc > 1 && (argv[1][0] != '-' || subcommand_pages_asked(argv[1]));
}

/* Names are padded to the longest one, so that the purposes are one column. */
err subcommand_list(struct bytes *out)
{
    for (size_t i = 0; i < SUBCOMMANDS; i++)
        TRY(bytes_printf(out, "  fedlorad %-12s %s\n", subcommands[i]->name,
                         subcommands[i]->purpose));
    return ERR_NONE;
}

/* The command's own options first, so that --help begins with them. */
struct option_set subcommand_set(const struct subcommand *command,
                                 struct option_table table[SUBCOMMAND_TABLES])
{
    size_t n = 0;
    table[n++] = (struct option_table){command->rows, command->row_count};
    if (command->configured)
        table[n++] = (struct option_table){config_rows, sizeof config_rows / sizeof *config_rows};
    table[n++] = (struct option_table){common_rows, sizeof common_rows / sizeof *common_rows};
    return (struct option_set){.table = table, .count = n};
}

static err print_help(const struct subcommand *command)
{
    struct option_table table[SUBCOMMAND_TABLES];
    struct option_set set = subcommand_set(command, table);
    struct bytes text = {.max = HELP_BYTES_MAX};
    err e = option_help(&text, &set);
    if (!err_is(e))
        printf("fedlorad %s: %s\n\nusage: fedlorad %s %s\n\n%s\nexample: %s\n", command->name,
               command->purpose, command->name, command->usage, (const char *)text.data,
               command->example);
    bytes_close(&text);
    return e;
}

/* --help is answered before the options are read, because a user who asks for help has often left
 * out required options. */
static bool asks_help(int argc, char **argv)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return true;
    return false;
}

/* The configuration is read by the function that the service uses, so both check it alike. */
static err read_config(struct config *out, const struct subcommand *command,
                       const struct subcommand_common *common, struct arena *arena)
{
    char **argv = NULL;
    int argc = 0;
    if (!common->file) return err_make(ERR_INPUT, "%s: --config FILE is needed", command->name);
    TRY(arena_take(&argv, arena, 2 + 2 * common->set.count, sizeof *argv));
    argv[argc++] = (char *)(uintptr_t) "--config";
    argv[argc++] = (char *)(uintptr_t)common->file;
    for (size_t i = 0; i < common->set.count; i++) {
        argv[argc++] = (char *)(uintptr_t) "--set";
        argv[argc++] = (char *)(uintptr_t)common->set.item[i];
    }
    return config_open(out, argc, argv);
}

static err run_command(const struct subcommand *command, int argc, char **argv)
{
    struct arena arena = {0};
    struct option_table table[SUBCOMMAND_TABLES];
    struct option_set set = subcommand_set(command, table);
    struct option_list rest = {0};
    struct config config = {0};
    struct subcommand_common *options = NULL;
    err e = ERR_NONE;
    REQUIRE(command->options_size >= sizeof *options);
    TRY_OUT(e, arena_take(&options, &arena, 1, command->options_size));
    TRY_OUT(e, option_defaults(options, &set, &arena));
    TRY_OUT(e, option_read_args(options, &set, argc, argv, &rest, &arena));
    if (rest.count < command->least || rest.count > command->most) {
        e = rest.count < command->least
                ? err_make(ERR_INPUT, "%s: an argument is missing; usage: fedlorad %s %s",
                           command->name, command->name, command->usage)
                : err_make(ERR_INPUT, "%s: unexpected argument \"%.80s\"", command->name,
                           rest.item[command->most]);
        goto out;
    }
    TRY_OUT(e, option_check(options, &set));
    if (command->configured) {
        TRY_OUT(e, read_config(&config, command, options, &arena));
        options->config = &config;
    }
    TRY_OUT(e, command->run(options, &rest, &arena));
out:
    config_close(&config);
    arena_close(&arena);
    return e;
}

/* *words is the number of arguments that the name takes, 1 or 2. */
static const struct subcommand *find(int *words, int argc, char **argv)
{
    char two[128] = "";
    if (argc > 1) snprintf(two, sizeof two, "%.60s %.60s", argv[0], argv[1]);
    for (size_t i = 0; i < SUBCOMMANDS; i++) {
        bool is_two = strcmp(subcommands[i]->name, two) == 0;
        if (!is_two && strcmp(subcommands[i]->name, argv[0]) != 0) continue;
        *words = is_two ? 2 : 1;
        return subcommands[i];
    }
    return NULL;
}

/* `fedlorad ca` and `fedlorad ca inti` are compared as the user wrote them, so that the suggestion
 * is a complete name. */
static err unknown(int argc, char **argv)
{
    const char *known[SUBCOMMANDS];
    char near[TEXT_SUGGESTION_BYTES], name[128];
    bool is_two = argc > 1 && argv[1][0] != '-';
    for (size_t i = 0; i < SUBCOMMANDS; i++)
        known[i] = subcommands[i]->name;
    snprintf(name, sizeof name, "%.60s%s%.60s", argv[0], is_two ? " " : "", is_two ? argv[1] : "");
    return err_make(ERR_INPUT, "unknown command %s%s (fedlorad --help lists the commands)", name,
                    text_suggestion(near, name, known, SUBCOMMANDS));
}

err subcommand_main(int argc, char **argv)
{
    int words = 0;
    REQUIRE(subcommand_asked(argc, argv));
    if (subcommand_pages_asked(argv[1]))
        return subcommand_pages(&(struct subcommand_names){subcommands, SUBCOMMANDS}, argc - 1,
                                argv + 1);
    const struct subcommand *command = find(&words, argc - 1, argv + 1);
    if (!command) return unknown(argc - 1, argv + 1);
    argc -= 1 + words;
    argv += 1 + words;
    err e = asks_help(argc, argv) ? print_help(command) : run_command(command, argc, argv);
    if ((fflush(stdout) != 0 || ferror(stdout)) && !err_is(e))
        e = err_sys(errno, "standard output");
    return e;
}
