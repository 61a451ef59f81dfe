/* Uploads in chunks, resumable at any byte. Chunks go to the spool as they arrive. After the last
 * byte the upload is given to the worker (admit.c), and the reply is sent once the update is
 * durable, because the reply is the receipt.
 *
 * An upload struct belongs to its call until it is given to the worker; from then on
 * upload_done() frees it, whichever of the two ends first. */
#include "base/text.h"
#include "coordinator/run/bounds.h"
#include "coordinator/run/run_shapes.h"
#include "coordinator/serve/serve.h"
#include "coordinator/store/spool.h"
#include "proto/message.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct upload {
    struct rpc_call *call; /* NULL once it is over */
    struct run *run;       /* NULL: an operator's blob */
    size_t member;
    struct spool spool;
    uint64_t promised;     /* its part of serve.promised */
    struct admit_job *job; /* prepared by the header; NULL before it and once given away */
    uint32_t round;
    bool ended; /* answered, refused or given away: later messages are ignored */
    bool given; /* to the worker: upload_done() frees it */
};

static struct run_member *slot_of(struct upload *u)
{
    return &u->run->member[u->member];
}

/* Members and operators get different messages with the same meaning. */
static void answer_submit(struct rpc_call *call, uint64_t received, bool durable,
                          uint32_t counted_in)
{
    Fedlora__V1__SubmitReply reply = FEDLORA__V1__SUBMIT_REPLY__INIT;
    Fedlora__V1__PutReply put = FEDLORA__V1__PUT_REPLY__INIT;
    if (rpc_call_peer(call)->role == RPC_ADMIN) {
        put.received = received;
        put.durable = durable;
        serve_answer(call, &put.base);
        return;
    }
    reply.received = received;
    reply.durable = durable;
    reply.counted_in = counted_in;
    serve_answer(call, &reply.base);
}

/* Loop thread. The call may be over already: the member then asks SubmitOffset and learns that the
 * update is here. run_admitted() comes before the answer, so that the round counts the update when
 * the member makes its next call. */
static void upload_done(struct work_job *work)
{
    struct admit_job *job = (struct admit_job *)(void *)work;
    struct upload *u = job->owner;
    if (u->run) run_admitted(u->run, job);
    if (u->call) {
        if (err_is(work->result) && u->run)
            serve_refuse_only(u->call, work->result); /* run_admitted() has reported it */
        else if (err_is(work->result))
            serve_refuse(u->call, work->result);
        else
            answer_submit(u->call, job->update.blob.size, true, job->update.counted_in);
        rpc_call_set_state(u->call, NULL);
    }
    free(job);
    free(u);
}

/* Sets the bytes that this upload has announced and not sent yet. Each upload leaves the room that
 * the others have been promised, so that none of them is refused halfway. */
static void promise(struct upload *u, struct serve *s, uint64_t bytes)
{
    s->promised = s->promised - u->promised + bytes;
    u->promised = bytes;
}

/* Limits are checked before the first byte is written. */
static err check_size(const struct serve *s, const Fedlora__V1__SubmitHeader *h)
{
    if (h->size && h->size <= s->config->update_bytes_max) return ERR_NONE;
    return err_make(ERR_INPUT, "an upload of %llu bytes, expected 1 to %llu",
                    (unsigned long long)h->size, (unsigned long long)s->config->update_bytes_max);
}

/* Without shapes no round is open, and round_judge() refuses. */
static err check_shapes(const Fedlora__V1__SubmitHeader *h, const struct run *run, size_t member)
{
    struct run_sizes most;
    run_update_sizes(&most, run, member, h->round);
    if (!run->modules || h->size <= most.file) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "an update of %llu bytes; the modules of run %s at rank %u need at most %llu",
                    (unsigned long long)h->size, run->config->name, run->member[member].rank,
                    (unsigned long long)most.file);
}

static err check_weight(const Fedlora__V1__SubmitHeader *h, const struct run *run, size_t member)
{
    uint64_t most = run->member[member].examples;
    if (h->examples > most || (h->examples == 0 && !strcmp(run->config->weights, "examples")))
        return err_make(ERR_INPUT,
                        "examples: %llu, expected 1 to %llu, the number in your Hello: they are "
                        "this update's weight",
                        (unsigned long long)h->examples, (unsigned long long)most);
    return ERR_NONE;
}

