/* Downloads and uploads of a session: client/session/session_transfer.h. */
#include "client/session/session_transfer.h"

#include "base/file.h"
#include "client/output/progress.h"
#include "client/session/session_describe.h"
#include "client/session/session_status.h"
#include "proto/message.h"
#include "proto/rpc_path.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Digests become file names, so their size is checked before anything else. */
err session_transfer_digest(struct digest *out, const ProtobufCBinaryData *from, const char *what)
{
    if (from->len != DIGEST_BYTES)
        return err_make(ERR_INPUT,
                        "the coordinator's task: the digest of the %s has %zu bytes, expected %d",
                        what, from->len, DIGEST_BYTES);
    memcpy(out->byte, from->data, DIGEST_BYTES);
    return ERR_NONE;
}

/* One attempt of a transfer, as it is shown to the user and to the service manager. */
struct transfer {
    struct progress progress;
    struct session *s;
    const char *verb, *what; /* "downloading", "state" */
    bool up;
    struct session_sent_call call; /* of an upload */
    const char *path;
};

/* Bytes that arrive are a success of the connection, long before the whole download is one. Bytes
 * of an upload are not, because the coordinator may refuse them all. */
static void show_moved(void *user, uint64_t done, uint64_t total, uint64_t moved)
{
    struct transfer *t = user;
    char part[64];
    if (!t->up && moved) retry_ok(&t->s->retry);
    progress_part(part, sizeof part, done, total);
    progress_update(&t->progress, done, total, moved, NULL);
    session_status(t->s, "run %s: %s the %s, %s", t->s->hello->run, t->verb, t->what, part);
}

/* The coordinator has answered, so the connection works again, whatever it says to the update. The
 * journal has the call before a byte of it leaves. */
static err begin_upload(void *user, uint64_t offset, uint64_t total)
{
    struct transfer *t = user;
    retry_answered(&t->s->retry);
    t->call.bytes = total - offset;
    return session_sent_file(&t->s->sent, &t->call, t->path);
}

static void begin(struct transfer *t)
{
    char title[64];
    snprintf(title, sizeof title, "%s the %s", t->verb, t->what);
    progress_begin_bytes(&t->progress, t->s->o->quiet, title);
}

static err fetch_once(struct session *s, const struct remote_blob *blob, const char *what)
{
    struct transfer t = {.s = s, .verb = "downloading", .what = what};
    const struct remote_watch watch = {.moved = show_moved, .user = &t};
    struct remote_blob watched = *blob;
    watched.watch = &watch;
    begin(&t);
    err e = remote_fetch(s->client, &watched);
    progress_end(&t.progress, err_is(e) ? "interrupted" : NULL);
    return e;
}

err session_transfer_update(Fedlora__V1__SubmitReply **reply, struct session *s,
                            const Fedlora__V1__SubmitHeader *header, const char *path)
{
    struct transfer t = {.s = s, .verb = "uploading", .what = "update", .up = true, .path = path};
    const struct remote_watch watch = {.moved = show_moved, .begins = begin_upload, .user = &t};
    t.call = (struct session_sent_call){.kind = "update",
                                        .run = header->run,
                                        .round = header->round,
                                        .has_rows = true,
                                        .rows = header->examples};
    memcpy(t.call.digest.byte, header->digest.data, DIGEST_BYTES);
    begin(&t);
    err e = remote_submit(reply, s->client, header, path, &watch);
    progress_end(&t.progress, err_is(e) ? "interrupted" : NULL);
    return e;
}

/* Before the file is opened anywhere, because parsing a long header takes memory. */
static err check_header(const char *path, const struct session_sizes *most, const char *what)
{
    err e = safetensors_check_header(path, most->header);
    return err_is(e) ? err_in(e, "the %s", what) : e;
}

/* Path of a blob, which is downloaded if no file with this digest exists. The file is hashed each
 * time: one that was damaged on disk is downloaded again instead of being trained from. */
err session_transfer_blob(char path[LIMIT_PATH_BYTES], struct session *s,
                          const struct digest *digest, uint64_t size, const char *what)
{
    struct digest have;
    struct session_sizes most;
    session_describe_sizes(&most, &s->local.model.arch, s->hello->rank);
    if (size > most.file)
        return err_make(ERR_INPUT,
                        "the %s has %" PRIu64 " bytes, at most %" PRIu64 " for this base", what,
                        size, most.file);
    session_work_blob(path, &s->work, digest);
    if (file_exists(path) && !err_is(digest_of_file(&have, path)) && digest_equal(&have, digest))
        return check_header(path, &most, what);
    const struct remote_blob blob = {.method = RPC_PATH_FEDERATION(fetch),
                                     .run = s->hello->run,
                                     .digest = *digest,
                                     .path = path,
                                     .size = size,
                                     .size_max = most.file};
    err e;
    while (err_is(e = fetch_once(s, &blob, what))) {
        if (e.kind == ERR_STATE) return e; /* replaced by a newer blob: the task is out of date */
        TRY(session_round_retry(s, err_in(e, "downloading the %s", what)));
    }
    retry_ok(&s->retry);
    s->result->bytes_down += file_size(path);
    return check_header(path, &most, what);
}
