#include "tests/support/fake_member.h"

#include "agg/adapter/adapter_file.h"
#include "base/rng.h"
#include "base/text.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    FAKE_CALL_MS = 60000,
    FAKE_DOWNLOAD_MS = 600000,
    FAKE_BYTES_MAX = 512 << 20,
    FAKE_PAUSE_US = 20000,
    FAKE_WAIT_MS = 2000
};

err fake_open(struct fake_member *out, const struct fake_options *options)
{
    char ca[512], cert[512], key[512];
    struct fake_member m = {.options = *options};
    snprintf(ca, sizeof ca, "%s/ca.pem", options->certs);
    snprintf(cert, sizeof cert, "%s/%s.pem", options->certs, options->id);
    snprintf(key, sizeof key, "%s/%s.key", options->certs, options->id);
    struct rpc_client_options client = {
        .server = options->server, .ca = ca, .cert = cert, .key = key};
    TRY(rpc_client_open(&m.client, &client));
    *out = m;
    return ERR_NONE;
}

void fake_close(struct fake_member *m)
{
    rpc_client_close(m->client);
    m->client = NULL;
}

static err call(void *reply, struct fake_member *m, const char *path,
                const ProtobufCMessage *request, const ProtobufCMessageDescriptor *type)
{
    struct bytes in = {.max = RPC_MESSAGE_BYTES}, back = {.max = RPC_MESSAGE_BYTES};
    err e = message_pack(&in, request);
    if (!err_is(e)) e = rpc_client_unary(&back, m->client, path, &in, FAKE_CALL_MS);
    if (!err_is(e)) e = message_unpack(reply, type, back.data, back.size);
    bytes_close(&in);
    bytes_close(&back);
    return e;
}

static ProtobufCBinaryData session_of(const struct fake_member *m)
{
    uint8_t *session = (uint8_t *)(uintptr_t)m->options.session;
    return (ProtobufCBinaryData){session ? 16 : 0, session};
}

err fake_hello(Fedlora__V1__HelloReply **reply, struct fake_member *m)
{
    const struct fake_base *base = m->options.base;
    Fedlora__V1__HelloRequest hello = FEDLORA__V1__HELLO_REQUEST__INIT;
    Fedlora__V1__ModuleShape *shape = calloc(base->modules, sizeof *shape);
    Fedlora__V1__ModuleShape **list = calloc(base->modules, sizeof *list);
    struct digest digest = base->digest;
    for (size_t i = 0; i < base->modules; i++) {
        fedlora__v1__module_shape__init(&shape[i]);
        shape[i].name = (char *)(uintptr_t)base->module[i].name;
        shape[i].d_out = base->module[i].d_out;
        shape[i].d_in = base->module[i].d_in;
        list[i] = &shape[i];
    }
    hello.software = "fake member";
    hello.protocol = 1;
    hello.run = (char *)(uintptr_t)m->options.run;
    hello.base_digest = (ProtobufCBinaryData){DIGEST_BYTES, digest.byte};
    hello.modules = list;
    hello.n_modules = base->modules;
    hello.rank = m->options.rank;
    hello.examples = m->options.examples;
    hello.eval_rows = m->options.eval_rows;
    hello.session = session_of(m);
    hello.look = m->options.look;
    hello.without = &m->options.without;
    hello.n_without = m->options.without != NULL;
    hello.epoch = (ProtobufCBinaryData){m->epoch_size, m->epoch};
    err e = call(reply, m, RPC_PATH_FEDERATION(hello), &hello.base,
                 &fedlora__v1__hello_reply__descriptor);
    if (!err_is(e)) {
        snprintf(m->method, sizeof m->method, "%s", (*reply)->method);
        snprintf(m->run, sizeof m->run, "%s", (*reply)->run);
        snprintf(m->origin, sizeof m->origin, "%s", (*reply)->origin);
    }
    if (!err_is(e) && (*reply)->epoch.len == sizeof m->epoch) {
        memcpy(m->epoch, (*reply)->epoch.data, sizeof m->epoch);
        m->epoch_size = sizeof m->epoch;
    }
    free(shape);
    free(list);
    return e;
}