/* An upload belongs to a member of a run, or to an operator; two operators can upload the same
 * file at once without disturbing each other. */
static void fill_key(struct spool_key *key, struct rpc_call *call, const struct run *run,
                     const Fedlora__V1__SubmitHeader *h)
{
    *key = (struct spool_key){
        .size = h->size, .run = run ? run->config->name : "", .owner = rpc_call_peer(call)->id};
    memcpy(key->digest.byte, h->digest.data, DIGEST_BYTES);
}

/* Common to SubmitOffset and the header of Submit: may this update be accepted, and is it durable
 * already? */
static err judge(struct round_place *place, struct upload *u, struct rpc_call *call,
                 const Fedlora__V1__SubmitHeader *h)
{
    struct digest digest;
    TRY(serve_member(&u->run, &u->member, call, h->run));
    TRY(serve_digest(&digest, &h->digest));
    TRY(bounds_check(&h->base));
    TRY(check_size(serve_of(call), h));
    TRY(check_shapes(h, u->run, u->member));
    TRY(check_weight(h, u->run, u->member));
    run_apply_member(u->run, ROUND_ON_SEEN, u->member);
    err e = round_judge(place, &u->run->round, u->member, h->round, &digest);
    return err_is(e) ? err_in(e, "run %s", u->run->config->name) : e;
}

/* Refuses for the same reasons as Submit, so a member learns of them before it sends any data. */
static void offset_begin(struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__SubmitHeader *h = NULL;
    struct upload u = {0};
    struct round_place place = {0};
    struct spool_key key;
    err e =
        message_unpack_few(&h, &fedlora__v1__submit_header__descriptor, data, size, MESSAGE_FEW);
    if (!err_is(e)) e = judge(&place, &u, call, h);
    if (err_is(e))
        serve_refuse(call, e);
    else if (place.have)
        answer_submit(call, h->size, true, place.counted_in);
    else {
        fill_key(&key, call, u.run, h);
        answer_submit(call, spool_received(serve_of(call)->shop.store->dir, &key), false, 0);
    }
    message_free(h);
}

/* No message has arrived yet; the header is the first part. */
static void upload_begin(struct rpc_call *call, const void *data, size_t size)
{
    struct upload *u = calloc(1, sizeof *u);
    (void)data;
    (void)size;
    if (!u) {
        serve_refuse(call, err_sys(ENOMEM, "an upload"));
        return;
    }
    u->call = call;
    u->spool.fd = -1;
    rpc_call_set_state(call, u);
    rpc_call_next(call);
}

/* The file stays, because a refusal may be about the moment (a full disk, a second connection);
 * the next header decides whether it is of use. */
static void refuse_upload(struct upload *u, err e)
{
    u->ended = true;
    promise(u, serve_of(u->call), 0);
    spool_close(&u->spool);
    serve_about(u->call, u->run);
    serve_refuse(u->call, e);
}

/* A member that comes back before its old connection is known to be dead continues its upload.
 * The old call must not write to the same file any more. */
static void take_over(struct upload *u)
{
    struct upload *old = slot_of(u)->upload;
    if (old && !old->ended)
        refuse_upload(old, err_make(ERR_LIMIT, "another connection has continued this upload"));
    slot_of(u)->upload = u;
}

/* The job is prepared here, while the header is at hand, and given away at the end. */
static err begin_spool(struct upload *u, const struct spool_key *key, uint64_t offset)
{
    struct serve *s = serve_of(u->call);
    struct admit_job *job = calloc(1, sizeof *job);
    if (!job) return err_sys(ENOMEM, "an upload");
    /* Before the file is opened, because the old call must not write behind the new offset. */
    if (u->run) take_over(u);
    err e = spool_open(&u->spool, s->shop.store->dir, key, offset,
                       s->config->reserve_bytes + s->promised);
    if (err_is(e)) {
        free(job);
        return e;
    }
    u->spool.reserve = s->config->reserve_bytes;
    promise(u, s, key->size - offset);
    job->job.done = upload_done;
    job->member_index = u->member;
    job->resumed = u->spool.resumed;
    memcpy(job->part, u->spool.path, sizeof job->part);
    memcpy(job->member, rpc_call_peer(u->call)->id, sizeof job->member);
    job->update.blob = (struct store_blob){key->digest, key->size};
    u->job = job;
    return ERR_NONE;
}

