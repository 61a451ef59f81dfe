/* fedlora audit export, audit verify: a copy of the coordinator's audit log, and its check without
 * the coordinator.
 *
 * The log is a chain of lines with signed heads (lineage/audit_line.h). A copy is checked with the
 * public key alone, which an auditor gets once, from the operator: DATA/audit/audit.pub. */
#include "client/command/command.h"

#include "base/file.h"
#include "base/text.h"
#include "client/output/report.h"
#include "client/session/remote.h"
#include "lineage/audit_verify.h"
#include "proto/message.h"
#include "proto/rpc_path.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { KEYS_MAX = 16, FINDINGS_SHOWN = 100 };

struct audit_command {
    struct command_common common;
    struct remote_options remote;
    const char *output, *since; /* export */
    bool force;
    struct option_list keys; /* verify */
    const char *head;
};
#define AT(member) offsetof(struct audit_command, member)

/* ---------------------------------------------------------------- export */

/* A date, a time in UTC, or how long ago. */
static err parse_since(uint64_t *out, const char *text)
{
    struct tm tm = {0};
    uint64_t ago = 0, now = text_wall_ms();
    const char *end = NULL;
    *out = 0;
    if (!text) return ERR_NONE;
    if ((end = strptime(text, "%Y-%m-%dT%H:%M:%SZ", &tm)) == NULL || *end) {
        tm = (struct tm){0};
        end = strptime(text, "%Y-%m-%d", &tm);
    }
    if (end && !*end) {
        *out = (uint64_t)timegm(&tm) * 1000;
        return ERR_NONE;
    }
    if (err_is(text_parse_duration_ms(&ago, text)))
        return err_make(ERR_INPUT,
                        "--since %.40s: expected a date (2026-11-01), a time in UTC "
                        "(2026-11-01T12:00:00Z) or a duration (48h)",
                        text);
    *out = ago < now ? now - ago : 0;
    return ERR_NONE;
}

struct exporting {
    struct file_out out;
    char since[AUDIT_LINE_TIME_BYTES];
    bool begun; /* a line of that time was found, so all that follow are written */
    uint64_t lines;
};

/* The coordinator sends whole months, and the lines before --since are left out here. */
static err write_lines(struct exporting *x, const char *text, size_t size)
{
    for (size_t at = 0; at < size;) {
        const char *end = memchr(text + at, '\n', size - at);
        struct audit_line_read line;
        if (!end) return err_make(ERR_INPUT, "the coordinator sent a part of a line");
        size_t n = (size_t)(end - (text + at));
        if (!x->begun) {
            TRY(audit_line_parse(&line, text + at, n));
            x->begun = strcmp(line.time, x->since) >= 0;
        }
        if (x->begun) {
            TRY(file_out_append(&x->out, text + at, n + 1));
            x->lines++;
        }
        at += n + 1;
    }
    return ERR_NONE;
}

/* The next part; *last: there are no more. */
static err fetch_part(bool *last, struct exporting *x, Fedlora__V1__AuditLogRequest *request,
                      char file[AUDIT_LINE_FILE_BYTES], struct rpc_client *client)
{
    static const struct remote_method method = {RPC_PATH_ADMIN(audit_log),
                                                &fedlora__v1__audit_log_reply__descriptor};
    Fedlora__V1__AuditLogReply *reply = NULL;
    TRY(remote_call(&reply, client, &method, &request->base, 0));
    bool again = !strcmp(reply->file, file) && reply->offset <= request->offset;
    *last = reply->lines.len == 0;
    err e = write_lines(x, (const char *)reply->lines.data, reply->lines.len);
    if (!err_is(e) && !*last && again)
        e = err_make(ERR_INPUT, "the coordinator sent a part of its audit log again");
    snprintf(file, AUDIT_LINE_FILE_BYTES, "%.*s", AUDIT_LINE_FILE_BYTES - 1, reply->file);
    request->file = file;
    request->offset = reply->offset;
    message_free(reply);
    return e;
}

/* No retry: an export that breaks off is started again, and an auditor must not get a log that was
 * put together from two coordinators. */
