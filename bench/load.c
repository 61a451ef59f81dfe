/* Members that poll a coordinator, in one process and one thread: N connections over TLS with a
 * certificate each, on which NextTask is called again and again. gRPC's own client would need 0.8
 * MB and a thread for each, so this one speaks HTTP/2 by nghttp2.
 *
 *   bench_load [--members 1000] [--seconds 10] [--wait-ms 0]
 *
 * With --wait-ms 0 each call is answered at once, and the next one follows: calls a second, and
 * their times. With 30000 all members wait, as real ones do while they are idle: memory, and the
 * processor time of an idle coordinator. */
#include "base/text.h"
#include "proto/message.h"
#include "proto/rpc_openssl.h"
#include "proto/rpc_path.h"
#include "tests/support/fake_federation.h"

#include "fedlora.pb-c.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    MEMBERS_MAX = 10000,
    CONNECTING_MAX = 64,
    TIMES_MAX = 4000000,
    EVENTS = 256,
    REQUEST_MAX = 256,
    CONNECT_S = 300
};

struct load {
    long members, seconds, wait_ms;
    struct fake_federation federation;
    SSL_CTX *tls;
    EVP_PKEY *authority_key, *key; /* one key for all members: making 10,000 takes minutes */
    X509 *authority;
    int epoll;
    long connecting, connected, failed;
    bool measures;
    uint8_t request[REQUEST_MAX]; /* a gRPC frame */
    size_t request_size;
    float *ms; /* times of calls */
    size_t calls;
};
static struct load load;

struct conn {
    int fd;
    SSL *ssl;
    nghttp2_session *session;
    bool open, good; /* the handshake is done; the status of the call under way is 0 */
    uint64_t since_us;
    size_t sent; /* bytes of the request */
};

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* ---- certificates */

static err read_authority(void)
{
    char path[640];
    snprintf(path, sizeof path, "%s/ca.pem", load.federation.certs);
    FILE *file = fopen(path, "r");
    if (file) load.authority = PEM_read_X509(file, NULL, NULL, NULL);
    if (file) fclose(file);
    snprintf(path, sizeof path, "%s/ca.key", load.federation.certs);
    file = fopen(path, "r");
    if (file) load.authority_key = PEM_read_PrivateKey(file, NULL, NULL, NULL);
    if (file) fclose(file);
    load.key = EVP_EC_gen("P-256");
    if (load.authority && load.authority_key && load.key) return ERR_NONE;
    return err_make(ERR_MACHINE, "%s: the authority cannot be read", path);
}

static bool add_extension(X509 *to, int kind, const char *value)
{
    X509V3_CTX context;
    X509V3_set_ctx_nodb(&context);
    X509V3_set_ctx(&context, load.authority, to, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, kind, value);
    bool added = extension && X509_add_ext(to, extension, -1);
    X509_EXTENSION_free(extension);
    return added;
}

static X509 *certificate_of(long number)
{
    char uri[64];
    X509 *made = X509_new();
    snprintf(uri, sizeof uri, "URI:fl://test/client/m%ld", number);
    X509_set_version(made, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(made), 1000000 + number);
    X509_gmtime_adj(X509_getm_notBefore(made), -300);
    X509_gmtime_adj(X509_getm_notAfter(made), 86400);
    X509_set_issuer_name(made, X509_get_subject_name(load.authority));
    X509_set_pubkey(made, load.key);
    REQUIRE(add_extension(made, NID_subject_alt_name, uri));
    REQUIRE(add_extension(made, NID_ext_key_usage, "clientAuth"));
    REQUIRE(add_extension(made, NID_key_usage, "critical,digitalSignature"));
    REQUIRE(X509_sign(made, load.authority_key, EVP_sha256()) > 0);
    return made;
}

/* ---- calls */

