/* Downloads of states and frozen factors, by members and operators, in chunks, from any byte. */
#include "base/file.h"
#include "coordinator/serve/serve.h"
#include "proto/message.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

/* Every open download has one chunk in memory, so the size of a chunk bounds the memory that many
 * members need. */
enum { FETCH_CHUNK_BYTES = 256 << 10 };

struct download {
    int fd;
    uint64_t offset, size;
    bool first;
    struct run *run; /* NULL: an operator's */
    size_t member;
};

/* Only states and frozen factors can be fetched. No peer, not even an operator, can read a member's
 * update. The file is opened here, so it can be read to its end even if the round that gives it up
 * is published meanwhile. */
static err find_fetched(struct download *d, struct rpc_call *call,
                        const Fedlora__V1__FetchRequest *request)
{
    struct serve *s = serve_of(call);
    struct digest digest;
    bool may = false;
    TRY(serve_digest(&digest, &request->digest));
    TRY(serve_audit_ready(call));
    if (rpc_call_peer(call)->role == RPC_CLIENT)
        TRY(serve_member(&d->run, &d->member, call, request->run));
    else
        TRY(serve_check_admin(call));
    /* Permission first, and the same error as for a missing blob, so that a peer cannot find out
     * which other blobs exist. */
    err e = store_blob_public(&may, s->shop.store, d->run ? d->run->id : 0, &digest);
    TRY(e);
    char name[DIGEST_TEXT_BYTES];
    digest_text(name, &digest);
    if (!may)
        return err_make(ERR_STATE, "blob %.16s does not exist (any more); ask for the next task",
                        name);
    e = blob_size(&d->size, s->shop.store->dir, &digest);
    /* The database names it, so this is not a member that asks for an old state. */
    if (e.kind == ERR_STATE) serve_report_missing(s, d->run, &digest);
    TRY(e);
    if (request->offset > d->size)
        return err_make(ERR_INPUT, "offset %llu, but blob %.16s has %llu bytes",
                        (unsigned long long)request->offset, name, (unsigned long long)d->size);
    d->offset = request->offset;
    struct blob_path path = blob_path(s->shop.store->dir, &digest);
    d->fd = file_disk.open(path.text, O_RDONLY | O_CLOEXEC, 0);
    if (d->fd < 0) return err_sys(errno, "%s", path.text);
    serve_audit_fetched(call, d->run, &digest, d->offset);
    return ERR_NONE;
}

/* The state is set before the first check, so that fetch_over() frees it on every path. */
static void fetch_begin(struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__FetchRequest *request = NULL;
    struct download *d = malloc(sizeof *d);
    err e = d ? ERR_NONE : err_sys(ENOMEM, "a download");
    if (d) {
        d->fd = -1;
        d->first = true;
        d->run = NULL;
        rpc_call_set_state(call, d);
    }
    if (!err_is(e))
        e = message_unpack_few(&request, &fedlora__v1__fetch_request__descriptor, data, size,
                               MESSAGE_FEW);
    if (!err_is(e)) e = find_fetched(d, call, request);
    if (err_is(e)) serve_refuse(call, e);
    message_free(request);
}

/* A blob never changes, so a short file is damage of the disk (EIO). */
static err read_chunk(uint8_t chunk[FETCH_CHUNK_BYTES], size_t *out, const struct download *d)
{
    uint64_t left = d->size - d->offset;
    size_t want = left < FETCH_CHUNK_BYTES ? (size_t)left : FETCH_CHUNK_BYTES;
    size_t have = 0;
    while (have < want) {
        ssize_t n = pread(d->fd, chunk + have, want - have, (off_t)(d->offset + have));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return err_sys(n < 0 ? errno : EIO, "reading a blob");
        have += (size_t)n;
    }
    *out = want;
    return ERR_NONE;
}

/* An empty blob is sent as one empty chunk, because the first chunk carries the total. */
static void fetch_more(struct rpc_call *call)
{
    struct download *d = rpc_call_state(call);
    Fedlora__V1__Chunk chunk = FEDLORA__V1__CHUNK__INIT;
    /* Static, because only the loop thread uses it and each chunk is sent before the next one. */
    static uint8_t data[FETCH_CHUNK_BYTES];
    struct bytes packed = {.max = RPC_MESSAGE_BYTES};
    size_t size = 0;
    if (!d->first && d->offset == d->size) {
        rpc_call_finish(call);
        return;
    }
    err e = read_chunk(data, &size, d);
    chunk.offset = d->offset;
    chunk.data = (ProtobufCBinaryData){.len = size, .data = data};
    chunk.total = d->first ? d->size : 0;
    if (!err_is(e)) e = message_pack(&packed, &chunk.base);
    if (err_is(e)) {
        serve_refuse(call, e);
    } else {
        rpc_call_send(call, packed.data, packed.size);
        d->first = false;
        d->offset += size;
        /* Counts bytes that gRPC has taken, whether or not they reach the member. */
        if (d->run) {
            d->run->member[d->member].bytes_down += size;
            d->run->member[d->member].bytes_down_new += size;
            if (!d->run->round.rules.secret)
                tally_sent(d->run->shop->tally, rpc_call_peer(call)->id, size);
            run_apply_member(d->run, ROUND_ON_SEEN, d->member);
        }
    }
    bytes_close(&packed);
}

static void fetch_over(struct rpc_call *call, bool answered)
{
    struct download *d = rpc_call_state(call);
    (void)answered;
    if (!d) return;
    if (d->fd >= 0) file_disk.close(d->fd);
    free(d);
}

const struct rpc_method serve_fetch_method[] = {
    {.path = RPC_PATH_FEDERATION(fetch),
     .shape = RPC_DOWNLOAD,
     .roles = RPC_CLIENT,
     .begin = fetch_begin,
     .more = fetch_more,
     .over = fetch_over},
    {.path = RPC_PATH_ADMIN(fetch_blob),
     .shape = RPC_DOWNLOAD,
     .roles = RPC_ADMIN,
     .begin = fetch_begin,
     .more = fetch_more,
     .over = fetch_over},
};
const size_t serve_fetch_methods = sizeof serve_fetch_method / sizeof *serve_fetch_method;
