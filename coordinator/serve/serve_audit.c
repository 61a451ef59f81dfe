/* The audit log of the service: when its lines are flushed, and who was turned away. */
#include "coordinator/serve/serve.h"

#include "base/text.h"

#include <stdio.h>
#include <string.h>

/* While the disk takes no lines, calls whose actions they are about are refused for the moment,
 * because their answer would report something that the log does not have. The trouble ends with
 * the first flush that works. */
void serve_audit_turn(struct serve *s)
{
    uint64_t now = text_now_ms();
    char text[TROUBLE_TEXT_BYTES];
    err e = audit_flush(s->shop.audit);
    if (err_is(e)) {
        snprintf(text, sizeof text, "%.440s; actions are refused until it can be written", e.text);
        trouble_raise(s->shop.troubles, &(struct trouble_case){.kind = TROUBLE_AUDIT, .text = text},
                      now);
        trouble_of_disk(s->shop.troubles, e, now);
        e = err_in(e, "the coordinator cannot do this now, come back later");
    } else if (trouble_count(s->shop.troubles, TROUBLE_AUDIT)) {
        trouble_end(s->shop.troubles, TROUBLE_AUDIT, NULL, NULL, now);
    }
    if (s->server) rpc_server_release(s->server, e);
}

bool serve_audit_holds(void *serve)
{
    const struct serve *s = serve;
    return audit_pending(s->shop.audit);
}

err serve_audit_ready(struct rpc_call *call)
{
    return audit_ready(serve_of(call)->shop.audit);
}

void serve_audit_denied(const struct serve *s, const struct rpc_peer *peer, const char *address,
                        const char *what, const char *why)
{
    struct rpc_peer known = *peer;
    const char *slash = strrchr(what, '/');
    if (address) snprintf(known.address, sizeof known.address, "%s", address);
    audit_denied(s->shop.audit, &known, slash ? slash + 1 : what, why);
}

/* A peer that may not act at all is a denial, which serve_refuse() records. */
void serve_audit_act(struct rpc_call *call, const char *action, const char *object,
                     const char *detail, err e)
{
    const struct rpc_peer *peer = rpc_call_peer(call);
    struct audit *a = serve_of(call)->shop.audit;
    if (e.kind == ERR_REFUSED) return;
    if (err_is(e))
        AUDIT(a, peer, action, object, "refused", LOG_STR("detail", detail),
              LOG_STR("reason", e.text));
    else
        AUDIT(a, peer, action, object, "ok", LOG_STR("detail", detail));
}

void serve_audit_fetched(struct rpc_call *call, const struct run *run, const struct digest *digest,
                         uint64_t offset)
{
    char text[DIGEST_TEXT_BYTES];
    digest_text(text, digest);
    AUDIT(serve_of(call)->shop.audit, rpc_call_peer(call), "state.fetched",
          run ? run->config->name : "", "ok", LOG_STR("digest", text), LOG_INT("offset", offset));
}
