/* A coordinator that follows a script of tasks, and the options of a member's session with it. */
#ifndef TESTS_SUPPORT_SESSION_FIXTURE_H
#define TESTS_SUPPORT_SESSION_FIXTURE_H

#include "client/session/session.h"

#include "agg/round/method.h"
#include "base/file.h"
#include "client/command/command.h"
#include "engine/model/model.h"
#include "proto/message.h"
#include "proto/rpc_path.h"
#include "tests/support/rpc_fixture.h"

#define BASE FEDLORA_SOURCE_DIR "/tests/models/llama"

enum task {
    TRAIN,
    WAIT,
    FINISHED,
    EVALUATE,
    OF_ANOTHER_RUN,
    SHORT_DIGEST,
    HUGE_STATE,
    NOTHING,
    NOT_JOINED,
    GREET,        /* names run r */
    INTERRUPT,    /* the user interrupts the member, which gets a WAIT */
    HALF_RENEWED, /* breaks the call off; the key is another certificate's from now on */
    EXPIRED,      /* the same with a certificate that has ended */
    RENEWED,      /* breaks the call off; both files are good again */
};

struct fake {
    struct rpc_server *server;
    pthread_t thread;
    atomic_bool stop;
    char address[64], dir[64], state_path[128], data[128], work[128], update_path[128];
    struct digest base, state;
    struct file_map state_file;
    struct session_options options;
    /* the script */
    const enum task *task;
    atomic_int next;
    const char *member, *origin; /* origin: NULL for none */
    uint32_t steps;
    bool abandon, spoil, refuse_update;
    const char *unit, *unit_again; /* of privacy, in the first answer to Hello and in later ones */
    /* received by the coordinator */
    atomic_int hellos, fetches, submits;
    bool over; /* FINISHED was sent, and the member does not know yet that no other run is open */
    uint64_t examples[2], eval_rows[2]; /* in the first Hello and in the newest later one */
    uint64_t submitted;                 /* examples of the newest update */
    char cannot_train[512];             /* "RUN: REASON" of the report; "": none came */
    uint8_t session[16];
    struct bytes update;
    struct digest digest;
};

static void reply(struct rpc_call *call, const ProtobufCMessage *message)
{
    struct bytes packed = {.max = RPC_MESSAGE_BYTES};
    FIXTURE_OK(message_pack(&packed, message));
    rpc_call_answer(call, packed.data == NULL ? (const void *)"" : packed.data, packed.size);
    bytes_close(&packed);
}

static Fedlora__V1__Training training_of(const struct fake *f)
{
    Fedlora__V1__Training t = FEDLORA__V1__TRAINING__INIT;
    t.steps = f->steps;
    t.batch = 2;
    t.lr = 0.01;
    t.seq = 16;
    t.precision = (char *)(uintptr_t) "f32";
    return t;
}

static void hello_begin(struct rpc_call *call, const void *request, size_t size)
{
    struct fake *f = rpc_call_context(call);
    Fedlora__V1__HelloRequest *hello = NULL;
    FIXTURE_OK(message_unpack(&hello, &fedlora__v1__hello_request__descriptor, request, size));
    cr_assert_eq(hello->protocol, 1);
    f->examples[atomic_load(&f->hellos) > 0] = hello->examples;
    f->eval_rows[atomic_load(&f->hellos) > 0] = hello->eval_rows;
    cr_assert_eq(hello->n_modules, 7);
    cr_assert_eq(memcmp(hello->base_digest.data, f->base.byte, DIGEST_BYTES), 0);
    bool over = f->over && !*hello->run;
    f->over = false;
    if (over) {
        message_free(hello);
        rpc_call_refuse(call, err_make(ERR_STATE, "no open run"));
        return;
    }
    cr_assert_eq(hello->session.len, sizeof f->session);
    if (atomic_fetch_add(&f->hellos, 1) > 0)
        cr_assert_eq(memcmp(f->session, hello->session.data, sizeof f->session), 0);
    memcpy(f->session, hello->session.data, sizeof f->session);
    message_free(hello);
    Fedlora__V1__HelloReply answer = FEDLORA__V1__HELLO_REPLY__INIT;
    Fedlora__V1__Training training = training_of(f);
    answer.run = (char *)(uintptr_t) "r";
    answer.member = (char *)(uintptr_t)f->member;
    if (f->origin) answer.origin = (char *)(uintptr_t)f->origin;
    answer.method = (char *)(uintptr_t) "flora";
    answer.rank = 2;
    answer.rounds = 1;
    answer.training = &training;
    Fedlora__V1__Privacy privacy = FEDLORA__V1__PRIVACY__INIT;
    const char *unit = atomic_load(&f->hellos) == 1 ? f->unit : f->unit_again;
    privacy.unit = (char *)(uintptr_t)unit;
    privacy.epsilon = 1;
    if (unit) answer.privacy = &privacy;
    reply(call, &answer.base);
}

