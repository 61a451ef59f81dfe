/* fedlora run list, watch, report: what an operator reads in pages.
 *
 * watch may take long, so it also continues after a restart of the coordinator. */
#include "client/command/command_run.h"

#include "base/text.h"
#include "client/output/report.h"
#include "client/output/table.h"
#include "client/session/retry.h"
#include "proto/message.h"
#include "proto/rpc_path.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* One long poll of watch: short enough for proxies that close silent connections after a minute. */
enum { RUN_WATCH_MS = 20 * 1000 };

/* Shared by the commands of this file; each uses a part of it. */
struct list_command {
    struct command_common common;
    struct remote_options remote;
    uint64_t retry_ms, since_ms; /* watch only */
    int64_t tail;                /* watch only; -1: all events */
    int64_t limit, after, round; /* list; report */
    bool open, deleted;          /* list only */
};

#define AT(member) offsetof(struct list_command, member)

typedef Fedlora__V1__RunStatus run_status;

/* ---------------------------------------------------------------- list */

/* A run without a configuration cannot come from this coordinator; it is skipped and not
 * trusted. */
static err print_list(const Fedlora__V1__ListRunsReply *reply)
{
    struct table t;
    err e;
    command_run_print_troubles(reply->troubles, reply->n_troubles);
    if (reply->n_runs == 0) {
        printf("no runs\n");
        return ERR_NONE;
    }
    table_begin(&t, "rlllrrl");
    static const char *const head[] = {"id",    "run",     "method",     "phase",
                                       "round", "members", "waiting for"};
    TRY_OUT(e, table_row(&t, head));
    for (size_t i = 0; i < reply->n_runs; i++) {
        const run_status *s = reply->runs[i];
        if (s->config == NULL) continue;
        TRY_OUT(e, s->id ? table_cell(&t, "%" PRIu32, s->id) : table_cell(&t, "-"));
        TRY_OUT(e, table_cell(&t, "%s", s->config->name));
        TRY_OUT(e, table_cell(&t, "%s", s->config->method));
        TRY_OUT(e, table_cell(&t, "%s", s->phase));
        TRY_OUT(e, table_cell(&t, "%" PRIu32 "/%" PRIu32, s->round, s->config->rounds));
        TRY_OUT(e, table_cell(&t, "%" PRIu32, s->member_count));
        TRY_OUT(e, table_cell(&t, "%s", s->waiting_for));
    }
    e = table_print(&t);
    if (!err_is(e) && reply->next) printf("more runs follow: --after %" PRIu32 "\n", reply->next);
out:
    table_close(&t);
    return e;
}

/* The next page is added to *all, whose array of runs is in the arena. The pages stay open until
 * everything is printed. */
static err add_page(Fedlora__V1__ListRunsReply *all, const Fedlora__V1__ListRunsReply *page,
                    struct arena *arena)
{
    run_status **runs = NULL;
    if (page->next && page->next <= all->next)
        return err_make(ERR_INPUT, "the coordinator sent a page of its list again");
    TRY(arena_take(&runs, arena, all->n_runs + page->n_runs, sizeof *runs));
    if (all->n_runs) memcpy(runs, all->runs, all->n_runs * sizeof *runs);
    if (page->n_runs) memcpy(runs + all->n_runs, page->runs, page->n_runs * sizeof *runs);
    size_t count = all->n_runs + page->n_runs;
    *all = *page;
    all->runs = runs;
    all->n_runs = count;
    return ERR_NONE;
}