/* If the update is durable already, the receipt is sent again and the rest of the stream is
 * ignored. */
static err take_submit_header(struct upload *u, const Fedlora__V1__SubmitHeader *h)
{
    struct round_place place = {0};
    struct spool_key key;
    TRY(judge(&place, u, u->call, h));
    if (place.have) {
        answer_submit(u->call, h->size, true, place.counted_in);
        u->ended = true;
        return ERR_NONE;
    }
    fill_key(&key, u->call, u->run, h);
    TRY(begin_spool(u, &key, h->offset));
    u->round = h->round;
    u->job->update.examples = h->examples;
    u->job->update.train_loss = h->train_loss;
    u->job->update.seconds = h->seconds;
    u->job->update.tokens = h->tokens;
    return ERR_NONE;
}

static err append(struct upload *u, const ProtobufCBinaryData *data)
{
    if (!u->job) return err_make(ERR_INPUT, "the first message of an upload must be its header");
    if (data->len > LIMIT_CHUNK_BYTES)
        return err_make(ERR_INPUT, "a chunk of %zu bytes, at most %u", data->len,
                        LIMIT_CHUNK_BYTES);
    TRY(spool_append(&u->spool, data->data, data->len));
    promise(u, serve_of(u->call), u->spool.size - u->spool.received);
    u->job->resumed = u->spool.resumed;
    /* A slow upload takes longer than limits.absent_after. */
    if (u->run) run_apply_member(u->run, ROUND_ON_SEEN, u->member);
    return ERR_NONE;
}

bool serve_upload(uint64_t *received, uint64_t *size, const struct run_member *member)
{
    const struct upload *u = member->upload;
    if (!u || u->ended || !u->job) return false;
    *received = u->spool.received;
    *size = u->spool.size;
    return true;
}

/* After each message of an upload: asks for the next one, unless the call has been answered. */
static void part_taken(struct upload *u, err e)
{
    if (err_is(e))
        refuse_upload(u, e);
    else if (!u->ended)
        rpc_call_next(u->call);
}

static void submit_part(struct rpc_call *call, const void *message, size_t size)
{
    struct upload *u = rpc_call_state(call);
    Fedlora__V1__SubmitPart *part = NULL;
    if (!u || u->ended) return;
    err e = message_unpack_few(&part, &fedlora__v1__submit_part__descriptor, message, size,
                               MESSAGE_FEW);
    if (!err_is(e) && part->part_case == FEDLORA__V1__SUBMIT_PART__PART_DATA)
        e = append(u, &part->data);
    else if (!err_is(e) && part->part_case == FEDLORA__V1__SUBMIT_PART__PART_HEADER && !u->job)
        e = take_submit_header(u, part->header);
    else if (!err_is(e))
        e = err_make(ERR_INPUT, "expected one header, then data");
    part_taken(u, e);
    message_free(part);
}

/* An upload that ends early is answered with the bytes received; the member continues from there.
 * If the worker does not take the job, the upload still owns it, and upload_over() frees it. */
static void upload_end(struct rpc_call *call)
{
    struct upload *u = rpc_call_state(call);
    if (!u || u->ended) return;
    if (!u->job) {
        refuse_upload(u, err_make(ERR_INPUT, "an upload without a header"));
        return;
    }
    spool_close(&u->spool);
    promise(u, serve_of(call), 0);
    if (u->spool.received < u->spool.size) {
        u->ended = true;
        answer_submit(call, u->spool.received, false, 0);
        return;
    }
    struct admit_job *job = u->job;
    job->owner = u;
    err e = u->run ? run_admit(u->run, job, u->round)
                   : run_shop_admit(&serve_of(call)->shop, job, NULL);
    if (err_is(e)) {
        refuse_upload(u, e);
        return;
    }
    u->job = NULL; /* the worker's now */
    u->given = u->ended = true;
    if (u->run) slot_of(u)->upload = NULL;
}

/* The file stays in the spool, so the upload can be resumed. An upload that was given away is freed
 * by upload_done(), because the worker's job points to it. */
