/* Calls of operators about members and operators. */
#include "base/text.h"
#include "coordinator/serve/serve.h"
#include "proto/message.h"

#include <stdio.h>
#include <string.h>

enum {
    PAGE = 256,
    RUNS_MAX = 64,
    CERTIFICATES_MAX = 64,
    NAME_BYTES_MAX = 128,
    REASON_BYTES_MAX = 200,
};

static char *text(const char *t)
{
    return (char *)(uintptr_t)t; /* messages have no const, and do not change their texts */
}

/* ---- identities as messages ---- */

static err fill_runs(Fedlora__V1__Identity *out, const struct serve *s, struct arena *arena)
{
    TRY(arena_take(&out->runs, arena, RUNS_MAX, sizeof *out->runs));
    for (const struct run *run = s->runs; run && out->n_runs < RUNS_MAX; run = run->next) {
        size_t m;
        if (serve_is_over(run) || !round_find(&m, &run->round, out->id)) continue;
        if (!run->round.member[m].gone) out->runs[out->n_runs++] = text(run->config->name);
    }
    return ERR_NONE;
}

/* The row has the last call as it was saved; memory has it as it is. */
static err fill_identity(Fedlora__V1__Identity *out, struct serve *s,
                         const struct store_identity *row, struct arena *arena)
{
    enum rpc_role role = strcmp(row->who.role, "admin") ? RPC_CLIENT : RPC_ADMIN;
    const struct serve_identity *live = serve_identity_find(s, role, row->who.id);
    fedlora__v1__identity__init(out);
    out->id = text(row->who.id);
    out->role = text(row->who.role);
    out->state = text(row->state);
    out->name = text(row->name);
    out->added_by = text(row->added_by);
    out->added_ms = row->added_ms;
    out->changed_ms = row->changed_ms;
    out->reason = text(row->reason);
    out->certificate_ends = (uint64_t)(live ? live->ends_s : row->ends_s);
    out->seen_ms = live ? live->seen_ms : row->seen_ms;
    out->address = text(live ? live->address : row->address);
    out->software = text(live ? live->software : row->software);
    return role == RPC_CLIENT ? fill_runs(out, s, arena) : ERR_NONE;
}

/* Only for one identity, because a member that renews for years has many. */
static err fill_certificates(Fedlora__V1__Identity *out, struct serve *s,
                             const struct store_who *who, struct arena *arena)
{
    struct store_certificate *row = NULL;
    Fedlora__V1__IssuedCertificate *message = NULL;
    size_t count = 0;
    TRY(store_certificates(&row, &count, s->shop.store, who, CERTIFICATES_MAX, arena));
    TRY(arena_take(&message, arena, count + 1, sizeof *message));
    TRY(arena_take(&out->certificates, arena, count + 1, sizeof *out->certificates));
    for (size_t i = 0; i < count; i++) {
        fedlora__v1__issued_certificate__init(&message[i]);
        message[i].serial = text(row[i].serial);
        message[i].begins = (uint64_t)row[i].begins_s;
        message[i].ends = (uint64_t)row[i].ends_s;
        message[i].how = text(row[i].how);
        message[i].issued_ms = row[i].issued_ms;
        message[i].revoked_ms = row[i].revoked_ms;
        message[i].reason = text(row[i].reason);
        out->certificates[i] = &message[i];
    }
    out->n_certificates = count;
    return ERR_NONE;
}

/* The answer to every command about one identity is what it is now. */
static err answer_identity(struct rpc_call *call, const struct store_who *who, struct arena *arena)
{
    struct serve *s = serve_of(call);
    Fedlora__V1__Identity reply;
    struct store_identity row;
    bool found = false;
    TRY(store_identity_find(&found, &row, s->shop.store, who, arena));
    if (!found)
        return err_make(ERR_INPUT, "%s is not known here as %s; fedlora member list shows all",
                        who->id, who->role);
    TRY(fill_identity(&reply, s, &row, arena));
    TRY(fill_certificates(&reply, s, who, arena));
    serve_answer(call, &reply.base);
    return ERR_NONE;
}

/* In pages by the last name, because a list of thousands is larger than a message and may change
 * between two pages. */
