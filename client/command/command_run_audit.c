/* fedlora run audit: download everything that an auditor needs to check the lineage and the
 * privacy of a run.
 *
 * The directory gets the signed manifest of the newest state, which fedlora verify compares with
 * the state. In a run with privacy it also gets one ledger per party (the coordinator's, or each
 * member's copy) and, if members are drawn at random, cohorts.json with the revealed seeds. Every
 * ledger is replayed here before it is shown, so the table contains verified numbers and not the
 * coordinator's claims. An auditor can repeat the check without the coordinator with `fedlora
 * budget verify`. */
#include "client/command/command_run.h"
#include "client/output/report.h"

#include "base/file.h"
#include "base/json.h"
#include "client/output/table.h"
#include "privacy/ledger/statement.h"
#include "proto/message.h"
#include "proto/rpc_path.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

struct audit_command {
    struct command_common common;
    struct remote_options remote;
    const char *output;
    bool force;
};

/* The connection and the place of the result; what is downloaded has no options. */
#define AT(member) offsetof(struct audit_command, member)
static const struct option_row rows[] = {
    REMOTE_OPTION_ROWS(AT(remote)),
    {.flag = "output",
     .letter = 'o',
     .kind = OPTION_TEXT,
     .required = true,
     .at = AT(output),
     .value = "DIR",
     .help = "directory for manifest, ledgers and cohort seeds; created if absent"},
    {.flag = "force",
     .kind = OPTION_FLAG,
     .at = AT(force),
     .help = "replace existing files in the output directory"},
};

/* State of one audit: the connection, and the results so far as a table and as JSON. */
struct audit {
    const struct audit_command *o;
    const char *run;
    struct rpc_client *client;
    struct table table;
    json_t *ledgers; /* a result for each */
    bool private;    /* the run has ledgers */
};

typedef Fedlora__V1__AuditReply audit_reply;

/* Audit replies come in pages; `asked` names the part, and the line or round after which it
 * starts. */
static err ask(audit_reply **out, const struct audit *a, const Fedlora__V1__AuditRequest *asked)
{
    static const struct remote_method method = {RPC_PATH_ADMIN(audit),
                                                &fedlora__v1__audit_reply__descriptor};
    Fedlora__V1__AuditRequest request = *asked;
    request.run = (char *)(uintptr_t)a->run;
    return remote_call(out, a->client, &method, &request.base, 0);
}

/* Each file is checked for itself: an audit of a longer run may add files to an existing
 * directory. */
static err write_to(const struct audit *a, const char *name, const void *data, size_t size)
{
    char path[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, a->o->output, name));
    TRY(command_check_output(path, a->o->force));
    return file_write(path, data, size, a->o->force);
}

/* ---------------------------------------------------------------- ledgers */

/* Pages are whole lines. The next page starts after the number of lines received so far; an empty
 * page is the end. */
static err fetch(struct bytes *out, const struct audit *a, const char *party)
{
    Fedlora__V1__AuditRequest request = FEDLORA__V1__AUDIT_REQUEST__INIT;
    request.party = (char *)(uintptr_t)party;
    for (;;) {
        audit_reply *reply = NULL;
        TRY(ask(&reply, a, &request));
        size_t size = reply->lines.len;
        err e = bytes_append(out, reply->lines.data, size);
        for (size_t i = 0; i < size; i++)
            request.after += reply->lines.data[i] == '\n';
        message_free(reply);
        if (err_is(e) || size == 0) return e;
    }
}

