/* Calls of operators about tokens. The secret is in the answer that creates it, and nowhere
 * else. */
#include "base/file.h"
#include "base/text.h"
#include "coordinator/serve/serve.h"
#include "proto/certificate.h"
#include "proto/message.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = 256, DAY_MS = 24 * 60 * 60 * 1000, TOKEN_DAYS_MAX = 30, CA_BYTES_MAX = 1 << 20 };

static char *text(const char *t)
{
    return (char *)(uintptr_t)t; /* messages have no const, and do not change their texts */
}

/* Derived when it is asked for, because a token ends by the clock and not by an event. */
static const char *token_state(const struct store_token *t)
{
    if (t->revoked_ms) return "revoked";
    if (t->used_ms) return "used";
    return text_wall_ms() >= t->ends_ms ? "ended" : "open";
}

/* The secret is not in the store, so no list can show it. */
static void fill_token(Fedlora__V1__Token *out, const struct store_token *t)
{
    fedlora__v1__token__init(out);
    out->id = text(t->who.id);
    out->role = text(t->who.role);
    out->state = text(token_state(t));
    out->made_ms = t->made_ms;
    out->ends_ms = t->ends_ms;
    out->made_by = text(t->made_by);
    out->used_ms = t->used_ms;
    out->used_from = text(t->used_from);
    out->serial = text(t->serial);
}

/* The newest first, so that the first page answers "was it used?". */
static err tokens(struct rpc_call *call, uint64_t after, struct arena *arena)
{
    Fedlora__V1__TokenList reply = FEDLORA__V1__TOKEN_LIST__INIT;
    Fedlora__V1__Token *message = NULL;
    struct store_token *row = NULL;
    size_t count = 0;
    TRY(store_tokens(&row, &count, serve_of(call)->shop.store, (int64_t)after, PAGE, arena));
    TRY(arena_take(&message, arena, count + 1, sizeof *message));
    TRY(arena_take(&reply.tokens, arena, count + 1, sizeof *reply.tokens));
    for (size_t i = 0; i < count; i++) {
        fill_token(&message[i], &row[i]);
        reply.tokens[reply.n_tokens++] = &message[i];
    }
    if (count == PAGE) reply.next = (uint64_t)row[count - 1].number;
    serve_answer(call, &reply.base);
    return ERR_NONE;
}

static void tokens_begin(struct rpc_call *call, const void *data, size_t size)
{
    struct arena arena = {0};
    Fedlora__V1__TokenPage *request = NULL;
    err e =
        message_unpack_few(&request, &fedlora__v1__token_page__descriptor, data, size, MESSAGE_FEW);
    if (!err_is(e)) e = serve_check_admin(call);
    if (!err_is(e) && request->after > INT64_MAX) e = err_make(ERR_INPUT, "after: out of range");
    if (!err_is(e)) e = tokens(call, request->after, &arena);
    if (err_is(e)) serve_refuse(call, e);
    message_free(request);
    arena_close(&arena);
}

/* HOST:PORT of enrolment. The operator names it, or the configuration, or it is the host by which
 * the operator has reached this server. */
static err enroll_server(char out[ENROLL_SERVER_BYTES], const struct serve *s, const char *asked)
{
    const struct enroll_token probe = {.id = "probe"};
    char ignored[ENROLL_TOKEN_BYTES];
    struct enroll_token whole = probe;
    int port = rpc_server_open_port(s->server);
    snprintf(whole.server, sizeof whole.server, "%.*s", ENROLL_SERVER_BYTES - 1, asked);
    bool has_port = !err_is(enroll_token_print(ignored, &whole));
    bool bare_six = !has_port && strchr(asked, ':') && asked[0] != '[';
    if (has_port)
        snprintf(out, ENROLL_SERVER_BYTES, "%s", whole.server);
    else if (s->config->enroll_address)
        snprintf(out, ENROLL_SERVER_BYTES, "%.*s", ENROLL_SERVER_BYTES - 1,
                 s->config->enroll_address);
    else
        snprintf(out, ENROLL_SERVER_BYTES, bare_six ? "[%.250s]:%d" : "%.250s:%d", asked, port);
    memcpy(whole.server, out, sizeof whole.server);
    err e = enroll_token_print(ignored, &whole);
    return err_is(e) ? err_in(e, "address of enrolment") : ERR_NONE;
}

