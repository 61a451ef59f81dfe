/* Certificates: for a token (Enroll), for a certificate that ends soon (Renew), and for an operator
 * who brings a request by hand (SignIdentity). All three give a job to the signer, and finish in
 * `done` when it comes back. A client that has left by then loses nothing: the certificate is
 * recorded, and the same token and key get it again. */
#include "base/file.h"
#include "base/text.h"
#include "coordinator/serve/serve.h"
#include "coordinator/serve/signer.h"
#include "proto/message.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    ENROLL_TRIES = 5, /* in a minute, of one address */
    ENROLL_ADDRESSES_MAX = 4096,
    RENEW_TRIES = 10, /* in a minute, of one identity, after a burst of */
    RENEW_BURST = 30,
    CA_BYTES_MAX = 1 << 20,
    KEY_DIGITS = 16, /* of a key's digest, in texts for people */
    JITTER = 20,     /* renewals are spread over 1/20 of the life */
};

enum purpose { FOR_TOKEN, FOR_RENEWAL, FOR_OPERATOR };

struct enrolment {
    struct signer_job signer; /* the first member */
    struct serve *serve;
    struct rpc_call *call; /* NULL: it is over */
    struct rpc_peer peer;
    enum purpose purpose;
    struct digest secret; /* of the token */
    char software[SERVE_SOFTWARE_BYTES], server[ENROLL_SERVER_BYTES];
};

/* Tries of strangers and renewals of members have limits of their own, because the general limit of
 * calls is far too high for work that signs and writes. The signer has a thread, so that a slow
 * authority never delays a round. */
err serve_enroll_open(struct serve *s)
{
    const struct rate_rules tries = {.per_second = ENROLL_TRIES / 60.0,
                                     .burst = ENROLL_TRIES,
                                     .names_max = ENROLL_ADDRESSES_MAX};
    const struct rate_rules renewals = {
        .per_second = RENEW_TRIES / 60.0, .burst = RENEW_BURST, .names_max = 2 * LIMIT_MEMBERS};
    const struct work_options options = {
        .place = run_shop_place(s->config), .wake = s->shop.wake, .context = s};
    TRY(rate_open(&s->enroll_rate, &tries));
    TRY(rate_open(&s->renew_rate, &renewals));
    return signer_open(&s->signer, &options);
}

void serve_enroll_close(struct serve *s)
{
    rate_close(&s->enroll_rate);
    rate_close(&s->renew_rate);
}

/* ---- answers ---- */

/* HOST:PORT of the main service for the configuration of the new member. The host is that by which
 * the institution reaches enrolment, unless the operator says otherwise. */
static void main_server(char out[ENROLL_SERVER_BYTES], const struct serve *s, const char *enroll)
{
    const char *address = s->config->address, *colon = strrchr(enroll, ':');
    if (address)
        snprintf(out, ENROLL_SERVER_BYTES, "%s", address);
    else if (colon)
        snprintf(out, ENROLL_SERVER_BYTES, "%.*s:%d", (int)(colon - enroll), enroll,
                 rpc_server_port(s->server));
    else
        *out = 0;
}

static uint64_t renew_at(int64_t ends_s)
{
    int64_t now = (int64_t)(text_wall_ms() / 1000), left = ends_s > now ? ends_s - now : 0;
    int64_t spread = left / JITTER;
    uint32_t early = spread > 0 ? randombytes_uniform((uint32_t)spread + 1) : 0;
    return (uint64_t)(now + left * 2 / 3 - early);
}

struct answer {
    const char *chain, *id, *server;
    enum rpc_role role;
};

/* The roots are read for each answer, so that a federation that is changing its root hands out both
 * as soon as the file has them. */
