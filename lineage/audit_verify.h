/* Checks an audit log, or a part of one, without the coordinator: every line that was changed,
 * removed, moved or cut is named by its number.
 *
 *     struct audit_verify v = {.key = keys, .keys = 1, .found = print};
 *     audit_verify_add(&v, "2026-11.jsonl", text, size);    one call a file, in order
 *     audit_verify_end(&v);
 *
 * The lines up to v.proven are proven: the last good signed head before the first finding covers
 * them. Lines after it form a chain that the owner of the files could have made anew. Lines that
 * were removed at the end, back to a signed head, are only missed by who knows a later line: see
 * `wanted`. Pure. */
#ifndef LINEAGE_AUDIT_VERIFY_H
#define LINEAGE_AUDIT_VERIFY_H

#include "lineage/audit_line.h"

enum { AUDIT_VERIFY_NAME_BYTES = 256 };

struct audit_verify_line { /* of a file; for audit_verify.c only */
    bool any, readable, cut;
    struct audit_line_read read;
    char file[AUDIT_VERIFY_NAME_BYTES];
    size_t row;
};

struct audit_verify { /* zero what is not set */
    /* in: public keys that may sign, and what a finding is given to: the number of the line, its
     * place in a file, and what is wrong with it */
    const uint8_t (*key)[32];
    size_t keys;
    const struct digest *wanted; /* the hash of a line that must be there; NULL: none */
    void (*found)(void *context, uint64_t seq, const char *file, size_t row, const char *text);
    void *context;

    /* out */
    uint64_t first, last; /* numbers of the lines */
    uint64_t lines, findings, heads;
    uint64_t proven; /* 0: no line */
    char proven_time[AUDIT_LINE_TIME_BYTES];
    bool has_wanted;

    /* for audit_verify.c only */
    struct audit_verify_line line; /* waits for the one after it */
    uint64_t expected;             /* 0: the first line decides */
    struct digest hash;            /* of the line before `expected` */
    bool trusted;                  /* `hash` is known */
};
void audit_verify_add(struct audit_verify *v, const char *name, const char *text, size_t size);
void audit_verify_end(struct audit_verify *v);

#endif
