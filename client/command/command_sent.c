/* fedlora sent: all data that left this machine (client/session/session_sent.h). */
#include "client/command/command_work.h"
#include "client/output/report.h"
#include "client/output/table.h"
#include "client/session/session_sent.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct sent_command {
    struct command_common common;
    struct command_work where;
    const char *run;
    bool verify;
};

#define AT(member) offsetof(struct sent_command, member)
static const struct option_row rows[] = {
    COMMAND_WORK_ROWS(AT(where)),
    {.flag = "run",
     .kind = OPTION_TEXT,
     .at = AT(run),
     .value = "NAME",
     .help = "only calls for this run; default: all"},
    {.flag = "verify",
     .kind = OPTION_FLAG,
     .at = AT(verify),
     .help =
         "check the chain of all lines first, and name the first one that was changed, moved or "
         "cut"},
};

/* The lines that are asked for, as a table or as a list. */
struct collecting {
    const char *run;
    struct table table;
    json_t *list; /* NULL: the table */
    uint64_t lines;
};

static const char *text_of(const json_t *line, const char *key)
{
    const char *text = json_string_value(json_object_get(line, key));
    return text ? text : "";
}

/* A number, or nothing where the call has none. */
static void say_number(char out[32], const json_t *line, const char *key)
{
    const json_t *value = json_object_get(line, key);
    *out = 0;
    if (json_is_integer(value))
        snprintf(out, 32, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    else if (json_is_real(value))
        snprintf(out, 32, "%.6g", json_real_value(value));
}

static err take(void *context, const json_t *line)
{
    static const char *const numbers[] = {"round", "bytes", "tensors", "norm", "rows"};
    struct collecting *c = context;
    char number[5][32], digest[20];
    c->lines++;
    if (c->run && strcmp(c->run, text_of(line, "run")) != 0) return ERR_NONE;
    if (c->list) {
        if (json_array_append_new(c->list, json_deep_copy(line)) == 0) return ERR_NONE;
        return err_make(ERR_MACHINE, "no memory for the result");
    }
    for (size_t i = 0; i < 5; i++)
        say_number(number[i], line, numbers[i]);
    /* Reports of progress are small and many, so neither is kept for them. */
    bool has_file = json_integer_value(json_object_get(line, "bytes")) != 0;
    snprintf(digest, sizeof digest, "%.16s", has_file ? text_of(line, "digest") : "-");
    if (!has_file) snprintf(number[1], sizeof number[1], "-");
    const char *const cells[] = {text_of(line, "time"),
                                 text_of(line, "run"),
                                 number[0],
                                 text_of(line, "kind"),
                                 number[1],
                                 digest,
                                 number[2],
                                 number[3],
                                 number[4]};
    return table_row(&c->table, cells);
}

static err print(const struct sent_command *o, struct collecting *c)
{
    if (!c->list) return table_print(&c->table);
    json_t *all = json_pack("{s:O}", "sent", c->list);
    if (all && o->verify) json_object_set_new(all, "verified", json_integer((json_int_t)c->lines));
    err e = all ? report_json(all) : err_make(ERR_MACHINE, "no memory for the result");
    json_decref(all);
    return e;
}

static err sent_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    static const char *const head[] = {"time",   "run",     "round", "kind", "bytes",
                                       "digest", "tensors", "norm",  "rows"};
    (void)arguments, (void)arena;
    const struct sent_command *o = options;
    char dir[LIMIT_PATH_BYTES - 512];
    struct collecting c = {.run = o->run};
    TRY(command_work_find(dir, sizeof dir, &o->where));
    table_begin(&c.table, "llrlrlrrr");
    if (o->common.json) c.list = json_array();
    err e = table_row(&c.table, head);
    const struct session_sent_reader reader = {.take = take, .context = &c, .verify = o->verify};
    if (!err_is(e)) e = session_sent_read(dir, &reader);
    if (!err_is(e)) e = print(o, &c);
    if (!err_is(e) && o->verify)
        command_note(&o->common, "the chain of %" PRIu64 " lines is complete", c.lines);
    table_close(&c.table);
    json_decref(c.list);
    return e;
}

const struct command command_sent = {
    .name = "sent",
    .purpose = "list the data that left this machine, from the journal of fedlora join",
    .usage = "[--config FILE | --work DIR | --cert FILE] [--run NAME] [--verify]",
    .example = "fedlora sent --verify",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .whole_config = true,
    .options_size = sizeof(struct sent_command),
    .run = sent_run,
};