static void upload_over(struct rpc_call *call, bool answered)
{
    struct upload *u = rpc_call_state(call);
    (void)answered;
    if (!u) return;
    if (u->run && slot_of(u)->upload == u) slot_of(u)->upload = NULL;
    spool_close(&u->spool);
    promise(u, serve_of(call), 0);
    u->call = NULL;
    if (u->given) return;
    free(u->job);
    free(u);
}

/* An operator's upload has no round and no weight, so only size and digest are checked. */
static err put_key(struct spool_key *key, struct rpc_call *call, const Fedlora__V1__PutHeader *put)
{
    Fedlora__V1__SubmitHeader h = FEDLORA__V1__SUBMIT_HEADER__INIT;
    struct digest digest;
    TRY(serve_check_admin(call));
    TRY(serve_digest(&digest, &put->digest));
    h.size = put->size;
    h.digest = put->digest;
    TRY(check_size(serve_of(call), &h));
    fill_key(key, call, NULL, &h);
    return ERR_NONE;
}

/* Operators upload to any run or none, so "known" means fetchable by an operator. */
static err put_known(bool *out, struct rpc_call *call, const struct spool_key *key)
{
    struct serve *s = serve_of(call);
    uint64_t size = 0;
    bool known = false;
    TRY(store_blob_public(&known, s->shop.store, 0, &key->digest));
    *out = known && !err_is(blob_size(&size, s->shop.store->dir, &key->digest));
    return ERR_NONE;
}

static void put_offset_begin(struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__PutHeader *h = NULL;
    struct spool_key key;
    bool known = false;
    err e = message_unpack(&h, &fedlora__v1__put_header__descriptor, data, size);
    if (!err_is(e)) e = put_key(&key, call, h);
    if (!err_is(e)) e = put_known(&known, call, &key);
    if (err_is(e))
        serve_refuse(call, e);
    else
        answer_submit(call,
                      known ? key.size : spool_received(serve_of(call)->shop.store->dir, &key),
                      known, 0);
    message_free(h);
}

static err take_put_header(struct upload *u, const Fedlora__V1__PutHeader *h)
{
    struct spool_key key;
    bool known = false;
    TRY(put_key(&key, u->call, h));
    TRY(put_known(&known, u->call, &key));
    if (known) {
        answer_submit(u->call, h->size, true, 0);
        u->ended = true;
        return ERR_NONE;
    }
    return begin_spool(u, &key, h->offset);
}

static void put_part(struct rpc_call *call, const void *message, size_t size)
{
    struct upload *u = rpc_call_state(call);
    Fedlora__V1__PutPart *part = NULL;
    if (!u || u->ended) return;
    err e = message_unpack(&part, &fedlora__v1__put_part__descriptor, message, size);
    if (!err_is(e) && part->part_case == FEDLORA__V1__PUT_PART__PART_DATA)
        e = append(u, &part->data);
    else if (!err_is(e) && part->part_case == FEDLORA__V1__PUT_PART__PART_HEADER && !u->job)
        e = take_put_header(u, part->header);
    else if (!err_is(e))
        e = err_make(ERR_INPUT, "expected one header, then data");
    part_taken(u, e);
    message_free(part);
}

const struct rpc_method serve_submit_method[] = {
    {.path = RPC_PATH_FEDERATION(submit_offset),
     .shape = RPC_UNARY,
     .roles = RPC_CLIENT,
     .begin = offset_begin},
    {.path = RPC_PATH_FEDERATION(submit),
     .shape = RPC_UPLOAD,
     .roles = RPC_CLIENT,
     .begin = upload_begin,
     .part = submit_part,
     .end = upload_end,
     .over = upload_over},
    {.path = RPC_PATH_ADMIN(put_offset),
     .shape = RPC_UNARY,
     .roles = RPC_ADMIN,
     .begin = put_offset_begin},
    {.path = RPC_PATH_ADMIN(put_blob),
     .shape = RPC_UPLOAD,
     .roles = RPC_ADMIN,
     .begin = upload_begin,
     .part = put_part,
     .end = upload_end,
     .over = upload_over},
};
const size_t serve_submit_methods = sizeof serve_submit_method / sizeof *serve_submit_method;
