/* fedlora token create, list, revoke: one-time secrets with which institutions enrol. */
#include "client/command/command_roster.h"

#include "base/limits.h"
#include "client/command/remote_json.h"
#include "client/output/report.h"
#include "client/output/table.h"
#include "proto/message.h"
#include "proto/rpc_path.h"

#include <stdio.h>
#include <string.h>

struct token_command {
    struct command_common common;
    struct remote_options remote;
    const char *role, *address; /* create and revoke; create */
    uint64_t ttl_ms;            /* create */
};
#define AT(member) offsetof(struct token_command, member)
static const struct option_row list_rows[] = {REMOTE_OPTION_ROWS(AT(remote))};
static const struct option_row revoke_rows[] = {COMMAND_ROW_ROLE(AT(role)),
                                                REMOTE_OPTION_ROWS(AT(remote))};
static const struct option_row create_rows[] = {
    COMMAND_ROW_ROLE(AT(role)),
    {.flag = "ttl",
     .kind = OPTION_DURATION,
     .at = AT(ttl_ms),
     .fallback = "24h",
     .help = "how long the token can be used"},
    {.flag = "address",
     .kind = OPTION_TEXT,
     .at = AT(address),
     .value = "HOST[:PORT]",
     .help = "address of enrolment that the token names; default: [enroll] address of the "
             "coordinator, else the host of --server"},
    REMOTE_OPTION_ROWS(AT(remote)),
};

/* The host of HOST:PORT; brackets of an IPv6 address stay. */
static void host_of(char *out, size_t bytes, const char *server)
{
    const char *colon = strrchr(server, ':');
    snprintf(out, bytes, "%.*s", colon ? (int)(colon - server) : (int)strlen(server), server);
}

/* The token alone on standard output, so that a script can take it; several have their id in front.
 * The note on standard error says what to do with it. */
static err print_token(const struct token_command *o, const Fedlora__V1__Token *t, bool several)
{
    char ends[COMMAND_TIME_BYTES];
    if (several)
        printf("%s %s\n", t->id, t->token);
    else
        printf("%s\n", t->token);
    command_note(&o->common,
                 "%s enrols with it once, before %s:  fedlora enroll TOKEN\n"
                 "Whoever has the token can be %s until then: send it by a safe way.",
                 t->id, command_time(ends, t->ends_ms), t->id);
    return ERR_NONE;
}

/* The host by which the operator reaches the coordinator is a good guess for institutions too; the
 * coordinator knows the port, and its configuration may name another address. No retry: a lost
 * answer would leave a token that nobody has, and the operator decides whether to make another. */
static err create_one(json_t *list, const struct token_command *o, struct rpc_client *client,
                      const char *id, bool several)
{
    static const struct remote_method method = {RPC_PATH_ADMIN(create_token),
                                                &fedlora__v1__token__descriptor};
    Fedlora__V1__TokenRequest request = FEDLORA__V1__TOKEN_REQUEST__INIT;
    Fedlora__V1__Token *reply = NULL;
    char host[512];
    json_t *value = NULL;
    host_of(host, sizeof host, o->remote.server);
    request.id = (char *)(uintptr_t)id;
    request.role = (char *)(uintptr_t)o->role;
    request.ttl_ms = o->ttl_ms;
    request.server = (char *)(uintptr_t)(o->address ? o->address : host);
    TRY(remote_call(&reply, client, &method, &request.base, 0));
    err e = ERR_NONE;
    if (!o->common.json) {
        e = print_token(o, reply, several);
    } else {
        e = remote_json(&value, &reply->base);
        if (!err_is(e)) json_array_append_new(list, value);
    }
    message_free(reply);
    return e;
}

/* One id: its token. Several: a list, also in JSON. Those made before an error are printed, because
 * they can be used. */
static err create_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct token_command *o = options;
    struct rpc_client *client = NULL;
    json_t *list = json_array();
    bool several = arguments->count > 1;
    (void)arena;
    err e = remote_open(&client, &o->remote);
    for (size_t i = 0; i < arguments->count && !err_is(e); i++)
        e = create_one(list, o, client, arguments->item[i], several);
    if (o->common.json && json_array_size(list)) {
        err printed = report_json(several ? list : json_array_get(list, 0));
        if (!err_is(e)) e = printed;
    }
    json_decref(list);
    rpc_client_close(client);
    return e;
}

/* Times in UTC, because operators and institutions may be in different zones. */
static err add_row(struct table *t, const Fedlora__V1__Token *token)
{
    char made[COMMAND_TIME_BYTES], ends[COMMAND_TIME_BYTES], used[COMMAND_TIME_BYTES];
    TRY(table_cell(t, "%s", token->id));
    TRY(table_cell(t, "%s", token->role));
    TRY(table_cell(t, "%s", token->state));
    TRY(table_cell(t, "%s", command_time(made, token->made_ms)));
    TRY(table_cell(t, "%s", command_time(ends, token->ends_ms)));
    TRY(table_cell(t, "%s", token->made_by));
    return token->used_ms
               ? table_cell(t, "%s from %s", command_time(used, token->used_ms), token->used_from)
               : table_cell(t, "-");
}

