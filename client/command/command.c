/* The frame of every command: it finds the command, reads and checks its options, runs it, prints
 * its error as one line and returns the exit status. The commands themselves only compute and print
 * their result. */
#include "client/command/command.h"

#include "base/file.h"
#include "base/json.h"
#include "base/limits.h"
#include "base/text.h"
#include "base/version.h"
#include "client/command/command_files.h"
#include "client/command/command_pages.h"
#include "client/command/command_roster.h"
#include "client/command/command_run.h"
#include "client/command/run_options.h"

#include <errno.h>
#include <omp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* In the order in which --help lists them: local work first, then the federation, then privacy
 * budgets. A command that is missing here cannot be found, whatever its file defines. */
/* clang-format off */
static const struct command *const commands[] = {
    &command_inspect,
    &command_tokenize,
    &command_train,
    &command_eval,
    &command_generate,
    &command_export,
    &command_aggregate,
    &command_basis,
    &command_enroll,
    &command_join,
    &command_runs,
    &command_approve,
    &command_decline,
    &command_sent,
    &command_run_create,
    &command_run_list,
    &command_run_status,
    &command_run_watch,
    &command_run_report,
    &command_run_pause,
    &command_run_resume,
    &command_run_stop,
    &command_run_archive,
    &command_run_delete,
    &command_run_set,
    &command_run_member,
    &command_run_drop_update,
    &command_run_export,
    &command_run_audit,
    &command_token_create,
    &command_token_list,
    &command_token_revoke,
    &command_member_list,
    &command_member_show,
    &command_member_add,
    &command_member_rename,
    &command_member_sign,
    &command_member_revoke,
    &command_simulate_split, /* before "simulate", whose argument could be "split" */
    &command_simulate_plan,
    &command_simulate_report,
    &command_simulate,
    &command_verify,
    &command_audit_export,
    &command_audit_verify,
    &command_budget_epsilon,
    &command_budget_noise,
    &command_budget_steps,
    &command_budget_verify,
    &command_doctor,
};
/* clang-format on */
enum { COMMANDS = sizeof commands / sizeof *commands };

/* Options that every command accepts. Their rows come after the command's own rows in --help. All
 * of them are accepted everywhere, also where a command ignores one, so that scripts can pass the
 * same common options to every command. */
#define AT(member) offsetof(struct command_common, member)
static const struct option_row common_rows[] = {
    {.flag = "json",
     .kind = OPTION_FLAG,
     .at = AT(json),
     .help = "print the result as one JSON document"},
    {.flag = "quiet",
     .sectioned = true,
     .letter = 'q',
     .kind = OPTION_FLAG,
     .at = AT(quiet),
     .help = "print no progress and no notes"},
    {.flag = "verbose",
     .letter = 'v',
     .kind = OPTION_FLAG,
     .at = AT(verbose),
     .help = "print more details"},
    {.flag = "threads",
     .sectioned = true,
     .kind = OPTION_INT,
     .at = AT(threads),
     .fallback = "0",
     .least = 0,
     .most = LIMIT_THREADS,
     .help = "number of processor threads; 0: all"},
    {.flag = "device",
     .sectioned = true,
     .kind = OPTION_TEXT,
     .at = AT(device),
     .fallback = "auto",
     .value = "cpu|cuda[:n][,cuda:n...]|cuda:all|auto",
     .help = "compute device; auto: GPU 0 if it can be used, else the CPU; with several GPUs "
             "training divides the rows of each pass, and everything else uses the first one"},
    {.flag = "precision",
     .sectioned = true,
     .key = "train.precision",
     .kind = OPTION_CHOICE,
     .at = AT(precision),
     .fallback = "auto",
     .choices = training_precisions,
     .help = "precision of weights and activations; auto: bf16 on a GPU or a CPU with AMX, else "
             "f32, because bf16 without AMX is slower"},
    {.flag = "seed",
     .key = "run.seed",
     .kind = OPTION_INT,
     .at = AT(seed),
     .fallback = "0",
     .least = 0,
     .most = 0x1p53,
     .help = "seed of all random numbers"},
    {.flag = "help", .letter = 'h', .kind = OPTION_FLAG, .at = AT(help), .help = "print this help"},
};

/* Only sets a flag: nothing else is safe in a signal handler. The loops of the commands poll the
 * flag with stop_check(), clean up and return ERR_STOPPED. */
static void on_signal(int number)
{
    stop_asked = number;
}

