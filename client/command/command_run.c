/* fedlora run list, status, watch, pause, resume, stop, export: the operator's commands on a run.
 *
 * Each is one call to the coordinator's Admin service, authorised by the operator's certificate.
 * watch and export may take long, so they also continue after a restart of the coordinator. */
#include "client/command/command_run.h"
#include "client/output/report.h"

#include "agg/adapter/state_whole.h"
#include "base/file.h"
#include "base/text.h"
#include "client/output/table.h"
#include "client/session/retry.h"
#include "proto/message.h"
#include "proto/rpc_path.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* One long poll of watch: short enough for proxies that close silent connections after a minute. */
enum { RUN_WATCH_MS = 20 * 1000 };

/* Shared by all commands of this file; each uses a part of it. */
struct run_command {
    struct command_common common;
    struct remote_options remote;
    const char *output; /* export only */
    uint64_t retry_ms;  /* watch and export only */
    bool force, parts;  /* export only */
    bool forget_shapes; /* resume only */
};

#define AT(member) offsetof(struct run_command, member)
/* Commands that act at once have only the options of the connection. */
static const struct option_row rows[] = {REMOTE_OPTION_ROWS(AT(remote))};

typedef Fedlora__V1__RunStatus run_status;

/* ---------------------------------------------------------------- one call on one run */

/* Every Admin call on one run has the same request and reply: its name and its new status. */
static err call_run(run_status **out, struct rpc_client *client, const char *path, const char *name,
                    bool forget_shapes)
{
    const struct remote_method method = {path, &fedlora__v1__run_status__descriptor};
    Fedlora__V1__RunName request = FEDLORA__V1__RUN_NAME__INIT;
    request.run = (char *)(uintptr_t)name;
    request.forget_shapes = forget_shapes;
    return remote_call(out, client, &method, &request.base, 0);
}

err command_run_get(run_status **out, struct rpc_client *client, const char *name)
{
    return call_run(out, client, RPC_PATH_ADMIN(get_run), name, false);
}

/* No retry: the operator sees the error and decides, and a repeated call could undo a decision of
 * another operator. */
static err act(const struct run_command *o, const struct option_list *arguments, const char *path)
{
    struct rpc_client *client = NULL;
    run_status *status = NULL;
    TRY(remote_open(&client, &o->remote));
    err e = call_run(&status, client, path, arguments->item[0], o->forget_shapes);
    if (!err_is(e)) e = command_run_print(status, o->common.json);
    message_free(status);
    rpc_client_close(client);
    return e;
}

/* One function per command: the path of the call is the only difference. */
static err status_run(void *o, const struct option_list *arguments, struct arena *arena)
{
    (void)arena;
    return act(o, arguments, RPC_PATH_ADMIN(get_run));
}

static err pause_run(void *o, const struct option_list *arguments, struct arena *arena)
{
    (void)arena;
    return act(o, arguments, RPC_PATH_ADMIN(pause_run));
}

static err resume_run(void *o, const struct option_list *arguments, struct arena *arena)
{
    (void)arena;
    return act(o, arguments, RPC_PATH_ADMIN(resume_run));
}

static err stop_run(void *o, const struct option_list *arguments, struct arena *arena)
{
    (void)arena;
    return act(o, arguments, RPC_PATH_ADMIN(stop_run));
}

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
    table_begin(&t, "lllrrl");
    static const char *const head[] = {"run", "method", "phase", "round", "members", "waiting for"};
    TRY_OUT(e, table_row(&t, head));
    for (size_t i = 0; i < reply->n_runs; i++) {
        const run_status *s = reply->runs[i];
        if (s->config == NULL) continue;
        TRY_OUT(e, table_cell(&t, "%s", s->config->name));
        TRY_OUT(e, table_cell(&t, "%s", s->config->method));
        TRY_OUT(e, table_cell(&t, "%s", s->phase));
        TRY_OUT(e, table_cell(&t, "%" PRIu32 "/%" PRIu32, s->round, s->config->rounds));
        TRY_OUT(e, table_cell(&t, "%" PRIu32, s->member_count));
        TRY_OUT(e, table_cell(&t, "%s", s->waiting_for));
    }
    e = table_print(&t);
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

/* All pages, as one list. */
enum { LIST_PAGES_MAX = 1024 };
static err list_all(const struct run_command *o, struct rpc_client *client, struct arena *arena)
{
    static const struct remote_method method = {RPC_PATH_ADMIN(list_runs),
                                                &fedlora__v1__list_runs_reply__descriptor};
    Fedlora__V1__ListRunsRequest request = FEDLORA__V1__LIST_RUNS_REQUEST__INIT;
    Fedlora__V1__ListRunsReply *page[LIST_PAGES_MAX], all = FEDLORA__V1__LIST_RUNS_REPLY__INIT;
    size_t pages = 0;
    err e;
    do {
        request.after = all.next;
        TRY_OUT(e, remote_call(&page[pages], client, &method, &request.base, 0));
        TRY_OUT(e, add_page(&all, page[pages++], arena));
    } while (all.next && pages < LIST_PAGES_MAX);
    e = o->common.json ? command_run_print_message(&all.base) : print_list(&all);
out:
    while (pages > 0)
        message_free(page[--pages]);
    return e;
}