static void answer_train(struct fake *f, struct rpc_call *call, enum task kind)
{
    Fedlora__V1__Task task = FEDLORA__V1__TASK__INIT;
    Fedlora__V1__TrainTask train = FEDLORA__V1__TRAIN_TASK__INIT;
    Fedlora__V1__Training training = training_of(f);
    char *factors[] = {(char *)(uintptr_t) "A", (char *)(uintptr_t) "B"};
    train.run = (char *)(uintptr_t)(kind == OF_ANOTHER_RUN ? "other" : "r");
    train.round = 1;
    train.state_digest = (ProtobufCBinaryData){kind == SHORT_DIGEST ? 20 : 32, f->state.byte};
    train.state_size = kind == HUGE_STATE ? 1ull << 33 : f->state_file.size;
    train.factors = factors;
    train.n_factors = 2;
    train.rank = 2;
    train.alpha = 4;
    train.training = &training;
    task.kind_case = FEDLORA__V1__TASK__KIND_TRAIN;
    task.train = &train;
    reply(call, &task.base);
}

static void copy_cert(const struct fake *f, const char *cert, const char *key)
{
    char command[512];
    snprintf(command, sizeof command,
             "cd %s && cp " FIXTURE_CERTS "/%s.pem a.pem && cp " FIXTURE_CERTS "/%s.key a.key",
             f->dir, cert, key);
    cr_assert_eq(system(command), 0);
}

static void next_begin(struct rpc_call *call, const void *request, size_t size)
{
    (void)request, (void)size;
    struct fake *f = rpc_call_context(call);
    if (f->over && !f->options.stay) {
        rpc_call_refuse(call, err_make(ERR_STATE, "no open run"));
        return;
    }
    enum task kind = f->task[atomic_fetch_add(&f->next, 1)];
    Fedlora__V1__Task task = FEDLORA__V1__TASK__INIT;
    Fedlora__V1__WaitTask wait = FEDLORA__V1__WAIT_TASK__INIT;
    Fedlora__V1__FinishedTask finished = FEDLORA__V1__FINISHED_TASK__INIT;
    if (kind >= HALF_RENEWED) {
        copy_cert(f, kind == EXPIRED ? "expired" : "a",
                  kind == EXPIRED        ? "expired"
                  : kind == HALF_RENEWED ? "b"
                                         : "a");
        rpc_call_refuse(call, err_make(ERR_MACHINE, "no"));
    } else if (kind == GREET) {
        Fedlora__V1__GreetTask greet = FEDLORA__V1__GREET_TASK__INIT;
        greet.run = (char *)(uintptr_t) "r";
        task.kind_case = FEDLORA__V1__TASK__KIND_GREET;
        task.greet = &greet;
        f->over = false;
        reply(call, &task.base);
    } else if (kind == NOT_JOINED) {
        rpc_call_refuse(call, err_make(ERR_STATE, "call Hello first"));
    } else if (kind == EVALUATE) {
        Fedlora__V1__EvaluateTask evaluate = FEDLORA__V1__EVALUATE_TASK__INIT;
        evaluate.run = (char *)(uintptr_t) "r";
        evaluate.state_digest = (ProtobufCBinaryData){32, f->state.byte};
        evaluate.state_size = f->state_file.size;
        task.kind_case = FEDLORA__V1__TASK__KIND_EVALUATE;
        task.evaluate = &evaluate;
        reply(call, &task.base);
    } else if (kind == INTERRUPT) {
        stop_asked = SIGTERM;
        task.kind_case = FEDLORA__V1__TASK__KIND_WAIT;
        task.wait = &wait;
        reply(call, &task.base);
    } else if (kind == WAIT || kind == FINISHED || kind == NOTHING) {
        wait.retry_ms = 1;
        finished.outcome = (char *)(uintptr_t) "finished";
        finished.state_digest = (ProtobufCBinaryData){32, f->state.byte};
        task.kind_case = kind == WAIT       ? FEDLORA__V1__TASK__KIND_WAIT
                         : kind == FINISHED ? FEDLORA__V1__TASK__KIND_FINISHED
                                            : FEDLORA__V1__TASK__KIND__NOT_SET;
        if (kind == WAIT) task.wait = &wait;
        if (kind == FINISHED) task.finished = &finished;
        f->over = kind == FINISHED;
        reply(call, &task.base);
    } else {
        answer_train(f, call, kind);
    }
}

