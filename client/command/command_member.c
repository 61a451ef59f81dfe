/* fedlora member list, show, add, rename, sign, revoke: the operator's view of the federation. */
#include "client/command/command_roster.h"

#include "base/file.h"
#include "client/identity/identity.h"
#include "client/output/table.h"
#include "proto/certificate.h"
#include "proto/enroll_token.h"
#include "proto/message.h"
#include "proto/rpc_path.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *const runs_choices[] = {"drop", "keep", NULL};

struct member_command {
    struct command_common common;
    struct remote_options remote;
    const char *role, *name;           /* name: add */
    const char *serial, *reason;       /* revoke */
    int runs;                          /* revoke: index of runs_choices */
    const char *id, *output, *address; /* sign */
    bool force;
};
#define AT(member) offsetof(struct member_command, member)
static const struct option_row plain_rows[] = {REMOTE_OPTION_ROWS(AT(remote))};
static const struct option_row role_rows[] = {COMMAND_ROW_ROLE(AT(role)),
                                              REMOTE_OPTION_ROWS(AT(remote))};
static const struct option_row add_rows[] = {
    COMMAND_ROW_ROLE(AT(role)),
    {.flag = "name",
     .kind = OPTION_TEXT,
     .at = AT(name),
     .value = "TEXT",
     .help = "a name for people, shown beside the id"},
    REMOTE_OPTION_ROWS(AT(remote)),
};
static const struct option_row revoke_rows[] = {
    COMMAND_ROW_ROLE(AT(role)),
    {.flag = "serial",
     .kind = OPTION_TEXT,
     .at = AT(serial),
     .value = "HEX",
     .help = "revoke only the certificate of this serial number; default: all of them"},
    {.flag = "reason",
     .kind = OPTION_TEXT,
     .at = AT(reason),
     .value = "TEXT",
     .help = "recorded, and shown by member show"},
    {.flag = "runs",
     .kind = OPTION_CHOICE,
     .at = AT(runs),
     .fallback = "drop",
     .choices = runs_choices,
     .help = "drop: its open runs go on without it; keep: they wait for it"},
    REMOTE_OPTION_ROWS(AT(remote)),
};
static const struct option_row sign_rows[] = {
    COMMAND_ROW_ROLE(AT(role)),
    {.flag = "output",
     .letter = 'o',
     .kind = OPTION_TEXT,
     .at = AT(output),
     .required = true,
     .value = "FILE",
     .help = "the new file: certificate, its chain, and the roots of the federation"},
    {.flag = "id",
     .kind = OPTION_TEXT,
     .at = AT(id),
     .value = "ID",
     .help = "identity to certify; default: the request's file name without .csr"},
    {.flag = "address",
     .kind = OPTION_TEXT,
     .at = AT(address),
     .value = "HOST:PORT",
     .help = "the coordinator's address for the new member; default: --server"},
    COMMAND_ROW_FORCE(AT(force)),
    REMOTE_OPTION_ROWS(AT(remote)),
};

/* One form for all tables: it sorts as text, and has no zone to be guessed. */
const char *command_time(char out[COMMAND_TIME_BYTES], uint64_t wall_ms)
{
    time_t seconds = (time_t)(wall_ms / 1000);
    struct tm tm;
    bool written = wall_ms && gmtime_r(&seconds, &tm) &&
                   strftime(out, COMMAND_TIME_BYTES, "%Y-%m-%d %H:%M:%SZ", &tm) > 0;
    if (!written) snprintf(out, COMMAND_TIME_BYTES, "-");
    return out;
}

/* ---- one identity ---- */

/* A member may be in many runs, so the list is one line that a terminal wraps. */
static void print_runs(const Fedlora__V1__Identity *i)
{
    printf("runs         ");
    for (size_t r = 0; r < i->n_runs; r++)
        printf("%s%s", r ? ", " : "", i->runs[r]);
    printf("%s\n", i->n_runs ? "" : "-");
}

/* The newest first; an operator looks for the serial to revoke. */
static err print_certificates(const Fedlora__V1__Identity *i)
{
    static const char *const head[] = {"serial", "how", "issued", "ends", "revoked", "reason"};
    char issued[COMMAND_TIME_BYTES], ends[COMMAND_TIME_BYTES], revoked[COMMAND_TIME_BYTES];
    struct table t;
    err e = ERR_NONE;
    if (i->n_certificates == 0) return ERR_NONE;
    printf("\n");
    table_begin(&t, "llllll");
    TRY_OUT(e, table_row(&t, head));
    for (size_t c = 0; c < i->n_certificates; c++) {
        const Fedlora__V1__IssuedCertificate *is = i->certificates[c];
        const char *const row[] = {is->serial,
                                   is->how,
                                   command_time(issued, is->issued_ms),
                                   command_time(ends, is->ends * 1000),
                                   command_time(revoked, is->revoked_ms),
                                   is->reason};
        TRY_OUT(e, table_row(&t, row));
    }
    e = table_print(&t);
out:
    table_close(&t);
    return e;
}

