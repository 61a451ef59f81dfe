/* Copies of members' own privacy ledgers, taken line by line and checked against the lines
 * before; and the ledgers and cohort seeds that an auditor is given. */
#include "coordinator/serve/serve.h"
#include "proto/message.h"

#include <stdio.h>
#include <string.h>

enum { PART_BYTES = 1 << 20, LINES_MAX = 1 << 16, SEEDS_MAX = 4096 };

/* -------------------------------------------------------------------------- from a member */
static const char *name_of(char out[LIMIT_NAME_BYTES + 16], const char *member)
{
    snprintf(out, LIMIT_NAME_BYTES + 16, "ledger of %s", member);
    return out;
}

/* After a restart the ledger is empty in memory: reads the copy from the store, in parts. Only
 * its head and the lines of the current call are kept (ledger_forget), because a ledger grows
 * for years. */
static err load(struct run *run, size_t member)
{
    struct run_member *m = &run->member[member];
    const char *id = run->round.member[member].id;
    char name[LIMIT_NAME_BYTES + 16];
    err e = ERR_NONE;
    if (m->ledger.head.count) return ERR_NONE;
    for (;;) {
        struct bytes part = {.max = 2 * PART_BYTES};
        e = store_ledger_part(&part, run->shop->store, run->id, id, m->ledger.head.count);
        bool more = !err_is(e) && part.size > 0;
        if (more)
            e = ledger_read_more(&m->ledger, (const char *)part.data, part.size, name_of(name, id));
        bytes_close(&part);
        if (!more || err_is(e)) break;
    }
    if (!err_is(e) && m->ledger.head.count) e = ledger_forget(&m->ledger);
    if (err_is(e)) ledger_close(&m->ledger);
    return e;
}

/* Line 1 states the terms and has no entry. The ledger holds only its newest lines, so counting
 * starts from its end. */
static const struct ledger_entry *entry_of(const struct ledger *ledger, uint64_t line)
{
    return line > 1 ? &ledger->entry[ledger->count - (ledger->head.count - line + 1)] : NULL;
}

/* The lines from number `first` on, in the form the store keeps. A release of another run of the
 * same member is kept as text only, because its charge belongs to that run. */
static err describe(struct store_copy **out, size_t *count, const struct ledger *ledger,
                    uint64_t first, const ProtobufCBinaryData *lines, const char *job,
                    struct arena *arena)
{
    struct store_copy *copy = NULL;
    const char *at = (const char *)lines->data, *end = at + lines->len, *stop;
    size_t n = 0;
    TRY(arena_take(&copy, arena, ledger->head.count - first + 1, sizeof *copy));
    for (; at < end && (stop = memchr(at, '\n', (size_t)(end - at))); at = stop + 1) {
        const struct ledger_entry *entry = entry_of(ledger, first + n);
        struct store_copy *c = &copy[n++];
        *c = (struct store_copy){.text = at, .size = (size_t)(stop + 1 - at)};
        if (!entry || strcmp(entry->kind, "release") || strcmp(entry->terms->job, job)) continue;
        c->ours = true;
        c->round = entry->release.round;
        c->released = entry->release.released;
        c->charged = entry->release.charged;
    }
    *out = copy;
    *count = n;
    return ERR_NONE;
}

/* The lines are verified (hash chain and signature) before they are stored. If storing fails,
 * memory is ahead of the store, so the ledger is dropped and read again with the next call. */
static err take_lines(struct run *run, size_t member, const char *federation,
                      const ProtobufCBinaryData *lines)
{
    struct run_member *m = &run->member[member];
    const char *id = run->round.member[member].id;
    char name[LIMIT_NAME_BYTES + 16], job[2 * LIMIT_NAME_BYTES];
    struct arena arena = {0};
    struct store_copy *copy = NULL;
    size_t count = 0;
    uint64_t first = m->ledger.head.count + 1;
    err e = ERR_NONE;
    TRY_OUT(e,
            ledger_read_more(&m->ledger, (const char *)lines->data, lines->len, name_of(name, id)));
    if (m->ledger.terms.unit != LEDGER_EXAMPLE || m->ledger.head.count > LINES_MAX)
        e = err_make(ERR_INPUT, "%s: expected unit example, and at most %d lines", name, LINES_MAX);
    snprintf(job, sizeof job, "%s/%s", federation, run->config->name);
    if (!err_is(e)) e = describe(&copy, &count, &m->ledger, first, lines, job, &arena);
    if (!err_is(e)) {
        e = store_copies_add(run->shop->store, run->id, id, first, copy, count);
        e = err_is(e) ? err_in(e, "%s", name) : ledger_forget(&m->ledger);
    }
    if (err_is(e)) ledger_close(&m->ledger); /* and read again from the store */
out:
    arena_close(&arena);
    return e;
}

/* An empty part asks how many lines are held; a part that does not continue at the next line is
 * ignored, and the reply says where to continue. So a member that lost a reply can repeat its
 * call. */