/* One row per ledger; epsilon is recomputed from its lines. */
static err show(struct audit *a, const char *file, const struct statement *s)
{
    const struct ledger_terms *t = &s->ledger->terms;
    char head[DIGEST_TEXT_BYTES];
    digest_text(head, &s->ledger->head.hash);
    TRY(table_cell(&a->table, "%s", file));
    TRY(table_cell(&a->table, "%s", t->unit == LEDGER_CLIENT ? "client" : "example"));
    TRY(table_cell(&a->table, "%zu", s->releases));
    TRY(table_cell(&a->table, "%.6g", s->spent.epsilon));
    TRY(table_cell(&a->table, "%.6g", t->epsilon));
    TRY(table_cell(&a->table, "%.3g", t->delta));
    TRY(table_cell(&a->table, "%s", head));
    json_t *row =
        json_pack("{s:s, s:s, s:s, s:I, s:I, s:f, s:f, s:f, s:s}", "file", file, "party", t->party,
                  "unit", t->unit == LEDGER_CLIENT ? "client" : "example", "lines",
                  (json_int_t)s->ledger->head.count, "releases", (json_int_t)s->releases, "epsilon",
                  s->spent.epsilon, "budget", t->epsilon, "delta", t->delta, "head", head);
    return row && json_array_append_new(a->ledgers, row) == 0
               ? ERR_NONE
               : err_make(ERR_MACHINE, "no memory for the result");
}

/* The file is written before it is replayed: a ledger that fails the check is what an auditor wants
 * to see. The coordinator's own ledger has an empty party. */
static err take_ledger(struct audit *a, const char *party)
{
    /* The same limit as in `fedlora budget verify`. */
    struct bytes text = {.max = 256 << 20};
    struct ledger ledger = {0};
    struct statement s;
    char file[LIMIT_NAME_BYTES + 16];
    snprintf(file, sizeof file, "%s.jsonl", *party ? party : "coordinator");
    err e = fetch(&text, a, party);
    if (!err_is(e) && text.size == 0)
        e = err_make(ERR_STATE, "run %s has no ledger yet, because nothing was released", a->run);
    if (!err_is(e)) e = write_to(a, file, text.data, text.size);
    if (!err_is(e)) e = ledger_read(&ledger, (const char *)text.data, text.size, file);
    if (!err_is(e)) e = statement_replay(&s, &ledger, file);
    if (!err_is(e)) e = show(a, file, &s);
    ledger_close(&ledger);
    bytes_close(&text);
    return e;
}

/* ---------------------------------------------------------------- cohorts */

/* The members and their order are part of what a cohort seed is hashed with. */
static err list_members(json_t *list, const struct audit *a)
{
    Fedlora__V1__RunStatus *status = NULL;
    TRY(command_run_get(&status, a->client, a->run));
    for (size_t i = 0; status->config && i < status->config->n_members; i++)
        json_array_append_new(list, json_string(status->config->members[i]->id));
    message_free(status);
    return ERR_NONE;
}

/* A seed of another size cannot be hashed, so it is refused here instead of in the later check. */
static err add_seeds(json_t *list, const audit_reply *reply)
{
    for (size_t i = 0; i < reply->n_cohorts; i++) {
        const Fedlora__V1__CohortSeed *c = reply->cohorts[i];
        char text[DIGEST_TEXT_BYTES];
        struct digest d;
        if (c->seed.len != sizeof d.byte)
            return err_make(ERR_INPUT,
                            "the coordinator's answer: a cohort seed has %zu bytes, expected 32",
                            c->seed.len);
        memcpy(d.byte, c->seed.data, sizeof d.byte);
        digest_text(text, &d);
        json_array_append_new(list, json_pack("{s:i, s:s}", "round", (int)c->round, "seed", text));
    }
    return ERR_NONE;
}

/* *first is the first page, which also lists the parties; the caller frees it with
 * message_free(). */
static err fetch_seeds(json_t *list, audit_reply **first, const struct audit *a)
{
    Fedlora__V1__AuditRequest request = FEDLORA__V1__AUDIT_REQUEST__INIT;
    request.index = true;
    for (;;) {
        audit_reply *reply = NULL;
        TRY(ask(&reply, a, &request));
        err e = add_seeds(list, reply);
        size_t n = reply->n_cohorts;
        if (n) request.after = reply->cohorts[n - 1]->round;
        if (*first)
            message_free(reply);
        else
            *first = reply;
        if (err_is(e) || n == 0) return e;
    }
}

/* The seeds reveal which members took part in which round. The file is therefore readable by its
 * owner only, while ledgers may be passed on. */