static err export_all(struct exporting *x, const struct audit_command *o, uint64_t since_ms)
{
    Fedlora__V1__AuditLogRequest request = FEDLORA__V1__AUDIT_LOG_REQUEST__INIT;
    char file[AUDIT_LINE_FILE_BYTES] = "";
    struct rpc_client *client = NULL;
    bool last = false;
    request.since_ms = since_ms;
    TRY(remote_open(&client, &o->remote));
    err e = ERR_NONE;
    while (!last && !err_is(e))
        e = fetch_part(&last, x, &request, file, client);
    rpc_client_close(client);
    return e;
}

/* Complete or absent: a half of a log would verify as a shorter one. */
static err export_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    (void)arguments;
    (void)arena;
    const struct audit_command *o = options;
    static struct exporting x; /* two paths are too large for a stack */
    uint64_t since_ms = 0;
    x = (struct exporting){0};
    TRY(parse_since(&since_ms, o->since));
    TRY(command_check_output(o->output, o->force));
    audit_line_time(x.since, since_ms);
    TRY(file_out_open(&x.out, o->output, o->force));
    err e = export_all(&x, o, since_ms);
    if (!err_is(e)) e = file_out_commit(&x.out);
    file_out_close(&x.out);
    if (err_is(e)) return e;
    if (!o->common.json) {
        printf("%s: %" PRIu64 " lines of the audit log\n", o->output, x.lines);
        return ERR_NONE;
    }
    json_t *all = json_pack("{s:s, s:I}", "path", o->output, "lines", (json_int_t)x.lines);
    e = all ? report_json(all) : err_make(ERR_MACHINE, "no memory for the result");
    json_decref(all);
    return e;
}

/* ---------------------------------------------------------------- verify */

struct verifying {
    const struct audit_command *o;
    json_t *findings;
    size_t shown;
};

/* All findings are printed, because each is a line to ask about; of very many only the first. */
static void print_finding(void *context, uint64_t seq, const char *file, size_t row,
                          const char *text)
{
    struct verifying *w = context;
    if (w->shown++ >= FINDINGS_SHOWN) return;
    if (w->o->common.json)
        json_array_append_new(w->findings,
                              json_pack("{s:I, s:s, s:I, s:s}", "line", (json_int_t)seq, "file",
                                        file, "row", (json_int_t)row, "says", text));
    else
        printf("line %" PRIu64 " (%s:%zu): %s\n", seq, file, row, text);
}

static err add_file(struct audit_verify *v, const char *path, const char *name)
{
    struct file_map map = {0};
    TRY(file_map_open(&map, path));
    audit_verify_add(v, name, (const char *)map.data, map.size);
    file_map_close(&map);
    return ERR_NONE;
}

/* A file, or all months of a folder. */
static err add_all(struct audit_verify *v, const char *path, struct arena *arena)
{
    char(*file)[AUDIT_LINE_FILE_BYTES] = NULL;
    char whole[LIMIT_PATH_BYTES];
    size_t count = 0;
    if (!file_is_dir(path)) return add_file(v, path, path);
    TRY(audit_line_files(&file, &count, path, arena));
    if (!count) return err_make(ERR_INPUT, "%s: has no file of an audit log (2026-11.jsonl)", path);
    for (size_t i = 0; i < count; i++) {
        TRY(file_join(whole, sizeof whole, path, file[i]));
        TRY(add_file(v, whole, file[i]));
    }
    return ERR_NONE;
}

/* The last lines of a running coordinator wait for the next head, which is not a fault. */
static void print_proof(const struct audit_verify *v)
{
    if (v->proven)
        printf("proven: lines %" PRIu64 " to %" PRIu64 ", by the head signed at %s\n", v->first,
               v->proven, v->proven_time);
    else
        printf("proven: no line, because no signed head covers one\n");
    if (!v->findings && v->last > v->proven)
        printf("chained, but not signed yet: lines %" PRIu64 " to %" PRIu64 "\n", v->proven + 1,
               v->last);
    if (v->first > 1) printf("lines before %" PRIu64 " are not in this copy\n", v->first);
}

/* The findings come before the result on a terminal, and inside it as JSON. */
static err print_result(const struct audit_verify *v, const struct verifying *w)
{
    if (!w->o->common.json) {
        if (w->shown > FINDINGS_SHOWN)
            printf("... and %zu more findings\n", w->shown - FINDINGS_SHOWN);
        print_proof(v);
        return ERR_NONE;
    }
    json_t *all =
        json_pack("{s:I, s:I, s:I, s:I, s:I, s:s, s:I, s:O}", "lines", (json_int_t)v->lines,
                  "first", (json_int_t)v->first, "last", (json_int_t)v->last, "heads",
                  (json_int_t)v->heads, "proven", (json_int_t)v->proven, "proven_time",
                  v->proven_time, "findings", (json_int_t)v->findings, "finding", w->findings);
    err e = all ? report_json(all) : err_make(ERR_MACHINE, "no memory for the result");
    json_decref(all);
    return e;
}

