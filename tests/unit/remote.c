#include "client/session/remote.h"
#include "base/file.h"
#include "proto/message.h"
#include "proto/rpc_path.h"
#include "tests/support/rpc_fixture.h"

/* A coordinator's transfers, and ways to break them. */
static uint8_t blob[3000000];
static struct digest blob_digest;
enum { PIECE = 400000 };

struct server {
    struct rpc_server *server;
    pthread_t thread;
    atomic_bool stop;
    char address[64], dir[64], path[128];
    struct rpc_client *client;
    /* behaviour */
    atomic_int fail_after; /* bytes of a download, then UNAVAILABLE; 0: never */
    atomic_bool lie;       /* one byte is another */
    atomic_bool skip;      /* the first chunk begins too late */
    /* what was seen */
    atomic_int fetches, first_offset;
    struct bytes received;
    uint64_t upload_offset;
    atomic_bool durable;
};

static void fetch_begin(struct rpc_call *call, const void *request, size_t size)
{
    struct server *s = rpc_call_context(call);
    Fedlora__V1__FetchRequest *message = NULL;
    FIXTURE_OK(message_unpack(&message, &fedlora__v1__fetch_request__descriptor, request, size));
    uint64_t *at = malloc(sizeof *at);
    *at = message->offset;
    atomic_store(&s->first_offset, (int)message->offset);
    atomic_fetch_add(&s->fetches, 1);
    message_free(message);
    rpc_call_set_state(call, at);
}

static void fetch_more(struct rpc_call *call)
{
    struct server *s = rpc_call_context(call);
    uint64_t *at = rpc_call_state(call);
    int limit = atomic_load(&s->fail_after);
    if (limit > 0 && *at >= (uint64_t)limit) {
        rpc_call_refuse(call, err_make(ERR_MACHINE, "cut"));
        return;
    }
    if (*at >= sizeof blob) {
        rpc_call_finish(call);
        return;
    }
    size_t size = sizeof blob - *at < PIECE ? sizeof blob - *at : PIECE;
    static uint8_t copy[PIECE];
    memcpy(copy, blob + *at, size);
    if (atomic_load(&s->lie)) copy[size / 2] ^= 1;
    Fedlora__V1__Chunk chunk = FEDLORA__V1__CHUNK__INIT;
    chunk.offset = *at + (atomic_load(&s->skip) ? 5 : 0);
    chunk.data = (ProtobufCBinaryData){size, copy};
    chunk.total = sizeof blob;
    struct bytes packed = {.max = RPC_MESSAGE_BYTES};
    FIXTURE_OK(message_pack(&packed, &chunk.base));
    *at += size;
    rpc_call_send(call, packed.data, packed.size);
    bytes_close(&packed);
}

static void free_state(struct rpc_call *call, bool answered)
{
    (void)answered;
    free(rpc_call_state(call));
}

static void answer_submit(struct rpc_call *call)
{
    struct server *s = rpc_call_context(call);
    Fedlora__V1__SubmitReply reply = FEDLORA__V1__SUBMIT_REPLY__INIT;
    uint8_t packed[64];
    reply.received = s->received.size;
    reply.durable = s->received.size == sizeof blob;
    atomic_store(&s->durable, reply.durable);
    size_t size = fedlora__v1__submit_reply__pack(&reply, packed);
    rpc_call_answer(call, packed, size);
}

static void offset_begin(struct rpc_call *call, const void *request, size_t size)
{
    (void)request, (void)size;
    answer_submit(call);
}

static void submit_begin(struct rpc_call *call, const void *request, size_t size)
{
    (void)call, (void)request, (void)size;
}

static void submit_part(struct rpc_call *call, const void *data, size_t size)
{
    struct server *s = rpc_call_context(call);
    Fedlora__V1__SubmitPart *part = NULL;
    FIXTURE_OK(message_unpack(&part, &fedlora__v1__submit_part__descriptor, data, size));
    int limit = atomic_load(&s->fail_after);
    if (part->part_case == FEDLORA__V1__SUBMIT_PART__PART_HEADER)
        s->upload_offset = part->header->offset;
    else
        FIXTURE_OK(bytes_append(&s->received, part->data.data, part->data.len));
    message_free(part);
    if (limit > 0 && s->received.size >= (size_t)limit)
        rpc_call_refuse(call, err_make(ERR_MACHINE, "cut"));
    else
        rpc_call_next(call);
}

