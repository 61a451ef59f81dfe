/* Renewals against a server that signs with the fixture's authority. The `openssl` command compares
 * keys. */
#include "client/identity/renewal.h"

#include "base/file.h"
#include "client/identity/identity.h"
#include "client/identity/renewer.h"
#include "fedlora.pb-c.h"
#include "proto/certificate.h"
#include "proto/message.h"
#include "proto/rpc_path.h"
#include "tests/support/rpc_fixture.h"
#include "tests/support/support.h"

static char dir[SUPPORT_PATH_BYTES], member[SUPPORT_PATH_BYTES + 16], ca[SUPPORT_PATH_BYTES + 16];

/* How the server answers. */
static struct {
    const char *id; /* of the certificate */
    int64_t life_s, renew_s;
    bool other_key, refuses;
    atomic_int renewed;
} says;

static char *read_file(const char *path)
{
    char *text = NULL;
    size_t size = 0;
    ok(file_read_all(&text, &size, path, 1 << 16));
    return text;
}

static void sign(struct bytes *chain, const void *request, size_t size)
{
    char *cert = read_file(FIXTURE_CERTS "/ca.pem"), *key = read_file(FIXTURE_CERTS "/ca.key");
    struct certificate_issued issued;
    const struct certificate_authority issuer = {cert, key};
    const struct certificate_order order = {.request = request,
                                            .request_size = size,
                                            .federation = "fed",
                                            .id = says.id,
                                            .role = RPC_CLIENT,
                                            .life_s = says.life_s};
    ok(certificate_sign(chain, &issued, &issuer, &order));
    free(cert);
    free(key);
}

static void on_renew(struct rpc_call *call, const void *message, size_t size)
{
    Fedlora__V1__RenewRequest *request = NULL;
    Fedlora__V1__CertificateReply reply = FEDLORA__V1__CERTIFICATE_REPLY__INIT;
    struct bytes chain = {.max = 1 << 16}, key = {.max = 4096}, csr = {.max = 8192},
                 packed = {.max = 1 << 16};
    if (says.refuses) {
        rpc_call_refuse(call, err_make(ERR_REFUSED, "north is revoked"));
        return;
    }
    ok(message_unpack(&request, &fedlora__v1__renew_request__descriptor, message, size));
    if (says.other_key) {
        ok(certificate_make_key(&key));
        ok(certificate_make_request(&csr, (char *)key.data));
    } else {
        ok(bytes_append(&csr, request->csr.data, request->csr.len));
    }
    sign(&chain, csr.data, csr.size);
    char *root = read_file(FIXTURE_CERTS "/ca.pem");
    reply.certificate = (ProtobufCBinaryData){chain.size, chain.data};
    reply.ca = (ProtobufCBinaryData){strlen(root), (uint8_t *)root};
    reply.renew_at = (uint64_t)((int64_t)(text_wall_ms() / 1000) + says.renew_s);
    ok(message_pack(&packed, &reply.base));
    rpc_call_answer(call, packed.data, packed.size);
    atomic_fetch_add(&says.renewed, 1);
    free(root);
    message_free(request);
    bytes_close(&chain);
    bytes_close(&key);
    bytes_close(&csr);
    bytes_close(&packed);
}

/* member.pem of north, which ends after life_s and is due after renew_s. */
static void enrol(int64_t life_s, int64_t renew_s)
{
    struct bytes key = {.max = 4096}, csr = {.max = 8192}, chain = {.max = 1 << 16};
    int64_t ends, renews;
    const struct identity_files files = {ca, member};
    char *root = read_file(FIXTURE_CERTS "/ca.pem");
    says.life_s = life_s;
    ok(certificate_make_key(&key));
    ok(certificate_make_request(&csr, (char *)key.data));
    sign(&chain, csr.data, csr.size);
    struct identity_new new = {.key = (char *)key.data,
                               .chain = (char *)chain.data,
                               .ca = root,
                               .renew_at = (int64_t)(text_wall_ms() / 1000) + renew_s,
                               .self = {.role = RPC_CLIENT, .federation = "fed", .id = "north"}};
    ok(identity_install(&ends, &renews, &files, &new));
    free(root);
    bytes_close(&key);
    bytes_close(&csr);
    bytes_close(&chain);
}

static void begin(struct fixture *f)
{
    static struct rpc_method methods[2];
    fixture_certs();
    support_dir_make(dir);
    snprintf(member, sizeof member, "%s/member.pem", dir);
    snprintf(ca, sizeof ca, "%s/ca.pem", dir);
    says.id = "north";
    says.life_s = 1000;
    says.renew_s = 600;
    struct rpc_server_options options = fixture_server_options(f, "localhost:0");
    methods[0] = (struct rpc_method){.path = RPC_PATH_ENROLMENT(renew),
                                     .shape = RPC_UNARY,
                                     .roles = RPC_CLIENT,
                                     .begin = on_renew};
    methods[1] = (struct rpc_method){
        .path = "/test.T/Echo", .shape = RPC_UNARY, .roles = RPC_CLIENT, .begin = fixture_echo};
    options.method = methods;
    options.method_count = 2;
    fixture_serve(f, &options);
}

static void end(struct fixture *f)
{
    fixture_stop(f);
    support_dir_remove(dir);
}

static struct rpc_client_options files_of(const struct fixture *f)
{
    return (struct rpc_client_options){
        .server = f->address, .ca = ca, .cert = member, .key = member};
}