/* All pages, as one list; with --limit as many as it needs. */
enum { LIST_PAGES_MAX = 1024 };
static err list_all(const struct list_command *o, struct rpc_client *client, struct arena *arena)
{
    static const struct remote_method method = {RPC_PATH_ADMIN(list_runs),
                                                &fedlora__v1__list_runs_reply__descriptor};
    Fedlora__V1__ListRunsRequest request = FEDLORA__V1__LIST_RUNS_REQUEST__INIT;
    Fedlora__V1__ListRunsReply *page[LIST_PAGES_MAX], all = FEDLORA__V1__LIST_RUNS_REPLY__INIT;
    size_t pages = 0;
    err e;
    /* Filters are the coordinator's work: it does not send what is not wanted. */
    request.open = o->open;
    request.deleted = o->deleted;
    all.next = (uint32_t)o->after;
    do {
        request.after = all.next;
        request.limit = o->limit ? (uint32_t)(o->limit - (int64_t)all.n_runs) : 0;
        TRY_OUT(e, remote_call(&page[pages], client, &method, &request.base, 0));
        TRY_OUT(e, add_page(&all, page[pages++], arena));
    } while (all.next && pages < LIST_PAGES_MAX && (!o->limit || (int64_t)all.n_runs < o->limit));
    e = o->common.json ? command_run_print_message(&all.base) : print_list(&all);
out:
    while (pages > 0)
        message_free(page[--pages]);
    return e;
}

static err list_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    (void)arguments;
    const struct list_command *o = options;
    struct rpc_client *client = NULL;
    TRY(remote_open(&client, &o->remote));
    err e = list_all(o, client, arena);
    rpc_client_close(client);
    return e;
}

/* ---------------------------------------------------------------- watch */

/* Flushed after each event, so that `fedlora run watch | grep` shows it at once. Times are local
 * times, because they are read by a person. */
static err print_event(const Fedlora__V1__RunEvent *event, bool json)
{
    if (json) {
        err e = command_run_print_message(&event->base);
        fflush(stdout);
        return e;
    }
    time_t when = (time_t)(event->wall_ms / 1000);
    struct tm local;
    char clock[16] = "";
    if (localtime_r(&when, &local) != NULL) strftime(clock, sizeof clock, "%H:%M:%S", &local);
    printf("%s  %-16s", clock, event->event);
    if (event->round > 0) printf(" round %" PRIu32, event->round);
    if (event->member[0] != 0) printf(" %s", event->member);
    printf("%s%s\n", event->text[0] != 0 ? " " : "", event->text);
    fflush(stdout);
    return ERR_NONE;
}

/* Phases in which no further event can come. */
static bool is_over(const char *phase)
{
    return strcmp(phase, "finished") == 0 || strcmp(phase, "stopped") == 0 ||
           strcmp(phase, "failed") == 0 || strcmp(phase, "archived") == 0 ||
           strcmp(phase, "deleted") == 0;
}

/* State of `run watch` between polls. */
struct watching {
    const struct list_command *o;
    const char *name;
    struct retry retry;
    uint64_t after;    /* sequence number of the last event printed */
    bool over, failed; /* the run has ended; it ended as failed */
};

/* One long poll. Events have sequence numbers; asking for those after the last one printed means
 * that none is lost or printed twice when the coordinator restarts between two polls. */
static err watch_once(struct watching *w, struct rpc_client *client)
{
    static const struct remote_method method = {RPC_PATH_ADMIN(watch_run),
                                                &fedlora__v1__watch_reply__descriptor};
    Fedlora__V1__WatchRequest request = FEDLORA__V1__WATCH_REQUEST__INIT;
    Fedlora__V1__WatchReply *reply = NULL;
    request.run = (char *)(uintptr_t)w->name;
    request.after = w->after;
    request.wait_ms = RUN_WATCH_MS;
    /* Only the first request has no place of its own; later ones continue after `after`. */
    request.newest = w->o->tail >= 0;
    request.tail = w->o->tail >= 0 ? (uint32_t)w->o->tail : 0;
    request.since_ms = w->o->since_ms;
    TRY(remote_call(&reply, client, &method, &request.base, RUN_WATCH_MS + REMOTE_CALL_MS));
    err e = ERR_NONE;
    for (size_t i = 0; i < reply->n_events && !err_is(e); i++) {
        if (reply->events[i]->sequence <= w->after) continue;
        w->after = reply->events[i]->sequence;
        e = print_event(reply->events[i], w->o->common.json);
    }
    if (reply->after > w->after) w->after = reply->after;
    /* The last events may come with a reply that already has the final phase, and a reply holds a
     * limited number. The end is therefore an empty reply in a final phase. */
    w->over = is_over(reply->phase) && reply->n_events == 0;
    w->failed = strcmp(reply->phase, "failed") == 0;
    message_free(reply);
    return e;
}

