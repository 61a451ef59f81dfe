/* Mutated calls to every procedure of a real fedlorad, by members, by a stranger whom the authority
 * has signed, and by an operator: plausible requests, of which fields are replaced by extreme ones
 * and bytes are changed. The procedures and their requests come from the descriptors, so a new one
 * is called too. Afterwards the coordinator must be alive, an honest run beside it must end, and
 * SIGTERM must end the process well; the sanitizers must have said nothing.
 *
 * FEDLORA_ATTACK_CALLS sets the number of calls; FEDLORA_ATTACK_SEED another series. */
#include "base/rng.h"
#include "base/text.h"
#include "tests/support/fake_federation.h"
#include "tests/support/fake_member.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

enum { MEMBERS = 5, CALLERS = 5, CALLS = 1200, CALL_MS = 20000, CREATED_MAX = 150, DEPTH_MAX = 3 };

static const struct method_module modules[] = {{"model.layers.0.self_attn.q_proj", 12, 8},
                                               {"model.layers.0.self_attn.v_proj", 8, 8}};
static struct fake_base base;
static struct fake_federation federation;
static char dir[SUPPORT_PATH_BYTES];
static atomic_long counts[8], created; /* counts: by kind of error */

/* ---- messages ---- */

struct mutation {
    struct rng rng;
    double share; /* of fields */
};

static const char *const texts[] = {"",
                                    "r",
                                    "s",
                                    "nope",
                                    "m0",
                                    "../../etc/passwd",
                                    "\x1b[31mred\x07",
                                    "\xe2\x80\xae",
                                    "A",
                                    "R",
                                    "examples",
                                    "uniform",
                                    "next",
                                    "flora",
                                    "fed-sb",
                                    "hetlora",
                                    "client",
                                    "example",
                                    "%s%n",
                                    "model.layers.0.self_attn.q_proj",
                                    "q",
                                    "key=value",
                                    "robust=krum",
                                    "basis=gradient",
                                    "server=fedadam",
                                    "\xff\xfe"};
static const uint64_t numbers[] = {0,         1,          2,          3,          4,
                                   7,         255,        4096,       65536,      1u << 26,
                                   INT32_MAX, UINT32_MAX, 1ull << 32, 1ull << 53, 1ull << 62,
                                   INT64_MAX, 1ull << 63, UINT64_MAX};

static bool chance(struct mutation *m, double p)
{
    return rng_unit(&m->rng) < p;
}

static void put(struct bytes *out, const void *data, size_t size)
{
    ok(bytes_append(out, data, size));
}

static void put_varint(struct bytes *out, uint64_t value)
{
    do {
        uint8_t byte = (uint8_t)(value & 127) | (value > 127 ? 128 : 0);
        put(out, &byte, 1);
        value >>= 7;
    } while (value);
}

static void put_text(struct bytes *out, struct mutation *m)
{
    static char block[5000];
    size_t which = (size_t)rng_below(&m->rng, sizeof texts / sizeof *texts + 2);
    memset(block, 'x', sizeof block);
    if (which >= sizeof texts / sizeof *texts) {
        size_t size = which % 2 ? 127 : sizeof block;
        put_varint(out, size);
        put(out, block, size);
        return;
    }
    put_varint(out, strlen(texts[which]));
    put(out, texts[which], strlen(texts[which]));
}

static void put_blob(struct bytes *out, struct mutation *m)
{
    static const size_t sizes[] = {0, 1, 31, 32, 32, 32, 33, 100, 5000};
    uint8_t block[5000];
    size_t size = sizes[rng_below(&m->rng, sizeof sizes / sizeof *sizes)];
    for (size_t i = 0; i < size; i++)
        block[i] = (uint8_t)rng_u32(&m->rng);
    if (size == DIGEST_BYTES && chance(m, 0.5)) memcpy(block, base.digest.byte, DIGEST_BYTES);
    put_varint(out, size);
    put(out, block, size);
}

static void put_double(struct bytes *out, struct mutation *m)
{
    const double values[] = {0, -0.0, 1, -1, 0.5, 1e-5, 5e-324, 1e308, 1e18, INFINITY, NAN};
    double value = values[rng_below(&m->rng, sizeof values / sizeof *values)];
    put(out, &value, sizeof value);
}