static err print_tokens(const struct token_command *o, const Fedlora__V1__TokenList *list)
{
    static const char *const head[] = {"id", "role", "state", "made", "ends", "made by", "used"};
    struct table t;
    err e = ERR_NONE;
    if (o->common.json) return command_run_print_message(&list->base);
    if (list->n_tokens == 0) {
        printf("no tokens\n");
        return ERR_NONE;
    }
    table_begin(&t, "lllllll");
    TRY_OUT(e, table_row(&t, head));
    for (size_t i = 0; i < list->n_tokens; i++)
        TRY_OUT(e, add_row(&t, list->tokens[i]));
    e = table_print(&t);
out:
    table_close(&t);
    return e;
}

/* All pages as one list. */
enum { PAGES_MAX = 256 };
static err list_all(const struct token_command *o, struct rpc_client *client, struct arena *arena)
{
    static const struct remote_method method = {RPC_PATH_ADMIN(list_tokens),
                                                &fedlora__v1__token_list__descriptor};
    Fedlora__V1__TokenList *page[PAGES_MAX], all = FEDLORA__V1__TOKEN_LIST__INIT;
    Fedlora__V1__TokenPage request = FEDLORA__V1__TOKEN_PAGE__INIT;
    size_t pages = 0, count = 0;
    err e = ERR_NONE;
    do {
        TRY_OUT(e, remote_call(&page[pages], client, &method, &request.base, 0));
        count += page[pages]->n_tokens;
        request.after = page[pages++]->next;
    } while (request.after && pages < PAGES_MAX);
    TRY_OUT(e, arena_take(&all.tokens, arena, count + 1, sizeof *all.tokens));
    for (size_t i = 0; i < pages; i++)
        for (size_t k = 0; k < page[i]->n_tokens; k++)
            all.tokens[all.n_tokens++] = page[i]->tokens[k];
    e = print_tokens(o, &all);
out:
    while (pages > 0)
        message_free(page[--pages]);
    return e;
}

/* Tokens of the last month; older ones are in the audit log only. */
static err list_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct token_command *o = options;
    struct rpc_client *client = NULL;
    (void)arguments;
    TRY(remote_open(&client, &o->remote));
    err e = list_all(o, client, arena);
    rpc_client_close(client);
    return e;
}

/* The answer is the list, so that the operator sees that none is open. */
static err revoke_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    static const struct remote_method method = {RPC_PATH_ADMIN(revoke_token),
                                                &fedlora__v1__token_list__descriptor};
    const struct token_command *o = options;
    Fedlora__V1__TokenRequest request = FEDLORA__V1__TOKEN_REQUEST__INIT;
    Fedlora__V1__TokenList *reply = NULL;
    struct rpc_client *client = NULL;
    (void)arena;
    request.id = (char *)(uintptr_t)arguments->item[0];
    request.role = (char *)(uintptr_t)o->role;
    TRY(remote_open(&client, &o->remote));
    err e = remote_call(&reply, client, &method, &request.base, 0);
    if (!err_is(e)) e = print_tokens(o, reply);
    message_free(reply);
    rpc_client_close(client);
    return e;
}

const struct command command_token_create = {
    .name = "token create",
    .purpose = "make a one-time token with which an institution enrols (operator)",
    .usage =
        "ID... [--ttl 24h] [--role client|admin] --server HOST:PORT --ca FILE --cert FILE --key "
        "FILE",
    .example = "fedlora token create north east --config operator.ini",
    .rows = create_rows,
    .row_count = sizeof create_rows / sizeof *create_rows,
    .options_size = sizeof(struct token_command),
    .least = 1,
    .most = LIMIT_MEMBERS,
    .run = create_run,
};
const struct command command_token_list = {
    .name = "token list",
    .purpose = "list the tokens of the last weeks and who used them (operator)",
    .usage = "--server HOST:PORT --ca FILE --cert FILE --key FILE",
    .example = "fedlora token list --config operator.ini",
    .rows = list_rows,
    .row_count = sizeof list_rows / sizeof *list_rows,
    .options_size = sizeof(struct token_command),
    .run = list_run,
};
const struct command command_token_revoke = {
    .name = "token revoke",
    .purpose = "make the open tokens of an institution useless (operator)",
    .usage = "ID [--role client|admin] --server HOST:PORT --ca FILE --cert FILE --key FILE",
    .example = "fedlora token revoke north --config operator.ini",
    .rows = revoke_rows,
    .row_count = sizeof revoke_rows / sizeof *revoke_rows,
    .options_size = sizeof(struct token_command),
    .least = 1,
    .most = 1,
    .run = revoke_run,
};
