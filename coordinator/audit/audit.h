/* The audit log of a coordinator: DATA/audit/YYYY-MM.jsonl, one chained line for each action
 * (lineage/audit_line.h), with a signed head every hour, at the end of each file, and when the
 * service stops.
 *
 *     err e = audit_ready(audit);       before an action that can be refused: is the log writable?
 *     ... the action ...
 *     AUDIT(audit, peer, "token.used", token, "ok", LOG_STR("member", id));
 *
 * audit_add() only appends to memory, so that all actions of one turn of the loop share one flush
 * of the disk. audit_flush() makes them durable. Answers to calls that were given while lines were
 * pending are held until then (rpc_server_options.holds), so nobody learns of an action that a
 * crash could take out of the log.
 *
 * A line that cannot be written, because the disk is full, stays in memory and is tried again. If
 * even that memory is full, lines are counted, and the next one that is written says how many were
 * lost.
 *
 * One owner, the loop thread; audit_denied() may be called from any thread. NULL for an audit is
 * accepted by every function and does nothing: simulations have none. */
#ifndef COORDINATOR_AUDIT_H
#define COORDINATOR_AUDIT_H

#include "lineage/audit_line.h"
#include "proto/rpc.h"

struct audit;

/* Opens DATA/audit and continues its newest file; an incomplete last line, which a crash has left,
 * is removed. The key is made if it does not exist, and its public half is written to
 * DATA/audit/audit.pub. `key`: NULL for DATA/audit/audit.key. ERR_INPUT: the last line is not that
 * of a log. */
err audit_open(struct audit **out, const char *data, const char *key);
/* Writes a last signed head. NULL is fine. */
void audit_close(struct audit *a);

struct audit_entry {
    const struct rpc_peer *peer;    /* who acted; NULL: the coordinator itself */
    const char *action;             /* noun.participle, as the events of the log: "run.created" */
    const char *object;             /* the run, member, token or file; "" or NULL: none */
    const char *outcome;            /* "ok" or "refused" */
    const struct log_field *detail; /* never secrets, or values of updates */
    size_t details;                 /* at most AUDIT_LINE_DETAILS */
};
void audit_add(struct audit *a, const struct audit_entry *entry);
#define AUDIT(audit_, peer_, action_, object_, outcome_, ...)                                      \
    audit_add((audit_),                                                                            \
              &(struct audit_entry){.peer = (peer_),                                               \
                                    .action = (action_),                                           \
                                    .object = (object_),                                           \
                                    .outcome = (outcome_),                                         \
                                    .detail = (const struct log_field[]){__VA_ARGS__},             \
                                    .details = sizeof((const struct log_field[]){__VA_ARGS__}) /   \
                                               sizeof(struct log_field)})

/* ERR_MACHINE: the log cannot be written now, so the action must be refused. It reserves room on
 * the disk, so that the lines of actions that were not refused can be written. */
err audit_ready(struct audit *a);
bool audit_pending(const struct audit *a); /* there are lines that are not durable */
/* Makes all lines durable. On an error they stay pending. */
err audit_flush(struct audit *a);
/* A signed head if the last one is an hour old and lines have followed; a line for denials that
 * were only counted; a line if the clock was stepped. Once a second, before audit_flush(). */
void audit_tick(struct audit *a);

/* A call or a handshake was refused for who the peer is. One line a second; the others are counted
 * in the next line. Unknown fields of the peer are zero. Any thread. */
void audit_denied(struct audit *a, const struct rpc_peer *peer, const char *what, const char *why);

/* Durable whole lines from a place on, at most `most` bytes (more than AUDIT_LINE_BYTES), and the
 * place after them. A zeroed place is the first line at or after since_ms. No lines: there are no
 * more. ERR_INPUT: there is no such place. */
struct audit_place {
    char file[AUDIT_LINE_FILE_BYTES];
    uint64_t offset;
};
err audit_read(struct bytes *out, struct audit_place *place, struct audit *a, uint64_t since_ms,
               size_t most);
/* Gives `line` each durable line of the two newest files that begins with this text. */
err audit_scan(struct audit *a, const char *begins,
               void (*line)(void *context, const char *text, size_t size), void *context);
/* The last durable or pending line. */
struct audit_line_head audit_head(const struct audit *a);
/* Signs what another file has (a manifest): the key of this log. NULL audit: NULL. */
const struct ledger_key *audit_key(const struct audit *a);

/* For tests; NULL otherwise: the wall clock and the monotonic clock in ms. */
extern uint64_t (*audit_wall_ms)(void);
extern uint64_t (*audit_now_ms)(void);

#endif
