#include "client/identity/enroll.h"

#include "base/file.h"
#include "base/stop.h"
#include "base/text.h"
#include "base/version.h"
#include "fedlora.pb-c.h"
#include "proto/certificate.h"
#include "proto/message.h"
#include "proto/message_call.h"
#include "proto/rpc_path.h"
#include "proto/rpc_root.h"

#include <errno.h>
#include <limits.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Freed memory may be given out again or end in a core file. */
static void wipe(struct bytes *secret)
{
    if (secret->data != NULL) sodium_memzero(secret->data, secret->capacity);
    bytes_close(secret);
}

/* ---------------------------------------------------------------- the key */

/* The token itself is a secret until it is used, so only its digest is kept. */
static void note_of(char out[DIGEST_TEXT_BYTES], const struct enroll_token *token)
{
    struct digest digest = digest_of(token->secret, sizeof token->secret);
    digest_text(out, &digest);
}

/* Made for exactly this token. */
static bool is_for(const char *text, const char *token)
{
    char note[IDENTITY_NOTE_BYTES];
    return identity_note(note, text, IDENTITY_NOTE_TOKEN) && strcmp(note, token) == 0;
}

/* A key without an answer serves any request by mail, and a token unless it was made for another
 * one. A key whose request may be under way by mail is so never lost. */
static bool may_serve(const char *text, const char *token)
{
    char note[IDENTITY_NOTE_BYTES];
    return token == NULL || !identity_note(note, text, IDENTITY_NOTE_TOKEN) || is_for(text, token);
}

/* The key in the file, if it passes; *found is false otherwise. */
static err find_key(struct bytes *key, bool *found, const char *path,
                    bool (*passes)(const char *text, const char *token), const char *token)
{
    struct bytes text = {.max = IDENTITY_FILE_BYTES};
    err e = identity_read(&text, found, path);
    if (!err_is(e) && *found) *found = text.data != NULL && passes((char *)text.data, token);
    if (!err_is(e) && *found) {
        e = identity_key(key, (char *)text.data);
        if (err_is(e)) e = err_in(e, "%s", path);
    }
    wipe(&text);
    return e;
}

/* The file is durable before the request leaves, or a lost answer could not be asked for again. */
static err make_key(struct bytes *key, const char *path, const char *token)
{
    struct bytes text = {.max = IDENTITY_FILE_BYTES};
    err e;
    TRY_OUT(e, certificate_make_key(key));
    if (token != NULL) TRY_OUT(e, bytes_printf(&text, IDENTITY_NOTE_TOKEN ": %s\n", token));
    TRY_OUT(e, bytes_append(&text, key->data, key->size));
    TRY_OUT(e, identity_write(path, &text, /*secret*/ true));
out:
    wipe(&text);
    return e;
}

/* member.pem is asked too, because an answer may have been installed without its configuration. A
 * new token never gets the key of an old one. */
static err take_key(struct bytes *key, const struct identity_dir *d, const char *token)
{
    bool found = false;
    TRY(find_key(key, &found, d->pending, may_serve, token));
    if (!found && token != NULL) TRY(find_key(key, &found, d->member, is_for, token));
    return found ? ERR_NONE : make_key(key, d->pending, token);
}

/* ---------------------------------------------------------------- what is there already */

/* A folder has one identity. That of another member is replaced only if the user says so; its own
 * is replaced always, because an ended certificate is the usual reason to enrol again. */
static err check_replaced(const struct identity_dir *d, const struct rpc_peer *self, bool force)
{
    struct bytes text = {.max = IDENTITY_FILE_BYTES};
    struct rpc_peer old = {0};
    bool found = false;
    err e = identity_read(&text, &found, d->member);
    bool known = !err_is(e) && found && text.data != NULL &&
                 !err_is(certificate_identity(&old, (char *)text.data));
    wipe(&text);
    if (err_is(e) || !known || force) return e;
    bool same = strcmp(old.id, self->id) == 0 &&
                (self->federation[0] == 0 || strcmp(old.federation, self->federation) == 0);
    if (same) return ERR_NONE;
    return err_make(
        ERR_INPUT,
        "%s: this folder has the identity %s of federation %s, expected %s; use another "
        "--dir, or --force to replace it",
        d->member, old.id, old.federation, self->id);
}