/* A fixed order and one fact a line, so that it can be read out and searched. */
static err print_identity(const struct member_command *o, const Fedlora__V1__Identity *i)
{
    char added[COMMAND_TIME_BYTES], changed[COMMAND_TIME_BYTES], ends[COMMAND_TIME_BYTES];
    char seen[COMMAND_TIME_BYTES];
    if (o->common.json) return command_run_print_message(&i->base);
    printf("%s (%s)%s%s\n", i->id, i->role, *i->name ? ": " : "", i->name);
    printf("state        %s since %s%s%s\n", i->state, command_time(changed, i->changed_ms),
           *i->reason ? ": " : "", i->reason);
    printf("added        %s by %s\n", command_time(added, i->added_ms), i->added_by);
    printf("certificate  %s%s\n", i->certificate_ends ? "ends " : "",
           command_time(ends, i->certificate_ends * 1000));
    printf("last call    %s%s%s\n", command_time(seen, i->seen_ms), *i->address ? " from " : "",
           i->address);
    printf("software     %s\n", *i->software ? i->software : "-");
    print_runs(i);
    return print_certificates(i);
}

/* Every command about one identity has the same answer: the identity after the command, so that a
 * script sees whether it took effect. */
static err call_one(const struct member_command *o, const char *path,
                    const ProtobufCMessage *request)
{
    const struct remote_method method = {path, &fedlora__v1__identity__descriptor};
    Fedlora__V1__Identity *reply = NULL;
    struct rpc_client *client = NULL;
    TRY(remote_open(&client, &o->remote));
    err e = remote_call(&reply, client, &method, request, 0);
    if (!err_is(e)) e = print_identity(o, reply);
    message_free(reply);
    rpc_client_close(client);
    return e;
}

/* show, add and rename have one request; the path is the difference. */
static err ask(const struct member_command *o, const char *path, const char *id, const char *name)
{
    Fedlora__V1__IdentityRequest request = FEDLORA__V1__IDENTITY_REQUEST__INIT;
    request.id = (char *)(uintptr_t)id;
    request.role = (char *)(uintptr_t)o->role;
    request.name = (char *)(uintptr_t)(name ? name : "");
    return call_one(o, path, &request.base);
}

static err show_run(void *o, const struct option_list *arguments, struct arena *arena)
{
    (void)arena;
    return ask(o, RPC_PATH_ADMIN(get_identity), arguments->item[0], NULL);
}
static err add_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct member_command *o = options;
    (void)arena;
    return ask(o, RPC_PATH_ADMIN(add_identity), arguments->item[0], o->name);
}
static err rename_run(void *o, const struct option_list *arguments, struct arena *arena)
{
    (void)arena;
    return ask(o, RPC_PATH_ADMIN(rename_identity), arguments->item[0], arguments->item[1]);
}

static err revoke_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct member_command *o = options;
    Fedlora__V1__RevokeRequest request = FEDLORA__V1__REVOKE_REQUEST__INIT;
    (void)arena;
    request.id = (char *)(uintptr_t)arguments->item[0];
    request.role = (char *)(uintptr_t)o->role;
    request.serial = (char *)(uintptr_t)(o->serial ? o->serial : "");
    request.reason = (char *)(uintptr_t)(o->reason ? o->reason : "");
    request.keep_runs = strcmp(runs_choices[o->runs], "keep") == 0;
    return call_one(o, RPC_PATH_ADMIN(revoke_identity), &request.base);
}

/* ---- list ---- */

/* Runs are cut at the width of a wide terminal; --json has all of them. */
static err add_row(struct table *t, const Fedlora__V1__Identity *i)
{
    char ends[COMMAND_TIME_BYTES], seen[COMMAND_TIME_BYTES], runs[256] = "";
    size_t used = 0;
    for (size_t r = 0; r < i->n_runs && used < sizeof runs; r++)
        used += (size_t)snprintf(runs + used, sizeof runs - used, "%s%s", r ? " " : "", i->runs[r]);
    TRY(table_cell(t, "%s", i->id));
    TRY(table_cell(t, "%s", i->role));
    TRY(table_cell(t, "%s", i->state));
    TRY(table_cell(t, "%s", command_time(ends, i->certificate_ends * 1000)));
    TRY(table_cell(t, "%s", command_time(seen, i->seen_ms)));
    TRY(table_cell(t, "%s", *i->address ? i->address : "-"));
    TRY(table_cell(t, "%s", *i->software ? i->software : "-"));
    TRY(table_cell(t, "%s", i->n_runs ? runs : "-"));
    return table_cell(t, "%s", *i->name ? i->name : "-");
}