/* Without SA_RESTART, so that a waiting system call returns and its loop sees the flag.
 * SA_RESETHAND restores the default action, so that a second signal ends a process that does not
 * react. */
static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* Notes go to standard error, because standard output holds the result and may be piped to a
 * program. The line is formatted first and written at once, so that lines of two processes do not
 * mix. */
void command_note(const struct command_common *common, const char *format, ...)
{
    if (common->quiet) return;
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    fprintf(stderr, "%s\n", line);
}

/* An option without effect is refused instead of ignored: a user who gives --epsilon but forgets
 * --privacy would otherwise believe that the result is private. */
err command_check_unused(const struct command_given *option, size_t count, const char *with)
{
    for (size_t i = 0; i < count; i++)
        if (option[i].given)
            return err_make(ERR_INPUT, "--%s has no effect without %s", option[i].flag, with);
    return ERR_NONE;
}

/* Checked before the work, which may take hours, and checked again by the function that writes:
 * the file may appear or the directory may go in between. 64 bytes are left for suffixes such as
 * .part. */
err command_check_output(const char *path, bool force)
{
    char parent[LIMIT_PATH_BYTES] = ".";
    const char *slash = strrchr(path, '/');
    if (!*path) return err_make(ERR_INPUT, "the output path is empty: expected a path");
    if (strlen(path) + 64 >= sizeof parent)
        return err_make(ERR_INPUT, "%.80s...: the path is too long", path);
    if (slash)
        snprintf(parent, sizeof parent, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    if (!force && file_exists(path))
        return err_make(ERR_INPUT, "%s: exists already; --force replaces it", path);
    if (!file_is_dir(parent))
        return err_make(ERR_INPUT, "%s: the folder %s does not exist", path, parent);
    if (access(parent, W_OK) != 0) return err_sys(errno, "%s", parent);
    return ERR_NONE;
}

/* ---- help ---- */

/* The names are padded to the longest one, "budget epsilon". */
static void print_overview(void)
{
    printf(
        "fedlora %s: fine-tune one language model across institutions that may not share data\n\n",
        FEDLORA_VERSION);
    printf("usage: fedlora COMMAND [options]\n\n");
    for (size_t i = 0; i < COMMANDS; i++)
        printf("  %-16s %s\n", commands[i]->name, commands[i]->purpose);
    printf("\nfedlora COMMAND --help prints the options of a command.\n"
           "fedlora --version prints the version.\n");
}

/* True if any command has this key in its rows. */
static bool is_known_key(const char *key)
{
    struct option_table table[COMMAND_TABLES];
    for (size_t i = 0; i < COMMANDS; i++) {
        const struct option_set set = command_set(commands[i], table);
        if (option_row_of_key(&set, key)) return true;
    }
    return false;
}

/* The command's own options first, so that --help begins with them. */
struct option_set command_set(const struct command *command,
                              struct option_table table[COMMAND_TABLES])
{
    size_t n = 0;
    table[n++] = (struct option_table){command->rows, command->row_count};
    if (command->describes_run)
        table[n++] = (struct option_table){run_options_rows, run_options_count};
    table[n++] = (struct option_table){common_rows, sizeof common_rows / sizeof *common_rows};
    /* An experiment's file is no configuration: in it every unknown key is a mistake. */
    return (struct option_set){.table = table,
                               .count = n,
                               .skipped = command->skipped,
                               .others = command->reads_file ? NULL : is_known_key,
                               .section = command_files_used(command) ? command->name : NULL};
}

/* Built in memory and printed at the end, so that an error leaves no half of a help text. */
static err print_help(const struct command *command)
{
    struct option_table table[COMMAND_TABLES];
    struct option_set set = command_set(command, table);
    struct bytes text = {.max = 1 << 20};
    err e = option_help(&text, &set);
    if (!err_is(e) && command->details) {
        e = bytes_printf(&text, "\n");
        if (!err_is(e)) e = command->details(&text);
    }
    if (!err_is(e))
        printf("fedlora %s: %s\n\nusage: fedlora %s %s\n\n%s\nexample: %s\n", command->name,
               command->purpose, command->name, command->usage, (const char *)text.data,
               command->example);
    bytes_close(&text);
    return e;
}

/* ---- finding and running a command ---- */

static bool is_help(const char *arg)
{
    return strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0;
}

/* --help is answered before the options are read, because a user who asks for help has often left
 * out required options. After "--" the same word is an argument. */
static bool asks_help(int argc, char **argv)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (is_help(argv[i])) return true;
    return false;
}

