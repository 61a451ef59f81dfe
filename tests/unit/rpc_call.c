/* Streams on the server: one message at a time, in both directions. */
#include "base/file.h"
#include "tests/support/rpc_fixture.h"

static struct rpc_client *open_as(struct fixture *f, const char *name)
{
    struct rpc_client *client = NULL;
    const struct rpc_client_options options = fixture_client(f, name);
    FIXTURE_OK(rpc_client_open(&client, &options));
    return client;
}

static err upload_part(struct bytes *message, bool *end, void *context)
{
    static const char zeros[65536];
    int *left = context;
    if (*left == -1) {
        *left = 3;
        return bytes_append(message, "refuse", 6);
    }
    *end = *left == 0;
    if (!*end) (*left)--;
    return *end ? ERR_NONE : bytes_append(message, zeros, sizeof zeros);
}

Test(rpc_call, takes_an_upload_part_by_part)
{
    struct fixture f = {0};
    fixture_start(&f);
    struct rpc_client *client = open_as(&f, "b");
    int left = 40;
    const struct rpc_upload upload = {.path = "/test.T/Upload",
                                      .deadline_ms = 10000,
                                      .stall_ms = 5000,
                                      .part = upload_part,
                                      .context = &left};
    struct bytes reply = {.max = 100};
    FIXTURE_OK(rpc_client_upload(&reply, client, &upload));
    cr_assert_str_eq((char *)reply.data, "thanks");
    cr_assert_eq(atomic_load(&f.parts), 40);
    cr_assert_eq(atomic_load(&f.bytes), 40 * 65536);
    cr_assert_eq(atomic_load(&f.ended), 1);
    bytes_close(&reply);
    rpc_client_close(client);
    fixture_stop(&f);
}

Test(rpc_call, a_refusal_ends_an_upload_in_the_middle)
{
    struct fixture f = {0};
    fixture_start(&f);
    struct rpc_client *client = open_as(&f, "b");
    int left = -1;
    const struct rpc_upload upload = {.path = "/test.T/Upload",
                                      .deadline_ms = 10000,
                                      .stall_ms = 5000,
                                      .part = upload_part,
                                      .context = &left};
    struct bytes reply = {.max = 100};
    err e = rpc_client_upload(&reply, client, &upload);
    cr_assert_eq(e.kind, ERR_STATE, "%s", e.text);
    cr_assert_str_eq(e.text, "the round is over");
    cr_assert(fixture_wait(&f.over, 1));
    cr_assert_eq(atomic_load(&f.ended), 0);
    bytes_close(&reply);
    rpc_client_close(client);
    fixture_stop(&f);
}

Test(rpc_call, a_handler_that_does_not_ask_for_more_stops_the_upload)
{
    struct fixture f = {0};
    fixture_start(&f);
    struct rpc_client *client = open_as(&f, "b");
    atomic_store(&f.upload_waits, true);
    int left = 1000;
    const struct rpc_upload upload = {.path = "/test.T/Upload",
                                      .deadline_ms = 3000,
                                      .stall_ms = 700,
                                      .part = upload_part,
                                      .context = &left};
    struct bytes reply = {.max = 100};
    err e = rpc_client_upload(&reply, client, &upload);
    cr_assert_eq(e.kind, ERR_MACHINE, "%s", e.text);
    cr_assert_eq(atomic_load(&f.parts), 1);
    cr_assert_gt(left, 900, "%d of 1000 parts left: nothing held the sender back", left);
    cr_assert(fixture_wait(&f.over, 1));
    bytes_close(&reply);
    rpc_client_close(client);
    fixture_stop(&f);
}

struct sink {
    int parts, fail_at;
    size_t bytes;
    unsigned pause_us;
};

static err download_part(const void *message, size_t size, void *context)
{
    struct sink *sink = context;
    (void)message;
    sink->parts++;
    sink->bytes += size;
    if (sink->pause_us > 0) usleep(sink->pause_us);
    if (sink->parts == sink->fail_at) return err_make(ERR_INPUT, "enough");
    return ERR_NONE;
}

static err download(struct rpc_client *client, int count, struct sink *sink)
{
    struct bytes request = {.max = 100};
    FIXTURE_OK(bytes_append(&request, &count, sizeof count));
    const struct rpc_download d = {.path = "/test.T/Download",
                                   .request = &request,
                                   .deadline_ms = 10000,
                                   .stall_ms = 5000,
                                   .part = download_part,
                                   .context = sink};
    err e = rpc_client_download(client, &d);
    bytes_close(&request);
    return e;
}

Test(rpc_call, sends_a_download_chunk_by_chunk)
{
    struct fixture f = {0};
    fixture_start(&f);
    struct rpc_client *client = open_as(&f, "b");
    struct sink sink = {0}, none = {0};
    FIXTURE_OK(download(client, 20, &sink));
    cr_assert_eq(sink.parts, 20);
    cr_assert_eq(sink.bytes, 20u * LIMIT_CHUNK_BYTES);
    FIXTURE_OK(download(client, 0, &none));
    cr_assert_eq(none.parts, 0);
    rpc_client_close(client);
    fixture_stop(&f);
}