/* An enrolment that was complete needs no second call, which the coordinator could refuse because
 * the token has ended meanwhile. */
static bool is_done(struct enroll_result *out, const struct identity_dir *d, const char *token)
{
    struct bytes text = {.max = IDENTITY_FILE_BYTES};
    struct certificate_issued is = {0};
    char note[IDENTITY_NOTE_BYTES];
    bool found = false;
    err e = identity_read(&text, &found, d->member);
    bool done = !err_is(e) && found && text.data != NULL && is_for((char *)text.data, token) &&
                !err_is(certificate_read(&is, (char *)text.data)) &&
                !err_is(certificate_identity(&out->self, (char *)text.data)) &&
                is.ends_s > (int64_t)(text_wall_ms() / 1000) && file_exists(d->ca) &&
                file_exists(d->config);
    if (done) {
        out->ends_s = is.ends_s;
        if (identity_note(note, (char *)text.data, IDENTITY_NOTE_RENEW))
            out->renew_s = strtoll(note, NULL, 10);
    }
    wipe(&text);
    return done;
}

/* ---------------------------------------------------------------- client.ini */

/* One key of [join], as an absolute path, because the service starts in another folder. */
static err write_path(struct bytes *text, const char *key, const char *path)
{
    char whole[PATH_MAX];
    if (!path) return bytes_printf(text, "# %s = PATH\n", key);
    if (!realpath(path, whole)) return err_sys(errno, "--%s %s", key, path);
    return bytes_printf(text, "%s = %s\n", key, whole);
}

/* The work directory is named where the packaged service runs, so that `fedlora runs` of another
 * user finds it. */
static err write_join(struct bytes *text, const struct identity_dir *d,
                      const struct enroll_join *join)
{
    TRY(bytes_printf(text, "\n[join]\n"));
    TRY(write_path(text, "base", join->base));
    TRY(write_path(text, "data", join->data));
    if (strcmp(d->dir, IDENTITY_DIR) != 0) return ERR_NONE;
    return bytes_printf(text, "work = %s\n", IDENTITY_WORK);
}

/* An operator's own settings are worth more than an address that may have changed, so a file that
 * is there is kept. It is written before the certificate: is_done() must not find an identity
 * without its configuration. */
static err write_config(struct enroll_result *out, const char *server,
                        const struct enroll_join *join)
{
    const struct identity_dir *d = &out->dir;
    struct bytes text = {.max = IDENTITY_FILE_BYTES};
    err e;
    if (file_exists(d->config)) return ERR_NONE;
    TRY_OUT(e,
            bytes_printf(&text,
                         "# Made by `fedlora enroll` for %s of federation %s. All commands read "
                         "this file.\n\n[server]\n%saddress = %s\nca = %s\ncert = %s\nkey = %s\n",
                         out->self.id, out->self.federation, server ? "" : "# ",
                         server ? server : "HOST:PORT", d->ca, d->member, d->member));
    if (out->self.role == RPC_CLIENT) TRY_OUT(e, write_join(&text, d, join));
    TRY_OUT(e, identity_write(d->config, &text, /*secret*/ false));
    out->wrote_config = true;
out:
    bytes_close(&text);
    return e;
}

/* ---------------------------------------------------------------- by a token */

