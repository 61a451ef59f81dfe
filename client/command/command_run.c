/* fedlora run status, pause, resume, stop, archive, delete, export: commands on one run.
 *
 * Each is one call to the coordinator's Admin service, authorised by the operator's certificate.
 * export may take long, so it also continues after a restart of the coordinator. */
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
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Shared by all commands of this file; each uses a part of it. */
struct run_command {
    struct command_common common;
    struct remote_options remote;
    const char *output; /* export only */
    uint64_t retry_ms;  /* export only */
    bool force, parts;  /* export only */
    bool forget_shapes; /* resume only */
    bool yes;           /* stop and delete only */
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

/* The members of the next page become those of the first; both messages stay whole. */
static err add_members(run_status *all, run_status *page)
{
    size_t count = all->n_members + page->n_members;
    if (page->members_next && page->members_next <= all->members_next)
        return err_make(ERR_INPUT, "the coordinator sent a page of members again");
    Fedlora__V1__MemberStatus **more = realloc(all->members, (count + 1) * sizeof *more);
    if (more == NULL) return err_make(ERR_MACHINE, "no memory for %zu members", count);
    all->members = more;
    memcpy(more + all->n_members, page->members, page->n_members * sizeof *more);
    all->n_members = count;
    all->members_next = page->members_next;
    page->n_members = 0;
    return ERR_NONE;
}

/* All pages of a run with many members. */
err command_run_get(run_status **out, struct rpc_client *client, const char *name)
{
    static const struct remote_method method = {RPC_PATH_ADMIN(get_run),
                                                &fedlora__v1__run_status__descriptor};
    Fedlora__V1__RunName request = FEDLORA__V1__RUN_NAME__INIT;
    run_status *all = NULL;
    request.run = (char *)(uintptr_t)name;
    TRY(remote_call(&all, client, &method, &request.base, 0));
    while (all->members_next) {
        run_status *page = NULL;
        request.members_after = all->members_next;
        err e = remote_call(&page, client, &method, &request.base, 0);
        if (!err_is(e)) e = add_members(all, page);
        message_free(page);
        if (err_is(e)) {
            message_free(all);
            return e;
        }
    }
    *out = all;
    return ERR_NONE;
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
/* Unlike the other commands it reads all pages of members, because that is what it is for. */
static err status_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct run_command *o = options;
    struct rpc_client *client = NULL;
    run_status *status = NULL;
    (void)arena;
    TRY(remote_open(&client, &o->remote));
    err e = command_run_get(&status, client, arguments->item[0]);
    if (!err_is(e)) e = command_run_print(status, o->common.json);
    message_free(status);
    rpc_client_close(client);
    return e;
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

/* On a terminal the operator is asked. Elsewhere nobody can answer, so a script says it with --yes
 * where the loss is for ever. */
static err confirm(const struct run_command *o, const char *name, const char *loses, bool for_ever)
{
    char answer[16] = "";
    if (o->yes) return ERR_NONE;
    if (!isatty(STDIN_FILENO) || !isatty(STDERR_FILENO))
        return for_ever ? err_make(ERR_INPUT, "--yes is missing: %s", loses) : ERR_NONE;
    fprintf(stderr, "%s: %s. Type yes to go on: ", name, loses);
    if (fgets(answer, sizeof answer, stdin) != NULL && strcmp(answer, "yes\n") == 0)
        return ERR_NONE;
    return err_make(ERR_INPUT, "nothing was changed");
}

/* A stop is final for the run, but its state stays, so a script need not confirm it. */
static err stop_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct run_command *o = options;
    (void)arena;
    TRY(confirm(o, arguments->item[0],
                "a stopped run cannot be resumed, only continued as a new run with --from",
                /*for_ever*/ false));
    return act(o, arguments, RPC_PATH_ADMIN(stop_run));
}

/* Not asked: the last state stays, and so does everything that the run proves. */
static err archive_run(void *o, const struct option_list *arguments, struct arena *arena)
{
    (void)arena;
    return act(o, arguments, RPC_PATH_ADMIN(archive_run));
}

/* Files are gone for good within seconds, so a script has to say that it means it. */
static err delete_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct run_command *o = options;
    (void)arena;
    TRY(confirm(o, arguments->item[0],
                "deleting a run removes its states and updates; only digests and reports stay",
                /*for_ever*/ true));
    return act(o, arguments, RPC_PATH_ADMIN(delete_run));
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

/* Beside the output: what the state was made from, signed by the coordinator. fedlora verify
 * compares the two. */
static err fetch_manifest(const struct run_command *o, struct rpc_client *client,
                          const run_status *status)
{
    Fedlora__V1__ManifestRequest request = FEDLORA__V1__MANIFEST_REQUEST__INIT;
    char path[LIMIT_PATH_BYTES];
    if ((size_t)snprintf(path, sizeof path, "%s.manifest.json", o->output) >= sizeof path)
        return err_make(ERR_INPUT, "%s: the path is too long", o->output);
    TRY(command_check_output(path, o->force));
    request.run = status->config->name;
    request.state_digest = status->state_digest;
    const struct remote_made made = {.method = RPC_PATH_ADMIN(manifest),
                                     .request = &request.base,
                                     .path = path,
                                     .replace = o->force};
    struct retry retry = {.give_up_ms = o->retry_ms, .quiet = o->common.quiet};
    err e;
    while (err_is(e = remote_make(client, &made)))
        TRY(retry_wait(&retry, e, "the coordinator"));
    retry_ok(&retry);
    return ERR_NONE;
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
    if (!err_is(e)) e = fetch_manifest(o, client, status);
    if (!err_is(e)) e = fetch_state(o, client, status);
    message_free(status);
    rpc_client_close(client);
    return e;
}

/* ---------------------------------------------------------------- the commands */

/* Commands that cannot be undone. */
static const struct option_row ask_rows[] = {
    REMOTE_OPTION_ROWS(AT(remote)),
    {.flag = "yes", .kind = OPTION_FLAG, .at = AT(yes), .help = "do not ask"},
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

const struct command command_run_status = RUN_COMMAND(
    "status", "show the state of a run and what it is waiting for (operator)", rows, status_run);
const struct command command_run_pause =
    RUN_COMMAND("pause", "pause a run, so that no new round opens (operator)", rows, pause_run);
const struct command command_run_resume =
    RUN_COMMAND("resume", "continue a paused run (operator)", resume_rows, resume_run);
const struct command command_run_stop =
    RUN_COMMAND("stop", "end a run early (operator)", ask_rows, stop_run);
const struct command command_run_archive =
    RUN_COMMAND("archive", "remove all files of a run that is over but its last state (operator)",
                rows, archive_run);
const struct command command_run_delete = RUN_COMMAND(
    "delete", "remove a run that is over, and free its name (operator)", ask_rows, delete_run);
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