err fake_next_task(Fedlora__V1__Task **task, struct fake_member *m, uint32_t wait_ms)
{
    Fedlora__V1__NextTaskRequest request = FEDLORA__V1__NEXT_TASK_REQUEST__INIT;
    request.run = (char *)(uintptr_t)m->options.run;
    request.wait_ms = wait_ms;
    request.stay = m->options.stay;
    request.session = session_of(m);
    request.without = &m->options.without;
    request.n_without = m->options.without != NULL;
    return call(task, m, RPC_PATH_FEDERATION(next_task), &request.base,
                &fedlora__v1__task__descriptor);
}

err fake_report(struct fake_member *m, const Fedlora__V1__ReportRequest *report)
{
    Fedlora__V1__ReportReply *reply = NULL;
    Fedlora__V1__ReportRequest request = *report;
    request.run = (char *)(uintptr_t)m->options.run;
    err e = call(&reply, m, RPC_PATH_FEDERATION(report), &request.base,
                 &fedlora__v1__report_reply__descriptor);
    message_free(reply);
    return e;
}

struct fetching {
    struct bytes *out;
    uint64_t offset;
};

static err take_chunk(const void *message, size_t size, void *context)
{
    struct fetching *f = context;
    Fedlora__V1__Chunk *chunk = NULL;
    TRY(message_unpack(&chunk, &fedlora__v1__chunk__descriptor, message, size));
    err e = chunk->offset == f->offset ? ERR_NONE : err_make(ERR_INPUT, "a chunk out of order");
    if (!err_is(e) && f->out) e = bytes_append(f->out, chunk->data.data, chunk->data.len);
    f->offset += chunk->data.len;
    message_free(chunk);
    return e;
}

err fake_fetch(struct bytes *out, struct fake_member *m, const ProtobufCBinaryData *digest,
               uint64_t offset)
{
    Fedlora__V1__FetchRequest request = FEDLORA__V1__FETCH_REQUEST__INIT;
    struct bytes packed = {.max = 4096};
    struct fetching fetching = {out, offset};
    request.run = (char *)(uintptr_t)m->options.run;
    request.digest = *digest;
    request.offset = offset;
    TRY(message_pack(&packed, &request.base));
    struct rpc_download download = {.path = RPC_PATH_FEDERATION(fetch),
                                    .request = &packed,
                                    .deadline_ms = FAKE_DOWNLOAD_MS,
                                    .stall_ms = FAKE_CALL_MS,
                                    .part = take_chunk,
                                    .context = &fetching};
    err e = rpc_client_download(m->client, &download);
    m->bytes_down += fetching.offset - offset;
    bytes_close(&packed);
    return e;
}

/* Cheap noise, keyed by run, round and member, because large updates must not slow a test down. */
static void fill(float *out, size_t n, const char *name, const struct fake_member *m,
                 uint32_t round)
{
    struct rng rng;
    char label[LIMIT_TENSOR_NAME_BYTES + LIMIT_NAME_BYTES];
    snprintf(label, sizeof label, "%s %s", m->options.id, name);
    rng_init(&rng, "fake member", 1, label, round);
    uint64_t state = rng_below(&rng, UINT64_MAX) | 1;
    for (size_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        out[i] = (float)((double)(state >> 40) / (1 << 24) - 0.5) * 0.1f;
    }
}

static void add_factor(struct adapter_file_module *out, float **at, enum adapter_file_role role,
                       const struct fake_member *m, const uint32_t shape_round[3])
{
    static const char *const names[] = {"A", "B", "R"};
    char name[LIMIT_TENSOR_NAME_BYTES + 4];
    size_t n = (size_t)shape_round[0] * shape_round[1];
    snprintf(name, sizeof name, "%s %s", out->name, names[role]);
    fill(*at, n, name, m, shape_round[2]);
    out->factor[role] =
        (struct adapter_file_factor){.f32 = *at, .rows = shape_round[0], .cols = shape_round[1]};
    *at += n;
}

