#include "client/command/command_pages.h"

#include "base/limits.h"
#include "base/program.h"

static const char *const see = "fedlorad(8), fedlorad.ini(5)";

static const struct man_section before[] = {
    {"DESCRIPTION",
     "Fedlora fine-tunes one language model across institutions that may not share their data. "
     "Each institution trains a LoRA adapter on its own rows and sends only the tensors of the "
     "adapter to a coordinator, fedlorad(8), which combines them.\n"
     "\n"
     "The commands train, evaluate, export and combine adapters without any network; they take "
     "part in a federation as an institution (enroll, join); and they operate one (run, member, "
     "token). Each command has its own page.\n"},
    {0}};

static const struct man_section after[] = {
    {"ENVIRONMENT",
     "https_proxy, http_proxy\tThe HTTP proxy through which the coordinator is reached, "
     "http://HOST:PORT. The first that is set counts.\n"
     "no_proxy\tHosts, domains and networks that are connected directly, separated by commas.\n"},
    {"FILES", "/etc/fedlora/client.ini\tConfiguration of all commands that have --config, if this "
              "option and a file of the user are missing.\n"},
    {0}};

static const struct man_section common[] = {
    {"EXIT STATUS", "0\tDone.\n"
                    "1\tFailed during the work (disk, network); trying again can help.\n"
                    "2\tRefused: wrong usage, configuration or input.\n"
                    "3\tRefused by the other side.\n"
                    "130\tInterrupted.\n"},
    {0}};

/* Options that are read before a command is looked for. */
static const struct option_row own_rows[] = {
    {.flag = "help", .letter = 'h', .kind = OPTION_FLAG, .help = "list the commands"},
    {.flag = "version", .kind = OPTION_FLAG, .help = "print the version"},
};
static const struct option_table own_table = {own_rows, sizeof own_rows / sizeof *own_rows};

bool command_pages_asked(const char *argument)
{
    return program_asked(argument);
}

err command_pages(const struct command_list *list, int argc, char **argv)
{
    struct program_command command[LIMIT_COMMANDS] = {{.name = "",
                                                       .purpose = "",
                                                       .usage = "fedlora COMMAND [options]",
                                                       .set = {.table = &own_table, .count = 1}}};
    struct option_table table[LIMIT_COMMANDS][COMMAND_TABLES];
    REQUIRE(list->count < LIMIT_COMMANDS);
    for (size_t i = 0; i < list->count; i++) {
        const struct command *from = list->item[i];
        command[i + 1] = (struct program_command){.name = from->name,
                                                  .purpose = from->purpose,
                                                  .usage = from->usage,
                                                  .example = from->example,
                                                  .set = command_set(from, table[i]),
                                                  .details = from->details};
    }
    return program_answer(&(struct program){.name = "fedlora",
                                            .purpose = "federated fine-tuning of language models",
                                            .section = 1,
                                            .command = command,
                                            .count = list->count + 1,
                                            .before = before,
                                            .after = after,
                                            .common = common,
                                            .see = see},
                          argc, argv);
}