static err list(struct rpc_call *call, const Fedlora__V1__IdentityPage *page, struct arena *arena)
{
    struct serve *s = serve_of(call);
    const struct store_who after = {page->after_role, page->after_id};
    Fedlora__V1__IdentityList reply = FEDLORA__V1__IDENTITY_LIST__INIT;
    Fedlora__V1__Identity *message = NULL;
    struct store_identity *row = NULL;
    size_t count = 0;
    TRY(serve_check_admin(call));
    TRY(store_identities(&row, &count, s->shop.store, &after, PAGE, arena));
    TRY(arena_take(&message, arena, count + 1, sizeof *message));
    TRY(arena_take(&reply.identities, arena, count + 1, sizeof *reply.identities));
    for (size_t i = 0; i < count; i++) {
        TRY(fill_identity(&message[i], s, &row[i], arena));
        reply.identities[reply.n_identities++] = &message[i];
    }
    reply.more = count == PAGE;
    serve_answer(call, &reply.base);
    return ERR_NONE;
}

static void list_begin(struct rpc_call *call, const void *data, size_t size)
{
    struct arena arena = {0};
    Fedlora__V1__IdentityPage *request = NULL;
    err e = message_unpack_few(&request, &fedlora__v1__identity_page__descriptor, data, size,
                               MESSAGE_FEW);
    if (!err_is(e)) e = list(call, request, &arena);
    if (err_is(e)) serve_refuse(call, e);
    message_free(request);
    arena_close(&arena);
}

/* ---- changes of identities ---- */

/* A name for people: one line, no control characters. */
static err check_text(const char *t, size_t bytes_max, const char *what)
{
    size_t size = strlen(t);
    if (size > bytes_max)
        return err_make(ERR_INPUT, "%s: %zu bytes, at most %zu", what, size, bytes_max);
    for (size_t i = 0; i < size; i++)
        if (text_control(t + i, size - i))
            return err_make(ERR_INPUT, "%s: it has control characters", what);
    return ERR_NONE;
}

/* The id is in certificates, runs and ledgers and can never change; this name is for people. */
static err rename_to(struct serve *s, const struct rpc_peer *peer, const struct store_who *who,
                     const char *name)
{
    bool found = false;
    TRY(check_text(name, NAME_BYTES_MAX, "name"));
    TRY(store_identity_rename(&found, s->shop.store, who, name));
    if (!found) return err_make(ERR_INPUT, "%s is not known here as %s", who->id, who->role);
    SERVE_RECORD(s, peer, "member.renamed", who->id, "ok", LOG_STR("role", who->role),
                 LOG_STR("name", name));
    return ERR_NONE;
}

/* Also the way back for one that was revoked. It needs a new certificate all the same. */
static err add_identity(struct serve *s, const struct rpc_peer *peer, const struct store_who *who,
                        const char *name)
{
    char by[TROUBLE_PEER_BYTES];
    const struct store_act act = {serve_peer_name(by, peer), text_wall_ms()};
    TRY(check_text(name, NAME_BYTES_MAX, "name"));
    TRY(store_identity_add(s->shop.store, who, STORE_ACTIVE, /*again*/ true, &act));
    SERVE_RECORD(s, peer, "member.added", who->id, "ok", LOG_STR("role", who->role));
    TRY(serve_identity_load(s));
    return *name ? rename_to(s, peer, who, name) : ERR_NONE;
}

enum change { CHANGE_NONE, CHANGE_ADD, CHANGE_RENAME };

/* All of them answer with the identity as it is afterwards. */
static void change_begin(struct rpc_call *call, const void *data, size_t size, enum change change)
{
    struct arena arena = {0};
    struct serve *s = serve_of(call);
    const struct rpc_peer *peer = rpc_call_peer(call);
    Fedlora__V1__IdentityRequest *request = NULL;
    struct store_who who;
    enum rpc_role role;
    err e = message_unpack_few(&request, &fedlora__v1__identity_request__descriptor, data, size,
                               MESSAGE_FEW);
    if (!err_is(e)) e = serve_check_admin(call);
    if (!err_is(e) && change != CHANGE_NONE) e = serve_audit_ready(call);
    if (!err_is(e)) e = serve_identity_who(&who, &role, request->role, request->id);
    if (!err_is(e) && change == CHANGE_ADD) e = add_identity(s, peer, &who, request->name);
    if (!err_is(e) && change == CHANGE_RENAME) e = rename_to(s, peer, &who, request->name);
    if (!err_is(e)) e = answer_identity(call, &who, &arena);
    if (err_is(e)) serve_refuse(call, e);
    message_free(request);
    arena_close(&arena);
}
static void get_begin(struct rpc_call *call, const void *data, size_t size)
{
    change_begin(call, data, size, CHANGE_NONE);
}
static void add_begin(struct rpc_call *call, const void *data, size_t size)
{
    change_begin(call, data, size, CHANGE_ADD);
}
static void rename_begin(struct rpc_call *call, const void *data, size_t size)
{
    change_begin(call, data, size, CHANGE_RENAME);
}