/* The secret exists in this function and in the printed token only; both are wiped. */
err serve_token_make(char out[ENROLL_TOKEN_BYTES], struct store *store, const struct config *config,
                     struct store_token *token)
{
    struct enroll_token made = {0};
    char *ca = NULL;
    size_t size = 0;
    snprintf(made.server, sizeof made.server, "%s", token->server);
    snprintf(made.id, sizeof made.id, "%s", token->who.id);
    randombytes_buf(made.secret, sizeof made.secret);
    token->secret = digest_of(made.secret, sizeof made.secret);
    TRY(file_read_all(&ca, &size, config->ca, CA_BYTES_MAX));
    err e = certificate_hash(&made.ca, ca);
    free(ca);
    if (!err_is(e)) e = enroll_token_print(out, &made);
    if (!err_is(e)) e = store_token_add(store, token, LIMIT_TOKENS);
    sodium_memzero(&made, sizeof made);
    return e;
}

/* Without an address of enrolment the token would be worthless, and the institution would find that
 * out, not the operator. */
static err create(struct rpc_call *call, const Fedlora__V1__TokenRequest *request)
{
    struct serve *s = serve_of(call);
    const struct rpc_peer *peer = rpc_call_peer(call);
    Fedlora__V1__Token reply;
    char server[ENROLL_SERVER_BYTES], printed[ENROLL_TOKEN_BYTES], by[TROUBLE_PEER_BYTES];
    struct store_token token = {.server = server, .made_by = serve_peer_name(by, peer)};
    uint64_t ttl_ms = request->ttl_ms ? request->ttl_ms : DAY_MS;
    enum rpc_role role;
    TRY(serve_check_admin(call));
    TRY(serve_audit_ready(call));
    TRY(serve_identity_who(&token.who, &role, request->role, request->id));
    if (ttl_ms > (uint64_t)TOKEN_DAYS_MAX * DAY_MS)
        return err_make(ERR_INPUT, "ttl: at most %d days", TOKEN_DAYS_MAX);
    if (!*s->config->enroll_listen)
        return err_make(ERR_STATE, "nobody can enrol with a token, because [enroll] listen is "
                                   "empty; fedlora member sign signs a request by hand");
    TRY(enroll_server(server, s, request->server));
    token.made_ms = text_wall_ms();
    token.ends_ms = token.made_ms + ttl_ms;
    TRY(serve_token_make(printed, s->shop.store, s->config, &token));
    SERVE_RECORD(s, peer, "token.created", token.who.id, "ok", LOG_STR("role", token.who.role),
                 LOG_INT("ends_ms", token.ends_ms), LOG_STR("server", server));
    TRY(serve_identity_load(s));
    fill_token(&reply, &token);
    reply.used_from = reply.serial = text("");
    reply.token = printed;
    serve_answer(call, &reply.base);
    sodium_memzero(printed, sizeof printed);
    return ERR_NONE;
}

/* All open ones of the identity, because an operator who revokes does not know which one leaked. */
static err revoke_tokens(struct rpc_call *call, const Fedlora__V1__TokenRequest *request,
                         struct arena *arena)
{
    struct serve *s = serve_of(call);
    struct store_who who;
    enum rpc_role role;
    size_t count = 0;
    TRY(serve_check_admin(call));
    TRY(serve_audit_ready(call));
    TRY(serve_identity_who(&who, &role, request->role, request->id));
    TRY(store_token_revoke(&count, s->shop.store, &who, text_wall_ms()));
    if (!count) return err_make(ERR_INPUT, "%s has no open token as %s", who.id, who.role);
    SERVE_RECORD(s, rpc_call_peer(call), "token.revoked", who.id, "ok", LOG_STR("role", who.role),
                 LOG_INT("tokens", count));
    return tokens(call, 0, arena);
}

static void token_begin(struct rpc_call *call, const void *data, size_t size, bool make)
{
    struct arena arena = {0};
    Fedlora__V1__TokenRequest *request = NULL;
    err e = message_unpack_few(&request, &fedlora__v1__token_request__descriptor, data, size,
                               MESSAGE_FEW);
    if (!err_is(e)) e = make ? create(call, request) : revoke_tokens(call, request, &arena);
    if (err_is(e)) serve_refuse(call, e);
    message_free(request);
    arena_close(&arena);
}
static void create_begin(struct rpc_call *call, const void *data, size_t size)
{
    token_begin(call, data, size, /*make*/ true);
}
static void revoke_token_begin(struct rpc_call *call, const void *data, size_t size)
{
    token_begin(call, data, size, /*make*/ false);
}

const struct rpc_method serve_token_method[] = {
    {RPC_PATH_ADMIN(create_token), RPC_UNARY, RPC_ADMIN, .begin = create_begin},
    {RPC_PATH_ADMIN(list_tokens), RPC_UNARY, RPC_ADMIN, .begin = tokens_begin},
    {RPC_PATH_ADMIN(revoke_token), RPC_UNARY, RPC_ADMIN, .begin = revoke_token_begin},
};
const size_t serve_token_methods = sizeof serve_token_method / sizeof *serve_token_method;