static ssize_t give_request(nghttp2_session *session, int32_t stream, uint8_t *out, size_t size,
                            uint32_t *flags, nghttp2_data_source *source, void *context)
{
    struct conn *c = source->ptr;
    size_t n = load.request_size - c->sent;
    (void)session, (void)stream, (void)context;
    if (n > size) n = size;
    memcpy(out, load.request + c->sent, n);
    c->sent += n;
    if (c->sent == load.request_size) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)n;
}

static nghttp2_nv field(const char *name, const char *value)
{
    return (nghttp2_nv){(uint8_t *)(uintptr_t)name, (uint8_t *)(uintptr_t)value, strlen(name),
                        strlen(value), NGHTTP2_NV_FLAG_NONE};
}

static bool begin_call(struct conn *c)
{
    const nghttp2_nv header[] = {field(":method", "POST"),
                                 field(":scheme", "https"),
                                 field(":path", RPC_PATH_FEDERATION(next_task)),
                                 field(":authority", load.federation.address),
                                 field("te", "trailers"),
                                 field("content-type", "application/grpc"),
                                 field("user-agent", "bench_load")};
    nghttp2_data_provider body = {.source.ptr = c, .read_callback = give_request};
    c->sent = 0;
    c->good = false;
    c->since_us = now_us();
    return nghttp2_submit_request(c->session, NULL, header, sizeof header / sizeof *header, &body,
                                  NULL) > 0;
}

static int take_field(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                      size_t name_size, const uint8_t *value, size_t value_size, uint8_t flags,
                      void *context)
{
    struct conn *c = context;
    (void)session, (void)frame, (void)flags;
    if (name_size == 11 && !memcmp(name, "grpc-status", 11))
        c->good = value_size == 1 && *value == '0';
    return 0;
}

static int end_call(nghttp2_session *session, int32_t stream, uint32_t code, void *context)
{
    struct conn *c = context;
    (void)session, (void)stream;
    if (load.measures && load.calls < TIMES_MAX)
        load.ms[load.calls++] = (float)((double)(now_us() - c->since_us) / 1e3);
    if (code != 0 || !c->good) load.failed++;
    return begin_call(c) ? 0 : NGHTTP2_ERR_CALLBACK_FAILURE;
}

/* A NextTask of a member that stays, for any of its runs; there are none. */
static err pack_request(void)
{
    Fedlora__V1__NextTaskRequest request = FEDLORA__V1__NEXT_TASK_REQUEST__INIT;
    struct bytes packed = {.max = REQUEST_MAX - 5};
    request.wait_ms = (uint32_t)load.wait_ms;
    request.stay = true;
    TRY(message_pack(&packed, &request.base));
    uint32_t size = htonl((uint32_t)packed.size);
    memcpy(load.request + 1, &size, 4);
    if (packed.size) memcpy(load.request + 5, packed.data, packed.size);
    load.request_size = packed.size + 5;
    bytes_close(&packed);
    return ERR_NONE;
}

/* ---- connections */

static bool connect_one(struct conn *c, long number)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)load.federation.port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    X509 *certificate = certificate_of(number);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int on = 1; /* a call is two writes */
    (void)setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    c->ssl = SSL_new(load.tls);
    bool ok = c->fd >= 0 && connect(c->fd, (struct sockaddr *)&to, sizeof to) == 0 &&
              fcntl(c->fd, F_SETFL, O_NONBLOCK) == 0 && SSL_set_fd(c->ssl, c->fd) &&
              SSL_use_certificate(c->ssl, certificate) && SSL_use_PrivateKey(c->ssl, load.key);
    X509_free(certificate);
    SSL_set_connect_state(c->ssl);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    load.connecting++;
    return ok && epoll_ctl(load.epoll, EPOLL_CTL_ADD, c->fd, &event) == 0;
}

/* The messages are small, so the socket takes them at once. */
static bool flush(struct conn *c)
{
    for (;;) {
        const uint8_t *data;
        ssize_t n = nghttp2_session_mem_send(c->session, &data);
        if (n == 0) return true;
        if (n < 0 || SSL_write(c->ssl, data, (int)n) != (int)n) return false;
    }
}