/* As the log and `member show` print it, so that it can be copied. */
static err check_serial(const char *serial)
{
    size_t size = strlen(serial);
    if (size >= RPC_SERIAL_BYTES || strspn(serial, "0123456789abcdef") != size)
        return err_make(ERR_INPUT, "serial \"%.60s\": expected lower-case hexadecimal digits",
                        serial);
    return ERR_NONE;
}

static err revoke_serial(struct serve *s, const struct store_who *who,
                         const Fedlora__V1__RevokeRequest *request)
{
    bool found = false; /* one that was made by hand is revoked too */
    TRY(check_serial(request->serial));
    return store_certificate_revoke(&found, s->shop.store, who, request->serial, request->reason,
                                    text_wall_ms());
}

/* A mistyped id would look like success while the member that was meant still calls. A member that
 * is not known cannot call anyway; an operator can, with a certificate made by hand. */
static err check_known(struct serve *s, const struct store_who *who, enum rpc_role role,
                       struct arena *arena)
{
    struct store_identity row;
    bool found = role == RPC_ADMIN;
    if (!found) TRY(store_identity_find(&found, &row, s->shop.store, who, arena));
    if (found) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "member %s is not known here; fedlora member list prints those that are",
                    who->id);
}

static void record_revoked(struct serve *s, const struct rpc_peer *peer,
                           const struct store_who *who, const Fedlora__V1__RevokeRequest *request)
{
    SERVE_RECORD(s, peer, *request->serial ? "certificate.revoked" : "member.revoked", who->id,
                 "ok", LOG_STR("role", who->role), LOG_STR("serial", request->serial),
                 LOG_STR("reason", request->reason),
                 LOG_STR("runs", request->keep_runs ? "keep" : "drop"));
}

/* An operator who has revoked himself could not correct it. The record follows the commit at once,
 * because an error of a later step does not take the revocation back. The connections of one
 * certificate only end with all others of its owner, which connect again. */
static err revoke_one(struct rpc_call *call, const Fedlora__V1__RevokeRequest *request,
                      struct arena *arena)
{
    struct serve *s = serve_of(call);
    const struct rpc_peer *peer = rpc_call_peer(call);
    char by[TROUBLE_PEER_BYTES];
    const struct store_act act = {serve_peer_name(by, peer), text_wall_ms()};
    struct store_who who;
    enum rpc_role role;
    TRY(serve_check_admin(call));
    TRY(serve_audit_ready(call));
    TRY(serve_identity_who(&who, &role, request->role, request->id));
    TRY(check_text(request->reason, REASON_BYTES_MAX, "reason"));
    bool itself = role == peer->role && !strcmp(who.id, peer->id);
    if (itself && (!*request->serial || !strcmp(request->serial, peer->serial)))
        return err_make(ERR_INPUT, "%s cannot revoke itself; another operator can", who.id);
    TRY(check_known(s, &who, role, arena));
    if (*request->serial)
        TRY(revoke_serial(s, &who, request));
    else
        TRY(store_identity_revoke(s->shop.store, &who, request->reason, request->keep_runs, &act));
    record_revoked(s, peer, &who, request);
    TRY(serve_identity_load(s));
    if (*request->serial) TRY(rpc_server_drop(s->server, role, who.id));
    return answer_identity(call, &who, arena);
}

static void revoke_begin(struct rpc_call *call, const void *data, size_t size)
{
    struct arena arena = {0};
    Fedlora__V1__RevokeRequest *request = NULL;
    err e = message_unpack_few(&request, &fedlora__v1__revoke_request__descriptor, data, size,
                               MESSAGE_FEW);
    if (!err_is(e)) e = revoke_one(call, request, &arena);
    if (err_is(e)) serve_refuse(call, e);
    message_free(request);
    arena_close(&arena);
}

const struct rpc_method serve_roster_method[] = {
    {RPC_PATH_ADMIN(list_identities), RPC_UNARY, RPC_ADMIN, .begin = list_begin},
    {RPC_PATH_ADMIN(get_identity), RPC_UNARY, RPC_ADMIN, .begin = get_begin},
    {RPC_PATH_ADMIN(add_identity), RPC_UNARY, RPC_ADMIN, .begin = add_begin},
    {RPC_PATH_ADMIN(rename_identity), RPC_UNARY, RPC_ADMIN, .begin = rename_begin},
    {RPC_PATH_ADMIN(revoke_identity), RPC_UNARY, RPC_ADMIN, .begin = revoke_begin},
};
const size_t serve_roster_methods = sizeof serve_roster_method / sizeof *serve_roster_method;