/* Two connections: the first finds the root and sends nothing, the second one trusts only it. */
static err call(Fedlora__V1__CertificateReply **reply, const struct enroll_token *token,
                const struct bytes *request)
{
    static const struct message_method method = {RPC_PATH_ENROLMENT(enroll),
                                                 &fedlora__v1__certificate_reply__descriptor};
    Fedlora__V1__EnrollRequest message = FEDLORA__V1__ENROLL_REQUEST__INIT;
    struct bytes root = {.max = IDENTITY_FILE_BYTES};
    struct rpc_client *client = NULL;
    err e;
    message.id = (char *)(uintptr_t)token->id;
    message.secret =
        (ProtobufCBinaryData){sizeof token->secret, (uint8_t *)(uintptr_t)token->secret};
    message.csr = (ProtobufCBinaryData){request->size, request->data};
    message.software = (char *)(uintptr_t)version_text();
    TRY_OUT(e, rpc_root_find(&root, token->server, &token->ca));
    const struct rpc_client_options options = {
        .server = token->server, .root = (const char *)root.data, .stop = &stop_asked};
    TRY_OUT(e, rpc_client_open(&client, &options));
    e = message_call(reply, client, &method, &message.base, ENROLL_CALL_MS);
    if (err_is(e)) e = err_in(e, "%s", token->server);
out:
    rpc_client_close(client);
    bytes_close(&root);
    return e;
}

/* The address of the main service; it may be left out if it has the host of the call. */
static err main_server(char out[ENROLL_SERVER_BYTES], const struct enroll_token *token,
                       const Fedlora__V1__CertificateReply *reply)
{
    err e = *reply->server ? enroll_token_check_server(reply->server) : ERR_NONE;
    if (err_is(e) || strlen(reply->server) >= ENROLL_SERVER_BYTES)
        return err_make(ERR_INPUT, "%s: the answer names no usable address of the service",
                        token->server);
    snprintf(out, ENROLL_SERVER_BYTES, "%s", *reply->server ? reply->server : token->server);
    return ERR_NONE;
}

/* The roots that the answer brings must contain the one that the token names. */
static err take_reply(struct enroll_result *out, const struct enroll_by *by,
                      struct identity_new *new, const Fedlora__V1__CertificateReply *reply)
{
    const struct enroll_token *token = by->token;
    struct bytes ca = {.max = IDENTITY_FILE_BYTES}, chain = {.max = IDENTITY_FILE_BYTES},
                 root = {.max = IDENTITY_FILE_BYTES};
    const struct identity_files files = {out->dir.ca, out->dir.member};
    char server[ENROLL_SERVER_BYTES];
    err e;
    TRY_OUT(e, main_server(server, token, reply));
    TRY_OUT(e, bytes_append(&ca, reply->ca.data, reply->ca.len));
    TRY_OUT(e, bytes_append(&chain, reply->certificate.data, reply->certificate.len));
    new->ca = (const char *)ca.data;
    new->chain = (const char *)chain.data;
    TRY_OUT(e, rpc_root_in(&root, new->ca, &token->ca));
    TRY_OUT(e, certificate_identity(&new->self, new->chain));
    if (strcmp(new->self.id, token->id) != 0) {
        e = err_make(ERR_INPUT, "%s: the certificate is for %s, expected %s", token->server,
                     new->self.id, token->id);
        goto out;
    }
    /* From here on the files change; the certificate comes last. */
    new->renew_at = reply->renew_at > INT64_MAX ? 0 : (int64_t)reply->renew_at;
    out->self = new->self;
    TRY_OUT(e, check_replaced(&out->dir, &new->self, by->force));
    TRY_OUT(e, write_config(out, server, &by->join));
    TRY_OUT(e, identity_install(&out->ends_s, &out->renew_s, &files, new));
out:
    bytes_close(&ca);
    bytes_close(&chain);
    bytes_close(&root);
    return e;
}

