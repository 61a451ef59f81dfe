/* `fedlorad token`: a token without an operator's certificate, for the first operator and for one
 * who has lost all of them. Being able to read the configuration and to write the store is the
 * permission. */
#include "base/json.h"
#include "base/text.h"
#include "coordinator/serve/serve.h"
#include "coordinator/subcommand.h"

#include <stdio.h>
#include <string.h>

struct token_options {
    struct subcommand_common common;
    const char *role, *address;
    uint64_t ttl_ms;
};
#undef AT
#define AT(member) .at = offsetof(struct token_options, member)
static const struct option_row rows[] = {
    {.flag = "role",
     .kind = OPTION_TEXT,
     AT(role),
     .fallback = "client",
     .value = "client|admin",
     .help = "client: a member, which takes part in runs; admin: an operator"},
    {.flag = "address",
     .kind = OPTION_TEXT,
     AT(address),
     .value = "HOST:PORT",
     .help = "address of enrolment that the token names; default: [enroll] address"},
    {.flag = "ttl",
     .kind = OPTION_DURATION,
     AT(ttl_ms),
     .fallback = "1h",
     .value = "TIME",
     .help = "how long the token can be used"},
};

static err print(const struct token_options *o, const char *token, const struct store_token *row)
{
    struct bytes text = {.max = 8192};
    if (!o->common.json) {
        printf("%s\n", token);
        return ERR_NONE;
    }
    json_t *root = json_pack("{s:s,s:s,s:s,s:I}", "token", token, "id", row->who.id, "role",
                             row->who.role, "ends_ms", (json_int_t)row->ends_ms);
    err e = json_write(&text, root);
    if (!err_is(e)) printf("%s\n", (const char *)text.data);
    json_decref(root);
    bytes_close(&text);
    return e;
}

/* The service, which may be running, finds the token in the store when it is used, and its audit
 * log says then that it was made here. */
static err run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct token_options *o = options;
    const struct config *config = o->common.config;
    char printed[ENROLL_TOKEN_BYTES];
    struct store_place place = run_shop_place(config);
    struct store store = {0};
    struct store_token token = {.made_by = "fedlorad token", .made_ms = text_wall_ms()};
    enum rpc_role role;
    (void)arena;
    TRY(serve_identity_who(&token.who, &role, o->role, arguments->item[0]));
    token.server = o->address ? o->address : config->enroll_address;
    if (!*config->enroll_listen)
        return err_make(ERR_INPUT, "enroll.listen is empty, so nobody could use the token");
    if (!token.server)
        return err_make(ERR_INPUT, "--address HOST:PORT is needed, or enroll.address in the file");
    token.ends_ms = token.made_ms + o->ttl_ms;
    TRY(store_open_beside(&store, &place));
    err e = serve_token_make(printed, &store, config, &token);
    store_close(&store);
    if (!err_is(e)) e = print(o, printed, &token);
    sodium_memzero(printed, sizeof printed);
    return e;
}

const struct subcommand subcommand_token = {
    .name = "token",
    .purpose = "make a token at the coordinator's machine, for the first operator",
    .usage = "ID --config FILE [--role client|admin] [--address HOST:PORT]",
    .example = "fedlorad token ops --role admin --config /etc/fedlora/fedlorad.ini",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct token_options),
    .least = 1,
    .most = 1,
    .configured = true,
    .run = run,
};
