/* The manifest of a published state (lineage/manifest.h), made while it is sent: a run may have
 * millions of updates, so each chunk holds as many rows as fit, and the loop never waits for the
 * whole. */
#include "base/text.h"
#include "coordinator/serve/serve.h"
#include "lineage/manifest.h"
#include "proto/message.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    MANIFEST_CHUNK_BYTES = 256 << 10,
    MANIFEST_ROWS = 256, /* read from the store at once */
    MANIFEST_VERSION = 1,
};

struct stream {
    int64_t run;                   /* its row; the run itself may be deleted meanwhile */
    bool secret;                   /* the draw of its members is: updates are withheld */
    uint32_t last;                 /* round */
    uint32_t round;                /* the one that was begun last; UINT32_MAX: none */
    bool in_round;                 /* some of its updates are missing */
    char member[LIMIT_NAME_BYTES]; /* the last one that was written of it */
    bool ended;
    struct manifest_writer w;
    struct bytes out; /* made, and not sent yet */
    uint64_t offset;
};

/* ---- about ---- */

static int set_digest(json_t *object, const char *key, const struct store_blob *blob)
{
    char text[DIGEST_TEXT_BYTES] = "";
    if (blob->size) digest_text(text, &blob->digest);
    return json_object_set_new(object, key, json_string(text));
}

/* As the operator wrote them: with the defaults of the method they determine it. */
static json_t *options_of(const Fedlora__V1__RunConfig *c)
{
    json_t *list = json_array();
    for (size_t i = 0; i < c->n_method_options; i++)
        json_array_append_new(list, json_string(c->method_options[i]));
    return list;
}

/* The total of the coordinator's ledger, or the largest of the members' ledgers. */
static err spent(double *epsilon, struct run *run, struct arena *arena)
{
    const char *member = NULL;
    *epsilon = 0;
    if (run_privacy_central(run->config))
        return store_ledger_spent(epsilon, run->shop->store, run->id);
    if (run_privacy_local(run->config))
        return store_copies_spent(epsilon, &member, run->shop->store, run->id, arena);
    return ERR_NONE;
}

/* Facts of this moment, except those of the state. The head of the audit log ties the manifest to
 * the log: lines up to it cannot be removed without contradicting the manifest. */
static err describe(json_t *about, struct serve *s, struct run *run, const struct stream *m,
                    struct arena *arena)
{
    Fedlora__V1__RunStatus *status = NULL;
    char base[DIGEST_TEXT_BYTES], head_text[DIGEST_TEXT_BYTES], now[AUDIT_LINE_TIME_BYTES];
    const struct audit_line_head head = audit_head(s->shop.audit);
    struct digest digest;
    double epsilon = 0;
    TRY(serve_status(&status, run, false, arena));
    TRY(spent(&epsilon, run, arena));
    memcpy(digest.byte, run->config->base_digest.data, DIGEST_BYTES);
    digest_text(base, &digest);
    digest_text(head_text, &head.hash);
    audit_line_time(now, text_wall_ms());
    int failed =
        json_object_update_new(
            about,
            json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:f, s:s, s:s, s:s}",
                      "version", MANIFEST_VERSION, "time", now, "federation", s->config->federation,
                      "run", run->config->name, "method", run->config->method, "base", base,
                      "published", (json_int_t)m->last, "rounds", (json_int_t)run->config->rounds,
                      "members", (json_int_t)run->round.members, "epsilon", epsilon, "privacy",
                      status->privacy, "coordinator", run->shop->software, "withheld",
                      m->secret ? "the updates, because the draw of the members is secret" : "")) ||
        json_object_set_new(about, "options", options_of(run->config)) ||
        json_object_set_new(
            about, "audit",
            json_pack("{s:I, s:s}", "seq", (json_int_t)head.seq, "hash", head_text));
    return failed ? err_make(ERR_MACHINE, "no memory for a manifest") : ERR_NONE;
}

/* Frozen factors may be replaced by setup rounds only, so those of the newest state are its. */
static err start(struct stream *m, struct serve *s, struct run *run, const struct store_blob *state)
{
    struct arena arena = {0};
    json_t *about = json_object();
    err e = about ? describe(about, s, run, m, &arena)
                  : err_make(ERR_MACHINE, "no memory for a manifest");
    if (!err_is(e) &&
        (set_digest(about, "state", state) || set_digest(about, "frozen", &run->newest.frozen)))
        e = err_make(ERR_MACHINE, "no memory for a manifest");
    arena_close(&arena);
    if (err_is(e)) {
        json_decref(about);
        return e;
    }
    return manifest_begin(&m->out, &m->w, about);
}

/* ---- rounds ---- */

/* One row at a time, because the updates of a round are written inside it. */
static err add_round(struct stream *m, struct store *store, struct arena *arena)
{
    struct store_lineage *row = NULL;
    size_t count = 0;
    TRY(store_lineage_rounds(&row, &count, store, m->run, m->round, 1, arena));
    if (!count || row->round > m->last)
        return err_make(ERR_STATE, "the run was deleted while its manifest was made");
    const struct manifest_round round = {.round = row->round,
                                         .state = row->state.digest,
                                         .state_bytes = row->state.size,
                                         .config = row->known ? &row->config : NULL,
                                         .software = row->software,
                                         .updates = row->updates};
    TRY(manifest_round(&m->out, &m->w, &round));
    m->round = row->round;
    m->in_round = !m->secret;
    m->member[0] = 0;
    return ERR_NONE;
}