static void put_fields(struct bytes *out, struct mutation *m,
                       const ProtobufCMessageDescriptor *type, int depth);

static void put_field(struct bytes *out, struct mutation *m, const ProtobufCFieldDescriptor *f,
                      int depth)
{
    struct bytes inner = {.max = 1 << 20};
    unsigned wire = f->type == PROTOBUF_C_TYPE_DOUBLE ? 1
                    : f->type == PROTOBUF_C_TYPE_STRING || f->type == PROTOBUF_C_TYPE_BYTES ||
                            f->type == PROTOBUF_C_TYPE_MESSAGE
                        ? 2
                        : 0;
    put_varint(out, (uint64_t)f->id << 3 | wire);
    switch (f->type) {
    case PROTOBUF_C_TYPE_DOUBLE:
        put_double(out, m);
        break;
    case PROTOBUF_C_TYPE_STRING:
        put_text(out, m);
        break;
    case PROTOBUF_C_TYPE_BYTES:
        put_blob(out, m);
        break;
    case PROTOBUF_C_TYPE_MESSAGE:
        if (depth < DEPTH_MAX) put_fields(&inner, m, f->descriptor, depth + 1);
        put_varint(out, inner.size);
        if (inner.size) put(out, inner.data, inner.size);
        break;
    default:
        put_varint(out, numbers[rng_below(&m->rng, sizeof numbers / sizeof *numbers)]);
    }
    bytes_close(&inner);
}

static void put_fields(struct bytes *out, struct mutation *m,
                       const ProtobufCMessageDescriptor *type, int depth)
{
    static const int repeats[] = {1, 1, 2, 5, 60};
    for (unsigned i = 0; i < type->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &type->fields[i];
        if (!chance(m, m->share)) continue;
        int n = f->label == PROTOBUF_C_LABEL_REPEATED ? repeats[rng_below(&m->rng, 5)] : 1;
        if (depth && n > 5) n = 2;
        for (int k = 0; k < n; k++)
            put_field(out, m, f, depth);
    }
}

/* Fields that a good request has. Fields that follow replace them. */
static void put_good(struct bytes *out, struct mutation *m, const ProtobufCMessageDescriptor *type)
{
    const ProtobufCFieldDescriptor *f;
    static const char *const runs[] = {"r", "s", ""};
    const char *run = runs[rng_below(&m->rng, 3)];
    for (unsigned i = 0; i < type->n_fields; i++) {
        f = &type->fields[i];
        bool text = f->type == PROTOBUF_C_TYPE_STRING && !strcmp(f->name, "run");
        if (text) {
            put_varint(out, (uint64_t)f->id << 3 | 2);
            put_varint(out, strlen(run));
            put(out, run, strlen(run));
        } else if (strstr(f->name, "digest") && f->type == PROTOBUF_C_TYPE_BYTES) {
            put_varint(out, (uint64_t)f->id << 3 | 2);
            put_varint(out, DIGEST_BYTES);
            put(out, base.digest.byte, DIGEST_BYTES);
        } else if (f->type == PROTOBUF_C_TYPE_UINT32 || f->type == PROTOBUF_C_TYPE_UINT64) {
            put_varint(out, (uint64_t)f->id << 3);
            put_varint(out, 1 + rng_below(&m->rng, 3));
        }
    }
}

static void change_bytes(struct bytes *b, struct mutation *m)
{
    for (uint64_t n = 1 + rng_below(&m->rng, 4); n > 0 && b->size; n--) {
        size_t at = (size_t)rng_below(&m->rng, b->size), left = b->size - at;
        switch (rng_below(&m->rng, 3)) {
        case 0:
            b->data[at] ^= (uint8_t)(1u << rng_below(&m->rng, 8));
            break;
        case 1:
            b->size = at;
            break;
        default:
            memmove(b->data + at, b->data + at + left / 2, left - left / 2);
            b->size -= left / 2;
        }
    }
}

static void make_request(struct bytes *out, struct mutation *m,
                         const ProtobufCMessageDescriptor *type)
{
    static const double shares[] = {0, 0.1, 0.3, 0.6};
    m->share = shares[rng_below(&m->rng, 4)];
    bytes_clear(out);
    if (!chance(m, 0.1)) put_good(out, m, type);
    put_fields(out, m, type, 0);
    if (chance(m, 0.3)) change_bytes(out, m);
}