err fake_update(struct bytes *out, struct fake_member *m, const Fedlora__V1__TrainTask *task)
{
    const struct fake_base *base = m->options.base;
    char base_text[DIGEST_TEXT_BYTES], frozen_text[DIGEST_TEXT_BYTES] = "";
    struct digest frozen;
    size_t total = 0;
    uint32_t r = task->rank;
    bool square = task->n_factors == 1 && !strcmp(task->factors[0], "R");
    for (size_t i = 0; i < base->modules; i++)
        total +=
            square ? (size_t)r * r : ((size_t)base->module[i].d_out + base->module[i].d_in) * r;
    float *values = malloc(total * sizeof *values), *at = values;
    struct adapter_file_module *module = calloc(base->modules, sizeof *module);
    for (size_t i = 0; i < base->modules; i++) {
        const struct method_module *shape = &base->module[i];
        const uint32_t a[3] = {r, shape->d_in, task->round}, b[3] = {shape->d_out, r, task->round};
        const uint32_t s[3] = {r, r, task->round};
        module[i].name = shape->name;
        module[i].rank = r;
        module[i].alpha = task->alpha;
        if (square)
            add_factor(&module[i], &at, ADAPTER_FILE_R, m, s);
        else {
            add_factor(&module[i], &at, ADAPTER_FILE_A, m, a);
            add_factor(&module[i], &at, ADAPTER_FILE_B, m, b);
        }
    }
    digest_text(base_text, &base->digest);
    if (task->frozen_digest.len == DIGEST_BYTES) {
        memcpy(frozen.byte, task->frozen_digest.data, DIGEST_BYTES);
        digest_text(frozen_text, &frozen);
    }
    bool renamed = *m->origin && !strcmp(task->run, m->run);
    struct adapter_file_meta meta = {.kind = ADAPTER_FILE_UPDATE,
                                     .run = renamed ? m->origin : task->run,
                                     .method = m->method,
                                     .base = base_text,
                                     .frozen = frozen_text,
                                     .member = m->options.id,
                                     .round = task->round,
                                     .rank = r,
                                     .alpha = task->alpha,
                                     .rslora = task->rslora};
    err e = adapter_file_write_bytes(out, &meta, module, base->modules);
    free(values);
    free(module);
    return e;
}

void fake_header(Fedlora__V1__SubmitHeader *header, const struct fake_member *m, uint32_t round,
                 const struct bytes *update, struct digest *digest)
{
    fedlora__v1__submit_header__init(header);
    *digest = digest_of(update->data, update->size);
    header->run = (char *)(uintptr_t)m->options.run;
    header->round = round;
    header->digest = (ProtobufCBinaryData){DIGEST_BYTES, digest->byte};
    header->size = update->size;
    header->examples = m->options.examples;
    header->train_loss = 1.0 / (round + 1);
    header->seconds = 1;
}

err fake_offset(Fedlora__V1__SubmitReply **reply, struct fake_member *m,
                const Fedlora__V1__SubmitHeader *header)
{
    return call(reply, m, RPC_PATH_FEDERATION(submit_offset), &header->base,
                &fedlora__v1__submit_reply__descriptor);
}

struct sending {
    const Fedlora__V1__SubmitHeader *header;
    const struct bytes *update;
    const struct fake_options *options;
    size_t at, end;
    bool header_sent;
};

static err next_part(struct bytes *message, bool *end, void *context)
{
    struct sending *s = context;
    Fedlora__V1__SubmitPart part = FEDLORA__V1__SUBMIT_PART__INIT;
    if (!s->header_sent) {
        part.part_case = FEDLORA__V1__SUBMIT_PART__PART_HEADER;
        part.header = (Fedlora__V1__SubmitHeader *)(uintptr_t)s->header;
        s->header_sent = true;
        return message_pack(message, &part.base);
    }
    if (s->at == s->end) {
        *end = true;
        return ERR_NONE;
    }
    size_t most = s->options->part_bytes ? s->options->part_bytes : LIMIT_CHUNK_BYTES;
    size_t n = s->end - s->at < most ? s->end - s->at : most;
    usleep(s->options->part_us);
    part.part_case = FEDLORA__V1__SUBMIT_PART__PART_DATA;
    part.data = (ProtobufCBinaryData){n, s->update->data + s->at};
    s->at += n;
    return message_pack(message, &part.base);
}