static void answer(struct rpc_call *call, const struct answer *a)
{
    struct serve *s = serve_of(call);
    Fedlora__V1__CertificateReply reply = FEDLORA__V1__CERTIFICATE_REPLY__INIT;
    struct certificate_issued issued;
    char *ca = NULL;
    size_t size = 0;
    err e = certificate_read(&issued, a->chain);
    if (!err_is(e)) e = file_read_all(&ca, &size, s->config->ca, CA_BYTES_MAX);
    if (err_is(e)) {
        serve_refuse(call, e);
        return;
    }
    reply.certificate.data = (uint8_t *)(uintptr_t)a->chain;
    reply.certificate.len = strlen(a->chain);
    reply.ca.data = (uint8_t *)ca;
    reply.ca.len = size;
    reply.not_after = (uint64_t)issued.ends_s;
    reply.renew_at = renew_at(issued.ends_s);
    reply.federation = (char *)(uintptr_t)s->config->federation;
    reply.id = (char *)(uintptr_t)a->id;
    reply.role = (char *)(uintptr_t)rpc_role_name(a->role);
    reply.server = (char *)(uintptr_t)a->server;
    serve_answer(call, &reply.base);
    free(ca);
}

/* The peer may have left while its job was in the signer's queue. */
static void refuse(struct rpc_call *call, err e)
{
    if (call) serve_refuse(call, e);
}

/* ---- tokens ---- */

/* Enough digits to compare two keys by eye, and few enough to read them out on the telephone. */
static void key_text(char out[KEY_DIGITS + 1], const struct digest *key)
{
    char all[DIGEST_TEXT_BYTES];
    digest_text(all, key);
    snprintf(out, KEY_DIGITS + 1, "%.*s", KEY_DIGITS, all);
}

/* UTC, because an institution may be in another zone than the coordinator. */
static void time_text(char out[32], uint64_t wall_ms)
{
    time_t seconds = (time_t)(wall_ms / 1000);
    struct tm tm;
    if (!gmtime_r(&seconds, &tm) || strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0) *out = 0;
}

/* Both keys are named, so that the institution can compare its own key with them: if neither is its
 * own, somebody else has seen the token. */
static err was_used(const struct store_token *t, const struct digest *key)
{
    char used[KEY_DIGITS + 1], asks[KEY_DIGITS + 1], when[32];
    key_text(used, &t->used_key);
    key_text(asks, key);
    time_text(when, t->used_ms);
    return err_make(ERR_REFUSED,
                    "this token of %s was used at %s from %s for key %s; this request is for key "
                    "%s: ask the operator whether that was you, and for a new token",
                    t->who.id, when, t->used_from, used, asks);
}

/* *again: the same key gets the same certificate, because the first answer may have been lost. */
static err check_token(bool *again, const struct store_token *t, bool found, const char *id,
                       const struct digest *key)
{
    uint64_t now = text_wall_ms();
    char when[32];
    *again = false;
    if (!found)
        return err_make(ERR_REFUSED,
                        "this token is not known here; ask the operator for a new one");
    if (strcmp(t->who.id, id) != 0)
        return err_make(ERR_REFUSED, "this token is for %s, not for %s", t->who.id, id);
    if (t->revoked_ms)
        return err_make(ERR_REFUSED, "this token of %s was revoked by an operator", id);
    time_text(when, t->ends_ms);
    if (now >= t->ends_ms)
        return err_make(ERR_REFUSED, "this token of %s ended at %s; ask the operator for a new one",
                        id, when);
    if (!t->used_ms) return ERR_NONE;
    if (!digest_equal(&t->used_key, key) || !*t->chain) return was_used(t, key);
    *again = true;
    return ERR_NONE;
}

/* Finds the token and judges the request. *again: it was answered with token->chain before. */
static err find_token(bool *again, struct store_token *t, struct enrolment *n,
                      const struct digest *key, struct arena *arena)
{
    enum rpc_role role;
    struct store_who who;
    bool found = false;
    TRY(store_token_find(&found, t, n->serve->shop.store, &n->secret, arena));
    TRY(check_token(again, t, found, n->signer.id, key));
    TRY(serve_identity_who(&who, &role, t->who.role, t->who.id));
    n->signer.role = role;
    main_server(n->server, n->serve, t->server);
    return ERR_NONE;
}

/* Texts of the row point into the job, which outlives the transaction. */
static struct store_certificate as_row(const struct enrolment *n, const char *how)
{
    const struct certificate_issued *c = &n->signer.issued;
    return (struct store_certificate){.who = {rpc_role_name(n->signer.role), n->signer.id},
                                      .serial = c->serial,
                                      .how = how,
                                      .key = c->key,
                                      .begins_s = c->begins_s,
                                      .ends_s = c->ends_s};
}

