#include "client/identity/renewal.h"

#include "base/text.h"
#include "base/version.h"
#include "client/identity/identity.h"
#include "fedlora.pb-c.h"
#include "proto/certificate.h"
#include "proto/message.h"
#include "proto/message_call.h"
#include "proto/rpc_path.h"

#include <sodium.h>
#include <string.h>

static int64_t now_s(void)
{
    return (int64_t)(text_wall_ms() / 1000);
}

/* Without the note, two thirds of the life, as for certificates that another tool has made. */
static int64_t time_of(const char *text, const struct certificate_issued *is)
{
    char note[IDENTITY_NOTE_BYTES];
    int64_t at = 0;
    if (identity_note(note, text, IDENTITY_NOTE_RENEW) &&
        !err_is(text_parse_int(&at, note, 0, INT64_MAX / 2)))
        return at;
    return is->begins_s + (is->ends_s - is->begins_s) / 3 * 2;
}

err renewal_read(struct renewal *out, const struct rpc_client_options *files)
{
    struct bytes text = {.max = IDENTITY_FILE_BYTES};
    struct certificate_issued is;
    struct renewal r = {.renewable = strcmp(files->cert, files->key) == 0};
    bool found = false;
    err e;
    TRY_OUT(e, identity_read(&text, &found, files->cert));
    if (!found || text.data == NULL) {
        e = err_make(ERR_INPUT, "%s: no such file, or empty", files->cert);
        goto out;
    }
    e = certificate_read(&is, (char *)text.data);
    if (!err_is(e)) e = certificate_identity(&r.self, (char *)text.data);
    if (err_is(e)) {
        e = err_in(e, "%s", files->cert);
        goto out;
    }
    r.begins_s = is.begins_s;
    r.ends_s = is.ends_s;
    r.at_s = time_of((char *)text.data, &is);
    *out = r;
out:
    if (text.data != NULL) sodium_memzero(text.data, text.capacity); /* it has the key too */
    bytes_close(&text);
    return e;
}

/* The call is made by the connection of the old certificate, which is the proof of identity. */
static err ask(Fedlora__V1__CertificateReply **reply, struct rpc_client *client,
               const struct bytes *request)
{
    static const struct message_method method = {RPC_PATH_ENROLMENT(renew),
                                                 &fedlora__v1__certificate_reply__descriptor};
    Fedlora__V1__RenewRequest message = FEDLORA__V1__RENEW_REQUEST__INIT;
    message.csr = (ProtobufCBinaryData){request->size, request->data};
    message.software = (char *)(uintptr_t)version_text();
    return message_call(reply, client, &method, &message.base, RENEWAL_CALL_MS);
}

/* The identity must be the same as before; identity_install() compares it with the certificate. */
static err install(struct renewal *out, const struct rpc_client_options *files,
                   struct identity_new *new, const Fedlora__V1__CertificateReply *reply)
{
    const struct identity_files to = {files->ca, files->cert};
    struct bytes ca = {.max = IDENTITY_FILE_BYTES}, chain = {.max = IDENTITY_FILE_BYTES};
    struct certificate_issued is;
    err e;
    TRY_OUT(e, bytes_append(&ca, reply->ca.data, reply->ca.len));
    TRY_OUT(e, bytes_append(&chain, reply->certificate.data, reply->certificate.len));
    new->ca = (char *)ca.data;
    new->chain = (char *)chain.data;
    new->renew_at = reply->renew_at > INT64_MAX / 2 ? 0 : (int64_t)reply->renew_at;
    TRY_OUT(e, certificate_read(&is, new->chain));
    struct renewal r = {.self = new->self, .begins_s = is.begins_s, .renewable = true};
    TRY_OUT(e, identity_install(&r.ends_s, &r.at_s, &to, new));
    *out = r;
out:
    bytes_close(&ca);
    bytes_close(&chain);
    return e;
}

err renewal_now(struct renewal *out, struct rpc_client *client,
                const struct rpc_client_options *files)
{
    struct bytes key = {.max = IDENTITY_FILE_BYTES}, request = {.max = CERTIFICATE_REQUEST_BYTES};
    Fedlora__V1__CertificateReply *reply = NULL;
    err e;
    REQUIRE(strcmp(files->cert, files->key) == 0);
    TRY_OUT(e, certificate_make_key(&key));
    TRY_OUT(e, certificate_make_request(&request, (char *)key.data));
    TRY_OUT(e, ask(&reply, client, &request));
    struct identity_new new = {.key = (char *)key.data, .self = *rpc_client_identity(client)};
    TRY_OUT(e, install(out, files, &new, reply));
out:
    message_free(reply);
    bytes_close(&request);
    if (key.data != NULL) sodium_memzero(key.data, key.capacity);
    bytes_close(&key);
    return e;
}

/* Commands of operators are short, so there is no later moment to renew at. */
void renewal_if_due(struct rpc_client *client, const struct rpc_client_options *files)
{
    struct renewal r;
    bool changed;
    err e = renewal_read(&r, files);
    if (err_is(e) || !r.renewable || now_s() < r.at_s) return;
    e = renewal_now(&r, client, files);
    if (!err_is(e)) e = rpc_client_reload(&changed, client);
    (void)e.kind;
}