/* Several keys, because a log outlives its key. */
static err open_keys(uint8_t key[KEYS_MAX][32], const struct option_list *files)
{
    if (files->count > KEYS_MAX)
        return err_make(ERR_INPUT, "--key: %zu keys, at most %d", files->count, KEYS_MAX);
    for (size_t i = 0; i < files->count; i++)
        TRY(ledger_public_open(key[i], files->item[i]));
    return ERR_NONE;
}

/* Findings are an error of this command, so that a script that checks a log every night notices. */
static err verify_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct audit_command *o = options;
    const char *path = arguments->item[0];
    uint8_t key[KEYS_MAX][32];
    struct digest head;
    struct verifying w = {.o = o, .findings = json_array()};
    struct audit_verify v = {.key = (const uint8_t(*)[32])key,
                             .keys = o->keys.count,
                             .found = print_finding,
                             .context = &w};
    err e = w.findings ? ERR_NONE : err_make(ERR_MACHINE, "no memory for the findings");
    if (!err_is(e)) e = open_keys(key, &o->keys);
    if (!err_is(e) && o->head) e = digest_parse(&head, o->head);
    if (o->head) v.wanted = &head;
    if (!err_is(e)) e = add_all(&v, path, arena);
    if (!err_is(e)) audit_verify_end(&v);
    if (!err_is(e) && !v.lines) e = err_make(ERR_INPUT, "%s: has no line", path);
    if (!err_is(e)) e = print_result(&v, &w);
    json_decref(w.findings);
    if (err_is(e) || !v.findings) return e;
    return err_make(ERR_INPUT, "%s: %" PRIu64 " finding%s: this is not the log that was written",
                    path, v.findings, v.findings == 1 ? "" : "s");
}

/* ---------------------------------------------------------------- the commands */

static const struct option_row export_rows[] = {
    REMOTE_OPTION_ROWS(AT(remote)),
    {.flag = "output",
     .letter = 'o',
     .kind = OPTION_TEXT,
     .required = true,
     .at = AT(output),
     .value = "FILE",
     .help = "file for the lines, as JSON Lines"},
    {.flag = "since",
     .kind = OPTION_TEXT,
     .at = AT(since),
     .value = "TIME",
     .help = "first time to export: a date (2026-11-01), a time in UTC (2026-11-01T12:00:00Z), or "
             "how long ago (48h); default: the whole log"},
    COMMAND_ROW_FORCE(AT(force)),
};
static const struct option_row verify_rows[] = {
    {.flag = "key",
     .kind = OPTION_LIST,
     .required = true,
     .at = AT(keys),
     .value = "FILE",
     .help = "public key (PEM) of the log, audit.pub; repeat it for a log whose key was replaced"},
    {.flag = "head",
     .kind = OPTION_TEXT,
     .at = AT(head),
     .value = "HASH",
     .help = "hash of a line that must be there, from another source; detects lines that were "
             "removed at the end"},
};

const struct command command_audit_export = {
    .name = "audit export",
    .purpose = "download the coordinator's audit log, for an auditor (operator)",
    .usage = "-o FILE [--since TIME] --server HOST:PORT --ca FILE --cert FILE --key FILE",
    .example = "fedlora audit export --since 2026-11-01 -o audit.jsonl --config operator.ini",
    .rows = export_rows,
    .row_count = sizeof export_rows / sizeof *export_rows,
    .options_size = sizeof(struct audit_command),
    .run = export_run,
};
const struct command command_audit_verify = {
    .name = "audit verify",
    .purpose = "check an audit log without the coordinator",
    .usage = "FILE|DIR --key FILE [--head HASH]",
    .example = "fedlora audit verify audit.jsonl --key audit.pub",
    .rows = verify_rows,
    .row_count = sizeof verify_rows / sizeof *verify_rows,
    .options_size = sizeof(struct audit_command),
    .least = 1,
    .most = 1,
    .run = verify_run,
};
