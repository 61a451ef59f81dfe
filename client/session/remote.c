#include "client/session/remote.h"

#include "base/file.h"
#include "base/stop.h"
#include "base/text.h"
#include "health.pb-c.h"
#include "proto/message.h"
#include "proto/rpc_path.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    REMOTE_PART_BYTES =
        256 * 1024, /* of an upload: small, so that many at once fit the coordinator */
    REMOTE_STREAM_MS = 30 * 60 * 1000,
    REMOTE_STALL_MS = 60 * 1000,
    REMOTE_READ_BYTES = 1 << 16,
};

err remote_open(struct rpc_client **out, const struct remote_options *o)
{
    const struct rpc_client_options options = {
        .server = o->server, .ca = o->ca, .cert = o->cert, .key = o->key, .stop = &stop_asked};
    return rpc_client_open(out, &options);
}

err remote_call(void *reply, struct rpc_client *client, const struct remote_method *method,
                const ProtobufCMessage *request, uint64_t deadline_ms)
{
    struct bytes sent = {.max = RPC_MESSAGE_BYTES}, received = {.max = RPC_MESSAGE_BYTES};
    err e;
    TRY_OUT(e, message_pack(&sent, request));
    TRY_OUT(e, rpc_client_unary(&received, client, method->path, &sent,
                                deadline_ms == 0 ? REMOTE_CALL_MS : deadline_ms));
    e = message_unpack(reply, method->reply, received.data, received.size);
out:
    bytes_close(&sent);
    bytes_close(&received);
    return e;
}

err remote_health(bool *serving, const struct rpc_client_options *options)
{
    static const struct remote_method method = {
        "/grpc.health.v1.Health/Check", &grpc__health__v1__health_check_response__descriptor};
    Grpc__Health__V1__HealthCheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    Grpc__Health__V1__HealthCheckResponse *reply = NULL;
    struct rpc_client *client = NULL;
    TRY(rpc_client_open(&client, options));
    err e = remote_call(&reply, client, &method, &request.base, 0);
    if (!err_is(e))
        *serving =
            reply->status == GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
    message_free(reply);
    rpc_client_close(client);
    return e;
}

/* ---------------------------------------------------------------- down */

struct fetching {
    const struct remote_blob *blob;
    char part[LIMIT_PATH_BYTES];
    int fd;
    uint64_t have, total; /* total 0: not told yet */
    struct digest_stream digest;
};

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

/* What an earlier attempt left is digested again and gone on from. */
static err resume(struct fetching *f)
{
    static const int flags = O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC;
    f->fd = file_disk.open(f->part, flags, 0600);
    if (f->fd < 0) return err_sys(errno, "%s: cannot open", f->part);
    digest_begin(&f->digest);
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

static err take_chunk(const void *message, size_t size, void *context)
{
    struct fetching *f = context;
    Fedlora__V1__Chunk *chunk = NULL;
    TRY(message_unpack(&chunk, &fedlora__v1__chunk__descriptor, message, size));
    err e = ERR_NONE;
    if (f->total == 0) f->total = chunk->total;
    if (f->total == 0 || f->total > LIMIT_BLOB_BYTES || chunk->offset != f->have ||
        chunk->data.len > f->total - f->have)
        e = err_make(ERR_MACHINE,
                     "the coordinator sent bytes %llu to %llu of %llu, expected bytes from %llu",
                     (unsigned long long)chunk->offset,
                     (unsigned long long)(chunk->offset + chunk->data.len),
                     (unsigned long long)f->total, (unsigned long long)f->have);
    else
        e = write_all(f->fd, chunk->data.data, chunk->data.len, f->part);
    if (!err_is(e)) {
        digest_add(&f->digest, chunk->data.data, chunk->data.len);
        f->have += chunk->data.len;
        if (f->blob->progress != NULL) f->blob->progress(f->blob->user, f->have, f->total);
    }
    message_free(chunk);
    return e;
}

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

/* Everything is here: is it what was asked for? */
static err settle(struct fetching *f)
{
    char expected[DIGEST_TEXT_BYTES];
    if (f->total != 0 && f->have < f->total)
        return err_make(ERR_MACHINE, "the download ended after %llu of %llu bytes",
                        (unsigned long long)f->have, (unsigned long long)f->total);
    struct digest got = digest_end(&f->digest);
    if (!digest_equal(&got, &f->blob->digest)) {
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

err remote_fetch(struct rpc_client *client, const struct remote_blob *blob)
{
    struct fetching f = {.blob = blob, .fd = -1};
    int length = snprintf(f.part, sizeof f.part, "%s.part", blob->path);
    if (length < 0 || (size_t)length >= sizeof f.part)
        return err_make(ERR_INPUT, "%s: the path is too long", blob->path);
    err e;
    TRY_OUT(e, resume(&f));
    TRY_OUT(e, download(&f, client));
    e = settle(&f);
out:
    if (f.fd >= 0) (void)file_disk.close(f.fd);
    return e;
}

/* ---------------------------------------------------------------- up */

struct sending {
    struct file_map file;
    uint64_t at;
    struct bytes *header; /* sent first */
    err (*pack)(struct bytes *message, const uint8_t *data, size_t size);
};

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
    return ERR_NONE;
}

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

static err send_file(struct bytes *reply, struct rpc_client *client, const char *method,
                     struct sending *s)
{
    const struct rpc_upload upload = {.path = method,
                                      .deadline_ms = REMOTE_STREAM_MS,
                                      .stall_ms = REMOTE_STALL_MS,
                                      .part = next_part,
                                      .context = s};
    return rpc_client_upload(reply, client, &upload);
}

/* The offset the coordinator gave, if it can be one of this file. */
static err check_offset(uint64_t received, const struct file_map *file, const char *path)
{
    if (received <= file->size) return ERR_NONE;
    return err_make(ERR_MACHINE,
                    "%s: the coordinator reports %llu received bytes, expected at most %zu", path,
                    (unsigned long long)received, file->size);
}

err remote_submit(Fedlora__V1__SubmitReply **reply, struct rpc_client *client,
                  const Fedlora__V1__SubmitHeader *given, const char *path)
{
    static const struct remote_method ask = {RPC_PATH_FEDERATION(submit_offset),
                                             &fedlora__v1__submit_reply__descriptor};
    Fedlora__V1__SubmitHeader header = *given;
    Fedlora__V1__SubmitReply *have = NULL;
    struct bytes first = {.max = RPC_MESSAGE_BYTES}, received = {.max = RPC_MESSAGE_BYTES};
    struct sending s = {.header = &first, .pack = pack_submit_data};
    err e;
    TRY_OUT(e, file_map_open(&s.file, path));
    TRY_OUT(e, remote_call(&have, client, &ask, &header.base, 0));
    TRY_OUT(e, check_offset(have->received, &s.file, path));
    if (have->durable) {
        *reply = have;
        have = NULL;
        goto out;
    }
    s.at = header.offset = have->received;
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
    s.at = header.offset = have->received;
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
