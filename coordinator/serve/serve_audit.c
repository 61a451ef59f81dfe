/* The audit log of the service: when its lines are flushed, and who was turned away. */
#include "coordinator/serve/serve.h"

#include "base/text.h"
#include "proto/message.h"

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

/* Replies of calls that added no line are held too. That costs them one flush, and is simpler than
 * knowing which reply depends on which line. */
bool serve_audit_holds(void *serve)
{
    const struct serve *s = serve;
    return audit_pending(s->shop.audit);
}

/* Reads of an operator do not ask this, so that `run status` works while the disk is full. */
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

/* Also for a transfer that continues after a break: the offset tells them apart. */
void serve_audit_fetched(struct rpc_call *call, const struct run *run, const struct digest *digest,
                         uint64_t offset)
{
    char text[DIGEST_TEXT_BYTES];
    digest_text(text, digest);
    AUDIT(serve_of(call)->shop.audit, rpc_call_peer(call), "state.fetched",
          run ? run->config->name : "", "ok", LOG_STR("digest", text), LOG_INT("offset", offset));
}

/* ---- AuditLog ---- */

/* An auditor's copy is an action too; one line for all parts. */
static err read_log(Fedlora__V1__AuditLogReply *reply, struct bytes *lines,
                    struct audit_place *place, struct rpc_call *call,
                    const Fedlora__V1__AuditLogRequest *request)
{
    struct audit *a = serve_of(call)->shop.audit;
    TRY(serve_check_admin(call));
    if (strlen(request->file) >= sizeof place->file)
        return err_make(ERR_INPUT, "the audit log has no file \"%.20s...\"", request->file);
    snprintf(place->file, sizeof place->file, "%.*s", (int)sizeof place->file - 1, request->file);
    place->offset = request->offset;
    if (!*request->file) serve_audit_act(call, "audit.exported", "", NULL, ERR_NONE);
    TRY(audit_read(lines, place, a, request->since_ms, LIMIT_CHUNK_BYTES));
    reply->lines = (ProtobufCBinaryData){lines->size, lines->data};
    reply->file = place->file;
    reply->offset = place->offset;
    return ERR_NONE;
}

/* A part is at most a message, so a log of any length is sent without holding up the loop. */
static void log_begin(struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__AuditLogRequest *request = NULL;
    Fedlora__V1__AuditLogReply reply = FEDLORA__V1__AUDIT_LOG_REPLY__INIT;
    struct audit_place place = {0};
    struct bytes lines = {.max = LIMIT_CHUNK_BYTES};
    err e = message_unpack(&request, &fedlora__v1__audit_log_request__descriptor, data, size);
    if (!err_is(e)) e = read_log(&reply, &lines, &place, call, request);
    serve_end(call, e, &reply.base);
    message_free(request);
    bytes_close(&lines);
}

const struct rpc_method serve_audit_method[] = {
    {RPC_PATH_ADMIN(audit_log), RPC_UNARY, RPC_ADMIN, .begin = log_begin},
};
const size_t serve_audit_methods = sizeof serve_audit_method / sizeof *serve_audit_method;
