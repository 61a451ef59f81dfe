/* One line of the coordinator's audit log: who did what, when, to which object, and the outcome.
 * Each line is canonical JSON and has the number and the hash of the line before it, so that no
 * line can be changed, removed or moved without a trace. A line with the action "head" is signed,
 * and proves all lines before it.
 *
 *     {"action":..,"actor":{"address","id","role","serial"},"detail":{..},"hash":..,"object":..,
 *      "outcome":..,"prev":..,"seq":..,"time":"2026-11-30T22:27:19.123Z"}
 *
 *     hash = BLAKE2b-256("fedlora audit 1" 0 line without "hash" and "signature")
 *     signature = Ed25519("fedlora audit 1" 0 hash)
 *
 * `seq` counts from 1 over all files of a log; `prev` of line 1 is zero. Pure. */
#ifndef LINEAGE_AUDIT_LINE_H
#define LINEAGE_AUDIT_LINE_H

#include "base/bytes.h"
#include "base/digest.h"
#include "base/json.h"
#include "base/log.h"
#include "privacy/ledger/ledger.h"

enum {
    AUDIT_LINE_BYTES = 1 << 16,   /* the longest line, with its newline */
    AUDIT_LINE_TEXT_BYTES = 1024, /* the longest text in a line; longer ones are cut */
    AUDIT_LINE_DETAILS = 16,      /* most fields of detail */
    AUDIT_LINE_TIME_BYTES = 25,
    AUDIT_LINE_FILE_BYTES = 16, /* "2026-11.jsonl" with its zero */
};
#define AUDIT_LINE_HEAD "head" /* the action of a signed head */

struct audit_line_head { /* the end of a chain; all zero: no line yet */
    uint64_t seq;
    struct digest hash;
};

struct audit_line {                           /* NULL texts are written as "" */
    uint64_t time_ms;                         /* since 1970 */
    const char *role, *id, *serial, *address; /* of the actor */
    const char *action, *object, *outcome;
    const struct log_field *detail; /* (details) */
    size_t details;
};
/* Appends the line and advances the head; both are untouched on failure. With a key the line is a
 * signed head, and gets the action AUDIT_LINE_HEAD and the public key as detail. */
err audit_line_make(struct bytes *out, struct audit_line_head *head, const struct audit_line *line,
                    const struct ledger_key *key);

struct audit_line_read {
    uint64_t seq;
    struct digest prev, hash; /* `hash` as the line states it */
    char time[AUDIT_LINE_TIME_BYTES];
    bool whole;            /* `hash` is the hash of this line */
    bool signs, signature; /* it is a head; its signature is that of `key` */
    uint8_t key[32];       /* of a head */
};
/* Reads one line, without its newline. ERR_INPUT: it is not in the form of a writer. */
err audit_line_parse(struct audit_line_read *out, const char *text, size_t size);

/* "2026-11-30T22:27:19.123Z": texts of two times have the order of the times. */
void audit_line_time(char out[AUDIT_LINE_TIME_BYTES], uint64_t time_ms);
/* The file of a line's month: "2026-11.jsonl". */
void audit_line_file(char out[AUDIT_LINE_FILE_BYTES], uint64_t time_ms);
bool audit_line_is_file(const char *name);
/* The names of the files in a folder that are parts of an audit log, in order; none if there is no
 * such folder. */
err audit_line_files(char (**out)[AUDIT_LINE_FILE_BYTES], size_t *count, const char *dir,
                     struct arena *arena);

#endif
