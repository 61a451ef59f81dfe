/* Two machines with one certificate. Calls carry the identity of the certificate only, so each
 * machine names itself by 16 bytes that it keeps in its work directory: a member that is started
 * again is the same machine. After a restart of the coordinator the first machine that calls keeps
 * its place. */
#include "base/text.h"
#include "coordinator/serve/serve.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    SESSION_NOTICE_MS = 120 * 1000,
    SESSION_RUNS_MAX = 64, /* open runs that are searched, so that a status stays cheap */
    SESSION_REPLACED_MAX = 4,
};

/* A machine that another one has replaced. */
struct replaced {
    uint8_t id[LIMIT_SESSION_BYTES];
    char by[RPC_ADDRESS_BYTES];
    uint64_t wall_ms; /* 0: none */
};

struct machine {
    uint8_t id[LIMIT_SESSION_BYTES];
    char address[RPC_ADDRESS_BYTES], rival[RPC_ADDRESS_BYTES];
    uint64_t rival_ms; /* last refusal of another machine; 0: none */
    bool is_replaced;  /* by the machine whose Hello is being handled */
    struct replaced replaced[SESSION_REPLACED_MAX];
    unsigned next_replaced;
};

static bool is_named(const ProtobufCBinaryData *session)
{
    return session->len == LIMIT_SESSION_BYTES;
}

static void note_rival(struct machine *has, const struct rpc_call *call, const struct run *run,
                       size_t member, uint64_t now)
{
    char peer[TROUBLE_PEER_BYTES], text[128];
    snprintf(has->rival, sizeof has->rival, "%s", rpc_call_peer(call)->address);
    has->rival_ms = now;
    trouble_member(peer, run->round.member[member].id);
    snprintf(text, sizeof text, "refused, because another machine takes part (%s)", has->address);
    const struct trouble_case c = {.kind = TROUBLE_MEMBER_TWICE,
                                   .run = run->config->name,
                                   .peer = peer,
                                   .address = has->rival,
                                   .text = text};
    trouble_raise(run->shop->troubles, &c, now);
}

/* The last call of the machine that takes part in this run, in any run, because a machine that
 * trains for one run is silent in the others. 0: none since the coordinator started. */
static uint64_t last_call(const struct serve *s, const struct run *run, size_t member)
{
    const struct machine *has = run->member[member].session, *other;
    uint64_t seen_ms = run->round.member[member].seen_ms;
    size_t m, searched = 0;
    for (const struct run *r = s->runs; has && r && searched < SESSION_RUNS_MAX; r = r->next) {
        if (serve_is_over(r)) continue;
        searched++;
        if (!round_find(&m, &r->round, run->round.member[member].id)) continue;
        other = r->member[m].session;
        if (other && !memcmp(other->id, has->id, LIMIT_SESSION_BYTES) &&
            r->round.member[m].seen_ms > seen_ms)
            seen_ms = r->round.member[m].seen_ms;
    }
    return seen_ms;
}

bool serve_session_elsewhere(const struct run *run, size_t member, uint64_t now)
{
    uint64_t seen_ms = last_call(run->shop->context, run, member);
    return seen_ms && (now <= seen_ms || now - seen_ms <= run->round.rules.absent_ms);
}

/* It stays refused while its successor is alive. Otherwise the two would take the place from each
 * other for ever, and neither would finish a round. */
static err check_replaced(const struct machine *has, const ProtobufCBinaryData *session,
                          const char *id)
{
    for (size_t i = 0; i < SESSION_REPLACED_MAX; i++) {
        const struct replaced *r = &has->replaced[i];
        char when[32] = "";
        time_t seconds = (time_t)(r->wall_ms / 1000);
        struct tm tm;
        if (!r->wall_ms || memcmp(r->id, session->data, LIMIT_SESSION_BYTES) != 0) continue;
        if (gmtime_r(&seconds, &tm)) strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
        return err_make(ERR_REFUSED,
                        "this machine was replaced by %s at %s, which takes part as %s now: stop "
                        "one of the two",
                        r->by, when, id);
    }
    return ERR_NONE;
}

