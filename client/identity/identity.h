/* The files by which a machine is known to a federation, in one folder:
 *
 *     ca.pem       the roots that this machine trusts
 *     member.pem   certificate and key in one file of mode 0600, so that one rename replaces both
 *     enroll.key   the key of an enrolment that has no answer yet, mode 0600
 *     client.ini   configuration of all commands; it is made once and never changed
 *
 * Keys are made on this machine and never leave it. Lines "Name: value" before the first PEM block,
 * which every reader of PEM skips, are notes:
 *
 *     Token: HEX       BLAKE2b-256 of the secret of the token that the key was made for
 *     Renew-At: N      when to renew the certificate, seconds since 1970
 *     Server: HOST:PORT   the coordinator, in the answer to a request by mail
 *
 * Files that root writes are given to the owner of the file that they replace, else to the owner of
 * the folder: the user of the service. */
#ifndef CLIENT_IDENTITY_H
#define CLIENT_IDENTITY_H

#include "base/bytes.h"
#include "base/limits.h"
#include "proto/rpc.h"

enum {
    IDENTITY_FILE_BYTES = 1 << 17, /* the largest of these files */
    IDENTITY_NOTE_BYTES = 300,     /* a host name has 253 */
};
#define IDENTITY_DIR "/etc/fedlora"
#define IDENTITY_WORK "/var/lib/fedlora-member" /* work directory of the service with that folder */
#define IDENTITY_CONFIG "client.ini"
#define IDENTITY_NOTE_TOKEN "Token"
#define IDENTITY_NOTE_RENEW "Renew-At"
#define IDENTITY_NOTE_SERVER "Server"

struct identity_dir {
    char dir[LIMIT_PATH_BYTES]; /* absolute, so that client.ini works from everywhere */
    char ca[LIMIT_PATH_BYTES], member[LIMIT_PATH_BYTES], pending[LIMIT_PATH_BYTES],
        config[LIMIT_PATH_BYTES];
};
/* Makes the folder if it is missing. ERR_MACHINE if files cannot be written there. */
err identity_dir_open(struct identity_dir *out, const char *dir);

/* One file, complete or untouched. `secret`: mode 0600. */
err identity_write(const char *path, const struct bytes *content, bool secret);
/* Appends the file and a zero; *found is false if there is none. */
err identity_read(struct bytes *out, bool *found, const char *path);
/* The value of a note; false: there is none. */
bool identity_note(char out[IDENTITY_NOTE_BYTES], const char *text, const char *name);
/* Appends the private key of a file's text; ERR_INPUT: it has none. The caller wipes it. */
err identity_key(struct bytes *out, const char *text);

/* A key with the certificate that an authority made for it. */
struct identity_new {
    const char *key;      /* PEM */
    const char *chain;    /* PEM: the certificate, then those between it and the root */
    const char *ca;       /* PEM: the roots to trust from now on */
    const char *token;    /* the note; NULL: none */
    int64_t renew_at;     /* 0: two thirds of the certificate's life, less up to a tenth of it */
    struct rpc_peer self; /* federation, role and id that the certificate must have */
};
/* Where they are written; `member` is the last one, so that a crash leaves the old identity. */
struct identity_files {
    const char *ca, *member;
};
/* Checks that the certificate has this key and identity, is valid now, and leads to a root of `ca`.
 * ERR_MACHINE otherwise, and nothing was written. *ends_s and *renew_s: since 1970. */
err identity_install(int64_t *ends_s, int64_t *renew_s, const struct identity_files *files,
                     const struct identity_new *new);

#endif