static bool in_group(const struct command *command, const char *group)
{
    size_t n = strlen(group);
    return strncmp(command->name, group, n) == 0 && command->name[n] == ' ';
}

/* Called for the first word of a two-word command when the second is missing or unknown: `fedlora
 * run`, `fedlora run --help`, `fedlora run creat`. Lists or suggests the commands of the group. */
static err group_main(const char *group, int argc, char **argv)
{
    const char *known[COMMANDS];
    size_t count = 0;
    for (size_t i = 0; i < COMMANDS; i++)
        if (in_group(commands[i], group)) known[count++] = commands[i]->name + strlen(group) + 1;
    if (argc > 0 && asks_help(argc, argv)) {
        printf("usage: fedlora %s COMMAND [options]\n\n", group);
        for (size_t i = 0; i < COMMANDS; i++)
            if (in_group(commands[i], group))
                printf("  %-16s %s\n", commands[i]->name, commands[i]->purpose);
        return ERR_NONE;
    }
    char near[TEXT_SUGGESTION_BYTES];
    if (argc == 0 || argv[0][0] == '-')
        return err_make(ERR_INPUT, "%s: a command is missing; fedlora %s --help lists them", group,
                        group);
    return err_make(ERR_INPUT, "unknown command %s %.40s%s", group, argv[0],
                    text_suggestion(near, argv[0], known, count));
}

/* *words is the number of arguments that the name takes, 1 or 2. The precision in the format bounds
 * the comparison: no command name is near 60 bytes long. */
static const struct command *find_command(int *words, int argc, char **argv)
{
    char two[128] = "";
    if (argc > 1) snprintf(two, sizeof two, "%.60s %.60s", argv[0], argv[1]);
    for (size_t i = 0; i < COMMANDS; i++) {
        bool long_name = strcmp(commands[i]->name, two) == 0;
        if (!long_name && strcmp(commands[i]->name, argv[0]) != 0) continue;
        *words = long_name ? 2 : 1;
        return commands[i];
    }
    return NULL;
}

/* A misspelled name gets a suggestion, which is the nearest name of the list by edit distance. */
static err unknown_command(const char *name)
{
    const char *known[COMMANDS];
    for (size_t i = 0; i < COMMANDS; i++)
        known[i] = commands[i]->name;
    char near[TEXT_SUGGESTION_BYTES];
    return err_make(ERR_INPUT, "unknown command %.40s%s (fedlora --help lists the commands)", name,
                    text_suggestion(near, name, known, COMMANDS));
}

/* Where options come from, so that a sweep can read them again with other values. */
struct command_source {
    const struct command *command;
    struct command_files files;
    int argc;
    char **argv;
};

const char *command_config(const void *options)
{
    const struct command_files *f = &((const struct command_common *)options)->source->files;
    return f->path ? f->path : f->common;
}

err command_again(void **out, const struct command_again *again, struct arena *arena)
{
    const struct command_source *s = again->source;
    struct option_table table[COMMAND_TABLES];
    struct option_set set = command_set(s->command, table);
    struct option_list rest = {0};
    struct command_common *options = NULL;
    TRY(arena_take(&options, arena, 1, s->command->options_size));
    TRY(option_defaults(options, &set, arena));
    TRY(command_files_read(options, &set, &s->files, arena));
    if (again->file) TRY(option_assign_all(options, &set, again->file, arena));
    if (!again->no_arguments) TRY(option_read_args(options, &set, s->argc, s->argv, &rest, arena));
    if (again->last) TRY(option_assign_all(options, &set, again->last, arena));
    options->source = s;
    *out = options;
    return again->no_arguments ? ERR_NONE : option_check(options, &set);
}

err command_write_options(struct bytes *out, const void *options, struct arena *arena)
{
    const struct command_source *s = ((const struct command_common *)options)->source;
    struct option_table table[COMMAND_TABLES];
    struct option_set set = command_set(s->command, table);
    void *defaults = NULL;
    TRY(arena_take(&defaults, arena, 1, s->command->options_size));
    TRY(option_defaults(defaults, &set, arena));
    return option_write(out, &(struct option_write){options, defaults, &set});
}

bool command_text(char *out, size_t bytes, const void *options, const char *key)
{
    const struct command_source *s = ((const struct command_common *)options)->source;
    struct option_table table[COMMAND_TABLES];
    struct option_set set = command_set(s->command, table);
    const struct option_row *row = option_row_of_key(&set, key);
    return row && option_text(out, bytes, options, row);
}