static void fetch_begin(struct rpc_call *call, const void *request, size_t size)
{
    (void)request, (void)size;
    struct fake *f = rpc_call_context(call);
    atomic_fetch_add(&f->fetches, 1);
}

static void fetch_more(struct rpc_call *call)
{
    struct fake *f = rpc_call_context(call);
    if (rpc_call_state(call) != NULL) {
        rpc_call_finish(call);
        return;
    }
    Fedlora__V1__Chunk chunk = FEDLORA__V1__CHUNK__INIT;
    struct bytes packed = {.max = RPC_MESSAGE_BYTES};
    uint8_t *copy = malloc(f->state_file.size);
    memcpy(copy, f->state_file.data, f->state_file.size);
    if (f->spoil) copy[f->state_file.size / 2] ^= 4;
    chunk.data = (ProtobufCBinaryData){f->state_file.size, copy};
    chunk.total = f->state_file.size;
    FIXTURE_OK(message_pack(&packed, &chunk.base));
    rpc_call_set_state(call, f);
    rpc_call_send(call, packed.data, packed.size);
    bytes_close(&packed);
    free(copy);
}

static void answer_submit(struct rpc_call *call, uint64_t received, bool durable)
{
    Fedlora__V1__SubmitReply answer = FEDLORA__V1__SUBMIT_REPLY__INIT;
    answer.received = received;
    answer.durable = durable;
    reply(call, &answer.base);
}

static void offset_begin(struct rpc_call *call, const void *request, size_t size)
{
    (void)request, (void)size;
    answer_submit(call, 0, false);
}

static void submit_begin(struct rpc_call *call, const void *request, size_t size)
{
    (void)request, (void)size;
    bytes_clear(&((struct fake *)rpc_call_context(call))->update);
}

static void submit_part(struct rpc_call *call, const void *data, size_t size)
{
    struct fake *f = rpc_call_context(call);
    Fedlora__V1__SubmitPart *part = NULL;
    FIXTURE_OK(message_unpack(&part, &fedlora__v1__submit_part__descriptor, data, size));
    if (part->part_case == FEDLORA__V1__SUBMIT_PART__PART_HEADER) {
        f->submitted = part->header->examples;
        cr_assert_gt(part->header->train_loss, 0);
        memcpy(f->digest.byte, part->header->digest.data, DIGEST_BYTES);
    } else {
        FIXTURE_OK(bytes_append(&f->update, part->data.data, part->data.len));
    }
    message_free(part);
    rpc_call_next(call);
}

static void submit_end(struct rpc_call *call)
{
    struct fake *f = rpc_call_context(call);
    struct digest have = digest_of(f->update.data, f->update.size);
    cr_assert(digest_equal(&have, &f->digest), "the update is not what its header says");
    atomic_fetch_add(&f->submits, 1);
    if (f->refuse_update)
        rpc_call_refuse(call, err_make(ERR_REFUSED, "no"));
    else
        answer_submit(call, f->update.size, true);
}

static void report_begin(struct rpc_call *call, const void *request, size_t size)
{
    struct fake *f = rpc_call_context(call);
    Fedlora__V1__ReportRequest *report = NULL;
    FIXTURE_OK(message_unpack(&report, &fedlora__v1__report_request__descriptor, request, size));
    if (*report->cannot_train)
        snprintf(f->cannot_train, sizeof f->cannot_train, "%s: %s", report->run,
                 report->cannot_train);
    message_free(report);
    Fedlora__V1__ReportReply answer = FEDLORA__V1__REPORT_REPLY__INIT;
    answer.abandon = f->abandon;
    answer.reason = (char *)(uintptr_t) "the round has closed";
    reply(call, &answer.base);
}