static void note_replaced(struct machine *has, const struct rpc_call *call)
{
    struct replaced *r = &has->replaced[has->next_replaced++ % SESSION_REPLACED_MAX];
    memcpy(r->id, has->id, LIMIT_SESSION_BYTES);
    snprintf(r->by, sizeof r->by, "%s", rpc_call_peer(call)->address);
    r->wall_ms = text_wall_ms();
}

err serve_session_check(struct rpc_call *call, struct run *run, size_t member,
                        const ProtobufCBinaryData *session, bool hello)
{
    struct machine *has = run->member[member].session;
    const struct round_member *m = &run->round.member[member];
    char ago[32], silent[32];
    uint64_t now = text_now_ms(), absent_ms = run->round.rules.absent_ms;
    if (!is_named(session) || !has || !memcmp(has->id, session->data, LIMIT_SESSION_BYTES))
        return ERR_NONE;
    uint64_t seen_ms = last_call(serve_of(call), run, member);
    uint64_t quiet = now > seen_ms ? now - seen_ms : 0;
    bool alive = seen_ms && quiet <= absent_ms;
    if (alive) TRY(check_replaced(has, session, m->id));
    if (!hello)
        return err_make(ERR_STATE, "%s takes part in run %s from another machine (%s)", m->id,
                        run->config->name, has->address);
    has->is_replaced = alive;
    if (!alive || run->shop->config->sessions == CONFIG_SESSIONS_REPLACE) return ERR_NONE;
    note_rival(has, call, run, member, now);
    text_duration(ago, sizeof ago, quiet);
    text_duration(silent, sizeof silent, absent_ms);
    return err_make(ERR_LIMIT,
                    "%s takes part in run %s from another machine or work directory (%s, seen %s "
                    "ago): stop it, or wait until it has been silent for %s",
                    m->id, run->config->name, has->address, ago, silent);
}

/* Called when the check has let another machine in: its predecessor is silent, or the configuration
 * says that the newest machine counts. */
static void record_move(struct rpc_call *call, struct run *run, size_t member)
{
    struct machine *has = run->member[member].session;
    const struct rpc_peer *peer = rpc_call_peer(call);
    if (has->is_replaced) {
        note_replaced(has, call);
        serve_end_waits(serve_of(call), run, member); /* its next call says so to the old one */
    }
    if (has->is_replaced)
        SERVE_RECORD(serve_of(call), peer, "member.replaced", peer->id, "ok",
                     LOG_STR("run", run->config->name), LOG_STR("from", has->address));
    else
        LOG(LOG_WARN, "member.moved", LOG_STR("run", run->config->name),
            LOG_STR("member", run->round.member[member].id), LOG_STR("from", has->address),
            LOG_STR("to", peer->address));
}

/* Without memory the member is not protected from a second machine, which is no reason to refuse
 * it. */
void serve_session_take(struct rpc_call *call, struct run *run, size_t member,
                        const ProtobufCBinaryData *session)
{
    struct run_member *m = &run->member[member];
    struct machine *has = m->session;
    if (!is_named(session)) return;
    bool moved = has && memcmp(has->id, session->data, LIMIT_SESSION_BYTES) != 0;
    if (moved) record_move(call, run, member);
    if (!has) has = m->session = calloc(1, sizeof *has);
    if (!has) return;
    if (moved) has->rival_ms = 0;
    memcpy(has->id, session->data, LIMIT_SESSION_BYTES);
    snprintf(has->address, sizeof has->address, "%s", rpc_call_peer(call)->address);
}

void serve_session_notice(char *out, size_t bytes, const struct run *run, size_t member)
{
    const struct machine *has = run->member[member].session;
    *out = 0;
    if (!has || !has->rival_ms || text_now_ms() - has->rival_ms > SESSION_NOTICE_MS) return;
    snprintf(out, bytes, "another machine (%s) also calls with this certificate, and is refused",
             has->rival);
}