static err list_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    (void)arguments;
    const struct run_command *o = options;
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
           strcmp(phase, "failed") == 0;
}

/* State of `run watch` between polls. */
struct watching {
    const struct run_command *o;
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
    TRY(remote_call(&reply, client, &method, &request.base, RUN_WATCH_MS + REMOTE_CALL_MS));
    err e = ERR_NONE;
    for (size_t i = 0; i < reply->n_events && !err_is(e); i++) {
        if (reply->events[i]->sequence <= w->after) continue;
        w->after = reply->events[i]->sequence;
        e = print_event(reply->events[i], w->o->common.json);
    }
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
    const struct run_command *o = options;
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

/* ---------------------------------------------------------------- export */

/* Downloads one blob. A broken connection is retried for --retry-for; remote_fetch() continues at
 * the byte where the last attempt stopped. */
static err fetch_blob(const struct run_command *o, struct rpc_client *client, const char *run,
                      const struct digest *digest, uint64_t size, const char *path)
{
    const struct remote_blob blob = {.method = RPC_PATH_ADMIN(fetch_blob),
                                     .run = run,
                                     .digest = *digest,
                                     .path = path,
                                     .size = size};
    struct retry retry = {.give_up_ms = o->retry_ms, .quiet = o->common.quiet};
    err e;
    while (err_is(e = remote_fetch(client, &blob)))
        TRY(retry_wait(&retry, e, "the coordinator"));
    retry_ok(&retry);
    return ERR_NONE;
}

/* Some methods keep frozen factors in a separate blob. They are added to the state at `path`, so
 * that the exported file can be used alone. */
static err make_whole(const struct run_command *o, struct rpc_client *client, const char *run,
                      const char *path)
{
    struct digest digest;
    char frozen[LIMIT_PATH_BYTES];
    bool needed = false;
    TRY(state_whole_needs(&needed, &digest, path));
    if (!needed) return ERR_NONE;
    if ((size_t)snprintf(frozen, sizeof frozen, "%s.frozen", o->output) >= sizeof frozen)
        return err_make(ERR_INPUT, "%s: the path is too long", o->output);
    if (o->parts) {
        TRY(command_check_output(frozen, o->force));
        return fetch_blob(o, client, run, &digest, /*size*/ 0, frozen);
    }
    /* In the directory of the output, so that the rename below stays in one file system. */
    TRY(fetch_blob(o, client, run, &digest, /*size*/ 0, frozen));
    err e = state_whole_write(path, path, frozen, &digest);
    (void)file_disk.unlink(frozen);
    return e;
}

/* The digest identifies the state, so that members and the operator can compare their copies. */
static err print_export(const struct run_command *o, const run_status *status)
{
    char text[DIGEST_TEXT_BYTES], size[32];
    struct digest digest;
    memcpy(digest.byte, status->state_digest.data, DIGEST_BYTES);
    digest_text(text, &digest);
    text_size(size, sizeof size, status->state_size);
    if (!o->common.json) {
        printf("%s: the newest state of run %s (%s), %s, digest %s\n", o->output,
               status->config->name, status->phase, size, text);
        return ERR_NONE;
    }
    json_t *all = json_pack("{s:s, s:s, s:s, s:I, s:I}", "run", status->config->name, "path",
                            o->output, "digest", text, "size", (json_int_t)status->state_size,
                            "round", (json_int_t)status->round);
    err e = all != NULL ? report_json(all) : err_make(ERR_MACHINE, "no memory for the result");
    json_decref(all);
    return e;
}

/* The state is downloaded and completed in the directory of the output and renamed at the end, so
 * the output is complete or absent. */
static err fetch_state(const struct run_command *o, struct rpc_client *client,
                       const run_status *status)
{
    struct digest digest;
    char path[LIMIT_PATH_BYTES];
    memcpy(digest.byte, status->state_digest.data, DIGEST_BYTES);
    if ((size_t)snprintf(path, sizeof path, "%s.state", o->output) >= sizeof path)
        return err_make(ERR_INPUT, "%s: the path is too long", o->output);
    TRY(fetch_blob(o, client, status->config->name, &digest, status->state_size, path));
    err e = make_whole(o, client, status->config->name, path);
    if (!err_is(e) && file_disk.rename(path, o->output) != 0)
        e = err_sys(errno, "%s: cannot rename the downloaded state", o->output);
    if (err_is(e)) {
        (void)file_disk.unlink(path);
        return e;
    }
    return print_export(o, status);
}

/* Before the first round there is no state; the error then says what the run is waiting for. */
static err export_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    (void)arena;
    const struct run_command *o = options;
    struct rpc_client *client = NULL;
    run_status *status = NULL;
    TRY(command_check_output(o->output, o->force));
    TRY(remote_open(&client, &o->remote));
    err e = command_run_get(&status, client, arguments->item[0]);
    if (!err_is(e) && (status->state_digest.len != DIGEST_BYTES || status->config == NULL))
        e = err_make(ERR_STATE, "run %s has no state yet%s%s", arguments->item[0],
                     status->waiting_for[0] ? "; it is waiting for " : "", status->waiting_for);
    if (!err_is(e)) e = fetch_state(o, client, status);
    message_free(status);
    rpc_client_close(client);
    return e;
}