/* ---- calls ---- */

struct procedure {
    const char *path, *name;
    const ProtobufCMessageDescriptor *request;
};
static struct procedure procedures[RPC_PATHS_FEDERATION + RPC_PATHS_ADMIN];
enum { PROCEDURES = RPC_PATHS_FEDERATION + RPC_PATHS_ADMIN };

static void list_procedures(void)
{
    for (size_t i = 0; i < PROCEDURES; i++) {
        bool admin = i >= RPC_PATHS_FEDERATION;
        size_t k = admin ? i - RPC_PATHS_FEDERATION : i;
        const ProtobufCMethodDescriptor *method =
            admin ? &fedlora__v1__admin__descriptor.methods[k]
                  : &fedlora__v1__federation__descriptor.methods[k];
        procedures[i] =
            (struct procedure){admin ? rpc_path_admin[k].text : rpc_path_federation[k].text,
                               method->name, method->input};
    }
}

struct caller {
    pthread_t thread;
    struct fake_member member;
    struct mutation mutation;
    const struct procedure *procedure;
    long calls;
    int parts; /* left of the upload */
};

static err next_part(struct bytes *message, bool *end, void *context)
{
    struct caller *c = context;
    if (c->parts-- <= 0) {
        *end = true;
        return ERR_NONE;
    }
    make_request(message, &c->mutation, c->procedure->request);
    return ERR_NONE;
}

static err drop_part(const void *message, size_t size, void *context)
{
    (void)message, (void)size, (void)context;
    return ERR_NONE;
}

static err call_once(struct caller *c)
{
    const struct procedure *p = c->procedure;
    struct bytes request = {.max = RPC_MESSAGE_BYTES}, reply = {.max = RPC_MESSAGE_BYTES};
    struct rpc_client *client = c->member.client;
    err e;
    if (!strcmp(p->name, "Submit") || !strcmp(p->name, "PutBlob")) {
        const struct rpc_upload upload = {.path = p->path,
                                          .deadline_ms = CALL_MS,
                                          .stall_ms = CALL_MS,
                                          .part = next_part,
                                          .context = c};
        c->parts = (int)rng_below(&c->mutation.rng, 4);
        e = rpc_client_upload(&reply, client, &upload);
    } else {
        make_request(&request, &c->mutation, p->request);
        const struct rpc_download download = {.path = p->path,
                                              .request = &request,
                                              .deadline_ms = CALL_MS,
                                              .stall_ms = CALL_MS,
                                              .part = drop_part};
        if (!strcmp(p->name, "Fetch") || !strcmp(p->name, "FetchBlob"))
            e = rpc_client_download(client, &download);
        else
            e = rpc_client_unary(&reply, client, p->path, &request, CALL_MS);
    }
    bytes_close(&request);
    bytes_close(&reply);
    return e;
}

static void *call_all(void *context)
{
    struct caller *c = context;
    for (long i = 0; i < c->calls; i++) {
        c->procedure = &procedures[rng_below(&c->mutation.rng, PROCEDURES)];
        if (!strcmp(c->procedure->name, "CreateRun") &&
            atomic_fetch_add(&created, 1) >= CREATED_MAX)
            continue;
        err e = call_once(c);
        atomic_fetch_add(&counts[e.kind], 1);
    }
    return NULL;
}

/* ---- the test ---- */

static void open_as(struct fake_member *m, const char *id, const char *run)
{
    const struct fake_options options = {.server = federation.address,
                                         .certs = federation.certs,
                                         .id = id,
                                         .run = run,
                                         .base = &base,
                                         .rank = 4,
                                         .examples = 10,
                                         .give_up_ms = 30000};
    ok(fake_open(m, &options));
}

