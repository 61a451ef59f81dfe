/* The troubles of a coordinator: everything that an operator has to know, in one bounded table. A
 * trouble is logged when it begins, at most once a minute and peer while it is repeated, and once
 * when it ends; until then it is shown first in the status of runs.
 *
 * The kinds, with the names of their log events and the rule by which they end, are the table in
 * trouble.c. A trouble is identified by its kind, run and peer. Volume is bounded, whatever peers
 * do: TROUBLE_ROWS troubles and TROUBLE_LINES log lines a minute for each kind; more are counted
 * and logged as one number.
 *
 * One owner (the loop thread). The time is an argument. */
#ifndef COORDINATOR_TROUBLE_H
#define COORDINATOR_TROUBLE_H

#include "base/err.h"
#include "base/limits.h"

#include <stddef.h>
#include <stdint.h>

/* The order is that of a status: the most important first. */
enum trouble_kind {
    TROUBLE_DISK_FULL,
    TROUBLE_LOG_LOST, /* log lines cannot be written */
    TROUBLE_AUDIT,    /* lines of the audit log cannot be written */
    TROUBLE_OLD_COPY,
    TROUBLE_BLOB_MISSING,
    TROUBLE_WORK_WAITS,  /* a step of a run failed and is tried again */
    TROUBLE_CALL_FAILED, /* an error of this machine */
    TROUBLE_CERTIFICATE_ENDS,
    TROUBLE_ROUND_OVERDUE,
    TROUBLE_MEMBER_ABSENT,
    TROUBLE_MEMBER_CANNOT_TRAIN, /* it has no data to train from, and said so */
    TROUBLE_RUN_AMBIGUOUS,       /* it names no run, and belongs to several that are open */
    TROUBLE_MEMBER_TWICE,        /* two machines call with one certificate */
    TROUBLE_UPDATE_REFUSED,
    TROUBLE_CALL_REFUSED,
    TROUBLE_CALL_LATER, /* refused for the moment; logged only */
    TROUBLE_MIGRATED,
    TROUBLE_KINDS
};

enum {
    TROUBLE_ROWS = 64,
    TROUBLE_LINES = 60,
    TROUBLE_SHOWN = 16, /* in one status */
    TROUBLE_TEXT_BYTES = ERR_TEXT_BYTES,
    TROUBLE_PEER_BYTES = 2 * LIMIT_NAME_BYTES,
    TROUBLE_BY_BYTES = TROUBLE_PEER_BYTES + 80 /* a peer and its address */
};

struct trouble_case { /* strings may be NULL, and are copied */
    enum trouble_kind kind;
    const char *run, *peer; /* peer: "client/north", "admin/ops" */
    const char *address;
    const char *call;
    const char *text; /* the complete description */
};

/* The name of a member as a peer: "client/north". Returns out. */
const char *trouble_member(char out[TROUBLE_PEER_BYTES], const char *id);

struct troubles;
err troubles_open(struct troubles **out);
void troubles_close(struct troubles *t);
/* The trouble exists, or happened once more. NULL for `t` is accepted everywhere. */
void trouble_raise(struct troubles *t, const struct trouble_case *c, uint64_t now_ms);
/* It lasts, without being logged or counted again. Nothing happens if there is none. */
void trouble_lasts(struct troubles *t, enum trouble_kind kind, const char *run, const char *peer,
                   uint64_t now_ms);
/* It is over; nothing happens if there is none. A NULL peer means no peer. */
void trouble_end(struct troubles *t, enum trouble_kind kind, const char *run, const char *peer,
                 uint64_t now_ms);
/* The lasting ones of a run that is over (absent members and so on); nothing is logged. */
void trouble_drop_run(struct troubles *t, const char *run);
/* Ends those whose time is over, and logs what was counted but not logged. About once a second. */
void trouble_tick(struct troubles *t, uint64_t now_ms);
/* ENOSPC or EDQUOT, in a file, the database or the log. */
bool trouble_is_full_disk(err e);
/* Raises TROUBLE_DISK_FULL if `e` is about a full disk. */
void trouble_of_disk(struct troubles *t, err e, uint64_t now_ms);
/* How often that was raised since the start: work that a full disk has put off. */
uint64_t trouble_disk_errors(const struct troubles *t);
/* The name of its log event: "store.full". */
const char *trouble_name(enum trouble_kind kind);
bool trouble_is_shown(enum trouble_kind kind); /* in a status */
size_t trouble_count(const struct troubles *t, enum trouble_kind kind);
/* When the newest trouble of this kind was raised last; 0: there is none. */
uint64_t trouble_last_ms(const struct troubles *t, enum trouble_kind kind);
/* The descriptions for a status, at most TROUBLE_SHOWN: first those of the coordinator, then those
 * of `run` (NULL: of all runs) and of peers. Pointers into the table, valid until the next call of
 * any function. */
size_t trouble_list(const char **out, size_t most, struct troubles *t, const char *run);

#endif