/* ---------------------------------------------------------------- the commands */

/* Long commands also have --retry-for. watch waits an hour by default, because a run takes days. */
static const struct option_row watch_rows[] = {
    REMOTE_OPTION_ROWS(AT(remote)),
    {.flag = "retry-for",
     .kind = OPTION_DURATION,
     .at = AT(retry_ms),
     .fallback = "1h",
     .value = "TIME",
     .help = "longest wait for a coordinator that does not answer"},
};
static const struct option_row resume_rows[] = {
    REMOTE_OPTION_ROWS(AT(remote)),
    {.flag = "forget-shapes",
     .kind = OPTION_FLAG,
     .at = AT(forget_shapes),
     .help = "before the first published round: forget the shapes of the base that members agreed "
             "on, and all that was made from them; members say again what they have"},
};
static const struct option_row export_rows[] = {
    REMOTE_OPTION_ROWS(AT(remote)),
    {.flag = "output",
     .letter = 'o',
     .kind = OPTION_TEXT,
     .required = true,
     .at = AT(output),
     .value = "FILE",
     .help = "file for the state; fedlora export converts it to an adapter"},
    {.flag = "force",
     .kind = OPTION_FLAG,
     .at = AT(force),
     .help = "replace an existing output file"},
    {.flag = "parts",
     .kind = OPTION_FLAG,
     .at = AT(parts),
     .help =
         "leave frozen factors in a file of their own, FILE.frozen, as run create --from needs"},
    {.flag = "retry-for",
     .kind = OPTION_DURATION,
     .at = AT(retry_ms),
     .fallback = "5m",
     .value = "TIME",
     .help = "longest wait for a coordinator that does not answer"},
};

/* Commands on one run differ only in name, purpose, options and function. */
#define RUN_COMMAND(word_, purpose_, rows_, run_)                                                  \
    {                                                                                              \
        .name = "run " word_, .purpose = purpose_,                                                 \
        .usage = "NAME --server HOST:PORT --ca FILE --cert FILE --key FILE",                       \
        .example = "fedlora run " word_ " triage --config operator.ini", .rows = rows_,            \
        .row_count = sizeof rows_ / sizeof *rows_, .options_size = sizeof(struct run_command),     \
        .least = 1, .most = 1, .run = run_                                                         \
    }

const struct command command_run_list = {
    .name = "run list",
    .purpose = "list all runs of the coordinator (operator)",
    .usage = "--server HOST:PORT --ca FILE --cert FILE --key FILE",
    .example = "fedlora run list --config operator.ini",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct run_command),
    .run = list_run,
};
const struct command command_run_status = RUN_COMMAND(
    "status", "show the state of a run and what it is waiting for (operator)", rows, status_run);
const struct command command_run_watch = RUN_COMMAND(
    "watch", "print the events of a run until it ends (operator)", watch_rows, watch_run);
const struct command command_run_pause =
    RUN_COMMAND("pause", "pause a run, so that no new round opens (operator)", rows, pause_run);
const struct command command_run_resume =
    RUN_COMMAND("resume", "continue a paused run (operator)", resume_rows, resume_run);
const struct command command_run_stop =
    RUN_COMMAND("stop", "end a run early (operator)", rows, stop_run);
const struct command command_run_export = {
    .name = "run export",
    .purpose = "download the newest state of a run (operator)",
    .usage = "NAME -o FILE --server HOST:PORT --ca FILE --cert FILE --key FILE",
    .example = "fedlora run export triage -o state.safetensors --config operator.ini",
    .rows = export_rows,
    .row_count = sizeof export_rows / sizeof *export_rows,
    .options_size = sizeof(struct run_command),
    .least = 1,
    .most = 1,
    .run = export_run,
};