/* The pending key is deleted only when it is in member.pem. */
err enroll_by_token(struct enroll_result *out, const char *dir, const struct enroll_by *by)
{
    const struct enroll_token *token = by->token;
    struct enroll_result result = {0};
    struct rpc_peer self = {0};
    struct bytes key = {.max = IDENTITY_FILE_BYTES}, request = {.max = CERTIFICATE_REQUEST_BYTES};
    Fedlora__V1__CertificateReply *reply = NULL;
    char note[DIGEST_TEXT_BYTES];
    err e;
    note_of(note, token);
    snprintf(self.id, sizeof self.id, "%s", token->id);
    TRY_OUT(e, identity_dir_open(&result.dir, dir));
    result.was_done = is_done(&result, &result.dir, note);
    if (result.was_done) goto done;
    TRY_OUT(e, check_replaced(&result.dir, &self, by->force));
    TRY_OUT(e, take_key(&key, &result.dir, note));
    TRY_OUT(e, certificate_make_request(&request, (char *)key.data));
    TRY_OUT(e, call(&reply, token, &request));
    struct identity_new new = {.key = (char *)key.data, .token = note};
    TRY_OUT(e, take_reply(&result, by, &new, reply));
    (void)file_disk.unlink(result.dir.pending);
done:
    *out = result;
out:
    message_free(reply);
    bytes_close(&request);
    wipe(&key);
    return e;
}

/* ---------------------------------------------------------------- by files */

err enroll_request(struct digest *key, const char *dir, const char *path, bool force)
{
    struct identity_dir d;
    struct bytes secret = {.max = IDENTITY_FILE_BYTES}, der = {.max = CERTIFICATE_REQUEST_BYTES},
                 pem = {.max = IDENTITY_FILE_BYTES};
    err e;
    TRY_OUT(e, identity_dir_open(&d, dir));
    TRY_OUT(e, take_key(&secret, &d, NULL));
    TRY_OUT(e, certificate_make_request(&der, (char *)secret.data));
    TRY_OUT(e, certificate_request_pem(&pem, der.data, der.size));
    TRY_OUT(e, file_write(path, pem.data, pem.size, force));
    e = certificate_request_key(key, der.data, der.size);
out:
    wipe(&secret);
    bytes_close(&der);
    bytes_close(&pem);
    return e;
}

/* The file came by a way that proves nothing, so all trust in it comes from the hash: only the root
 * with it is kept, and the certificate must lead to that root. */
err enroll_accept(struct enroll_result *out, const char *dir, const struct enroll_answer *answer)
{
    struct enroll_result result = {0};
    struct bytes key = {.max = IDENTITY_FILE_BYTES}, text = {.max = IDENTITY_FILE_BYTES},
                 root = {.max = IDENTITY_FILE_BYTES};
    char note[IDENTITY_NOTE_BYTES];
    struct identity_new new = {0};
    bool found = false, waits = false;
    err e;
    TRY_OUT(e, identity_dir_open(&result.dir, dir));
    const struct identity_files files = {result.dir.ca, result.dir.member};
    TRY_OUT(e, find_key(&key, &waits, result.dir.pending, may_serve, NULL));
    TRY_OUT(e, identity_read(&text, &found, answer->path));
    if (!waits || !found || text.size == 0) {
        e = err_make(ERR_INPUT, "%s: no such file%s", waits ? answer->path : result.dir.pending,
                     waits ? "" : "; make the key and the request first: fedlora enroll --request");
        goto out;
    }
    new.key = (char *)key.data;
    new.chain = (char *)text.data;
    err why = rpc_root_in(&root, new.chain, &answer->ca);
    if (!err_is(why)) why = certificate_identity(&new.self, new.chain);
    if (err_is(why)) {
        e = err_in(why, "%s", answer->path);
        goto out;
    }
    new.ca = (char *)root.data;
    result.self = new.self;
    const char *server = answer->server;
    if (server != NULL) TRY_OUT(e, enroll_token_check_server(server));
    /* The note is as good as the mail. The authority decides whether its host is trusted. */
    if (server == NULL && identity_note(note, new.chain, IDENTITY_NOTE_SERVER) &&
        !err_is(enroll_token_check_server(note)))
        server = note;
    TRY_OUT(e, check_replaced(&result.dir, &new.self, answer->force));
    TRY_OUT(e, write_config(&result, server, &answer->join));
    TRY_OUT(e, identity_install(&result.ends_s, &result.renew_s, &files, &new));
    (void)file_disk.unlink(result.dir.pending);
    *out = result;
out:
    wipe(&key);
    bytes_close(&text);
    bytes_close(&root);
    return e;
}