/* By the member after the last one, and not by a cursor: a statement that stays open would keep the
 * database from truncating its log while a slow client downloads. */
static err add_updates(struct stream *m, struct store *store, struct arena *arena)
{
    struct store_counted *row = NULL;
    size_t count = 0;
    TRY(store_lineage_counted(&row, &count, store, m->run, m->round, m->member, MANIFEST_ROWS,
                              arena));
    for (size_t i = 0; i < count; i++) {
        const struct manifest_update update = {.member = row[i].member,
                                               .software = row[i].software,
                                               .trained_round = row[i].trained_round,
                                               .digest = row[i].blob.digest,
                                               .bytes = row[i].blob.size,
                                               .examples = row[i].examples,
                                               .weight = row[i].weight};
        TRY(manifest_update(&m->out, &m->w, &update));
    }
    if (count) snprintf(m->member, sizeof m->member, "%s", row[count - 1].member);
    m->in_round = count == MANIFEST_ROWS;
    return ERR_NONE;
}

/* As many rows as make a chunk, some milliseconds of work. The rest is made when the transport has
 * taken this one, so a manifest costs one chunk of memory. */
static err fill(struct stream *m, struct serve *s)
{
    struct arena arena = {0};
    struct store *store = s->shop.store;
    err e = ERR_NONE;
    while (!err_is(e) && !m->ended && m->out.size < MANIFEST_CHUNK_BYTES) {
        if (m->in_round) {
            e = add_updates(m, store, &arena);
        } else if (m->round != m->last) {
            e = add_round(m, store, &arena);
        } else {
            e = manifest_end(&m->out, &m->w, audit_key(s->shop.audit));
            m->ended = true;
        }
    }
    arena_close(&arena);
    return e;
}

/* ---- the call ---- */

/* A state of this run, not only the newest: the next one may be published while a client downloads
 * it. */
static err find_state(struct stream *m, struct store_blob *state, struct run *run,
                      const Fedlora__V1__ManifestRequest *request)
{
    TRY(serve_digest(&state->digest, &request->state_digest));
    m->run = run->id;
    m->secret = run_privacy_central(run->config);
    m->round = UINT32_MAX;
    return store_lineage_find(&m->last, &state->size, run->shop->store, run->id, &state->digest);
}

/* The export is recorded before its first byte leaves. */
static err begin(struct stream *m, struct rpc_call *call,
                 const Fedlora__V1__ManifestRequest *request)
{
    struct serve *s = serve_of(call);
    struct store_blob state = {0};
    char text[DIGEST_TEXT_BYTES];
    TRY(serve_check_admin(call));
    TRY(serve_audit_ready(call));
    struct run *run = serve_find_run(s, request->run);
    if (!run) return serve_no_run(s, request->run);
    err e = find_state(m, &state, run, request);
    if (err_is(e)) return err_in(e, "run %s", run->config->name);
    digest_text(text, &state.digest);
    serve_audit_act(call, "run.exported", run->config->name, text, ERR_NONE);
    return start(m, s, run, &state);
}

/* The state is set before the first check, so that manifest_call_over() frees it on every path. */
static void manifest_call_begin(struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__ManifestRequest *request = NULL;
    struct stream *m = calloc(1, sizeof *m);
    err e = m ? ERR_NONE : err_sys(ENOMEM, "a manifest");
    if (m) m->out.max = 2 * RPC_MESSAGE_BYTES + (16u << 20);
    rpc_call_set_state(call, m);
    if (!err_is(e))
        e = message_unpack(&request, &fedlora__v1__manifest_request__descriptor, data, size);
    if (!err_is(e)) e = begin(m, call, request);
    if (err_is(e)) serve_refuse(call, e);
    message_free(request);
}

/* The rest, at most one group of rows, moves to the front of the buffer. */
static void send_chunk(struct rpc_call *call, struct stream *m)
{
    Fedlora__V1__Chunk chunk = FEDLORA__V1__CHUNK__INIT;
    struct bytes packed = {.max = RPC_MESSAGE_BYTES};
    size_t n = m->out.size < MANIFEST_CHUNK_BYTES ? m->out.size : MANIFEST_CHUNK_BYTES;
    chunk.offset = m->offset;
    chunk.data = (ProtobufCBinaryData){n, m->out.data};
    err e = message_pack(&packed, &chunk.base);
    if (err_is(e)) {
        serve_refuse(call, e);
    } else {
        rpc_call_send(call, packed.data, packed.size);
        m->offset += n;
        memmove(m->out.data, m->out.data + n, m->out.size - n);
        m->out.size -= n;
    }
    bytes_close(&packed);
}

static void manifest_call_more(struct rpc_call *call)
{
    struct stream *m = rpc_call_state(call);
    err e = fill(m, serve_of(call));
    if (err_is(e))
        serve_refuse(call, e);
    else if (m->out.size)
        send_chunk(call, m);
    else
        rpc_call_finish(call);
}

static void manifest_call_over(struct rpc_call *call, bool answered)
{
    struct stream *m = rpc_call_state(call);
    (void)answered;
    if (!m) return;
    manifest_close(&m->w);
    bytes_close(&m->out);
    free(m);
}

const struct rpc_method serve_manifest_method[] = {
    {RPC_PATH_ADMIN(manifest), RPC_DOWNLOAD, RPC_ADMIN, .begin = manifest_call_begin,
     .more = manifest_call_more, .over = manifest_call_over},
};
const size_t serve_manifest_methods = sizeof serve_manifest_method / sizeof *serve_manifest_method;
