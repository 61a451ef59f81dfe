/* The state of an audit log; for coordinator/audit/ only. */
#ifndef COORDINATOR_AUDIT_PARTS_H
#define COORDINATOR_AUDIT_PARTS_H

#include "coordinator/audit/audit.h"

#include <pthread.h>

enum { DENIED_TEXT_BYTES = 256 };

/* Denials since the last line about one; the first of them is described. */
struct denied {
    pthread_mutex_t mutex;
    uint64_t count, written_ms; /* written_ms 0: never */
    struct rpc_peer peer;
    char what[DENIED_TEXT_BYTES], why[DENIED_TEXT_BYTES];
};

struct audit {
    char dir[LIMIT_PATH_BYTES];
    struct ledger_key key;
    int fd;                           /* of the newest file; -1: none */
    char file[AUDIT_LINE_FILE_BYTES]; /* its name; "" before the first line */
    uint64_t size, reserved;          /* durable bytes of it; reserved on the disk */
    bool torn;                        /* a write has failed: the file may be longer than `size` */
    struct audit_line_head head;      /* of the last line, durable or pending */
    uint64_t signed_seq;              /* of the last signed head */
    uint64_t signed_ms;
    struct bytes pending, next; /* lines for `file`, and lines for next_file */
    char next_file[AUDIT_LINE_FILE_BYTES];
    uint64_t lost;              /* lines that did not fit into memory */
    uint64_t wall_ms, clock_ms; /* both clocks, when they were compared last */
    struct denied denied;
};

#endif