static err write_cohorts(const struct audit *a, json_t *document)
{
    struct bytes text = {.max = 64 << 20};
    if (json_array_size(json_object_get(document, "rounds")) == 0) return ERR_NONE;
    err e = list_members(json_object_get(document, "members"), a);
    if (!err_is(e)) e = json_write(&text, document);
    if (!err_is(e)) e = bytes_append(&text, "\n", 1);
    mode_t was = umask(077); /* the seeds are secret: mode 0600 */
    if (!err_is(e)) e = write_to(a, "cohorts.json", text.data, text.size);
    umask(was);
    bytes_close(&text);
    return e;
}

/* ---------------------------------------------------------------- the command */

static err take_manifest(const struct audit *a, const Fedlora__V1__RunStatus *status)
{
    Fedlora__V1__ManifestRequest request = FEDLORA__V1__MANIFEST_REQUEST__INIT;
    char path[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, a->o->output, "manifest.json"));
    TRY(command_check_output(path, a->o->force));
    request.run = (char *)(uintptr_t)a->run;
    request.state_digest = status->state_digest;
    const struct remote_made made = {.method = RPC_PATH_ADMIN(manifest),
                                     .request = &request.base,
                                     .path = path,
                                     .replace = a->o->force};
    return remote_make(a->client, &made);
}

/* The directory is created after the first answer, so that a refused audit leaves none. */
static err take_lineage(struct audit *a)
{
    Fedlora__V1__RunStatus *status = NULL;
    TRY(command_run_get(&status, a->client, a->run));
    a->private = status->config && status->config->privacy;
    err e = status->state_digest.len ? ERR_NONE
                                     : err_make(ERR_STATE, "run %s has no state yet", a->run);
    if (!err_is(e)) e = file_make_dirs(a->o->output);
    if (!err_is(e)) e = take_manifest(a, status);
    message_free(status);
    return e;
}

static err take_ledgers(struct audit *a)
{
    json_t *document = json_pack("{s:s, s:[], s:[]}", "run", a->run, "members", "rounds");
    audit_reply *first = NULL;
    err e = document ? ERR_NONE : err_make(ERR_MACHINE, "no memory for the cohorts");
    if (!err_is(e)) e = fetch_seeds(json_object_get(document, "rounds"), &first, a);
    if (!err_is(e) && first->n_parties == 0)
        e = err_make(ERR_STATE, "run %s has no ledger yet", a->run);
    for (size_t i = 0; !err_is(e) && i < first->n_parties; i++)
        e = take_ledger(a, first->parties[i]);
    if (!err_is(e)) e = write_cohorts(a, document);
    message_free(first);
    json_decref(document);
    return e;
}

static err print(struct audit *a)
{
    if (a->o->common.json) return report_json(a->ledgers);
    printf("%s/manifest.json: what the newest state of run %s was made from\n", a->o->output,
           a->run);
    if (a->private) return table_print(&a->table);
    printf("run %s has no privacy, so it has no ledger\n", a->run);
    return ERR_NONE;
}

/* The table is printed only after all ledgers have been verified. The files of a failed audit stay,
 * so that the auditor can examine them. */
static err audit_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    (void)arena;
    const struct audit_command *o = options;
    static const char *const head[] = {"ledger", "unit",  "releases", "epsilon",
                                       "budget", "delta", "head"};
    struct audit a = {.o = o, .run = arguments->item[0], .ledgers = json_array()};
    err e = ERR_NONE;
    table_begin(&a.table, "llrrrrl");
    TRY_OUT(e, table_row(&a.table, head));
    TRY_OUT(e, remote_open(&a.client, &o->remote));
    TRY_OUT(e, take_lineage(&a));
    if (a.private) TRY_OUT(e, take_ledgers(&a));
    e = print(&a);
out:
    rpc_client_close(a.client);
    table_close(&a.table);
    json_decref(a.ledgers);
    return e;
}

const struct command command_run_audit = {
    .name = "run audit",
    .purpose =
        "download the lineage of a run and verify its privacy ledgers, for an auditor (operator)",
    .usage = "NAME -o DIR --server HOST:PORT --ca FILE --cert FILE --key FILE",
    .example = "fedlora run audit trial -o trial-audit --config operator.ini",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct audit_command),
    .least = 1,
    .most = 1,
    .run = audit_run,
};