/* Members and operators in one table, because both have certificates that end. */
static err print_list(const struct member_command *o, const Fedlora__V1__IdentityList *list)
{
    static const char *const head[] = {"id",        "role",    "state",    "certificate ends",
                                       "last call", "address", "software", "runs",
                                       "name"};
    struct table t;
    err e = ERR_NONE;
    if (o->common.json) return command_run_print_message(&list->base);
    if (list->n_identities == 0) {
        printf("no members\n");
        return ERR_NONE;
    }
    table_begin(&t, "lllllllll");
    TRY_OUT(e, table_row(&t, head));
    for (size_t i = 0; i < list->n_identities; i++)
        TRY_OUT(e, add_row(&t, list->identities[i]));
    e = table_print(&t);
out:
    table_close(&t);
    return e;
}

/* All pages as one list. */
enum { PAGES_MAX = 512 };
static err list_all(const struct member_command *o, struct rpc_client *client, struct arena *arena)
{
    static const struct remote_method method = {RPC_PATH_ADMIN(list_identities),
                                                &fedlora__v1__identity_list__descriptor};
    Fedlora__V1__IdentityList *page[PAGES_MAX], all = FEDLORA__V1__IDENTITY_LIST__INIT;
    Fedlora__V1__IdentityPage request = FEDLORA__V1__IDENTITY_PAGE__INIT;
    size_t pages = 0, count = 0;
    bool more = true;
    err e = ERR_NONE;
    while (more && pages < PAGES_MAX) {
        TRY_OUT(e, remote_call(&page[pages], client, &method, &request.base, 0));
        const Fedlora__V1__IdentityList *got = page[pages++];
        count += got->n_identities;
        more = got->more && got->n_identities > 0;
        if (!more) break;
        request.after_id = got->identities[got->n_identities - 1]->id;
        request.after_role = got->identities[got->n_identities - 1]->role;
    }
    TRY_OUT(e, arena_take(&all.identities, arena, count + 1, sizeof *all.identities));
    for (size_t i = 0; i < pages; i++)
        for (size_t k = 0; k < page[i]->n_identities; k++)
            all.identities[all.n_identities++] = page[i]->identities[k];
    e = print_list(o, &all);
out:
    while (pages > 0)
        message_free(page[--pages]);
    return e;
}

static err list_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct member_command *o = options;
    struct rpc_client *client = NULL;
    (void)arguments;
    TRY(remote_open(&client, &o->remote));
    err e = list_all(o, client, arena);
    rpc_client_close(client);
    return e;
}

/* ---- sign ---- */

/* `fedlora enroll --request north.csr` names the file after the member, and names in the request
 * itself are not to be trusted. */
static err id_of_file(char out[LIMIT_NAME_BYTES], const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const char *dot = strrchr(name, '.');
    size_t size = dot && strcmp(dot, ".csr") == 0 ? (size_t)(dot - name) : 0;
    if (size == 0 || size >= LIMIT_NAME_BYTES)
        return err_make(ERR_INPUT, "%s: expected a file ID.csr, or --id ID", path);
    snprintf(out, LIMIT_NAME_BYTES, "%.*s", (int)size, name);
    return ERR_NONE;
}

/* The roots follow the chain, so that one file by mail is enough; `fedlora enroll --accept` checks
 * them by the hash that the operator tells by another way. */
static err write_signed(const struct member_command *o, const Fedlora__V1__CertificateReply *reply)
{
    struct bytes text = {.max = 2 << 20};
    struct enroll_hash hash;
    char hash_text[ENROLL_HASH_TEXT_BYTES], ends[COMMAND_TIME_BYTES];
    err e = *reply->server ? bytes_printf(&text, IDENTITY_NOTE_SERVER ": %s\n", reply->server)
                           : ERR_NONE;
    if (!err_is(e)) e = bytes_append(&text, reply->certificate.data, reply->certificate.len);
    if (!err_is(e)) e = bytes_append(&text, reply->ca.data, reply->ca.len);
    if (!err_is(e)) e = file_write(o->output, text.data, text.size, o->force);
    bytes_clear(&text);
    if (!err_is(e)) e = bytes_append(&text, reply->ca.data, reply->ca.len);
    if (!err_is(e)) e = certificate_hash(&hash, (const char *)text.data);
    bytes_close(&text);
    if (err_is(e)) return e;
    if (o->common.json) return command_run_print_message(&reply->base);
    enroll_token_hash_text(hash_text, &hash);
    printf("%s: fl://%s/%s/%s, ends %s\n", o->output, reply->federation, reply->role, reply->id,
           command_time(ends, reply->not_after * 1000));
    printf("%s continues with:  fedlora enroll --accept %s --ca-hash %s\n", reply->id, o->output,
           hash_text);
    return ERR_NONE;
}