static void public_key(char out[512])
{
    char command[2 * sizeof member + 300];
    snprintf(command, sizeof command,
             "openssl x509 -in %s -pubkey -noout | tr -d '\\n' && openssl pkey -in %s -pubout | tr "
             "-d '\\n'",
             member, member);
    FILE *pipe = popen(command, "r");
    cr_assert(pipe != NULL && fgets(out, 512, pipe) != NULL);
    pclose(pipe);
    size_t half = strlen(out) / 2;
    cr_assert(strncmp(out, out + half, half) == 0, "certificate and key are a pair");
    out[half] = 0;
}

Test(renewal, gives_a_new_key_in_one_file_that_connections_then_use)
{
    struct fixture f = {0};
    struct rpc_client *client = NULL;
    struct renewal is;
    struct bytes reply = {.max = 200};
    char before[512], after[512];
    bool changed = false;
    begin(&f);
    enrol(1000, 600);
    public_key(before);
    const struct rpc_client_options files = files_of(&f);
    ok(rpc_client_open(&client, &files));
    ok(renewal_now(&is, client, &files));
    cr_expect(is.renewable && strcmp(is.self.id, "north") == 0);
    public_key(after);
    cr_expect_str_neq(before, after);
    ok(rpc_client_reload(&changed, client));
    cr_expect(changed);
    ok(fixture_call(client, "/test.T/Echo", "x", &reply));
    struct renewal read;
    ok(renewal_read(&read, &files));
    cr_expect_eq(read.at_s, is.at_s);
    cr_expect_eq(read.ends_s, is.ends_s);
    rpc_client_close(client);
    bytes_close(&reply);
    end(&f);
}

Test(renewal, refuses_answers_for_another_key_or_member_and_keeps_the_file)
{
    struct fixture f = {0};
    struct rpc_client *client = NULL;
    struct renewal is;
    char before[512], after[512];
    begin(&f);
    enrol(1000, 600);
    public_key(before);
    const struct rpc_client_options files = files_of(&f);
    ok(rpc_client_open(&client, &files));
    says.other_key = true;
    refused(renewal_now(&is, client, &files), ERR_MACHINE, "the new certificate");
    says.other_key = false;
    says.id = "south";
    refused(renewal_now(&is, client, &files), ERR_MACHINE, "the new certificate");
    says.refuses = true;
    refused(renewal_now(&is, client, &files), ERR_REFUSED, "north is revoked");
    public_key(after);
    cr_expect_str_eq(before, after);
    rpc_client_close(client);
    end(&f);
}

Test(renewal, is_made_by_commands_only_when_it_is_due)
{
    struct fixture f = {0};
    struct rpc_client *client = NULL;
    begin(&f);
    enrol(1000, 600);
    struct rpc_client_options files = files_of(&f);
    ok(rpc_client_open(&client, &files));
    renewal_if_due(client, &files);
    cr_expect_eq(atomic_load(&says.renewed), 0);
    enrol(1000, -1);
    files.key = "/elsewhere/north.key"; /* in two files: no rename can replace both */
    renewal_if_due(client, &files);
    cr_expect_eq(atomic_load(&says.renewed), 0);
    files.key = member;
    renewal_if_due(client, &files);
    cr_expect_eq(atomic_load(&says.renewed), 1);
    renewal_if_due(client, &files);
    cr_expect_eq(atomic_load(&says.renewed), 1);
    rpc_client_close(client);
    end(&f);
}

/* Lives of 8 s, renewed after 1 s, while calls go on without a pause. */
Test(renewal, goes_on_in_a_thread_while_calls_are_made, .timeout = 120)
{
    struct fixture f = {0};
    struct rpc_client *client = NULL;
    struct renewer *renewer = NULL;
    struct bytes reply = {.max = 200};
    begin(&f);
    enrol(8, 0);
    says.life_s = 8;
    says.renew_s = 1;
    const struct rpc_client_options files = files_of(&f);
    const struct renewer_options options = {files, .quiet = true};
    ok(rpc_client_open(&client, &files));
    ok(renewer_open(&renewer, &options));
    for (int i = 0; i < 4000 && atomic_load(&says.renewed) < 4; i++) {
        bool changed;
        bytes_clear(&reply);
        ok(rpc_client_reload(&changed, client)); /* never half a file */
        ok(fixture_call(client, "/test.T/Echo", "x", &reply));
        usleep(10000);
    }
    cr_expect_geq(atomic_load(&says.renewed), 4);
    renewer_close(renewer);
    rpc_client_close(client);
    bytes_close(&reply);
    end(&f);
}

Test(renewal, waits_longer_the_more_time_is_left)
{
    cr_expect_eq(renewer_pause_ms(-5), 1000);
    cr_expect_eq(renewer_pause_ms(10), 1000);
    cr_expect_eq(renewer_pause_ms(600), 60000);
    cr_expect_eq(renewer_pause_ms(10 * 24 * 3600), 3600000);
    cr_expect_eq(renewer_pause_ms(INT64_MAX / 1000), 3600000);
}

Test(renewal, closes_while_nothing_is_due_or_readable)
{
    struct fixture f = {0};
    struct renewer *renewer = NULL;
    begin(&f);
    const struct renewer_options options = {files_of(&f), .quiet = true};
    ok(renewer_open(&renewer, &options)); /* there is no file */
    renewer_close(renewer);
    enrol(1000, 600);
    ok(renewer_open(&renewer, &options));
    renewer_close(renewer);
    cr_expect_eq(atomic_load(&says.renewed), 0);
    end(&f);
}