err fake_submit(Fedlora__V1__SubmitReply **reply, struct fake_member *m,
                const Fedlora__V1__SubmitHeader *header, const struct bytes *update, size_t most)
{
    struct sending s = {.header = header,
                        .update = update,
                        .options = &m->options,
                        .at = header->offset,
                        .end = update->size};
    if (most && s.end - s.at > most) s.end = s.at + most;
    struct bytes back = {.max = RPC_MESSAGE_BYTES};
    struct rpc_upload upload = {.path = RPC_PATH_FEDERATION(submit),
                                .deadline_ms = FAKE_CALL_MS,
                                .stall_ms = FAKE_CALL_MS,
                                .part = next_part,
                                .context = &s};
    err e = rpc_client_upload(&back, m->client, &upload);
    if (!err_is(e))
        e = message_unpack(reply, &fedlora__v1__submit_reply__descriptor, back.data, back.size);
    m->bytes_up += s.at - header->offset;
    bytes_close(&back);
    return e;
}

static err train_and_submit(struct fake_member *m, const Fedlora__V1__TrainTask *task)
{
    struct bytes update = {.max = FAKE_BYTES_MAX};
    Fedlora__V1__SubmitHeader header;
    Fedlora__V1__SubmitReply *reply = NULL;
    struct digest digest;
    err e = ERR_NONE;
    TRY_OUT(e, fake_fetch(NULL, m, &task->state_digest, 0));
    TRY_OUT(e, fake_update(&update, m, task));
    fake_header(&header, m, task->round, &update, &digest);
    TRY_OUT(e, fake_offset(&reply, m, &header));
    header.offset = reply->received;
    bool durable = reply->durable;
    message_free(reply);
    reply = NULL;
    if (!durable) TRY_OUT(e, fake_submit(&reply, m, &header, &update, 0));
out:
    message_free(reply);
    bytes_close(&update);
    return e;
}

static err one_task(bool *finished, struct digest *last_state, struct fake_member *m)
{
    Fedlora__V1__Task *task = NULL;
    TRY(fake_next_task(&task, m, m->options.wait_ms ? m->options.wait_ms : FAKE_WAIT_MS));
    err e = ERR_NONE;
    if (task->kind_case == FEDLORA__V1__TASK__KIND_TRAIN)
        e = train_and_submit(m, task->train);
    else if (task->kind_case == FEDLORA__V1__TASK__KIND_FINISHED) {
        *finished = true;
        memcpy(last_state->byte, task->finished->state_digest.data, DIGEST_BYTES);
    }
    message_free(task);
    return e;
}

/* A new connection after every error, because gRPC would wait a second before it reconnects. */
static err again(struct fake_member *m)
{
    struct fake_member was = *m;
    Fedlora__V1__HelloReply *reply = NULL;
    fake_close(m);
    usleep(FAKE_PAUSE_US);
    TRY(fake_open(m, &was.options));
    was.client = m->client;
    *m = was;
    err e = fake_hello(&reply, m);
    message_free(reply);
    return e;
}

err fake_join(struct digest *last_state, struct fake_member *m)
{
    bool finished = false;
    atomic_size_t *greeted = m->options.greeted;
    Fedlora__V1__HelloReply *reply = NULL;
    err e = fake_hello(&reply, m);
    message_free(reply);
    uint64_t good_ms = text_now_ms();
    while (!finished) {
        if (!err_is(e) && greeted) atomic_fetch_add(greeted, 1);
        if (!err_is(e)) greeted = NULL;
        if (!err_is(e)) e = one_task(&finished, last_state, m);
        if (!err_is(e)) {
            good_ms = text_now_ms();
            continue;
        }
        if (e.kind == ERR_INPUT || e.kind == ERR_REFUSED) return e;
        if (text_now_ms() - good_ms > m->options.give_up_ms) return err_in(e, "gave up");
        e = again(m);
    }
    return ERR_NONE;
}

static void *join_main(void *argument)
{
    struct fake_joining *j = argument;
    j->result = fake_open(&j->member, &j->options);
    if (!err_is(j->result)) j->result = fake_join(&j->last, &j->member);
    fake_close(&j->member);
    return NULL;
}