static bool open_session(struct conn *c)
{
    nghttp2_session_callbacks *callbacks;
    const nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0}};
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, take_field);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, end_call);
    bool ok = nghttp2_session_client_new(&c->session, callbacks, c) == 0 &&
              nghttp2_submit_settings(c->session, NGHTTP2_FLAG_NONE, settings, 1) == 0;
    nghttp2_session_callbacks_del(callbacks);
    load.connecting--;
    load.connected++;
    c->open = true;
    return ok && begin_call(c) && flush(c);
}

static bool progress(struct conn *c)
{
    uint8_t data[16384];
    if (!c->open) {
        int code = SSL_do_handshake(c->ssl);
        if (code == 1) return open_session(c);
        int why = SSL_get_error(c->ssl, code);
        return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE;
    }
    for (;;) {
        int n = SSL_read(c->ssl, data, sizeof data);
        if (n <= 0) {
            int why = SSL_get_error(c->ssl, n);
            return why == SSL_ERROR_WANT_READ && flush(c);
        }
        if (nghttp2_session_mem_recv(c->session, data, (size_t)n) != n) return false;
    }
}

static err turn(int timeout_ms)
{
    struct epoll_event event[EVENTS];
    int n = epoll_wait(load.epoll, event, EVENTS, timeout_ms);
    for (int i = 0; i < n; i++)
        if (!progress(event[i].data.ptr))
            return err_make(ERR_MACHINE, "a connection broke; %ld are open (fedlorad's log: %s)",
                            load.connected, load.federation.log);
    return ERR_NONE;
}

static err connect_all(struct conn *conns)
{
    uint64_t until = text_now_ms() + CONNECT_S * 1000;
    for (long next = 0; load.connected < load.members;) {
        while (next < load.members && load.connecting < CONNECTING_MAX) {
            struct conn *c = &conns[next];
            if (!connect_one(c, next++) || !progress(c))
                return err_sys(errno, "connection %ld", next);
        }
        TRY(turn(100));
        if (text_now_ms() > until) return err_make(ERR_MACHINE, "%ld open", load.connected);
    }
    return ERR_NONE;
}

/* ---- the measurement */

static int by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

/* Of the coordinator: kB of memory in use now, and ticks of processor time. */
static void read_coordinator(long *kb, long *ticks)
{
    char path[64], line[1024] = "";
    long user = 0, system = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)load.federation.coordinator);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, "VmRSS:", 6)) *kb = strtol(line + 6, NULL, 10);
    if (file) fclose(file);
    snprintf(path, sizeof path, "/proc/%d/stat", (int)load.federation.coordinator);
    file = fopen(path, "r");
    if (file && fgets(line, sizeof line, file) && strrchr(line, ')'))
        sscanf(strrchr(line, ')') + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %ld %ld", &user,
               &system);
    if (file) fclose(file);
    *ticks = user + system;
}

static err measure(void)
{
    long kb = 0, before = 0, after = 0;
    uint64_t began = now_us(), until = began + (uint64_t)load.seconds * 1000000;
    read_coordinator(&kb, &before);
    load.measures = true;
    load.failed = 0;
    while (now_us() < until)
        TRY(turn(100));
    read_coordinator(&kb, &after);
    double seconds = (double)(now_us() - began) / 1e6;
    printf("coordinator: %.1f MB in use, %.1f %% of a core; %ld of %zu calls failed\n",
           (double)kb * 1024 / 1e6,
           100.0 * (double)(after - before) / (double)sysconf(_SC_CLK_TCK) / seconds, load.failed,
           load.calls);
    if (load.calls == 0) return ERR_NONE;
    qsort(load.ms, load.calls, sizeof *load.ms, by_size);
    printf("%.0f check-ins a second; median %.2f ms, 99th percentile %.2f ms\n",
           (double)load.calls / seconds, (double)load.ms[load.calls / 2],
           (double)load.ms[load.calls * 99 / 100]);
    return ERR_NONE;
}