/* A failed run is an error of this command too, so that scripts see it in the exit status. */
static err watch_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    (void)arena;
    const struct list_command *o = options;
    struct rpc_client *client = NULL;
    struct watching w = {.o = o,
                         .name = arguments->item[0],
                         .retry = {.give_up_ms = o->retry_ms, .quiet = o->common.quiet}};
    TRY(remote_open(&client, &o->remote));
    err e = ERR_NONE;
    while (!w.over && !err_is(e)) {
        e = watch_once(&w, client);
        if (err_is(e))
            e = retry_wait(&w.retry, e, "the coordinator");
        else
            retry_ok(&w.retry);
    }
    rpc_client_close(client);
    if (!err_is(e) && w.failed) e = err_make(ERR_MACHINE, "run %s failed", w.name);
    return e;
}

/* ---------------------------------------------------------------- report */

/* Figures that the report of this round does not have, such as cosines, are a dash. */
static err number_cell(struct table *t, json_t *row, const char *key)
{
    json_t *value = json_object_get(row, key);
    return json_is_number(value) ? table_cell(t, "%.4g", json_number_value(value))
                                 : table_cell(t, "-");
}

/* The keys of method_report_json(), in the order of the head. */
static err module_row(struct table *t, const char *name, json_t *row)
{
    static const char *const keys[] = {"rank",       "sent",    "update_norm", "relative_error",
                                       "state_norm", "dropped", "cosine_mean"};
    TRY(table_cell(t, "%s", name));
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        TRY(number_cell(t, row, keys[i]));
    return ERR_NONE;
}

/* All modules together come first. */
static err print_modules(json_t *report)
{
    static const char *const head[] = {"module", "rank", "sent",    "change",
                                       "error",  "norm", "dropped", "cosine"};
    json_t *row;
    size_t i;
    struct table t;
    err e;
    table_begin(&t, "lrrrrrrr");
    TRY_OUT(e, table_row(&t, head));
    TRY_OUT(e, module_row(&t, "all", report));
    json_array_foreach(json_object_get(report, "modules"), i, row)
    {
        const char *name = json_string_value(json_object_get(row, "module"));
        TRY_OUT(e, module_row(&t, name ? name : "-", row));
    }
    e = table_print(&t);
out:
    table_close(&t);
    return e;
}

/* The report is made after the round is published, so a round without one is no error. */
static err print_report(const char *run, const Fedlora__V1__RoundStatus *r)
{
    char took[32], size[32];
    json_t *report = json_loads(r->report_json, 0, NULL);
    text_duration(took, sizeof took, r->took_ms);
    text_size(size, sizeof size, r->state_size);
    printf("run %s, round %" PRIu32 ": %" PRIu32 " updates, took %s, state of %s%s\n", run,
           r->round, r->updates, took, size, r->state_gone ? " (removed)" : "");
    if (report == NULL) {
        printf("no report: it is not made yet, or was skipped\n");
        return ERR_NONE;
    }
    printf("\n");
    err e = print_modules(report);
    json_decref(report);
    return e;
}

/* `run report NAME`: of the newest published round. */
static err report_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    static const struct remote_method method = {RPC_PATH_ADMIN(list_rounds),
                                                &fedlora__v1__list_rounds_reply__descriptor};
    const struct list_command *o = options;
    Fedlora__V1__ListRoundsRequest request = FEDLORA__V1__LIST_ROUNDS_REQUEST__INIT;
    Fedlora__V1__ListRoundsReply *reply = NULL;
    struct rpc_client *client = NULL;
    (void)arena;
    request.run = (char *)(uintptr_t)arguments->item[0];
    request.newest = o->round == 0;
    request.after = o->round ? (uint32_t)o->round - 1 : 0;
    request.limit = 1;
    TRY(remote_open(&client, &o->remote));
    err e = remote_call(&reply, client, &method, &request.base, 0);
    /* An older coordinator, or a run created from another, may have no such round and send a
     * later one. */
    bool found = !err_is(e) && reply->n_rounds == 1 &&
                 (o->round == 0 || reply->rounds[0]->round == (uint32_t)o->round);
    if (!err_is(e) && !found && o->round)
        e = err_make(ERR_INPUT, "run %s has not published round %" PRId64, arguments->item[0],
                     o->round);
    else if (!err_is(e) && !found)
        e = err_make(ERR_STATE, "run %s has not published a round yet", arguments->item[0]);
    if (!err_is(e))
        e = o->common.json ? command_run_print_message(&reply->rounds[0]->base)
                           : print_report(arguments->item[0], reply->rounds[0]);
    message_free(reply);
    rpc_client_close(client);
    return e;
}