static const struct rpc_method methods[] = {
    {.path = RPC_PATH_FEDERATION(fetch),
     .shape = RPC_DOWNLOAD,
     .roles = RPC_CLIENT,
     .begin = fetch_begin,
     .more = fetch_more,
     .over = free_state},
    {.path = RPC_PATH_FEDERATION(submit_offset),
     .shape = RPC_UNARY,
     .roles = RPC_CLIENT,
     .begin = offset_begin},
    {.path = RPC_PATH_FEDERATION(submit),
     .shape = RPC_UPLOAD,
     .roles = RPC_CLIENT,
     .begin = submit_begin,
     .part = submit_part,
     .end = answer_submit},
};

static void *serve(void *argument)
{
    struct server *s = argument;
    while (!atomic_load(&s->stop))
        rpc_server_poll(s->server, 1000);
    return NULL;
}

static void start(struct server *s)
{
    fixture_certs();
    for (size_t i = 0; i < sizeof blob; i++)
        blob[i] = (uint8_t)(i * 2654435761u >> 13);
    blob_digest = digest_of(blob, sizeof blob);
    s->received.max = 2 * sizeof blob;
    snprintf(s->dir, sizeof s->dir, "/tmp/remote.XXXXXX");
    cr_assert_not_null(mkdtemp(s->dir));
    snprintf(s->path, sizeof s->path, "%s/blob", s->dir);
    const struct rpc_server_options options = {.listen = "localhost:0",
                                               .ca = FIXTURE_CERTS "/ca.pem",
                                               .cert = FIXTURE_CERTS "/server.pem",
                                               .key = FIXTURE_CERTS "/server.key",
                                               .method = methods,
                                               .method_count = 3,
                                               .context = s};
    FIXTURE_OK(rpc_server_open(&s->server, &options));
    snprintf(s->address, sizeof s->address, "localhost:%d", rpc_server_port(s->server));
    cr_assert_eq(pthread_create(&s->thread, NULL, serve, s), 0);
    const struct remote_options client = {.server = s->address,
                                          .ca = FIXTURE_CERTS "/ca.pem",
                                          .cert = FIXTURE_CERTS "/a.pem",
                                          .key = FIXTURE_CERTS "/a.key"};
    FIXTURE_OK(remote_open(&s->client, &client));
}

static void finish(struct server *s)
{
    char command[128];
    rpc_client_close(s->client);
    atomic_store(&s->stop, true);
    rpc_server_wake(s->server);
    pthread_join(s->thread, NULL);
    rpc_server_close(s->server, 100);
    bytes_close(&s->received);
    snprintf(command, sizeof command, "rm -rf %s", s->dir);
    cr_assert_eq(system(command), 0);
}

static err fetch(struct server *s)
{
    const struct remote_blob wanted = {
        .method = RPC_PATH_FEDERATION(fetch), .run = "r", .digest = blob_digest, .path = s->path};
    return remote_fetch(s->client, &wanted);
}

static void check_file(const struct server *s)
{
    struct digest have;
    char part[200];
    FIXTURE_OK(digest_of_file(&have, s->path));
    cr_assert(digest_equal(&have, &blob_digest));
    snprintf(part, sizeof part, "%s.part", s->path);
    cr_assert_not(file_exists(part));
}

/* The server announces 3,000,000 bytes. */
Test(remote, writes_nothing_of_a_file_of_another_size_than_expected)
{
    struct server s = {0};
    char part[200];
    start(&s);
    struct remote_blob wanted = {.method = RPC_PATH_FEDERATION(fetch),
                                 .run = "r",
                                 .digest = blob_digest,
                                 .path = s.path,
                                 .size = 2999999};
    snprintf(part, sizeof part, "%s.part", s.path);
    err e = remote_fetch(s.client, &wanted);
    cr_expect(e.kind == ERR_INPUT &&
                  strstr(e.text, "announces a file of 3000000 bytes, expected 2999999"),
              "%s", e.text);
    wanted.size = 0;
    wanted.size_max = 1000000;
    e = remote_fetch(s.client, &wanted);
    cr_expect(e.kind == ERR_INPUT && strstr(e.text, "expected at most 1000000"), "%s", e.text);
    struct file_map map = {0};
    FIXTURE_OK(file_map_open(&map, part));
    cr_expect_eq(map.size, 0);
    file_map_close(&map);
    wanted.size = sizeof blob;
    uint8_t *long_part = calloc(1, sizeof blob + 1);
    FIXTURE_OK(file_write(part, long_part, sizeof blob + 1, true));
    free(long_part);
    FIXTURE_OK(remote_fetch(s.client, &wanted)); /* begins again */
    check_file(&s);
    cr_assert_eq(unlink(s.path), 0);
    FIXTURE_OK(file_write(part, "damaged", 7, true));
    FIXTURE_OK(remote_fetch(s.client, &wanted)); /* once more from the start */
    check_file(&s);
    finish(&s);
}

