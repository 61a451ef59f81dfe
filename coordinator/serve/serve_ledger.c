/* Members send lines of their own privacy ledgers, and an auditor is given the ledgers and the
 * seeds of cohorts. */
#include "coordinator/serve/serve.h"
#include "proto/message.h"

#include <stdio.h>
#include <string.h>

enum { SEEDS_MAX = 4096 };

/* ---- from a member ---- */

static err take(Fedlora__V1__LedgerReply *reply, struct rpc_call *call,
                const Fedlora__V1__LedgerPart *part)
{
    struct run *run = NULL;
    const struct ledger_head *held;
    size_t m = 0;
    TRY(serve_member(&run, &m, call, part->run));
    const struct run_ledger_part lines = {
        .federation = rpc_call_peer(call)->federation, .from = part->from, .lines = part->lines};
    TRY(run_take_ledger(&held, run, m, &lines));
    reply->lines = held->count;
    if (held->count)
        reply->head = (ProtobufCBinaryData){DIGEST_BYTES, (uint8_t *)(uintptr_t)held->hash.byte};
    return ERR_NONE;
}

static void ledger_begin(struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__LedgerPart *part = NULL;
    Fedlora__V1__LedgerReply reply = FEDLORA__V1__LEDGER_REPLY__INIT;
    err e =
        message_unpack_few(&part, &fedlora__v1__ledger_part__descriptor, data, size, MESSAGE_FEW);
    if (!err_is(e)) e = take(&reply, call, part);
    serve_end(call, e, &reply.base);
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
 * because it reveals every later round. Each seed is a hash of the one after it, so the newest
 * comes first; otherwise each would take a hash of every later round of the run. */
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
    uint64_t published = run->round.published, count = after < published ? published - after : 0;
    if (count > SEEDS_MAX) count = SEEDS_MAX;
    for (uint64_t n = count; n-- > 0;) {
        uint32_t round = (uint32_t)(after + 1 + n);
        const struct cohort next = {.run = last.run, .round = round + 1, .q = 1};
        bool newest = n + 1 == count;
        cohort_seed_before(&copy[n], newest ? &whole : &copy[n + 1], newest ? &last : &next, round);
        fedlora__v1__cohort_seed__init(&seed[n]);
        seed[n].round = round;
        seed[n].seed = (ProtobufCBinaryData){sizeof copy[n].byte, copy[n].byte};
        reply->cohorts[n] = &seed[n];
    }
    reply->n_cohorts = count;
    sodium_memzero(&whole, sizeof whole);
    return ERR_NONE;
}

static err audit(Fedlora__V1__AuditReply *reply, struct bytes *lines, struct rpc_call *call,
                 const Fedlora__V1__AuditRequest *request, struct arena *arena)
{
    TRY(serve_check_admin(call));
    struct run *run = serve_find_run(serve_of(call), request->run);
    if (!run) return serve_no_run(serve_of(call), request->run);
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
    struct bytes lines = {.max = LEDGER_PART_BYTES};
    struct arena arena = {0};
    err e = message_unpack(&request, &fedlora__v1__audit_request__descriptor, data, size);
    if (!err_is(e)) e = audit(&reply, &lines, call, request, &arena);
    serve_end(call, e, &reply.base);
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
