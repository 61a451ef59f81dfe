/* The text that an operator hands to an institution so that it can enrol with one command:
 *
 *     fedlora1:HOST:PORT:ID:SECRET:CAHASH
 *
 *     HOST:PORT  address of enrolment ([enroll] listen); an IPv6 address is in brackets
 *     ID         the member or operator to which the secret is bound
 *     SECRET     16 random bytes, 32 lower-case hexadecimal digits
 *     CAHASH     SHA-256 of the DER form of the federation's root certificate, 64 digits
 *
 * The server at HOST:PORT sends its chain including the root, so the client can check the first
 * connection by CAHASH alone. Pure functions. No error or log shows the secret. */
#ifndef PROTO_ENROLL_TOKEN_H
#define PROTO_ENROLL_TOKEN_H

#include "base/err.h"
#include "base/limits.h"

#include <stddef.h>
#include <stdint.h>

#define ENROLL_TOKEN_PREFIX "fedlora1"
enum {
    ENROLL_SERVER_BYTES = 272, /* HOST:PORT with its zero; a host name has at most 253 bytes */
    ENROLL_SECRET_BYTES = 16,
    ENROLL_HASH_BYTES = 32,
    ENROLL_HASH_TEXT_BYTES = 2 * ENROLL_HASH_BYTES + 1,
    ENROLL_TOKEN_BYTES = ENROLL_SERVER_BYTES + LIMIT_NAME_BYTES + 128, /* its text */
};

struct enroll_hash {
    uint8_t byte[ENROLL_HASH_BYTES];
};
struct enroll_token {
    char server[ENROLL_SERVER_BYTES]; /* HOST:PORT */
    char id[LIMIT_NAME_BYTES];
    uint8_t secret[ENROLL_SECRET_BYTES];
    struct enroll_hash ca;
};

/* ERR_INPUT says which part is wrong and what was expected. Space around the text, which a copied
 * line may have, is ignored. */
err enroll_token_parse(struct enroll_token *out, const char *text);
/* ERR_INPUT if `server` is not HOST:PORT or `id` is no name. */
err enroll_token_print(char out[ENROLL_TOKEN_BYTES], const struct enroll_token *token);

/* ERR_INPUT unless HOST:PORT, with an IPv6 address in brackets and a port above 0. */
err enroll_token_check_server(const char *server);

/* The hash as text, for `member show` and for `enroll --accept FILE --ca-hash HASH`. */
err enroll_token_hash_parse(struct enroll_hash *out, const char *text);
void enroll_token_hash_text(char out[ENROLL_HASH_TEXT_BYTES], const struct enroll_hash *hash);
/* SHA-256 of a certificate in DER form. */
struct enroll_hash enroll_token_hash_of(const void *der, size_t size);

#endif
