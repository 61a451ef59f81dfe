/* fedlora runs, approve, decline: the runs that this machine knows, and its administrator's answers
 * (client/session/session_consent.h). */
#include "client/command/command_work.h"
#include "client/output/report.h"
#include "client/output/table.h"
#include "client/session/session_consent.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

struct runs_command {
    struct command_common common;
    struct command_work where;
};

static const struct option_row rows[] = {COMMAND_WORK_ROWS(offsetof(struct runs_command, where))};

static void say_time(char *out, size_t bytes, uint64_t wall_ms)
{
    time_t seconds = (time_t)(wall_ms / 1000);
    struct tm tm;
    if (!gmtime_r(&seconds, &tm) || !strftime(out, bytes, "%Y-%m-%dT%H:%M:%SZ", &tm)) *out = 0;
}

static err print_json(const struct session_consent_run *run, size_t count)
{
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++) {
        char since[32];
        say_time(since, sizeof since, run[i].since_ms);
        json_array_append_new(list,
                              json_pack("{s:s, s:s, s:I, s:s, s:s, s:s, s:s}", "run", run[i].run,
                                        "method", run[i].method, "rounds",
                                        (json_int_t)run[i].rounds, "privacy", run[i].privacy,
                                        "state", run[i].state, "why", run[i].why, "since", since));
    }
    json_t *all = list ? json_pack("{s:o}", "runs", list) : NULL;
    err e = all ? report_json(all) : err_make(ERR_MACHINE, "no memory for the result");
    json_decref(all);
    return e;
}

static err print_table(const struct session_consent_run *run, size_t count)
{
    static const char *const head[] = {"run", "method", "rounds", "privacy", "state", "since", ""};
    struct table t;
    table_begin(&t, "llrllll");
    err e = table_row(&t, head);
    for (size_t i = 0; i < count && !err_is(e); i++) {
        char since[32], rounds[16];
        say_time(since, sizeof since, run[i].since_ms);
        snprintf(rounds, sizeof rounds, "%u", run[i].rounds);
        const char *const cells[] = {run[i].run,   run[i].method, rounds,    run[i].privacy,
                                     run[i].state, since,         run[i].why};
        e = table_row(&t, cells);
    }
    if (!err_is(e)) e = table_print(&t);
    table_close(&t);
    return e;
}

static err runs_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    (void)arguments;
    const struct runs_command *o = options;
    char dir[LIMIT_PATH_BYTES - 512];
    struct session_consent_run *run = NULL;
    size_t count = 0;
    TRY(command_work_find(dir, sizeof dir, &o->where));
    TRY(session_consent_list(&run, &count, dir, arena));
    if (o->common.json) return print_json(run, count);
    if (!count) {
        command_note(&o->common, "no run is known here yet");
        return ERR_NONE;
    }
    return print_table(run, count);
}

static err answer(const struct runs_command *o, const char *run, bool approve)
{
    char dir[LIMIT_PATH_BYTES - 512];
    TRY(command_work_find(dir, sizeof dir, &o->where));
    TRY(session_consent_give(dir, run, approve));
    command_note(&o->common,
                 approve ? "run %s is approved: fedlora join takes part in it"
                         : "run %s is declined: fedlora join trains no round of it from "
                           "now on",
                 run);
    return ERR_NONE;
}

static err approve_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    (void)arena;
    return answer(options, arguments->item[0], true);
}

static err decline_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    (void)arena;
    return answer(options, arguments->item[0], false);
}

const struct command command_runs = {
    .name = "runs",
    .purpose = "list the runs that this machine knows, and how they stand",
    .usage = "[--config FILE | --work DIR | --cert FILE]",
    .example = "fedlora runs",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .whole_config = true,
    .options_size = sizeof(struct runs_command),
    .run = runs_run,
};

const struct command command_approve = {
    .name = "approve",
    .purpose = "let fedlora join on this machine take part in a run",
    .usage = "RUN [--config FILE | --work DIR | --cert FILE]",
    .example = "fedlora approve triage",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .whole_config = true,
    .options_size = sizeof(struct runs_command),
    .least = 1,
    .most = 1,
    .run = approve_run,
};

const struct command command_decline = {
    .name = "decline",
    .purpose = "keep fedlora join on this machine out of a run",
    .usage = "RUN [--config FILE | --work DIR | --cert FILE]",
    .example = "fedlora decline triage",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .whole_config = true,
    .options_size = sizeof(struct runs_command),
    .least = 1,
    .most = 1,
    .run = decline_run,
};