static err take(Fedlora__V1__LedgerReply *reply, struct rpc_call *call,
                const Fedlora__V1__LedgerPart *part)
{
    struct run *run = NULL;
    size_t m = 0;
    TRY(serve_member(&run, &m, call, part->run));
    if (!run_privacy_local(run->config))
        return err_make(ERR_INPUT,
                        "run %s does not have unit example, so its members need no ledger",
                        run->config->name);
    if (part->lines.len > PART_BYTES)
        return err_make(ERR_INPUT, "%zu bytes of a ledger, at most %d", part->lines.len,
                        PART_BYTES);
    TRY(load(run, m));
    if (part->lines.len && part->from == run->member[m].ledger.head.count + 1)
        TRY(take_lines(run, m, rpc_call_peer(call)->federation, &part->lines));
    struct ledger_head *head = &run->member[m].ledger.head;
    reply->lines = head->count;
    if (head->count) reply->head = (ProtobufCBinaryData){DIGEST_BYTES, head->hash.byte};
    return ERR_NONE;
}

static void ledger_begin(struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__LedgerPart *part = NULL;
    Fedlora__V1__LedgerReply reply = FEDLORA__V1__LEDGER_REPLY__INIT;
    err e = message_unpack(&part, &fedlora__v1__ledger_part__descriptor, data, size);
    if (!err_is(e)) e = take(&reply, call, part);
    if (err_is(e)) {
        LOG(LOG_WARN, "ledger.refused", LOG_STR("member", rpc_call_peer(call)->id),
            LOG_STR("error", e.text));
        serve_refuse(call, e);
    } else {
        serve_answer(call, &reply.base);
    }
    message_free(part);
}

/* ---- for an auditor ---- */

/* "" stands for the coordinator's own ledger. */
static err list_parties(Fedlora__V1__AuditReply *reply, struct run *run, struct arena *arena)
{
    const char **member = NULL;
    char **party = NULL;
    size_t members = 0;
    TRY(store_copies_members(&member, &members, run->shop->store, run->id, arena));
    TRY(arena_take(&party, arena, members + 1, sizeof *party));
    if (run_privacy_central(run->config)) party[reply->n_parties++] = (char *)(uintptr_t) "";
    for (size_t i = 0; i < members; i++)
        party[reply->n_parties++] = (char *)(uintptr_t)member[i];
    reply->parties = party;
    return ERR_NONE;
}

/* Seeds of published rounds only, because a seed reveals who takes part. The whole seed is wiped,
 * because it reveals every later round. */
static err list_cohorts(Fedlora__V1__AuditReply *reply, struct run *run, uint64_t after,
                        struct arena *arena)
{
    const struct cohort last = {.run = run->config->name, .round = run->round.rules.rounds, .q = 1};
    Fedlora__V1__CohortSeed *seed = NULL;
    struct cohort_seed *copy = NULL, whole;
    if (!run_privacy_central(run->config) || !run->round.published) return ERR_NONE;
    TRY(store_private_seed(&whole, run->shop->store, run->id));
    TRY(arena_take(&seed, arena, SEEDS_MAX, sizeof *seed));
    TRY(arena_take(&copy, arena, SEEDS_MAX, sizeof *copy));
    TRY(arena_take(&reply->cohorts, arena, SEEDS_MAX, sizeof *reply->cohorts));
    for (uint64_t round = after + 1; round <= run->round.published; round++) {
        size_t n = reply->n_cohorts;
        if (n == SEEDS_MAX) break;
        cohort_seed_before(&copy[n], &whole, &last, (uint32_t)round);
        fedlora__v1__cohort_seed__init(&seed[n]);
        seed[n].round = (uint32_t)round;
        seed[n].seed = (ProtobufCBinaryData){sizeof copy[n].byte, copy[n].byte};
        reply->cohorts[reply->n_cohorts++] = &seed[n];
    }
    sodium_memzero(&whole, sizeof whole);
    return ERR_NONE;
}

static err audit(Fedlora__V1__AuditReply *reply, struct bytes *lines, struct rpc_call *call,
                 const Fedlora__V1__AuditRequest *request, struct arena *arena)
{
    TRY(serve_check_admin(call));
    struct run *run = serve_find_run(serve_of(call), request->run);
    if (!run) return err_make(ERR_INPUT, "there is no run \"%.127s\"", request->run);
    if (!run->config->privacy)
        return err_make(ERR_INPUT, "run %s has no privacy: there is no ledger", run->config->name);
    if (request->index) {
        TRY(list_parties(reply, run, arena));
        return list_cohorts(reply, run, request->after, arena);
    }
    TRY(store_ledger_part(lines, run->shop->store, run->id, request->party, request->after));
    reply->lines = (ProtobufCBinaryData){lines->size, lines->data};
    return ERR_NONE;
}

static void audit_begin(struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__AuditRequest *request = NULL;
    Fedlora__V1__AuditReply reply = FEDLORA__V1__AUDIT_REPLY__INIT;
    struct bytes lines = {.max = 2 * PART_BYTES};
    struct arena arena = {0};
    err e = message_unpack(&request, &fedlora__v1__audit_request__descriptor, data, size);
    if (!err_is(e)) e = audit(&reply, &lines, call, request, &arena);
    if (err_is(e))
        serve_refuse(call, e);
    else
        serve_answer(call, &reply.base);
    message_free(request);
    bytes_close(&lines);
    arena_close(&arena);
}

const struct rpc_method serve_ledger_method[] = {
    {.path = RPC_PATH_FEDERATION(ledger),
     .shape = RPC_UNARY,
     .roles = RPC_CLIENT,
     .begin = ledger_begin},
    {.path = RPC_PATH_ADMIN(audit), .shape = RPC_UNARY, .roles = RPC_ADMIN, .begin = audit_begin},
};
const size_t serve_ledger_methods = sizeof serve_ledger_method / sizeof *serve_ledger_method;
