#include "coordinator/serve/serve_identity.h"

#include "base/text.h"
#include "coordinator/serve/serve.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SAVE_MS = 60 * 60 * 1000,
    SAVE_BATCH = 1000,
    IDENTITIES_MAX = 4 * LIMIT_MEMBERS, /* revoked ones are kept */
    RECORD_FIELDS = 12,
};

/* ---- finding ---- */

/* The order of the store's list, so that rows are appended as they are read. */
static int order(enum rpc_role role, const char *id, const struct serve_identity *row)
{
    int by_role = strcmp(rpc_role_name(role), rpc_role_name(row->role));
    return by_role ? by_role : strcmp(id, row->id);
}

/* The index of the identity, or the index at which to insert it. */
static size_t place_of(const struct serve_identities *all, enum rpc_role role, const char *id)
{
    size_t low = 0, high = all->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (order(role, id, &all->row[middle]) > 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct serve_identity *find(const struct serve_identities *all, enum rpc_role role,
                                   const char *id)
{
    size_t at = place_of(all, role, id);
    return at < all->count && order(role, id, &all->row[at]) == 0 ? &all->row[at] : NULL;
}

const struct serve_identity *serve_identity_find(const struct serve *s, enum rpc_role role,
                                                 const char *id)
{
    return find(&s->identities, role, id);
}

err serve_identity_who(struct store_who *out, enum rpc_role *role, const char *role_text,
                       const char *id)
{
    bool is_admin = !strcmp(role_text, rpc_role_name(RPC_ADMIN));
    if (!is_admin && *role_text && strcmp(role_text, rpc_role_name(RPC_CLIENT)) != 0)
        return err_make(ERR_INPUT, "role \"%.40s\": expected client or admin", role_text);
    if (!text_is_name(id, LIMIT_NAME_BYTES - 1))
        return err_make(ERR_INPUT, "\"%.80s\" is not a name (letters, digits, '.', '_', '-')", id);
    *role = is_admin ? RPC_ADMIN : RPC_CLIENT;
    *out = (struct store_who){rpc_role_name(*role), id};
    return ERR_NONE;
}

/* ---- what calls have shown ---- */

/* Only what calls have shown; the other columns belong to commands. */
static struct store_identity as_row(const struct serve_identity *i)
{
    return (struct store_identity){.who = {rpc_role_name(i->role), i->id},
                                   .seen_ms = i->seen_ms,
                                   .address = i->address,
                                   .software = i->software,
                                   .ends_s = i->ends_s};
}

/* In batches, so that one transaction does not hold the store for long. */
static err save(struct serve *s)
{
    static struct store_identity batch[SAVE_BATCH];
    struct serve_identities *all = &s->identities;
    for (size_t i = 0, n = 0; i < all->count;) {
        size_t first = i;
        for (n = 0; i < all->count && n < SAVE_BATCH; i++)
            if (all->row[i].fresh) batch[n++] = as_row(&all->row[i]);
        TRY(store_identity_seen(s->shop.store, batch, n));
        for (; first < i; first++)
            all->row[first].fresh = false;
    }
    return ERR_NONE;
}

/* Once an hour, because members call all the time and a write for each call would wear the disk. A
 * crash loses at most the last hour of "last call". */
void serve_identity_turn(struct serve *s, uint64_t now_ms)
{
    struct serve_identities *all = &s->identities;
    if (now_ms < all->next_save_ms) return;
    all->next_save_ms = now_ms + SAVE_MS;
    err e = save(s);
    if (!err_is(e)) e = store_identity_sweep(s->shop.store, text_wall_ms());
    if (err_is(e)) LOG(LOG_WARN, "members.not_saved", LOG_STR("error", e.text));
}

/* An operator whose certificate was made by hand is listed from its first call on. */
static void list_operator(struct serve *s, const struct rpc_peer *peer)
{
    const struct store_who who = {rpc_role_name(peer->role), peer->id};
    const struct store_act act = {"its certificate", text_wall_ms()};
    if (peer->role != RPC_ADMIN || !config_allows_admin(s->config, peer->id)) return;
    if (s->identities.count >= IDENTITIES_MAX) return;
    err e = store_identity_add(s->shop.store, &who, STORE_ACTIVE, false, &act);
    if (!err_is(e)) e = serve_identity_load(s);
    if (err_is(e))
        LOG(LOG_WARN, "member.not_listed", LOG_STR("member", peer->id), LOG_STR("error", e.text));
}

/* At each call, so it only changes memory. The address is compared first, because copying it is
 * more work than the comparison. */
void serve_identity_seen(struct serve *s, const struct rpc_peer *peer)
{
    struct serve_identity *i = find(&s->identities, peer->role, peer->id);
    if (!i) {
        list_operator(s, peer);
        i = find(&s->identities, peer->role, peer->id);
    }
    if (!i) return;
    i->seen_ms = text_wall_ms();
    i->fresh = true;
    if (peer->ends_s > i->ends_s) i->ends_s = peer->ends_s;
    if (strcmp(i->address, peer->address) != 0)
        snprintf(i->address, sizeof i->address, "%s", peer->address);
}

void serve_identity_software(struct serve *s, const struct rpc_peer *peer, const char *software)
{
    struct serve_identity *i = find(&s->identities, peer->role, peer->id);
    if (!i || !*software) return;
    snprintf(i->software, sizeof i->software, "%.*s", SERVE_SOFTWARE_BYTES - 1, software);
    text_tame(i->software); /* a text of a peer, for the operator's terminal */
    i->fresh = true;
}

/* ---- checks ---- */

static int by_serial(const void *serial, const void *row)
{
    return strcmp(serial, row);
}

/* Two questions, because an operator revokes either the member or one of its certificates. Texts
 * say what helps, and not why, because the reason is for operators. */
err serve_identity_check(struct serve *s, const struct rpc_peer *peer)
{
    const struct serve_identities *all = &s->identities;
    const struct serve_identity *i = find(all, peer->role, peer->id);
    bool good = true;
    if (i && i->revoked)
        return err_make(ERR_REFUSED, "%s was revoked by an operator of this federation", peer->id);
    if (all->revoked_count &&
        bsearch(peer->serial, all->revoked, all->revoked_count, sizeof *all->revoked, by_serial))
        good = false;
    if (good && i && i->recorded) TRY(store_certificate_good(&good, s->shop.store, peer->serial));
    if (good) return ERR_NONE;
    return err_make(ERR_REFUSED,
                    "the certificate %s of %s was revoked by an operator; a new token gives "
                    "another one: fedlora enroll TOKEN",
                    peer->serial, peer->id);
}

/* ---- loading ---- */

/* In memory, because every call asks. Those that have ended are refused by the handshake. */
static err load_revoked(struct serve *s, struct arena *arena)
{
    struct serve_identities *all = &s->identities;
    const char **serial = NULL;
    size_t count = 0;
    TRY(store_certificates_revoked(&serial, &count, s->shop.store, (int64_t)(text_wall_ms() / 1000),
                                   arena));
    char(*list)[RPC_SERIAL_BYTES] = calloc(count + 1, sizeof *list);
    if (!list) return err_sys(ENOMEM, "%zu revoked certificates", count);
    for (size_t i = 0; i < count; i++)
        snprintf(list[i], sizeof list[i], "%s", serial[i]);
    free(all->revoked);
    all->revoked = list;
    all->revoked_count = count;
    return ERR_NONE;
}

/* A row that was in memory keeps what was not saved, for example on a full disk. */
static void fill(struct serve_identity *out, const struct store_identity *row,
                 const struct serve_identities *before)
{
    enum rpc_role role = strcmp(row->who.role, "admin") ? RPC_CLIENT : RPC_ADMIN;
    const struct serve_identity *was = find(before, role, row->who.id);
    *out = (struct serve_identity){.role = role,
                                   .revoked = !strcmp(row->state, STORE_REVOKED),
                                   .recorded = row->recorded,
                                   .seen_ms = row->seen_ms,
                                   .ends_s = row->ends_s};
    snprintf(out->id, sizeof out->id, "%s", row->who.id);
    snprintf(out->address, sizeof out->address, "%s", row->address);
    snprintf(out->software, sizeof out->software, "%s", row->software);
    out->cut_off = was && was->cut_off;
    if (!was || !was->fresh) return;
    out->fresh = true;
    out->seen_ms = was->seen_ms;
    if (was->ends_s > out->ends_s) out->ends_s = was->ends_s;
    memcpy(out->address, was->address, sizeof out->address);
    memcpy(out->software, was->software, sizeof out->software);
}

/* Fills the list of members that may take part in runs. It includes a revoked member that stays in
 * its runs; serve_identity_check() refuses its calls. */
static err allow(struct serve *s, const struct store_identity *row, size_t count,
                 struct arena *arena)
{
    struct option_list members = {0}, admins = {0};
    TRY(arena_take(&members.item, arena, count + 1, sizeof *members.item));
    TRY(arena_take(&admins.item, arena, count + 1, sizeof *admins.item));
    for (size_t i = 0; i < count; i++) {
        bool revoked = !strcmp(row[i].state, STORE_REVOKED);
        bool gone = !strcmp(row[i].state, STORE_REMOVED) || (revoked && !row[i].keep_runs);
        struct option_list *list = strcmp(row[i].who.role, "admin") ? &members : &admins;
        if (!gone) list->item[list->count++] = row[i].who.id;
    }
    return config_allow(s->config, &members, &admins);
}

/* The list is replaced as a whole: rows are few, changes are rare, and no case can be forgotten. */
static err load_rows(struct serve *s, struct arena *arena)
{
    struct serve_identities *all = &s->identities;
    struct store_identity *row = NULL;
    size_t count = 0;
    TRY(store_identities(&row, &count, s->shop.store, NULL, IDENTITIES_MAX, arena));
    struct serve_identity *list = calloc(count + 1, sizeof *list);
    if (!list) return err_sys(ENOMEM, "%zu members", count);
    for (size_t i = 0; i < count; i++)
        fill(&list[i], &row[i], all);
    free(all->row);
    all->row = list;
    all->count = all->room = count;
    return allow(s, row, count, arena);
}

/* All connections, because a connection does not say by which certificate a call on it comes. Good
 * peers connect again at once. */
static void cut_off(struct serve *s)
{
    struct serve_identities *all = &s->identities;
    for (size_t i = 0; i < all->count; i++) {
        struct serve_identity *who = &all->row[i];
        bool in = who->role == RPC_ADMIN ? config_allows_admin(s->config, who->id)
                                         : config_allows(s->config, who->id);
        bool allowed = in && !who->revoked;
        if (allowed || who->cut_off) {
            who->cut_off = !allowed;
            continue;
        }
        err e = rpc_server_drop(s->server, who->role, who->id);
        if (err_is(e))
            LOG(LOG_ERROR, "member.not_cut_off", LOG_STR("member", who->id),
                LOG_STR("error", e.text));
        who->cut_off = !err_is(e);
    }
}

/* First the list, then the runs, then the connections: a member whose connection ends comes back at
 * once, and must find itself refused. */
err serve_identity_load(struct serve *s)
{
    struct arena arena = {0};
    err e = load_rows(s, &arena);
    if (!err_is(e)) e = load_revoked(s, &arena);
    arena_close(&arena);
    if (err_is(e)) return e;
    for (struct run *run = s->runs; run; run = run->next)
        run_members_allowed(run);
    if (s->server) cut_off(s);
    return ERR_NONE;
}

/* The file's names go into the store, which then has all; so there is one list to ask. */
static err import(struct serve *s, enum rpc_role role, const struct option_list *list)
{
    size_t changed = 0;
    TRY(store_identity_import(&changed, s->shop.store, rpc_role_name(role), list->item, list->count,
                              text_wall_ms()));
    if (changed)
        LOG(LOG_INFO, "members.imported", LOG_STR("role", rpc_role_name(role)),
            LOG_INT("changed", changed), LOG_INT("listed", list->count));
    return ERR_NONE;
}

/* Also after each reload of the file. */
err serve_identity_open(struct serve *s)
{
    TRY(import(s, RPC_CLIENT, &s->config->listed));
    TRY(import(s, RPC_ADMIN, &s->config->listed_admins));
    return serve_identity_load(s);
}

/* A coordinator that stops in order loses no "last call". */
void serve_identity_close(struct serve *s)
{
    err e = s->shop.store && s->identities.count ? save(s) : ERR_NONE;
    if (err_is(e)) LOG(LOG_WARN, "members.not_saved", LOG_STR("error", e.text));
    free(s->identities.row);
    free(s->identities.revoked);
    s->identities = (struct serve_identities){0};
}

/* ---- the logs ---- */

/* The same facts for both logs: the lines of the log are for today, the audit log is for years and
 * for others than the operator. */
void serve_identity_record(struct serve *s, const struct rpc_peer *peer,
                           const struct serve_action *a)
{
    struct log_field field[RECORD_FIELDS];
    char name[TROUBLE_PEER_BYTES] = "coordinator";
    size_t n = 0;
    audit_add(s->shop.audit, &(struct audit_entry){.peer = peer,
                                                   .action = a->action,
                                                   .object = a->object,
                                                   .outcome = a->outcome,
                                                   .detail = a->field,
                                                   .details = a->fields});
    REQUIRE(a->fields + 4 <= RECORD_FIELDS);
    bool refused = strcmp(a->outcome, "ok") != 0;
    if (peer && peer->role != RPC_NONE) serve_peer_name(name, peer);
    if (peer && peer->role == RPC_NONE) snprintf(name, sizeof name, "none");
    field[n++] = LOG_STR("member", a->object);
    field[n++] = LOG_STR("by", name);
    field[n++] = LOG_STR("address", peer ? peer->address : "");
    for (size_t i = 0; i < a->fields; i++)
        field[n++] = a->field[i];
    log_event(refused ? LOG_WARN : LOG_INFO, a->action, field, n);
}
