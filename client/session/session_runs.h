/* The runs that one `fedlora join` takes part in: one that the user names, or all open runs that
 * the member belongs to. They share the connection, the base and the engine. One of them is the
 * current one, whose parts the pointers in struct session lead to. */
#ifndef CLIENT_SESSION_RUNS_H
#define CLIENT_SESSION_RUNS_H

#include "client/session/session_consent.h"
#include "client/session/session_round.h"

struct session_run {
    struct session_run *next;
    char name[LIMIT_NAME_BYTES];
    Fedlora__V1__HelloReply *hello; /* the newest answer to Hello; owned */
    struct session_privacy privacy; /* must not move while open */
    struct session_result result;
    json_t *data;                           /* the data reports; NULL: not printed yet */
    uint64_t told_examples, told_eval_rows; /* in the newest Hello */
    uint32_t submitted_round;               /* accepted in this process; 0: none */
    unsigned failures;     /* trainings that failed on their numbers, one after another */
    struct digest blob[2]; /* state and frozen factors of its last task; zero: none */
    bool entered;          /* its privacy is open, and it is marked in the work directory */
    bool ask;  /* it is asked by name next, because it may have ended without our knowledge */
    bool over; /* it has ended, or is left */
    bool left; /* this member cannot take part in it any more, or not before again_ms */
    uint64_t again_ms;                  /* a member that stays tries again then */
    bool waits;                         /* left until the administrator answers */
    bool paused;                        /* the note that it does not train now was printed */
    struct session_consent_run consent; /* the newest decision */
    char held_told[SESSION_POLICY_WHY]; /* to the operator, and when; 0: nothing */
    uint64_t held_told_ms;
    unsigned times_left; /* one after another, without a round between */
};

enum {
    SESSION_RUNS_AGAIN_MS = 60 * 1000,
    SESSION_RUNS_AGAIN_MOST_MS = 60 * 60 * 1000,
    SESSION_RUNS_FORGET_MS = 24 * 60 * 60 * 1000, /* for a run that is not offered again */
};

struct session_run *session_runs_find(const struct session *s, const char *name); /* or NULL */
/* Adds a run, which becomes the current one. Takes over `hello` on success. */
err session_runs_add(struct session *s, Fedlora__V1__HelloReply *hello);
/* A newer answer to Hello of a run that is known; it is open again. Takes over `hello`. */
void session_runs_renew(struct session_run *run, Fedlora__V1__HelloReply *hello);
/* Adds a run that this member could not join; it does not become the current one. */
err session_runs_add_left(struct session *s, const char *name);
void session_runs_use(struct session *s, struct session_run *run);
bool session_runs_any_open(const struct session *s);
/* The run is over for this member. One that stays tries again after a minute, and after twice the
 * time each further time, up to an hour. */
void session_runs_leave(struct session *s, struct session_run *run);
/* Frees the runs that have ended, and lets those be offered again whose time has come. There may be
 * no current run after it. Does nothing unless the member stays. */
void session_runs_forget(struct session *s);
/* After a broken connection any of them may have ended. */
void session_runs_ask_all(struct session *s);
/* Deletes the blobs that no run needs; these two are now those of the current run (NULL: none). */
void session_runs_drop_blobs(struct session *s, const struct digest *state,
                             const struct digest *frozen);
/* The names of the runs that are left, for a request; borrowed until the next call. */
char **session_runs_left(size_t *count, struct session *s);
void session_runs_close(struct session *s);

#endif