static void create(struct fake_member *ops, const char *name, const char *method,
                   const char *const *member, size_t count)
{
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    Fedlora__V1__Training training = FEDLORA__V1__TRAINING__INIT;
    Fedlora__V1__MemberConfig members[MEMBERS], *list[MEMBERS];
    struct digest digest = base.digest;
    for (size_t i = 0; i < count; i++) {
        fedlora__v1__member_config__init(&members[i]);
        members[i].id = (char *)(uintptr_t)member[i];
        list[i] = &members[i];
    }
    training.steps = 1;
    config.name = (char *)(uintptr_t)name;
    config.method = (char *)(uintptr_t)method;
    config.rounds = 3;
    config.rank = 4;
    config.base_digest = (ProtobufCBinaryData){DIGEST_BYTES, digest.byte};
    config.training = &training;
    config.members = list;
    config.n_members = count;
    ok(fake_create(ops, &config));
}

static void begin(void)
{
    static const char *const attacked[] = {"m0", "m1", "m2"}, *const honest[] = {"m3", "m4"};
    struct fake_member ops;
    base = (struct fake_base){digest_of("a base", 6), modules, 2};
    support_dir_make(dir);
    ok(rpc_init());
    ok(fake_federation_open(&federation, dir, MEMBERS,
                            "[limits]\ncalls_per_second = 0\nupdate_bytes = 1MiB\npoll = 100ms\n"));
    ok(fake_federation_start(&federation));
    open_as(&ops, "ops", "");
    create(&ops, "r", "flora", attacked, 3);
    create(&ops, "s", "fed-sb", attacked, 3);
    create(&ops, "honest", "flora", honest, 2);
    fake_close(&ops);
    list_procedures();
}

static long wanted(const char *name, long otherwise)
{
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 10) : otherwise;
}

static void attack(void)
{
    static const char *const ids[CALLERS] = {"m0", "m1", "ops", "stranger", "ops"};
    static struct caller callers[CALLERS];
    long calls = wanted("FEDLORA_ATTACK_CALLS", CALLS);
    for (int i = 0; i < CALLERS; i++) {
        struct caller *c = &callers[i];
        open_as(&c->member, ids[i], "r");
        if (ids[i][0] == 'm') {
            Fedlora__V1__HelloReply *reply = NULL;
            ok(fake_hello(&reply, &c->member));
            message_free(reply);
        }
        rng_init(&c->mutation.rng, "mutated calls", (uint64_t)wanted("FEDLORA_ATTACK_SEED", 1),
                 ids[i], (uint64_t)i);
        c->calls = calls / CALLERS;
        cr_assert_eq(pthread_create(&c->thread, NULL, call_all, c), 0);
    }
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(callers[i].thread, NULL);
        fake_close(&callers[i].member);
    }
}

static void expect_honest_run(void)
{
    static struct fake_joining joining[2];
    for (int i = 0; i < 2; i++) {
        const struct fake_options options = {.server = federation.address,
                                             .certs = federation.certs,
                                             .run = "honest",
                                             .base = &base,
                                             .rank = 4,
                                             .examples = 10,
                                             .give_up_ms = 30000};
        fake_join_begin(&joining[i], 3 + i, &options);
    }
    for (int i = 0; i < 2; i++)
        ok(fake_join_end(&joining[i]));
    cr_expect(digest_equal(&joining[0].last, &joining[1].last));
}

Test(rpc, mutated_calls_end_nothing_and_hurt_nobody)
{
    int status;
    long total = 0;
    begin();
    attack();
    cr_assert_eq(waitpid(federation.coordinator, &status, WNOHANG), 0, "fedlorad has ended: %s",
                 federation.log);
    expect_honest_run();
    cr_expect_eq(fake_federation_stop(&federation, SIGTERM), 0, "a clean stop");
    ok(fake_federation_start(&federation)); /* what they stored can be read */
    cr_expect_eq(fake_federation_stop(&federation, SIGTERM), 0, "a clean stop");
    cr_expect(!fake_federation_logged(&federation, "Sanitizer"));
    cr_expect(!fake_federation_logged(&federation, "runtime error"));
    cr_expect(!fake_federation_logged(&federation, "event=run.unreadable"));
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        total += atomic_load(&counts[i]);
    printf("RESULT rpc %ld %ld calls: %ld accepted, %ld refused, %ld unavailable\n", total, total,
           atomic_load(&counts[ERR_OK]),
           total - atomic_load(&counts[ERR_OK]) - atomic_load(&counts[ERR_MACHINE]),
           atomic_load(&counts[ERR_MACHINE]));
    support_dir_remove(dir);
}