/* One line a certificate, with all that an auditor needs to find it again: serial, end, key. */
static void record(struct enrolment *n, const char *action, const char *how)
{
    char key[KEY_DIGITS + 1];
    const struct certificate_issued *c = &n->signer.issued;
    key_text(key, &c->key);
    SERVE_RECORD(n->serve, &n->peer, action, n->signer.id, "ok",
                 LOG_STR("role", rpc_role_name(n->signer.role)), LOG_STR("how", how),
                 LOG_STR("serial", c->serial), LOG_INT("ends", c->ends_s), LOG_STR("key", key),
                 LOG_STR("software", n->software));
}

/* ---- the signer's results ---- */

/* The token may have been used by another call since it was checked; then the first one counts. */
static err finish_token(const char **chain, struct enrolment *n, struct arena *arena)
{
    struct store_certificate row = as_row(n, "enrolled");
    struct store_token t = {0};
    bool again = false;
    TRY(find_token(&again, &t, n, &row.key, arena));
    *chain = again ? t.chain : (const char *)n->signer.chain.data;
    if (again) return ERR_NONE;
    TRY(store_token_use(n->serve->shop.store, &t, *chain, &row, n->peer.address, text_wall_ms()));
    SERVE_RECORD(n->serve, &n->peer, "token.used", n->signer.id, "ok", LOG_STR("role", t.who.role),
                 LOG_STR("made_by", t.made_by));
    record(n, "certificate.issued", row.how);
    TRY(serve_identity_load(n->serve));
    struct rpc_peer owner = {.role = n->signer.role};
    snprintf(owner.id, sizeof owner.id, "%s", n->signer.id);
    serve_identity_software(n->serve, &owner, n->software);
    return ERR_NONE;
}

/* The owner may have been revoked meanwhile, which the store notices, or the certificate that is
 * renewed. */
static err finish_other(const char **chain, struct enrolment *n)
{
    bool renewal = n->purpose == FOR_RENEWAL;
    const char *how = renewal ? "renewed" : "signed";
    struct store_certificate row = as_row(n, how);
    char by[TROUBLE_PEER_BYTES];
    const struct store_act act = {serve_peer_name(by, &n->peer), text_wall_ms()};
    if (renewal) TRY(serve_identity_check(n->serve, &n->peer));
    TRY(store_certificate_add(n->serve->shop.store, &row, &act));
    record(n, renewal ? "certificate.renewed" : "certificate.issued", how);
    *chain = (const char *)n->signer.chain.data;
    if (!renewal) return serve_identity_load(n->serve);
    /* A renewal changes no right of its owner, so the lists need not be loaded again. */
    struct rpc_peer renewed = n->peer;
    renewed.ends_s = row.ends_s;
    serve_identity_seen(n->serve, &renewed);
    return ERR_NONE;
}

/* A refused token may be a guess or a theft, so it is in the audit log with its address. */
static void record_refusal(struct enrolment *n, err e)
{
    const char *action = n->purpose == FOR_TOKEN ? "token.refused" : "certificate.refused";
    SERVE_RECORD(n->serve, &n->peer, action, n->signer.id, "refused", LOG_STR("reason", e.text));
}

/* Runs in the loop thread. The call may have ended while the signer was at work; its result is
 * recorded all the same. */
static void done(struct work_job *job)
{
    struct enrolment *n = (struct enrolment *)job;
    struct arena arena = {0};
    const char *chain = NULL;
    err e = job->result;
    if (!err_is(e))
        e = n->purpose == FOR_TOKEN ? finish_token(&chain, n, &arena) : finish_other(&chain, n);
    if (err_is(e)) {
        record_refusal(n, e);
        refuse(n->call, e);
    } else if (n->call) {
        answer(n->call, &(struct answer){chain, n->signer.id, n->server, n->signer.role});
    }
    if (n->call) rpc_call_set_state(n->call, NULL);
    arena_close(&arena);
    bytes_close(&n->signer.chain);
    free(n);
}

