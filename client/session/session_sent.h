/* The journal of all data that left this machine: sent.jsonl in the work directory, one line a call
 * that carried data, written and flushed before the call leaves. So a crash can leave a line whose
 * call never left, but never a call without a line.
 *
 *     {"bytes":N,"digest":D,"hash":H,"kind":K,"norm":X,"prev":H0,"round":R,"rows":N,"run":NAME,
 *      "seq":N,"tensors":N,"time":T}
 *     hash = BLAKE2b-256("fedlora sent 1" 0 line without "hash")
 *
 * Keys are sorted, without spaces; round, rows, norm and tensors are left out where a call has
 * none. `prev` is the hash of the line before, of zeros in the first one. sent.head has the number
 * and the hash of the newest line, so that lines cut from the end are missed. Both can be written
 * anew, because nothing is signed: the journal shows mistakes and damage, not forgery.
 *
 *     hello       digest of the message; rows of the training data that it told
 *     progress    before a round's training: step, loss and speed follow during it. Not in a run
 *                 with privacy, whose reports carry only the step
 *     update      the file; its tensors, the norm over all their values, the rows told as weight
 *     ledger      lines of this member's privacy ledger
 *     evaluation  loss and accuracy over `rows` held-out rows
 *     trouble     a reason why this member cannot train */
#ifndef CLIENT_SESSION_SENT_H
#define CLIENT_SESSION_SENT_H

#include "base/bytes.h"
#include "base/digest.h"
#include "base/limits.h"

#include <jansson.h>
#include <protobuf-c/protobuf-c.h>

enum { SESSION_SENT_LINE_BYTES = 4096 };

struct session_sent { /* a zeroed struct is closed */
    int fd;           /* of sent.jsonl; 0: closed */
    char path[LIMIT_PATH_BYTES - 128], head_path[LIMIT_PATH_BYTES - 128];
    char keep[LIMIT_PATH_BYTES - 512]; /* folder for the files that are sent; "": none */
    uint64_t lines;
    struct digest hash; /* of the newest line */
    bool unsure;        /* a write has failed: the end of the file is not known */
};

/* Opens or creates the journal of a work directory. An incomplete last line is cut off: it was not
 * flushed, so its call never left. `keep`: copies of sent files go there; NULL: none. ERR_INPUT:
 * the newest line is not one of this program, or not the one in sent.head. */
err session_sent_open(struct session_sent *out, const char *work, const char *keep);
void session_sent_close(struct session_sent *sent);

struct session_sent_call {
    const char *kind, *run; /* run NULL: not known yet */
    uint32_t round;         /* 0: none */
    uint64_t bytes;
    struct digest digest;
    bool has_rows;
    uint64_t rows;
    uint64_t tensors; /* 0: none; norm is not read then */
    double norm;
};
/* Writes the line of a call that is about to leave. After an error the call must not be made. */
err session_sent_add(struct session_sent *sent, const struct session_sent_call *call);
/* The same for a message: its size and digest are filled in. */
err session_sent_message(struct session_sent *sent, const struct session_sent_call *call,
                         const ProtobufCMessage *message);
/* The same for an update file of `call->bytes` bytes and `call->digest`, which is kept if a folder
 * for that was given. Tensors and norm are read from it. */
err session_sent_file(struct session_sent *sent, const struct session_sent_call *call,
                      const char *path);

/* Reads the journal of a work directory while join may run: calls take() for each line, until it
 * returns an error. An incomplete last line is left out. With `verify` the first line that was
 * changed, moved, added or cut is ERR_INPUT "PATH:LINE: ...". */
struct session_sent_reader {
    err (*take)(void *context, const json_t *line);
    void *context;
    bool verify;
};
err session_sent_read(const char *work, const struct session_sent_reader *reader);

#endif