void fake_join_begin(struct fake_joining *j, int number, const struct fake_options *options)
{
    *j = (struct fake_joining){.options = *options};
    snprintf(j->id, sizeof j->id, "m%d", number);
    j->options.id = j->id;
    REQUIRE(pthread_create(&j->thread, NULL, join_main, j) == 0);
}

err fake_join_end(struct fake_joining *j)
{
    pthread_join(j->thread, NULL);
    return j->result;
}

/* ------------------------------------------------------------------------------------ operator */
err fake_create(struct fake_member *admin, const Fedlora__V1__RunConfig *config)
{
    Fedlora__V1__RunStatus *status = NULL;
    err e = call(&status, admin, RPC_PATH_ADMIN(create_run), &config->base,
                 &fedlora__v1__run_status__descriptor);
    message_free(status);
    return e;
}

err fake_create_run(struct fake_member *admin, const Fedlora__V1__RunConfig *config, size_t members)
{
    Fedlora__V1__RunConfig run = *config;
    Fedlora__V1__Training training = FEDLORA__V1__TRAINING__INIT;
    Fedlora__V1__MemberConfig *member = calloc(members, sizeof *member);
    Fedlora__V1__MemberConfig **list = calloc(members, sizeof *list);
    char(*id)[24] = calloc(members, sizeof *id);
    struct digest digest = admin->options.base->digest;
    err e = member && list && id ? ERR_NONE : err_sys(ENOMEM, "a run");
    for (size_t i = 0; i < members && !err_is(e); i++) {
        snprintf(id[i], sizeof id[i], "m%zu", i);
        fedlora__v1__member_config__init(&member[i]);
        member[i].id = id[i];
        list[i] = &member[i];
    }
    training.steps = 1;
    run.training = &training;
    run.base_digest = (ProtobufCBinaryData){DIGEST_BYTES, digest.byte};
    run.members = list;
    run.n_members = members;
    if (!err_is(e)) e = fake_create(admin, &run);
    free(member);
    free(list);
    free(id);
    return e;
}

err fake_status(Fedlora__V1__RunStatus **status, struct fake_member *admin, const char *run)
{
    Fedlora__V1__RunName name = FEDLORA__V1__RUN_NAME__INIT;
    name.run = (char *)(uintptr_t)run;
    return call(status, admin, RPC_PATH_ADMIN(get_run), &name.base,
                &fedlora__v1__run_status__descriptor);
}

err fake_list(Fedlora__V1__ListRunsReply **page, struct fake_member *admin, uint32_t after,
              uint32_t limit)
{
    Fedlora__V1__ListRunsRequest request = FEDLORA__V1__LIST_RUNS_REQUEST__INIT;
    request.after = after;
    request.limit = limit;
    return call(page, admin, RPC_PATH_ADMIN(list_runs), &request.base,
                &fedlora__v1__list_runs_reply__descriptor);
}

err fake_reports(size_t *made, size_t *skipped, struct fake_member *admin, const char *run)
{
    for (int i = 0; i < 200; i++, usleep(50 * 1000)) {
        Fedlora__V1__RunStatus *s = NULL;
        TRY(fake_status(&s, admin, run));
        *made = 0;
        *skipped = s->reports_skipped;
        for (size_t k = 0; k < s->n_history; k++)
            *made += *s->history[k]->report_json != 0;
        bool last = s->n_history > 0 && *s->history[s->n_history - 1]->report_json != 0;
        message_free(s);
        if (last) return ERR_NONE;
    }
    return err_make(ERR_MACHINE, "run %s: its last round has no report after 10 s", run);
}

err fake_call(struct fake_member *admin, const char *path, const ProtobufCMessage *request)
{
    Fedlora__V1__RunStatus *status = NULL;
    err e = call(&status, admin, path, request, &fedlora__v1__run_status__descriptor);
    message_free(status);
    return e;
}

err fake_command(struct fake_member *admin, const char *path, const char *run)
{
    Fedlora__V1__RunName name = FEDLORA__V1__RUN_NAME__INIT;
    name.run = (char *)(uintptr_t)run;
    return fake_call(admin, path, &name.base);
}