static const struct rpc_method methods[] = {
    {.path = RPC_PATH_FEDERATION(hello), .roles = RPC_CLIENT, .begin = hello_begin},
    {.path = RPC_PATH_FEDERATION(next_task), .roles = RPC_CLIENT, .begin = next_begin},
    {.path = RPC_PATH_FEDERATION(report), .roles = RPC_CLIENT, .begin = report_begin},
    {.path = RPC_PATH_FEDERATION(submit_offset), .roles = RPC_CLIENT, .begin = offset_begin},
    {.path = RPC_PATH_FEDERATION(fetch),
     .shape = RPC_DOWNLOAD,
     .roles = RPC_CLIENT,
     .begin = fetch_begin,
     .more = fetch_more},
    {.path = RPC_PATH_FEDERATION(submit),
     .shape = RPC_UPLOAD,
     .roles = RPC_CLIENT,
     .begin = submit_begin,
     .part = submit_part,
     .end = submit_end},
};

static void *serve(void *argument)
{
    struct fake *f = argument;
    while (!atomic_load(&f->stop))
        rpc_server_poll(f->server, 1000);
    return NULL;
}

/* The state of round 1 of a FLoRA run over the tiny base's q of layer 0. */
static void make_state(struct fake *f)
{
    struct model model = {0};
    struct method_module module = {0};
    char name[LIMIT_TENSOR_NAME_BYTES], base[DIGEST_TEXT_BYTES];
    FIXTURE_OK(model_open(&model, BASE));
    FIXTURE_OK(model_digest(&f->base, &model));
    digest_text(base, &f->base);
    model_module_name(name, 0, MODULE_Q);
    module.name = name;
    model_module_shape(&module.d_out, &module.d_in, &model.arch, MODULE_Q);
    const struct method_start start = {.run = "r",
                                       .base = base,
                                       .rank = 2,
                                       .alpha = 4,
                                       .module = &module,
                                       .module_count = 1,
                                       .threads = 1};
    FIXTURE_OK(method_start(method_find("flora"), f->state_path, &start));
    FIXTURE_OK(digest_of_file(&f->state, f->state_path));
    FIXTURE_OK(file_map_open(&f->state_file, f->state_path));
    model_close(&model);
}

static void write_rows(const struct fake *f)
{
    static const char row[] = "{\"input_ids\":[5,6,7,8,9,10,11,12],\"labels\":[-100,-100,7,8,9,10,"
                              "11,12]}\n";
    struct bytes text = {.max = 10000};
    for (int i = 0; i < 4; i++)
        FIXTURE_OK(bytes_append(&text, row, sizeof row - 1));
    FIXTURE_OK(file_write(f->data, text.data, text.size, true));
    bytes_close(&text);
}

static void start(struct fake *f, const enum task *script)
{
    fixture_certs();
    f->task = script;
    f->member = "a";
    f->steps = 3;
    f->update.max = 16u << 20;
    snprintf(f->dir, sizeof f->dir, "/tmp/session.XXXXXX");
    cr_assert_not_null(mkdtemp(f->dir));
    snprintf(f->state_path, sizeof f->state_path, "%s/state", f->dir);
    snprintf(f->data, sizeof f->data, "%s/rows.jsonl", f->dir);
    snprintf(f->work, sizeof f->work, "%s/work", f->dir);
    snprintf(f->update_path, sizeof f->update_path, "%s/update", f->dir);
    make_state(f);
    write_rows(f);
    const struct rpc_server_options options = {.listen = "localhost:0",
                                               .ca = FIXTURE_CERTS "/ca.pem",
                                               .cert = FIXTURE_CERTS "/server.pem",
                                               .key = FIXTURE_CERTS "/server.key",
                                               .method = methods,
                                               .method_count = sizeof methods / sizeof *methods,
                                               .context = f};
    FIXTURE_OK(rpc_server_open(&f->server, &options));
    snprintf(f->address, sizeof f->address, "localhost:%d", rpc_server_port(f->server));
    cr_assert_eq(pthread_create(&f->thread, NULL, serve, f), 0);
    f->options = (struct session_options){.remote = {.server = f->address,
                                                     .ca = FIXTURE_CERTS "/ca.pem",
                                                     .cert = FIXTURE_CERTS "/a.pem",
                                                     .key = FIXTURE_CERTS "/a.key"},
                                          .run = "r",
                                          .base = BASE,
                                          .data = f->data,
                                          .work = f->work,
                                          .retry_ms = 3000,
                                          .threads = 1,
                                          .quiet = true};
}

static void finish(struct fake *f)
{
    char command[128];
    atomic_store(&f->stop, true);
    rpc_server_wake(f->server);
    pthread_join(f->thread, NULL);
    rpc_server_close(f->server, 100);
    file_map_close(&f->state_file);
    bytes_close(&f->update);
    snprintf(command, sizeof command, "rm -rf %s", f->dir);
    cr_assert_eq(system(command), 0);
}

#endif