Test(remote, fetches_a_blob_whole)
{
    struct server s = {0};
    start(&s);
    FIXTURE_OK(fetch(&s));
    check_file(&s);
    finish(&s);
}

Test(remote, goes_on_where_a_broken_download_ended)
{
    struct server s = {0};
    start(&s);
    atomic_store(&s.fail_after, 3 * PIECE);
    err e = fetch(&s);
    cr_assert_eq(e.kind, ERR_MACHINE, "%s", e.text);
    cr_assert_not(file_exists(s.path));
    atomic_store(&s.fail_after, 0);
    FIXTURE_OK(fetch(&s));
    cr_assert_eq(atomic_load(&s.first_offset), 3 * PIECE);
    check_file(&s);
    finish(&s);
}

Test(remote, keeps_nothing_of_a_blob_with_another_digest)
{
    struct server s = {0};
    start(&s);
    atomic_store(&s.lie, true);
    err e = fetch(&s);
    cr_assert_eq(e.kind, ERR_INPUT);
    cr_assert(strstr(e.text, "a different digest") != NULL, "%s", e.text);
    cr_assert_not(file_exists(s.path));
    atomic_store(&s.lie, false);
    FIXTURE_OK(fetch(&s));
    cr_assert_eq(atomic_load(&s.first_offset), 0);
    check_file(&s);
    finish(&s);
}

Test(remote, does_not_take_a_chunk_from_elsewhere)
{
    struct server s = {0};
    start(&s);
    atomic_store(&s.skip, true);
    err e = fetch(&s);
    cr_assert_eq(e.kind, ERR_MACHINE);
    cr_assert(strstr(e.text, "expected bytes from 0") != NULL, "%s", e.text);
    finish(&s);
}

static err submit(struct server *s)
{
    Fedlora__V1__SubmitHeader header = FEDLORA__V1__SUBMIT_HEADER__INIT;
    Fedlora__V1__SubmitReply *reply = NULL;
    header.size = sizeof blob;
    header.digest = (ProtobufCBinaryData){DIGEST_BYTES, blob_digest.byte};
    err e = remote_submit(&reply, s->client, &header, s->path, NULL);
    if (!err_is(e)) cr_assert(reply->durable);
    message_free(reply);
    return e;
}

Test(remote, goes_on_where_a_broken_upload_ended_and_sends_nothing_twice)
{
    struct server s = {0};
    start(&s);
    FIXTURE_OK(file_write(s.path, blob, sizeof blob, false));
    atomic_store(&s.fail_after, 1000000);
    err e = submit(&s);
    cr_assert_eq(e.kind, ERR_MACHINE, "%s", e.text);
    size_t had = s.received.size;
    cr_assert(had >= 1000000 && had < sizeof blob);
    atomic_store(&s.fail_after, 0);
    FIXTURE_OK(submit(&s));
    cr_assert_eq(s.upload_offset, had);
    cr_assert_eq(s.received.size, sizeof blob);
    cr_assert_eq(memcmp(s.received.data, blob, sizeof blob), 0);
    FIXTURE_OK(submit(&s));
    cr_assert_eq(s.received.size, sizeof blob);
    finish(&s);
}

Test(remote, a_file_that_cannot_be_made_is_named_before_anything_is_fetched)
{
    struct server s = {0};
    start(&s);
    char limit[200];
    snprintf(limit, sizeof limit, "%s/absent/blob", s.dir);
    const struct remote_blob wanted = {
        .method = RPC_PATH_FEDERATION(fetch), .run = "r", .digest = blob_digest, .path = limit};
    err e = remote_fetch(s.client, &wanted);
    cr_assert_eq(e.kind, ERR_MACHINE);
    cr_assert(strstr(e.text, "absent/blob.part") != NULL, "%s", e.text);
    cr_assert_eq(atomic_load(&s.fetches), 0);
    finish(&s);
}
