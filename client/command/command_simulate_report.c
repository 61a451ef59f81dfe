/* fedlora simulate report: the tables and the page of simulations again, from their files alone. */
#include "client/command/simulate_sweep.h"
#include "sim/page.h"

struct report_command {
    struct command_common common;
    const char *output;
};
#define AT(member) offsetof(struct report_command, member)
static const struct option_row rows[] = {
    {.flag = "output",
     .letter = 'o',
     .kind = OPTION_TEXT,
     .at = AT(output),
     .value = "FILE.html",
     .help = "the page; default: report.html in the folder, if there is only one"},
};

static err report_main(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct report_command *o = options;
    struct outcomes all = {0};
    (void)arena;
    if (!o->output && arguments->count > 1)
        return err_make(ERR_INPUT,
                        "-o is missing: expected a file for the page of several folders");
    TRY(outcomes_open(&all, arguments->item, arguments->count));
    err e = o->output ? page_write_file(o->output, arguments->item, arguments->count)
                      : page_write(arguments->item[0]);
    if (!err_is(e)) e = simulate_outcomes_print(&all, o->common.json);
    outcomes_close(&all);
    return e;
}

const struct command command_simulate_report = {
    .name = "simulate report",
    .purpose = "show the results of simulations again, as tables and as a page",
    .usage = "DIR... [-o FILE.html]",
    .example = "fedlora simulate report result",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct report_command),
    .least = 1,
    .most = 64,
    .run = report_main,
};