/* The job stays with the signer. Without a call its result is only recorded. */
static void over(struct rpc_call *call, bool answered)
{
    struct enrolment *n = rpc_call_state(call);
    (void)answered;
    if (n) n->call = NULL;
}

/* ---- the calls ---- */

/* Everything that `done` needs is copied, because the peer and its message are gone by then. */
static err begin(struct enrolment **out, struct rpc_call *call, enum purpose purpose)
{
    struct serve *s = serve_of(call);
    struct enrolment *n = calloc(1, sizeof *n);
    if (!n) return err_sys(ENOMEM, "a certificate");
    n->serve = s;
    n->call = call;
    n->peer = *rpc_call_peer(call);
    n->purpose = purpose;
    n->signer.config = s->config;
    n->signer.job.done = done;
    n->signer.job.lane = purpose == FOR_TOKEN ? s : NULL; /* strangers do not delay renewals */
    *out = n;
    return ERR_NONE;
}

/* Checked here, in the loop thread, so that a request that cannot be signed costs the signer
 * nothing. */
static err take_request(struct enrolment *n, const ProtobufCBinaryData *csr, struct digest *key)
{
    TRY(certificate_request_key(key, csr->data, csr->len));
    memcpy(n->signer.request, csr->data, csr->len);
    n->signer.request_size = csr->len;
    return ERR_NONE;
}

/* On success the job is the signer's. */
static err push(struct enrolment *n)
{
    TRY(signer_check(n->serve->config));
    TRY(work_push(n->serve->signer, &n->signer.job));
    rpc_call_set_state(n->call, n);
    return ERR_NONE;
}

/* Before the signer has the job. */
static void give_up(struct enrolment *n, struct rpc_call *call, err e)
{
    if (n) record_refusal(n, e);
    refuse(call, e);
    free(n);
}

/* The network of an IPv6 address, because one host has 2^64 of them. */
static void network_of(char out[RPC_ADDRESS_BYTES], const char *address)
{
    struct in6_addr six;
    snprintf(out, RPC_ADDRESS_BYTES, "%s", address);
    if (inet_pton(AF_INET6, address, &six) != 1) return;
    memset(six.s6_addr + 8, 0, 8);
    (void)inet_ntop(AF_INET6, &six, out, RPC_ADDRESS_BYTES);
}

/* Before the message is read, so that wrong tokens are as cheap as possible. */
static err limit_tries(struct serve *s, const struct rpc_peer *peer)
{
    char network[RPC_ADDRESS_BYTES];
    network_of(network, peer->address);
    if (!err_is(rate_take(&s->enroll_rate, network, text_now_ms()))) return ERR_NONE;
    return err_make(ERR_LIMIT, "%s has tried to enrol %d times within a minute; wait a minute",
                    peer->address, ENROLL_TRIES);
}

/* *answered: this token gave a certificate to the same key before, and the answer was repeated. */
static err enroll(struct enrolment *n, const Fedlora__V1__EnrollRequest *request, bool *answered)
{
    struct arena arena = {0};
    struct store_token t = {0};
    struct digest key;
    if (!text_is_name(request->id, LIMIT_NAME_BYTES - 1))
        return err_make(ERR_INPUT, "id: \"%.80s\" is not a name", request->id);
    snprintf(n->signer.id, sizeof n->signer.id, "%s", request->id);
    snprintf(n->software, sizeof n->software, "%.*s", SERVE_SOFTWARE_BYTES - 1, request->software);
    text_tame(n->software);
    if (request->secret.len != ENROLL_SECRET_BYTES)
        return err_make(ERR_INPUT, "secret: %zu bytes, expected %d", request->secret.len,
                        ENROLL_SECRET_BYTES);
    n->secret = digest_of(request->secret.data, request->secret.len);
    TRY(take_request(n, &request->csr, &key));
    err e = find_token(answered, &t, n, &key, &arena);
    if (!err_is(e) && *answered)
        answer(n->call, &(struct answer){t.chain, n->signer.id, n->server, n->signer.role});
    else if (!err_is(e))
        e = push(n);
    arena_close(&arena);
    return e;
}