/* The output is checked before the call, because a certificate that cannot be written is lost but
 * recorded. */
static err sign_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    static const struct remote_method method = {RPC_PATH_ADMIN(sign_identity),
                                                &fedlora__v1__certificate_reply__descriptor};
    const struct member_command *o = options;
    const char *path = arguments->item[0];
    Fedlora__V1__SignRequest request = FEDLORA__V1__SIGN_REQUEST__INIT;
    Fedlora__V1__CertificateReply *reply = NULL;
    struct rpc_client *client = NULL;
    char id[LIMIT_NAME_BYTES], *csr = NULL;
    size_t size = 0;
    err e = ERR_NONE;
    (void)arena;
    if (!o->id) TRY(id_of_file(id, path));
    TRY(command_check_output(o->output, o->force));
    TRY(file_read_all(&csr, &size, path, CERTIFICATE_REQUEST_BYTES));
    request.id = (char *)(uintptr_t)(o->id ? o->id : id);
    request.role = (char *)(uintptr_t)o->role;
    request.csr.data = (uint8_t *)csr;
    request.csr.len = size;
    request.server = (char *)(uintptr_t)(o->address ? o->address : o->remote.server);
    TRY_OUT(e, remote_open(&client, &o->remote));
    TRY_OUT(e, remote_call(&reply, client, &method, &request.base, 0));
    e = write_signed(o, reply);
out:
    message_free(reply);
    rpc_client_close(client);
    free(csr);
    return e;
}

#define CONNECTION "--server HOST:PORT --ca FILE --cert FILE --key FILE"
#define ROWS(list) .rows = (list), .row_count = sizeof(list) / sizeof *(list)

const struct command command_member_list = {
    .name = "member list",
    .purpose = "list members and operators, their certificates and runs (operator)",
    .usage = CONNECTION,
    .example = "fedlora member list --config operator.ini",
    ROWS(plain_rows),
    .options_size = sizeof(struct member_command),
    .run = list_run,
};
const struct command command_member_show = {
    .name = "member show",
    .purpose = "show one member and all of its certificates (operator)",
    .usage = "ID [--role client|admin] " CONNECTION,
    .example = "fedlora member show north --config operator.ini",
    ROWS(role_rows),
    .options_size = sizeof(struct member_command),
    .least = 1,
    .most = 1,
    .run = show_run,
};
const struct command command_member_add = {
    .name = "member add",
    .purpose = "add a member, or admit one that was revoked again (operator)",
    .usage = "ID [--name TEXT] [--role client|admin] " CONNECTION,
    .example = "fedlora member add north --name \"St. Mary's\" --config operator.ini",
    ROWS(add_rows),
    .options_size = sizeof(struct member_command),
    .least = 1,
    .most = 1,
    .run = add_run,
};
const struct command command_member_rename = {
    .name = "member rename",
    .purpose = "change the name that people see; the id never changes (operator)",
    .usage = "ID NAME [--role client|admin] " CONNECTION,
    .example = "fedlora member rename north \"St. Mary's\" --config operator.ini",
    ROWS(role_rows),
    .options_size = sizeof(struct member_command),
    .least = 2,
    .most = 2,
    .run = rename_run,
};
const struct command command_member_sign = {
    .name = "member sign",
    .purpose = "sign the request of a member that cannot reach enrolment (operator)",
    .usage = "FILE.csr -o FILE [--id ID] [--role client|admin] " CONNECTION,
    .example = "fedlora member sign north.csr -o north.crt --config operator.ini",
    ROWS(sign_rows),
    .options_size = sizeof(struct member_command),
    .least = 1,
    .most = 1,
    .run = sign_run,
};
const struct command command_member_revoke = {
    .name = "member revoke",
    .purpose = "refuse a member or one of its certificates from now on (operator)",
    .usage =
        "ID [--serial HEX] [--reason TEXT] [--runs drop|keep] [--role client|admin] " CONNECTION,
    .example = "fedlora member revoke north --reason \"stolen laptop\" --config operator.ini",
    ROWS(revoke_rows),
    .options_size = sizeof(struct member_command),
    .least = 1,
    .most = 1,
    .run = revoke_run,
};
