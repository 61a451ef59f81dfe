/* Enrolment from the member's side: a key that is made here, and a certificate for it, by a token
 * or by files that travel with the mail. All files are those of identity.h.
 *
 * Every step may be repeated. The key is on disk before the first call, so a second call after a
 * lost answer has the same key, for which the coordinator gives the same certificate again. */
#ifndef CLIENT_ENROLL_H
#define CLIENT_ENROLL_H

#include "base/digest.h"
#include "client/identity/identity.h"
#include "proto/enroll_token.h"

enum { ENROLL_CALL_MS = 60 * 1000 }; /* an authority outside of the coordinator may be slow */

struct enroll_result {
    struct rpc_peer self; /* federation, role and id */
    int64_t ends_s, renew_s;
    struct identity_dir dir;
    bool wrote_config; /* false: client.ini was there and was kept */
    bool was_done;     /* this token had been used here; nothing was changed */
};

/* Values of [join] in a new client.ini, so that a member's service can start at once; NULL: a
 * comment to fill in. */
struct enroll_join {
    const char *base, *data;
};

/* ERR_REFUSED: the coordinator refuses the token. ERR_INPUT: the server is not the one that the
 * token names; or another identity is in the folder and `force` is false. */
struct enroll_by {
    const struct enroll_token *token;
    struct enroll_join join;
    bool force;
};
err enroll_by_token(struct enroll_result *out, const char *dir, const struct enroll_by *by);
/* Makes the key, or takes the one that waits for an answer, and writes a request for it (PEM).
 * *key is the digest that `fedlora member sign` prints too. */
err enroll_request(struct digest *key, const char *dir, const char *path, bool force);
/* The answer to enroll_request(): a file with the certificate, those between it and the root, and
 * the root, which is trusted because of its hash. `server` (HOST:PORT) goes into client.ini; NULL:
 * the note "Server" of the file. */
struct enroll_answer {
    const char *path, *server;
    struct enroll_hash ca;
    struct enroll_join join;
    bool force;
};
err enroll_accept(struct enroll_result *out, const char *dir, const struct enroll_answer *answer);

#endif