static err open_tls(void)
{
    static const uint8_t h2[] = "\x02h2";
    char path[640];
    snprintf(path, sizeof path, "%s/ca.pem", load.federation.certs);
    load.tls = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(load.tls, TLS1_3_VERSION);
    SSL_CTX_set_verify(load.tls, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_alpn_protos(load.tls, h2, 3);
    if (SSL_CTX_load_verify_locations(load.tls, path, NULL) != 1)
        return err_make(ERR_MACHINE, "%s cannot be read", path);
    return ERR_NONE;
}

/* A certificate folder without members, which fake_federation_open() copies. */
static err make_authority(const char *dir)
{
    char command[1400];
    snprintf(command, sizeof command,
             "%s/deploy/make-certs.sh %s/authority --federation test --admin ops >/dev/null",
             FEDLORA_SOURCE_DIR, dir);
    if (system(command) != 0) return err_make(ERR_MACHINE, "make-certs.sh failed");
    snprintf(command, sizeof command, "%s/authority", dir);
    setenv("FEDLORA_CERTS", command, 1);
    return ERR_NONE;
}

static err bench(const char *dir)
{
    static struct conn conns[MEMBERS_MAX];
    long idle_kb = 0, kb = 0, ticks = 0;
    load.ms = malloc(TIMES_MAX * sizeof *load.ms);
    if (!load.ms) return err_sys(ENOMEM, "the times");
    TRY(make_authority(dir));
    TRY(fake_federation_open(&load.federation, dir, (int)load.members, "[log]\nlevel = warn\n"));
    TRY(read_authority());
    TRY(open_tls());
    TRY(pack_request());
    TRY(fake_federation_start(&load.federation));
    load.epoll = epoll_create1(EPOLL_CLOEXEC);
    read_coordinator(&idle_kb, &ticks);
    uint64_t began = now_us();
    err e = connect_all(conns);
    read_coordinator(&kb, &ticks);
    if (!err_is(e))
        printf(
            "%ld members connected in %.1f s: %.1f MB, of which %.1f MB before the first (%.1f kB "
            "a member)\n",
            load.members, (double)(now_us() - began) / 1e6, (double)kb * 1024 / 1e6,
            (double)idle_kb * 1024 / 1e6, (double)(kb - idle_kb) / (double)load.members);
    if (!err_is(e)) e = measure();
    fake_federation_close(&load.federation);
    return e;
}

int main(int argc, char **argv)
{
    char dir[512], command[600];
    struct rlimit limit = {1 << 20, 1 << 20}; /* allowed to root, outside of some containers */
    load = (struct load){.members = 1000, .seconds = 10};
    for (int i = 1; i + 1 < argc; i += 2) {
        long n = strtol(argv[i + 1], NULL, 10);
        if (!strcmp(argv[i], "--members")) load.members = n;
        if (!strcmp(argv[i], "--seconds")) load.seconds = n;
        if (!strcmp(argv[i], "--wait-ms")) load.wait_ms = n;
    }
    if (load.members < 1 || load.members > MEMBERS_MAX || load.seconds < 1 || load.wait_ms < 0)
        return 2;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        fprintf(stderr, "bench_load: the hard limit of descriptors could not be raised; the "
                        "coordinator needs 4 a member\n");
    const char *root = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%.400s/fedlora-bench-XXXXXX", root ? root : "/tmp");
    if (!mkdtemp(dir)) return 1;
    err e = bench(dir);
    if (err_is(e)) fprintf(stderr, "bench_load: %s\n", e.text);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    if (!err_is(e) && system(command) != 0) fprintf(stderr, "%s stays\n", dir);
    return err_exit_code(e);
}
