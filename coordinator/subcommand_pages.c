#include "coordinator/subcommand_pages.h"

#include "base/limits.h"
#include "base/program.h"

static const struct man_section before[] = {
    {"DESCRIPTION",
     "fedlorad schedules the rounds of federated fine-tuning, receives the members' updates, "
     "combines them and publishes the result. Members take part with fedlora-join(1); operators "
     "create and follow runs with the commands fedlora-run-create(1) and fedlora-run-status(1).\n"
     "\n"
     "It runs in the foreground and writes one line for each event to standard error. Everything "
     "that it has acknowledged is on disk, so it may be stopped or killed at any time, and "
     "continues when it is started again.\n"},
    {0}};

static const struct man_section after[] = {
    {"SIGNALS",
     "SIGTERM, SIGINT\tFinish the work in progress, then end with status 0.\n"
     "SIGHUP\tRead the certificates and the configuration file again. Values that need a restart "
     "are named in the log.\n"},
    {"FILES", "/etc/fedlora/fedlorad.ini\tThe configuration of the packaged service, described in "
              "fedlorad.ini(5).\n"
              "/var/lib/fedlora\tIts store: the database, states and updates.\n"},
    {0}};

static const struct man_section common[] = {
    {"EXIT STATUS", "0\tDone, or stopped by a signal.\n"
                    "1\tFailed during the work (disk, network); trying again can help.\n"
                    "2\tRefused: wrong usage, configuration or input.\n"},
    {0}};

static const struct man_section file_before[] = {
    {"DESCRIPTION",
     "The configuration file of fedlorad(8) has sections in brackets and lines \"key = value\". "
     "A line that starts with # or ; is a comment. Sizes are written 40MB or 2GiB, times 90s, 15m "
     "or 2h. An unknown key, or a value out of its range, is refused with the line.\n"
     "\n"
     "fedlorad --sample prints a file with every key and its default, and fedlorad --config FILE "
     "--check tests a file without starting.\n"},
    {0}};

bool subcommand_pages_asked(const char *argument)
{
    return program_asked(argument);
}

err subcommand_pages(const struct subcommand_names *list, int argc, char **argv)
{
    struct program_command command[LIMIT_COMMANDS] = {{.name = "",
                                                       .purpose = "",
                                                       .usage = "fedlorad --config FILE [options]",
                                                       .set = *config_options()}};
    struct option_table table[LIMIT_COMMANDS][SUBCOMMAND_TABLES];
    struct man_page file = {.name = "fedlorad.ini",
                            .section = 5,
                            .purpose = "configuration file of the Fedlora coordinator",
                            .synopsis = "fedlorad --config FILE",
                            .set = config_options(),
                            .file = true,
                            .before = file_before,
                            .see = "fedlorad(8), fedlora(1)"};
    REQUIRE(list->count < LIMIT_COMMANDS);
    for (size_t i = 0; i < list->count; i++) {
        const struct subcommand *from = list->item[i];
        command[i + 1] = (struct program_command){.name = from->name,
                                                  .purpose = from->purpose,
                                                  .usage = from->usage,
                                                  .example = from->example,
                                                  .set = subcommand_set(from, table[i])};
    }
    return program_answer(&(struct program){.name = "fedlorad",
                                            .purpose = "coordinator of federated fine-tuning",
                                            .section = 8,
                                            .command = command,
                                            .count = list->count + 1,
                                            .before = before,
                                            .after = after,
                                            .common = common,
                                            .file = &file,
                                            .see = "fedlorad.ini(5), fedlora(1)"},
                          argc, argv);
}
