/* `fedlorad store`: the bytes of each run, and what the next sweep removes. */
#include "base/json.h"
#include "base/text.h"
#include "coordinator/store/store_usage.h"
#include "coordinator/subcommand.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { RESULT_BYTES_MAX = 16 << 20, NAME_COLUMNS_MAX = 40 };

struct store_command {
    struct subcommand_common common; /* the first member */
    bool dry_run;
};
#undef AT
#define AT(member) .at = offsetof(struct store_command, member)
static const struct option_row rows[] = {
    {.flag = "dry-run",
     .kind = OPTION_FLAG,
     AT(dry_run),
     .help = "only print what the next sweep removes"},
};

/* Of all kinds, also those whose column is left out. */
static uint64_t total(const struct store_usage_run *run)
{
    uint64_t bytes = 0;
    for (size_t k = 0; k < STORE_USAGE_KINDS; k++)
        bytes += run->bytes[k];
    return bytes;
}

/* A kind that no run has is left out, so that the table fits on a terminal. */
static bool is_used(const struct store_usage *u, size_t kind)
{
    for (size_t i = 0; i < u->count; i++)
        if (u->run[i].files[kind]) return true;
    return false;
}

/* A dash for nothing, so that the eye finds the figures. */
static void print_size(uint64_t bytes)
{
    char text[32];
    text_size(text, sizeof text, bytes);
    printf(" %10s", bytes ? text : "-");
}

/* Written here, because the tables of the client are not part of this program. */
static void print_table(const struct store_usage *u)
{
    int width = (int)strlen("(uploaded)");
    for (size_t i = 0; i < u->count; i++) {
        int n = (int)strlen(u->run[i].name);
        if (n > width) width = n < NAME_COLUMNS_MAX ? n : NAME_COLUMNS_MAX;
    }
    printf("%-*s", width, "run");
    for (size_t k = 0; k < STORE_USAGE_KINDS; k++)
        if (is_used(u, k)) printf(" %10s", store_usage_kind(k));
    printf(" %10s %10s\n", "total", "next sweep");
    for (size_t i = 0; i < u->count; i++) {
        const struct store_usage_run *run = &u->run[i];
        if (!run->id && !total(run)) continue;
        printf("%-*s", width, run->name);
        for (size_t k = 0; k < STORE_USAGE_KINDS; k++)
            if (is_used(u, k)) print_size(run->bytes[k]);
        print_size(total(run));
        print_size(run->removes_bytes);
        printf("\n");
    }
}

/* Runs by name, because an operator decides about runs and not about files. */
static void print_removed(const struct store_usage *u)
{
    char size[32];
    bool any = u->removes_events > 0;
    for (size_t i = 0; i < u->count; i++) {
        const struct store_usage_run *run = &u->run[i];
        if (!run->removes_files) continue;
        any = true;
        text_size(size, sizeof size, run->removes_bytes);
        printf("run %s: %" PRIu64 " files, %s (updates and all states but the last)\n", run->name,
               run->removes_files, size);
    }
    if (u->removes_events) printf("events: %" PRIu64 " rows\n", u->removes_events);
    if (!any) printf("the next sweep removes nothing\n");
}

/* --dry-run answers one question, so it prints nothing else. */
static void print_text(const struct store_usage *u, bool dry_run)
{
    char database[32], uploads[32];
    if (!dry_run) {
        text_size(database, sizeof database, u->database_bytes);
        text_size(uploads, sizeof uploads, u->upload_bytes);
        print_table(u);
        if (u->database_bytes) printf("database: %s\n", database);
        printf("unfinished uploads: %s\n\n", uploads);
    }
    print_removed(u);
}

/* All kinds, also empty ones, so that a script finds the same keys in every store. */
static json_t *json_of_run(const struct store_usage_run *run)
{
    json_t *bytes = json_object();
    for (size_t k = 0; k < STORE_USAGE_KINDS; k++)
        json_object_set_new(bytes, store_usage_kind(k), json_integer((json_int_t)run->bytes[k]));
    return json_pack("{s:s, s:I, s:o, s:I, s:b, s:I, s:I}", "run", run->name, "id",
                     (json_int_t)run->id, "bytes", bytes, "total", (json_int_t)total(run), "due",
                     run->due, "removes_files", (json_int_t)run->removes_files, "removes_bytes",
                     (json_int_t)run->removes_bytes);
}

/* The whole in both cases, because a script picks the fields that it needs. */
static err print_json(const struct store_usage *u)
{
    struct bytes text = {.max = RESULT_BYTES_MAX};
    json_t *list = json_array();
    for (size_t i = 0; i < u->count; i++)
        json_array_append_new(list, json_of_run(&u->run[i]));
    json_t *all =
        json_pack("{s:o, s:I, s:I, s:I}", "runs", list, "database_bytes",
                  (json_int_t)u->database_bytes, "upload_bytes", (json_int_t)u->upload_bytes,
                  "removes_events", (json_int_t)u->removes_events);
    err e = all ? json_write(&text, all) : err_make(ERR_MACHINE, "no memory for the result");
    if (!err_is(e)) printf("%s\n", (const char *)text.data);
    json_decref(all);
    bytes_close(&text);
    return e;
}

/* As the running service computes it; 0 keeps everything. */
static uint64_t before(uint64_t now_ms, uint64_t keep_ms)
{
    return keep_ms && keep_ms < now_ms ? now_ms - keep_ms : 0;
}

static err run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct store_command *o = options;
    const struct config *c = o->common.config;
    const struct store_place place = {.dir = c->path, .database = c->database};
    uint64_t now = text_wall_ms();
    const struct store_usage_rules rules = {.ended_before_ms = before(now, c->keep_finished_ms),
                                            .events_before_ms = before(now, c->keep_events_ms)};
    struct store_usage u = {0};
    (void)arguments;
    TRY(store_usage(&u, &place, &rules, arena));
    if (o->common.json) return print_json(&u);
    print_text(&u, o->dry_run);
    return ERR_NONE;
}

const struct subcommand subcommand_store = {
    .name = "store",
    .purpose = "show the bytes of each run, and what the next sweep removes",
    .usage = "--config FILE [--dry-run]",
    .example = "fedlorad store --config /etc/fedlora/fedlorad.ini --dry-run",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct store_command),
    .configured = true,
    .run = run,
};
