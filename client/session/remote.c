/* Calls and resumable transfers of client/session/remote.h.
 *
 * Both directions resume by offset. A download appends to PATH.part and asks for the rest; before
 * an upload the coordinator is asked how much it has. A digest of the whole file is checked at the
 * end, so neither side has to trust what the other kept. */
#include "client/session/remote.h"

#include "base/file.h"
#include "base/stop.h"
#include "base/text.h"
#include "client/identity/renewal.h"
#include "health.pb-c.h"
#include "proto/message.h"
#include "proto/message_call.h"
#include "proto/rpc_path.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    REMOTE_PART_BYTES = 256 * 1024,    /* of an upload; small, so that many fit the coordinator */
    REMOTE_STREAM_MS = 30 * 60 * 1000, /* limit of a whole transfer */
    REMOTE_STALL_MS = 60 * 1000,       /* limit without any byte */
    REMOTE_READ_BYTES = 1 << 16,
};

/* `stop` lets an interrupt end a call that is waiting for the network. */
err remote_open(struct rpc_client **out, const struct remote_options *o)
{
    const struct rpc_client_options options = {
        .server = o->server, .ca = o->ca, .cert = o->cert, .key = o->key, .stop = &stop_asked};
    TRY(rpc_client_open(out, &options));
    renewal_if_due(*out, &options);
    return ERR_NONE;
}

err remote_call(void *reply, struct rpc_client *client, const struct remote_method *method,
                const ProtobufCMessage *request, uint64_t deadline_ms)
{
    return message_call(reply, client, &(struct message_method){method->path, method->reply},
                        request, deadline_ms == 0 ? REMOTE_CALL_MS : deadline_ms);
}

/* Opens a connection of its own, so that doctor can call it before any other. */
err remote_health(struct remote_health *out, const struct rpc_client_options *options)
{
    static const struct remote_method method = {
        "/grpc.health.v1.Health/Check", &grpc__health__v1__health_check_response__descriptor};
    Grpc__Health__V1__HealthCheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    Grpc__Health__V1__HealthCheckResponse *reply = NULL;
    struct rpc_client *client = NULL;
    struct remote_health health = {0};
    TRY(rpc_client_open(&client, options));
    err e = remote_call(&reply, client, &method, &request.base, 0);
    if (!err_is(e)) {
        health.serving =
            reply->status == GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
        health.told_time = rpc_client_clock(&health.ahead_ms, client);
        *out = health;
    }
    message_free(reply);
    rpc_client_close(client);
    return e;
}

/* ---------------------------------------------------------------- down */

static void tell(const struct remote_watch *watch, uint64_t begun, uint64_t done, uint64_t total)
{
    if (watch) watch->moved(watch->user, done, total, done - begun);
}

/* State of one download. */
struct fetching {
    const struct remote_blob *blob;
    char part[LIMIT_PATH_BYTES]; /* kept after a failure, for the next attempt */
    int fd;                      /* of part, in append mode */
    uint64_t begun, have, total; /* bytes; begun: at the start; total 0: not announced yet */
    struct digest_stream digest;
};