Test(rpc_call, a_slow_reader_holds_a_download_back_and_a_leaver_ends_it)
{
    struct fixture f = {0};
    fixture_start(&f);
    struct rpc_client *client = open_as(&f, "b");
    struct sink sink = {.fail_at = 2, .pause_us = 300000};
    err e = download(client, 100, &sink);
    cr_assert_str_eq(e.text, "enough");
    cr_assert(fixture_wait(&f.over, 1));
    cr_assert_lt(atomic_load(&f.sent), 20, "%d chunks were read ahead", atomic_load(&f.sent));
    cr_assert_eq(atomic_load(&f.answered), 0);
    rpc_client_close(client);
    fixture_stop(&f);
}

struct slow_source {
    int left;
    unsigned pause_us;
};

static err slow_part(struct bytes *message, bool *end, void *context)
{
    struct slow_source *source = context;
    if (source->left-- == 0) {
        *end = true;
        return ERR_NONE;
    }
    if (source->left == 0) usleep(source->pause_us);
    return bytes_append(message, "part", 4);
}

Test(rpc_call, gives_up_an_upload_that_stalls)
{
    struct fixture f = {0};
    fixture_certs();
    struct rpc_server_options options = fixture_server_options(&f, "localhost:0");
    options.stall_ms = 500;
    fixture_serve(&f, &options);
    struct rpc_client *client = open_as(&f, "a");
    struct slow_source source = {.left = 3, .pause_us = 2500000};
    const struct rpc_upload upload = {.path = "/test.T/Upload",
                                      .deadline_ms = 20000,
                                      .stall_ms = 10000,
                                      .part = slow_part,
                                      .context = &source};
    struct bytes reply = {.max = 100};
    err e = rpc_client_upload(&reply, client, &upload);
    cr_assert_eq(e.kind, ERR_MACHINE);
    cr_assert(strstr(e.text, "no message arrived") != NULL, "%s", e.text);
    cr_assert(fixture_wait(&f.over, 1));
    cr_assert_eq(atomic_load(&f.parts), 2);
    bytes_close(&reply);
    rpc_client_close(client);
    fixture_stop(&f);
}

/* Server and client have the same clock here, so any difference is the time of the call. */
Test(rpc_call, tells_the_servers_time_with_an_answer_about_health)
{
    struct fixture f = {0};
    struct bytes reply = {.max = 100};
    struct rpc_client *client = NULL;
    int64_t ahead_ms = 123456;
    fixture_start(&f);
    const struct rpc_client_options options = fixture_client(&f, "a");
    FIXTURE_OK(rpc_client_open(&client, &options));
    FIXTURE_OK(fixture_call(client, "/test.T/Echo", "x", &reply));
    cr_expect(!rpc_client_clock(&ahead_ms, client), "a call that does not tell the time");
    cr_expect_eq(ahead_ms, 123456);
    FIXTURE_OK(fixture_call(client, "/grpc.health.v1.Health/Check", "", &reply));
    cr_assert(rpc_client_clock(&ahead_ms, client));
    cr_expect(ahead_ms > -60000 && ahead_ms < 60000, "%lld ms", (long long)ahead_ms);
    rpc_client_close(client);
    bytes_close(&reply);
    fixture_stop(&f);
}

/* A client that has no certificate and trusts the root, on the second address. */
static struct rpc_client *open_stranger(struct fixture *f, char **root)
{
    static char address[64];
    struct rpc_client *client = NULL;
    size_t size = 0;
    snprintf(address, sizeof address, "localhost:%d", rpc_server_open_port(f->server));
    FIXTURE_OK(file_read_all(root, &size, FIXTURE_CERTS "/ca.pem", 1 << 16));
    const struct rpc_client_options options = {.server = address, .root = *root};
    FIXTURE_OK(rpc_client_open(&client, &options));
    return client;
}

