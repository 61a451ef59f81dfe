/* Certificates of a federation: makes keys and authorities, reads certificate requests (PKCS #10),
 * and signs members' and servers' certificates. Pure except for randomness and the time; keys and
 * certificates are PEM texts, so that no type of OpenSSL is needed here. Any thread.
 *
 * An authority has two keys. The root is trusted by all (ca.pem) and signs only issuers, so it can
 * be kept offline. The issuer signs certificates of members, operators and the server; it may sign
 * no other authority (pathlen 0) and no identity outside fl://FEDERATION/ (a name constraint).
 *
 * Every certificate begins CERTIFICATE_EARLY_S before now, because the clocks of the machines that
 * check it may be behind this one. */
#ifndef PROTO_CERTIFICATE_H
#define PROTO_CERTIFICATE_H

#include "base/bytes.h"
#include "base/digest.h"
#include "proto/enroll_token.h"
#include "proto/rpc.h"

enum {
    CERTIFICATE_EARLY_S = 5 * 60,
    CERTIFICATE_PEM_BYTES = 32768,    /* a chain; also the limit of what the server's front takes */
    CERTIFICATE_REQUEST_BYTES = 8192, /* a request in either form */
};

struct certificate_authority {
    const char *cert; /* PEM: the authority's certificate, then those between it and the root */
    const char *key;  /* PEM */
};

/* The facts about a certificate that are recorded. */
struct certificate_issued {
    char serial[RPC_SERIAL_BYTES]; /* lower-case hex, as in struct rpc_peer */
    int64_t begins_s, ends_s;      /* since 1970 */
    struct digest key;             /* BLAKE2b-256 of its public key (SubjectPublicKeyInfo, DER) */
};

/* A P-256 key as PKCS #8. The caller wipes it. */
err certificate_make_key(struct bytes *key);
/* A request for a certificate of this key, as DER. Its subject is empty, because only the key is
 * used. */
err certificate_make_request(struct bytes *request, const char *key);
err certificate_make_root(struct bytes *cert, const char *key, const char *federation,
                          int64_t life_s);
err certificate_make_issuer(struct bytes *cert, const char *key,
                            const struct certificate_authority *root, const char *federation,
                            int64_t life_s);
/* hosts: names and addresses, beside localhost, 127.0.0.1 and ::1. The chain follows the
 * certificate. ERR_INPUT: a host that cannot be in a certificate. */
struct certificate_server {
    const char *federation;
    const char *const *host;
    size_t hosts;
    int64_t life_s;
};
err certificate_make_server(struct bytes *chain, const char *key,
                            const struct certificate_authority *issuer,
                            const struct certificate_server *server);

/* A certificate of this key with the names, purposes and constraints of `old`, the server's or an
 * issuer's, and the chain without the root. It ends no later than its issuer. */
err certificate_renew(struct bytes *chain, const char *old, const char *key,
                      const struct certificate_authority *issuer, int64_t life_s);

/* Checks a request, DER or PEM: its signature proves that the sender has the key, which must be
 * P-256, P-384 or Ed25519. Only the key is used; names in the request are not read. ERR_INPUT
 * otherwise. */
err certificate_request_key(struct digest *key, const void *request, size_t size);
/* The same request as PEM, appended, for a command that signs. */
err certificate_request_pem(struct bytes *pem, const void *request, size_t size);

struct certificate_order {
    const void *request; /* DER or PEM */
    size_t request_size;
    const char *federation, *id;
    enum rpc_role role;
    int64_t life_s;
};
/* Signs a leaf with the one URI name fl://FEDERATION/ROLE/ID. Appends the certificate and the chain
 * without the root. It ends no later than its issuer. ERR_INPUT for a bad request, ERR_MACHINE for
 * an authority that cannot be used. */
err certificate_sign(struct bytes *chain, struct certificate_issued *issued,
                     const struct certificate_authority *issuer,
                     const struct certificate_order *order);
/* Checks a chain that another program has signed: it has the key and the identity of the order, is
 * valid now for clients, and leads to a root in `ca` (PEM). ERR_MACHINE says what is wrong. */
err certificate_check(struct certificate_issued *issued, const char *chain, const char *ca,
                      const struct certificate_order *order);
/* The first certificate of a PEM text, without any check but its form. */
err certificate_read(struct certificate_issued *issued, const char *pem);
/* The identity in it, as of the peer of a connection. */
err certificate_identity(struct rpc_peer *out, const char *pem);
/* CAHASH of a token, of the last root of a PEM text: the newest one, if there are several. */
err certificate_hash(struct enroll_hash *out, const char *ca);

#endif