/* The value is parsed first, so that "0.50" is equal to "0.5". */
err command_has_value(bool *out, const void *options, const char *assignment, struct arena *arena)
{
    const struct command_source *s = ((const struct command_common *)options)->source;
    struct option_table table[COMMAND_TABLES];
    struct option_set set = command_set(s->command, table);
    char key[128], now[512] = "", asked[512] = "";
    void *copy = NULL;
    TRY(arena_take(&copy, arena, 1, s->command->options_size));
    memcpy(copy, options, s->command->options_size);
    TRY(option_assign(copy, &set, assignment, arena));
    snprintf(key, sizeof key, "%.*s", (int)strcspn(assignment, "="), assignment);
    command_text(now, sizeof now, options, key);
    command_text(asked, sizeof asked, copy, key);
    *out = !strcmp(now, asked);
    return ERR_NONE;
}

/* The command line names the configuration file, but also overrides it. Therefore the command line
 * is read twice: first to find the file, then again over its values. */
static err read_options(void **out, struct command_source *s, struct option_list *rest,
                        struct arena *arena)
{
    const struct command *command = s->command;
    struct option_table table[COMMAND_TABLES];
    struct option_set set = command_set(command, table);
    void *first = NULL;
    TRY(arena_take(&first, arena, 1, command->options_size));
    TRY(option_defaults(first, &set, arena));
    TRY(option_read_args(first, &set, s->argc, s->argv, rest, arena));
    if (rest->count < command->least)
        return err_make(ERR_INPUT, "%s: an argument is missing; usage: fedlora %s %s",
                        command->name, command->name, command->usage);
    if (rest->count > command->most)
        return err_make(ERR_INPUT, "%s: unexpected argument \"%.80s\"", command->name,
                        rest->item[command->most]);
    TRY(command_files_find(&s->files, first, command, rest, arena));
    return command_again(out, &(struct command_again){.source = s}, arena);
}

/* The options live in the arena and are freed after the command has returned. */
static err run_command(const struct command *command, int argc, char **argv)
{
    struct arena arena = {0};
    struct option_list rest = {0};
    void *options = NULL;
    err e = ERR_NONE;
    REQUIRE(command->options_size >= sizeof(struct command_common));
    struct command_source source = {.command = command, .argc = argc, .argv = argv};
    TRY_OUT(e, read_options(&options, &source, &rest, &arena));
    const struct command_common *common = options;
    if (common->verbose && command_config(options))
        command_note(common, "configuration: %s", command_config(options));
    /* The default of every parallel loop; loops that take a thread count from their options use the
     * same. */
    if (common->threads) omp_set_num_threads((int)common->threads);
    TRY_OUT(e, command->run(options, &rest, &arena));
out:
    arena_close(&arena);
    return e;
}

/* Without a command the overview is printed, but the status is that of an error (2): a script that
 * lost its arguments must not look successful. */
static err dispatch(int argc, char **argv)
{
    if (argc < 2) {
        print_overview();
        return err_make(ERR_INPUT, "a command is missing: expected one of the list above");
    }
    if (is_help(argv[1]) || strcmp(argv[1], "help") == 0) {
        print_overview();
        return ERR_NONE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("fedlora %s, store %d\n", version_text(), VERSION_STORE);
        return ERR_NONE;
    }
    if (command_pages_asked(argv[1]))
        return command_pages(&(struct command_list){commands, COMMANDS}, argc - 1, argv + 1);
    int words = 0;
    const struct command *command = find_command(&words, argc - 1, argv + 1);
    if (command) {
        if (asks_help(argc - 1 - words, argv + 1 + words)) return print_help(command);
        return run_command(command, argc - 1 - words, argv + 1 + words);
    }
    for (size_t i = 0; i < COMMANDS; i++)
        if (in_group(commands[i], argv[1])) return group_main(argv[1], argc - 2, argv + 2);
    return unknown_command(argv[1]);
}

/* Standard output is flushed and checked here, because a full disk or a closed pipe would otherwise
 * be noticed only at exit, when the status can no longer change. */
int command_main(int argc, char **argv)
{
    catch_signals();
    err e = dispatch(argc, argv);
    if ((fflush(stdout) != 0 || ferror(stdout)) && !err_is(e))
        e = err_sys(errno, "standard output");
    if (err_is(e)) fprintf(stderr, "fedlora: %s\n", e.text);
    return err_exit_code(e);
}