Test(rpc_call, a_peer_without_a_certificate_reaches_only_the_method_that_is_for_it)
{
    static const struct rpc_method methods[] = {
        {"/test.T/Echo", RPC_UNARY, RPC_CLIENT | RPC_ADMIN, .begin = fixture_echo},
        {"/test.T/Enroll", RPC_UNARY, RPC_NONE, .begin = fixture_echo}};
    struct fixture f = {0};
    struct bytes reply = {.max = 1000};
    char *root = NULL;
    fixture_certs();
    struct rpc_server_options options = fixture_server_options(&f, "localhost:0");
    options.open_listen = "localhost:0";
    options.method = methods;
    options.method_count = 2;
    fixture_serve(&f, &options);
    struct rpc_client *stranger = open_stranger(&f, &root), *member = open_as(&f, "a");
    FIXTURE_OK(fixture_call(stranger, "/test.T/Enroll", "x", &reply));
    cr_expect_str_eq((char *)reply.data, "fed::x", "it has no identity");
    err e = fixture_call(stranger, "/test.T/Echo", "x", &reply);
    cr_expect_eq(e.kind, ERR_REFUSED);
    cr_expect(strstr(e.text, "not on this address"), "%s", e.text);
    e = fixture_call(stranger, "/grpc.health.v1.Health/Check", "", &reply);
    cr_expect_eq(e.kind, ERR_REFUSED, "%s", e.text);
    e = fixture_call(member, "/test.T/Enroll", "x", &reply);
    cr_expect_eq(e.kind, ERR_REFUSED);
    cr_expect(strstr(e.text, "only on the address of enrolment"), "%s", e.text);
    FIXTURE_OK(fixture_call(member, "/test.T/Echo", "x", &reply));
    rpc_client_close(stranger);
    rpc_client_close(member);
    bytes_close(&reply);
    free(root);
    fixture_stop(&f);
}

/* The main address never serves a peer without a certificate. */
Test(rpc_call, the_main_address_asks_for_a_certificate)
{
    struct fixture f = {0};
    struct bytes reply = {.max = 1000};
    struct rpc_client *client = NULL;
    char *root = NULL;
    size_t size = 0;
    fixture_start(&f);
    cr_expect_eq(rpc_server_open_port(f.server), 0);
    FIXTURE_OK(file_read_all(&root, &size, FIXTURE_CERTS "/ca.pem", 1 << 16));
    const struct rpc_client_options options = {.server = f.address, .root = root};
    FIXTURE_OK(rpc_client_open(&client, &options));
    cr_expect(err_is(fixture_call(client, "/test.T/Echo", "x", &reply)));
    cr_expect_eq(atomic_load(&f.begun), 0);
    rpc_client_close(client);
    bytes_close(&reply);
    free(root);
    fixture_stop(&f);
}

/* ---- counters */

static atomic_int ended_ok, ended_refused, ended_cancelled, ended_other, refusals;
static _Atomic(enum rpc_refusal) refusal;

static void on_ended(void *context, const char *procedure, const char *code)
{
    (void)context;
    atomic_fetch_add(&ended_ok, !strcmp(procedure, "Echo") && !strcmp(code, "OK"));
    atomic_fetch_add(&ended_refused,
                     !strcmp(procedure, "Fail") && !strcmp(code, "FAILED_PRECONDITION"));
    atomic_fetch_add(&ended_cancelled, !strcmp(procedure, "Hold") && !strcmp(code, "CANCELLED"));
    atomic_fetch_add(&ended_other, !strcmp(procedure, "other") && !strcmp(code, "UNIMPLEMENTED"));
}

static void on_refusal(void *context, const struct rpc_event *event)
{
    (void)context;
    atomic_store(&refusal, event->refusal);
    atomic_fetch_add(&refusals, 1);
}

static err call(struct fixture *f, const char *name, const char *path, const char *request)
{
    struct bytes reply = {.max = 4096};
    struct rpc_client *client = open_as(f, name);
    err e = fixture_call(client, path, request, &reply);
    bytes_close(&reply);
    rpc_client_close(client);
    return e;
}

Test(rpc_call, tells_its_owner_of_the_end_of_each_call_and_of_each_refused_connection)
{
    struct fixture f = {0};
    const char state[] = {ERR_STATE, 0};
    fixture_certs();
    struct rpc_server_options options = fixture_server_options(&f, "localhost:0");
    options.ended = on_ended;
    options.count = on_refusal;
    fixture_serve(&f, &options);
    FIXTURE_OK(call(&f, "b", "/test.T/Echo", "x"));
    FIXTURE_OK(call(&f, "b", "/test.T/Echo", "x"));
    cr_expect_eq(call(&f, "b", "/test.T/Fail", state).kind, ERR_STATE);
    cr_expect(err_is(call(&f, "b", "/test.T/Nothing", "x")));
    cr_expect(err_is(call(&f, "b", "/test.T/Hold", "x"))); /* its deadline passes at the client */
    cr_expect(fixture_wait(&ended_cancelled, 1));
    cr_expect_eq(atomic_load(&ended_ok), 2);
    cr_expect_eq(atomic_load(&ended_refused), 1);
    cr_expect_eq(atomic_load(&ended_other), 1);
    cr_expect_eq(atomic_load(&refusals), 0);
    char command[160];
    snprintf(command, sizeof command,
             "openssl s_client -connect %s </dev/null >/dev/null 2>&1; true", f.address);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(system(command), 0);
    cr_expect(fixture_wait(&refusals, 3), "%d", atomic_load(&refusals));
    cr_expect_eq(atomic_load(&refusal), RPC_REFUSAL_ABSENT);
    cr_expect_leq(atomic_load(&f.events), 1, "reports are limited, counts are not");
    fixture_stop(&f);
}