static void enroll_begin(struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__EnrollRequest *request = NULL;
    struct enrolment *n = NULL;
    bool answered = false;
    err e = limit_tries(serve_of(call), rpc_call_peer(call));
    if (!err_is(e))
        e = message_unpack_few(&request, &fedlora__v1__enroll_request__descriptor, data, size,
                               MESSAGE_FEW);
    if (!err_is(e)) e = serve_audit_ready(call);
    if (!err_is(e)) e = begin(&n, call, FOR_TOKEN);
    if (!err_is(e)) e = enroll(n, request, &answered);
    if (err_is(e))
        give_up(n, call, e);
    else if (answered)
        free(n);
    message_free(request);
}

/* A certificate may be renewed at any time, also before two thirds of its life: its machine may be
 * off later. */
static err renew(struct enrolment *n, const Fedlora__V1__RenewRequest *request)
{
    struct serve *s = n->serve;
    char name[TROUBLE_PEER_BYTES];
    struct digest key;
    snprintf(n->signer.id, sizeof n->signer.id, "%s", n->peer.id);
    n->signer.role = n->peer.role;
    TRY(n->peer.role == RPC_ADMIN ? serve_check_admin(n->call) : serve_check_member(n->call));
    if (err_is(rate_take(&s->renew_rate, serve_peer_name(name, &n->peer), text_now_ms())))
        return err_make(ERR_LIMIT, "%s renews more than %d times a minute; wait a minute",
                        n->peer.id, RENEW_TRIES);
    snprintf(n->server, sizeof n->server, "%s", s->config->address ? s->config->address : "");
    snprintf(n->software, sizeof n->software, "%.*s", SERVE_SOFTWARE_BYTES - 1, request->software);
    text_tame(n->software);
    serve_identity_software(s, &n->peer, n->software);
    TRY(take_request(n, &request->csr, &key));
    return push(n);
}

static void renew_begin(struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__RenewRequest *request = NULL;
    struct enrolment *n = NULL;
    err e = message_unpack_few(&request, &fedlora__v1__renew_request__descriptor, data, size,
                               MESSAGE_FEW);
    if (!err_is(e)) e = serve_audit_ready(call);
    if (!err_is(e)) e = begin(&n, call, FOR_RENEWAL);
    if (!err_is(e)) e = renew(n, request);
    if (err_is(e)) give_up(n, call, e);
    message_free(request);
}

/* The operator answers for the identity, so there is no token. */
static err sign(struct enrolment *n, const Fedlora__V1__SignRequest *request)
{
    struct store_who who;
    struct digest key;
    TRY(serve_check_admin(n->call));
    TRY(serve_identity_who(&who, &n->signer.role, request->role, request->id));
    snprintf(n->signer.id, sizeof n->signer.id, "%s", who.id);
    if (n->serve->config->address)
        snprintf(n->server, sizeof n->server, "%s", n->serve->config->address);
    else
        snprintf(n->server, sizeof n->server, "%.*s", ENROLL_SERVER_BYTES - 1, request->server);
    TRY(take_request(n, &request->csr, &key));
    return push(n);
}

static void sign_begin(struct rpc_call *call, const void *data, size_t size)
{
    Fedlora__V1__SignRequest *request = NULL;
    struct enrolment *n = NULL;
    err e = message_unpack_few(&request, &fedlora__v1__sign_request__descriptor, data, size,
                               MESSAGE_FEW);
    if (!err_is(e)) e = serve_audit_ready(call);
    if (!err_is(e)) e = begin(&n, call, FOR_OPERATOR);
    if (!err_is(e)) e = sign(n, request);
    if (err_is(e)) give_up(n, call, e);
    message_free(request);
}

const struct rpc_method serve_enroll_method[] = {
    {RPC_PATH_ENROLMENT(enroll), RPC_UNARY, RPC_NONE, .begin = enroll_begin, .over = over},
    {RPC_PATH_ENROLMENT(renew), RPC_UNARY, RPC_CLIENT | RPC_ADMIN, .begin = renew_begin,
     .over = over},
    {RPC_PATH_ADMIN(sign_identity), RPC_UNARY, RPC_ADMIN, .begin = sign_begin, .over = over},
};
const size_t serve_enroll_methods = sizeof serve_enroll_method / sizeof *serve_enroll_method;
