/* Refused calls and certificates that end soon, as troubles for the operator. */
#include "coordinator/serve/serve.h"

#include "base/text.h"
#include "coordinator/serve/signer.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { DAY_S = 24 * 60 * 60 };

const char *serve_peer_name(char out[TROUBLE_PEER_BYTES], const struct rpc_peer *peer)
{
    snprintf(out, TROUBLE_PEER_BYTES, "%s/%s", rpc_role_name(peer->role), peer->id);
    return out;
}

/* A refusal for the moment (a round that has closed, a limit) is a part of ordinary work, and an
 * operator has read the answer to a wrong command already, so neither is shown in a status. */
static enum trouble_kind kind_of(err cause, const struct rpc_peer *peer)
{
    switch (cause.kind) {
    case ERR_MACHINE:
        return trouble_is_full_disk(cause) ? TROUBLE_CALL_LATER : TROUBLE_CALL_FAILED;
    case ERR_REFUSED:
        return TROUBLE_CALL_REFUSED;
    case ERR_INPUT:
        return peer->role == RPC_ADMIN ? TROUBLE_CALL_LATER : TROUBLE_CALL_REFUSED;
    default:
        return TROUBLE_CALL_LATER;
    }
}

void serve_report(struct serve *s, const struct rpc_peer *peer, const char *method, err cause)
{
    char name[TROUBLE_PEER_BYTES];
    const char *slash = strrchr(method, '/');
    uint64_t now = text_now_ms();
    const struct trouble_case c = {.kind = kind_of(cause, peer),
                                   .run = s->asked ? s->asked->config->name : NULL,
                                   .peer = *peer->id ? serve_peer_name(name, peer) : NULL,
                                   .address = peer->address,
                                   .call = slash ? slash + 1 : method,
                                   .text = cause.text};
    trouble_raise(s->shop.troubles, &c, now);
    trouble_of_disk(s->shop.troubles, cause, now);
}

void serve_refused_early(void *context, const struct rpc_peer *peer, const char *method, err why)
{
    struct serve *s = context;
    s->asked = NULL;
    serve_audit_denied(s, peer, NULL, method, why.text);
    serve_report(s, peer, method, why);
}

void serve_report_missing(struct serve *s, const struct run *run, const struct digest *digest)
{
    struct blob_path path = blob_path(s->shop.store->dir, digest);
    char text[TROUBLE_TEXT_BYTES];
    snprintf(text, sizeof text, "%.400s is not there: restore it from a backup", path.text);
    const struct trouble_case c = {
        .kind = TROUBLE_BLOB_MISSING, .run = run ? run->config->name : NULL, .text = text};
    trouble_raise(s->shop.troubles, &c, text_now_ms());
}

/* Certificates of this coordinator renew themselves at two thirds of their life, so one that is in
 * its last quarter does not. A warning before that would be there for half of the time. */
static int64_t warn_below(const struct serve *s, const struct rpc_peer *peer)
{
    const struct config *c = s->config;
    int64_t days = RPC_CERTIFICATE_DAYS * (int64_t)DAY_S;
    uint64_t life_ms = peer->role == RPC_ADMIN ? c->admin_life_ms : c->member_life_ms;
    int64_t quarter = (int64_t)(life_ms / 4000);
    return err_is(signer_check(c)) || quarter > days ? days : quarter;
}

/* At each call, because a connection may outlive many days. */
void serve_check_certificate(struct serve *s, const struct rpc_peer *peer)
{
    char name[TROUBLE_PEER_BYTES], text[96];
    uint64_t now = text_now_ms();
    int64_t left = peer->ends_s - (int64_t)(text_wall_ms() / 1000);
    serve_peer_name(name, peer);
    if (!peer->ends_s || left > warn_below(s, peer)) {
        trouble_end(s->shop.troubles, TROUBLE_CERTIFICATE_ENDS, NULL, name, now);
        return;
    }
    snprintf(text, sizeof text, "its certificate ends in %" PRId64 " days", left / DAY_S);
    const struct trouble_case c = {
        .kind = TROUBLE_CERTIFICATE_ENDS, .peer = name, .address = peer->address, .text = text};
    trouble_raise(s->shop.troubles, &c, now);
}

/* Nobody but an operator or the member's administrator can end this. */
void serve_report_ambiguous(struct rpc_call *call, err why)
{
    const struct rpc_peer *peer = rpc_call_peer(call);
    char name[TROUBLE_PEER_BYTES];
    const struct trouble_case c = {.kind = TROUBLE_RUN_AMBIGUOUS,
                                   .peer = serve_peer_name(name, peer),
                                   .address = peer->address,
                                   .text = why.text};
    trouble_raise(serve_of(call)->shop.troubles, &c, text_now_ms());
}