/* ---------------------------------------------------------------- the commands */

/* The id of a run never changes and is never used again, so a page continues at the same place. */
static const struct option_row list_rows[] = {
    REMOTE_OPTION_ROWS(AT(remote)),
    {.flag = "open",
     .kind = OPTION_FLAG,
     .at = AT(open),
     .help = "only runs that are neither finished nor stopped"},
    {.flag = "deleted",
     .kind = OPTION_FLAG,
     .at = AT(deleted),
     .help =
         "only what is left of deleted runs: name, digest of the last state, time and operator"},
    {.flag = "limit",
     .kind = OPTION_INT,
     .at = AT(limit),
     .fallback = "0",
     .least = 0,
     .most = INT32_MAX,
     .value = "N",
     .help = "at most this many runs; 0: all"},
    {.flag = "after",
     .kind = OPTION_INT,
     .at = AT(after),
     .fallback = "0",
     .least = 0,
     .most = UINT32_MAX,
     .value = "ID",
     .help = "only runs with a larger id, which were created later"},
};
/* watch waits an hour by default, because a run takes days. */
static const struct option_row watch_rows[] = {
    REMOTE_OPTION_ROWS(AT(remote)),
    {.flag = "tail",
     .kind = OPTION_INT,
     .at = AT(tail),
     .fallback = "-1",
     .least = -1,
     .most = INT32_MAX,
     .value = "N",
     .help = "begin with the last N events; -1: with the first"},
    {.flag = "since",
     .kind = OPTION_DURATION,
     .at = AT(since_ms),
     .value = "TIME",
     .help = "begin with the events of this last time, for example 2h; default: all"},
    {.flag = "retry-for",
     .kind = OPTION_DURATION,
     .at = AT(retry_ms),
     .fallback = "1h",
     .value = "TIME",
     .help = "longest wait for a coordinator that does not answer"},
};
/* 0 stands for the newest round, because rounds are numbered from 1. */
static const struct option_row report_rows[] = {
    REMOTE_OPTION_ROWS(AT(remote)),
    {.flag = "round",
     .kind = OPTION_INT,
     .at = AT(round),
     .fallback = "0",
     .least = 0,
     .most = LIMIT_ROUNDS,
     .value = "N",
     .help = "the published round; 0: the newest"},
};

const struct command command_run_list = {
    .name = "run list",
    .purpose = "list the runs of the coordinator (operator)",
    .usage = "--server HOST:PORT --ca FILE --cert FILE --key FILE",
    .example = "fedlora run list --open --config operator.ini",
    .rows = list_rows,
    .row_count = sizeof list_rows / sizeof *list_rows,
    .options_size = sizeof(struct list_command),
    .run = list_run,
};
const struct command command_run_watch = {
    .name = "run watch",
    .purpose = "print the events of a run until it ends (operator)",
    .usage = "NAME --server HOST:PORT --ca FILE --cert FILE --key FILE",
    .example = "fedlora run watch triage --tail 20 --config operator.ini",
    .rows = watch_rows,
    .row_count = sizeof watch_rows / sizeof *watch_rows,
    .options_size = sizeof(struct list_command),
    .least = 1,
    .most = 1,
    .run = watch_run,
};
const struct command command_run_report = {
    .name = "run report",
    .purpose = "show the report of a round: norms and errors of each module (operator)",
    .usage = "NAME --server HOST:PORT --ca FILE --cert FILE --key FILE",
    .example = "fedlora run report triage --round 7 --config operator.ini",
    .rows = report_rows,
    .row_count = sizeof report_rows / sizeof *report_rows,
    .options_size = sizeof(struct list_command),
    .least = 1,
    .most = 1,
    .run = report_run,
};