/* A return of 0 without an error is treated as a full disk, so that the loop cannot spin. */
static err write_all(int fd, const uint8_t *data, size_t size, const char *path)
{
    while (size > 0) {
        ssize_t n = file_disk.write(fd, data, size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return err_sys(n < 0 ? errno : ENOSPC, "%s: cannot write", path);
        data += n;
        size -= (size_t)n;
    }
    return ERR_NONE;
}

/* Bytes of an earlier attempt are read once to continue their digest. Nothing else is needed to
 * resume: the offset is the size of the file, and a wrong byte is found by the digest at the
 * end. */
static err resume(struct fetching *f)
{
    static const int flags = O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC;
    f->fd = file_disk.open(f->part, flags, 0600);
    if (f->fd < 0) return err_sys(errno, "%s: cannot open", f->part);
    digest_begin(&f->digest);
    /* pread() with an explicit offset: the descriptor is in append mode, whose position only writes
     * move. */
    uint8_t buffer[REMOTE_READ_BYTES];
    for (;;) {
        ssize_t n = pread(f->fd, buffer, sizeof buffer, (off_t)f->have);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return err_sys(errno, "%s: cannot read", f->part);
        if (n == 0) return ERR_NONE;
        digest_add(&f->digest, buffer, (size_t)n);
        f->have += (uint64_t)n;
    }
}

/* The part is of no use, so that only a new file can become complete. */
static err begin_again(struct fetching *f)
{
    if (ftruncate(f->fd, 0) != 0) return err_sys(errno, "%s: cannot write", f->part);
    digest_begin(&f->digest);
    f->have = 0;
    return ERR_NONE;
}

/* The size is announced with the first chunk and checked before anything is written, so a
 * coordinator cannot fill the disk. Chunks must be contiguous. Their failure is ERR_MACHINE,
 * because a new attempt may help. */
static err check_chunk(const struct fetching *f, const Fedlora__V1__Chunk *chunk)
{
    const struct remote_blob *b = f->blob;
    uint64_t most = b->size ? b->size : b->size_max ? b->size_max : LIMIT_BLOB_BYTES;
    if (f->total > most || (b->size && f->total != b->size))
        return err_make(
            ERR_INPUT, "the coordinator announces a file of %llu bytes, expected %s%llu",
            (unsigned long long)f->total, b->size ? "" : "at most ", (unsigned long long)most);
    if (f->total == 0 || chunk->offset != f->have || chunk->data.len > f->total - f->have)
        return err_make(ERR_MACHINE,
                        "the coordinator sent bytes %llu to %llu of %llu, expected bytes from %llu",
                        (unsigned long long)chunk->offset,
                        (unsigned long long)(chunk->offset + chunk->data.len),
                        (unsigned long long)f->total, (unsigned long long)f->have);
    return ERR_NONE;
}

static err take_chunk(const void *message, size_t size, void *context)
{
    struct fetching *f = context;
    Fedlora__V1__Chunk *chunk = NULL;
    TRY(message_unpack(&chunk, &fedlora__v1__chunk__descriptor, message, size));
    if (f->total == 0) f->total = chunk->total;
    err e = check_chunk(f, chunk);
    if (!err_is(e)) e = write_all(f->fd, chunk->data.data, chunk->data.len, f->part);
    if (!err_is(e)) {
        digest_add(&f->digest, chunk->data.data, chunk->data.len);
        f->have += chunk->data.len;
        tell(f->blob->watch, f->begun, f->have, f->total);
    }
    message_free(chunk);
    return e;
}

/* Two limits: a long one for the whole stream, and a shorter one without any byte, which ends a
 * dead connection early. */
static err download(struct fetching *f, struct rpc_client *client)
{
    Fedlora__V1__FetchRequest request = FEDLORA__V1__FETCH_REQUEST__INIT;
    struct digest digest = f->blob->digest;
    request.run = (char *)(uintptr_t)f->blob->run;
    request.digest = (ProtobufCBinaryData){DIGEST_BYTES, digest.byte};
    request.offset = f->have;
    struct bytes packed = {.max = RPC_MESSAGE_BYTES};
    err e = message_pack(&packed, &request.base);
    const struct rpc_download d = {.path = f->blob->method,
                                   .request = &packed,
                                   .deadline_ms = REMOTE_STREAM_MS,
                                   .stall_ms = REMOTE_STALL_MS,
                                   .part = take_chunk,
                                   .context = f};
    if (!err_is(e)) e = rpc_client_download(client, &d);
    bytes_close(&packed);
    return e;
}

/* Downloads what is missing. A stream that ended early keeps its bytes for the next attempt. */
static err complete(struct digest *got, struct fetching *f, struct rpc_client *client)
{
    f->begun = f->have;
    TRY(download(f, client));
    if (f->total != 0 && f->have < f->total)
        return err_make(ERR_MACHINE, "the download ended after %llu of %llu bytes",
                        (unsigned long long)f->have, (unsigned long long)f->total);
    *got = digest_end(&f->digest);
    return ERR_NONE;
}

/* A complete file with a wrong digest is deleted, because continuing it would never help. The file
 * is flushed before the rename and the directory after it, so that a power loss leaves a complete
 * file or none. */
static err finish_download(const struct fetching *f, const struct digest *got)
{
    char expected[DIGEST_TEXT_BYTES];
    if (!digest_equal(got, &f->blob->digest)) {
        (void)file_disk.unlink(f->part);
        digest_text(expected, &f->blob->digest);
        return err_make(
            ERR_INPUT, "the download of %.16s... has a different digest and was deleted", expected);
    }
    if (file_disk.fsync(f->fd) != 0) return err_sys(errno, "%s: cannot flush", f->part);
    if (file_disk.rename(f->part, f->blob->path) != 0)
        return err_sys(errno, "%s: cannot rename", f->part);
    const char *slash = strrchr(f->blob->path, '/');
    char folder[LIMIT_PATH_BYTES] = ".";
    if (slash != NULL)
        snprintf(folder, sizeof folder, "%.*s", (int)(slash - f->blob->path + 1), f->blob->path);
    return file_sync_dir(folder);
}

/* The part file stays after an error; remote_fetch() of the same path continues it. */
err remote_fetch(struct rpc_client *client, const struct remote_blob *blob)
{
    struct fetching f = {.blob = blob, .fd = -1};
    int length = snprintf(f.part, sizeof f.part, "%s.part", blob->path);
    if (length < 0 || (size_t)length >= sizeof f.part)
        return err_make(ERR_INPUT, "%s: the path is too long", blob->path);
    err e;
    TRY_OUT(e, resume(&f));
    if (blob->size && f.have > blob->size) TRY_OUT(e, begin_again(&f));
    struct digest got;
    TRY_OUT(e, complete(&got, &f, client));
    /* Bytes of an earlier attempt may be damaged on this disk. Only a download in one piece shows
     * that the coordinator has sent another file. */
    if (f.begun > 0 && !digest_equal(&got, &blob->digest)) {
        TRY_OUT(e, begin_again(&f));
        TRY_OUT(e, complete(&got, &f, client));
    }
    e = finish_download(&f, &got);
out:
    if (f.fd >= 0) (void)file_disk.close(f.fd);
    return e;
}

static err take_made(const void *message, size_t size, void *context)
{
    struct file_out *out = context;
    Fedlora__V1__Chunk *chunk = NULL;
    TRY(message_unpack(&chunk, &fedlora__v1__chunk__descriptor, message, size));
    err e = ERR_NONE;
    if (chunk->offset != out->size || out->size + chunk->data.len > LIMIT_BLOB_BYTES)
        e = err_make(ERR_INPUT, "the coordinator sent byte %llu, expected %llu",
                     (unsigned long long)chunk->offset, (unsigned long long)out->size);
    if (!err_is(e)) e = file_out_append(out, chunk->data.data, chunk->data.len);
    message_free(chunk);
    return e;
}

err remote_make(struct rpc_client *client, const struct remote_made *made)
{
    struct file_out out = {0};
    struct bytes packed = {.max = RPC_MESSAGE_BYTES};
    err e = ERR_NONE;
    TRY(file_out_open(&out, made->path, made->replace));
    TRY_OUT(e, message_pack(&packed, made->request));
    const struct rpc_download d = {.path = made->method,
                                   .request = &packed,
                                   .deadline_ms = REMOTE_STREAM_MS,
                                   .stall_ms = REMOTE_STALL_MS,
                                   .part = take_made,
                                   .context = &out};
    TRY_OUT(e, rpc_client_download(client, &d));
    e = file_out_commit(&out);
out:
    bytes_close(&packed);
    file_out_close(&out);
    return e;
}

/* ---------------------------------------------------------------- up */

/* State of one upload: the file, the next byte, and how a part is packed. */
struct sending {
    struct file_map file;
    uint64_t begun; /* offset that the coordinator asked for */
    uint64_t at;    /* offset of the next byte */
    const struct remote_watch *watch;
    struct bytes *header; /* sent first */
    err (*pack)(struct bytes *message, const uint8_t *data, size_t size);
};

/* Called by the RPC library whenever it can send another message. The first one is the header. */
static err next_part(struct bytes *message, bool *end, void *context)
{
    struct sending *s = context;
    if (s->header != NULL) {
        struct bytes *header = s->header;
        s->header = NULL;
        return bytes_append(message, header->data, header->size);
    }
    uint64_t left = s->file.size - s->at;
    *end = left == 0;
    if (left == 0) return ERR_NONE;
    size_t size = left < REMOTE_PART_BYTES ? (size_t)left : REMOTE_PART_BYTES;
    TRY(s->pack(message, s->file.data + s->at, size));
    s->at += size;
    tell(s->watch, s->begun, s->at, s->file.size);
    return ERR_NONE;
}

/* Submit and Put have messages of their own, which differ only in their type. */
static err pack_submit_data(struct bytes *message, const uint8_t *data, size_t size)
{
    Fedlora__V1__SubmitPart part = FEDLORA__V1__SUBMIT_PART__INIT;
    part.part_case = FEDLORA__V1__SUBMIT_PART__PART_DATA;
    part.data = (ProtobufCBinaryData){size, (uint8_t *)(uintptr_t)data};
    return message_pack(message, &part.base);
}

static err pack_put_data(struct bytes *message, const uint8_t *data, size_t size)
{
    Fedlora__V1__PutPart part = FEDLORA__V1__PUT_PART__INIT;
    part.part_case = FEDLORA__V1__PUT_PART__PART_DATA;
    part.data = (ProtobufCBinaryData){size, (uint8_t *)(uintptr_t)data};
    return message_pack(message, &part.base);
}

/* The same two limits as for a download. */
static err send_file(struct bytes *reply, struct rpc_client *client, const char *method,
                     struct sending *s)
{
    /* The same path may be called again after a failure; the offset is asked for each time. */
    const struct rpc_upload upload = {.path = method,
                                      .deadline_ms = REMOTE_STREAM_MS,
                                      .stall_ms = REMOTE_STALL_MS,
                                      .part = next_part,
                                      .context = s};
    return rpc_client_upload(reply, client, &upload);
}

/* An offset behind the end would make the upload read past the file. */
static err check_offset(uint64_t received, const struct file_map *file, const char *path)
{
    if (received <= file->size) return ERR_NONE;
    return err_make(ERR_MACHINE,
                    "%s: the coordinator reports %llu received bytes, expected at most %zu", path,
                    (unsigned long long)received, file->size);
}

/* SubmitOffset is asked first. If the update is durable already, the answer of an earlier attempt
 * was lost, and nothing is sent again: an update counts once, however often it is submitted. */
err remote_submit(Fedlora__V1__SubmitReply **reply, struct rpc_client *client,
                  const Fedlora__V1__SubmitHeader *given, const char *path,
                  const struct remote_watch *watch)
{
    static const struct remote_method ask = {RPC_PATH_FEDERATION(submit_offset),
                                             &fedlora__v1__submit_reply__descriptor};
    Fedlora__V1__SubmitHeader header = *given;
    Fedlora__V1__SubmitReply *have = NULL;
    struct bytes first = {.max = RPC_MESSAGE_BYTES}, received = {.max = RPC_MESSAGE_BYTES};
    struct sending s = {.header = &first, .pack = pack_submit_data, .watch = watch};
    err e;
    TRY_OUT(e, file_map_open(&s.file, path));
    TRY_OUT(e, remote_call(&have, client, &ask, &header.base, 0));
    TRY_OUT(e, check_offset(have->received, &s.file, path));
    if (have->durable) {
        *reply = have;
        have = NULL;
        goto out;
    }
    s.begun = s.at = header.offset = have->received;
    if (watch && watch->begins) TRY_OUT(e, watch->begins(watch->user, s.begun, s.file.size));
    Fedlora__V1__SubmitPart part = FEDLORA__V1__SUBMIT_PART__INIT;
    part.part_case = FEDLORA__V1__SUBMIT_PART__PART_HEADER;
    part.header = &header;
    TRY_OUT(e, message_pack(&first, &part.base));
    TRY_OUT(e, send_file(&received, client, RPC_PATH_FEDERATION(submit), &s));
    e = message_unpack(reply, ask.reply, received.data, received.size);
out:
    message_free(have);
    file_map_close(&s.file);
    bytes_close(&first);
    bytes_close(&received);
    return e;
}

/* The same steps as remote_submit() for a blob without a run. */
err remote_put(struct rpc_client *client, const struct digest *digest, const char *path)
{
    static const struct remote_method ask = {RPC_PATH_ADMIN(put_offset),
                                             &fedlora__v1__put_reply__descriptor};
    struct digest name = *digest;
    Fedlora__V1__PutHeader header = FEDLORA__V1__PUT_HEADER__INIT;
    Fedlora__V1__PutReply *have = NULL;
    struct bytes first = {.max = RPC_MESSAGE_BYTES}, received = {.max = RPC_MESSAGE_BYTES};
    struct sending s = {.header = &first, .pack = pack_put_data};
    err e;
    TRY_OUT(e, file_map_open(&s.file, path));
    header.digest = (ProtobufCBinaryData){DIGEST_BYTES, name.byte};
    header.size = s.file.size;
    TRY_OUT(e, remote_call(&have, client, &ask, &header.base, 0));
    TRY_OUT(e, check_offset(have->received, &s.file, path));
    if (have->durable) goto out;
    s.begun = s.at = header.offset = have->received;
    Fedlora__V1__PutPart part = FEDLORA__V1__PUT_PART__INIT;
    part.part_case = FEDLORA__V1__PUT_PART__PART_HEADER;
    part.header = &header;
    TRY_OUT(e, message_pack(&first, &part.base));
    TRY_OUT(e, send_file(&received, client, RPC_PATH_ADMIN(put_blob), &s));
    message_free(have);
    have = NULL;
    TRY_OUT(e, message_unpack(&have, ask.reply, received.data, received.size));
    if (!have->durable)
        e = err_make(ERR_MACHINE, "%s: the coordinator did not store the file", path);
out:
    message_free(have);
    file_map_close(&s.file);
    bytes_close(&first);
    bytes_close(&received);
    return e;
}
