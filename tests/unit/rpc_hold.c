#include "tests/support/rpc_fixture.h"

static atomic_bool holds;          /* what the owner of the server answers */
static atomic_int releases, wrong; /* asked for: without an error, with one */

static bool asked(void *context)
{
    (void)context;
    return atomic_load(&holds);
}

/* The loop of an owner that flushes when it is told to. */
static void *loop(void *argument)
{
    struct fixture *f = argument;
    while (!atomic_load(&f->stop)) {
        rpc_server_poll(f->server, 20);
        if (atomic_exchange(&wrong, 0))
            rpc_server_release(f->server, err_make(ERR_MACHINE, "the disk is full"));
        if (atomic_exchange(&releases, 0)) {
            atomic_store(&holds, false);
            rpc_server_release(f->server, ERR_NONE);
        }
    }
    return NULL;
}

static void start(struct fixture *f)
{
    fixture_certs();
    struct rpc_server_options options = fixture_server_options(f, "localhost:0");
    options.holds = asked;
    FIXTURE_OK(rpc_server_open(&f->server, &options));
    snprintf(f->address, sizeof f->address, "localhost:%d", rpc_server_port(f->server));
    rpc_server_set_serving(f->server, true);
    atomic_store(&holds, true);
    cr_assert_eq(pthread_create(&f->thread, NULL, loop, f), 0);
}

struct caller { /* a client in a thread of its own */
    struct fixture *f;
    const char *path;
    int count; /* of messages of a download; 0: a call without streams */
    pthread_t thread;
    atomic_int done, got;
    err e;
    struct bytes reply;
};

static err take(const void *message, size_t size, void *context)
{
    struct caller *c = context;
    (void)message;
    cr_assert_eq(size, LIMIT_CHUNK_BYTES);
    atomic_fetch_add(&c->got, 1);
    return ERR_NONE;
}

static void *call(void *argument)
{
    struct caller *c = argument;
    struct rpc_client *client = NULL;
    const struct rpc_client_options options = fixture_client(c->f, "a");
    struct bytes request = {.max = 100};
    FIXTURE_OK(rpc_client_open(&client, &options));
    FIXTURE_OK(bytes_append(&request, &c->count, sizeof c->count));
    const struct rpc_download d = {.path = c->path,
                                   .request = &request,
                                   .deadline_ms = 10000,
                                   .stall_ms = 10000,
                                   .part = take,
                                   .context = c};
    c->reply.max = 1000;
    c->e = c->count ? rpc_client_download(client, &d)
                    : rpc_client_unary(&c->reply, client, c->path, &request, 10000);
    atomic_store(&c->done, 1);
    bytes_close(&request);
    rpc_client_close(client);
    return NULL;
}

static void begin(struct caller *c, struct fixture *f, const char *path, int count)
{
    *c = (struct caller){.f = f, .path = path, .count = count};
    cr_assert_eq(pthread_create(&c->thread, NULL, call, c), 0);
}

static void end(struct caller *c)
{
    pthread_join(c->thread, NULL);
    bytes_close(&c->reply);
}

Test(rpc_hold, sends_no_reply_before_it_is_released)
{
    struct fixture f = {0};
    struct caller one, two, refusal, stream;
    start(&f);
    begin(&one, &f, "/test.T/Echo", 0);
    begin(&two, &f, "/test.T/Echo", 0);
    begin(&refusal, &f, "/test.T/Fail", 0);
    begin(&stream, &f, "/test.T/Download", 3);
    cr_assert(fixture_wait(&f.begun, 3) && fixture_wait(&f.sent, 1));
    usleep(300 * 1000);
    cr_expect(!atomic_load(&one.done) && !atomic_load(&two.done) && !atomic_load(&refusal.done));
    cr_expect_eq(atomic_load(&stream.got), 0);
    cr_expect_eq(atomic_load(&f.sent), 1, "the next message waits for the first");
    atomic_store(&releases, 1);
    cr_expect(fixture_wait(&one.done, 1) && fixture_wait(&two.done, 1));
    cr_expect(fixture_wait(&refusal.done, 1) && fixture_wait(&stream.done, 1));
    cr_expect(!err_is(one.e) && !err_is(two.e) && !err_is(stream.e), "%s", one.e.text);
    cr_expect(refusal.e.kind == ERR_REFUSED && strstr(refusal.e.text, "because of"));
    cr_expect_eq(atomic_load(&stream.got), 3);
    cr_expect_eq(one.reply.size, strlen("fed:a:") + sizeof one.count);
    cr_expect(fixture_wait(&f.over, 3));
    end(&one), end(&two), end(&refusal), end(&stream);
    fixture_stop(&f);
}

Test(rpc_hold, refuses_the_held_calls_if_what_they_report_cannot_be_kept)
{
    struct fixture f = {0};
    struct caller one, stream, later;
    start(&f);
    begin(&one, &f, "/test.T/Echo", 0);
    begin(&stream, &f, "/test.T/Download", 3);
    cr_assert(fixture_wait(&f.begun, 2) && fixture_wait(&f.sent, 1));
    usleep(100 * 1000);
    atomic_store(&wrong, 1);
    cr_expect(fixture_wait(&one.done, 1) && fixture_wait(&stream.done, 1));
    cr_expect(one.e.kind == ERR_MACHINE && strstr(one.e.text, "the disk is full"), "%s",
              one.e.text);
    cr_expect(stream.e.kind == ERR_MACHINE && strstr(stream.e.text, "the disk is full"), "%s",
              stream.e.text);
    cr_expect_eq(atomic_load(&stream.got), 0);
    begin(&later, &f, "/test.T/Echo", 0);
    cr_assert(fixture_wait(&f.begun, 3));
    atomic_store(&releases, 1);
    cr_expect(fixture_wait(&later.done, 1) && !err_is(later.e), "%s", later.e.text);
    end(&one), end(&stream), end(&later);
    fixture_stop(&f);
}

Test(rpc_hold, a_server_that_closes_keeps_no_call)
{
    struct fixture f = {0};
    struct caller one, stream;
    start(&f);
    begin(&one, &f, "/test.T/Echo", 0);
    begin(&stream, &f, "/test.T/Download", 3);
    cr_assert(fixture_wait(&f.begun, 2) && fixture_wait(&f.sent, 1));
    usleep(100 * 1000);
    fixture_stop(&f);
    cr_expect_eq(atomic_load(&f.over), 2);
    cr_expect(fixture_wait(&one.done, 1) && fixture_wait(&stream.done, 1));
    cr_expect(err_is(one.e) && err_is(stream.e));
    end(&one), end(&stream);
}

Test(rpc_hold, a_client_that_leaves_meanwhile_costs_nothing)
{
    struct fixture f = {0};
    struct rpc_client *client = NULL;
    struct bytes reply = {.max = 100}, request = {.max = 100};
    start(&f);
    const struct rpc_client_options options = fixture_client(&f, "a");
    FIXTURE_OK(rpc_client_open(&client, &options));
    err e = rpc_client_unary(&reply, client, "/test.T/Echo", &request, 200);
    cr_expect_eq(e.kind, ERR_MACHINE, "%s", e.text);
    rpc_client_close(client);
    usleep(100 * 1000);
    cr_expect_eq(atomic_load(&f.over), 0, "its reply is not decided yet");
    atomic_store(&releases, 1);
    cr_expect(fixture_wait(&f.over, 1));
    cr_expect_eq(atomic_load(&f.answered), 0);
    fixture_stop(&f);
}
