/* The directory that a member keeps between runs of `fedlora join`: a lock, downloaded blobs, and
 * finished updates until their round is published.
 *
 *   lock
 *   session                            random text that names this directory
 *   blobs/DIGEST.safetensors
 *   updates/RUN.ROUND.safetensors      the update
 *   updates/RUN.ROUND.json             its description, written after it
 *   RUN.checkpoint.safetensors         an interrupted training (session_checkpoint.h)
 *   runs/, sent.jsonl, sent.head, day  session_consent.h, session_sent.h, session_day.h
 *   RUN.open                           this member takes part in the run
 *   epoch                              from the coordinator's newest answer to Hello
 *   RUN.kept.safetensors               factors that this member keeps (engine/member/member_kept.h)
 *
 * Everything in it may be deleted while no join runs. Blobs and updates are then downloaded or
 * trained again, and a member without its kept factors starts from those of the state. */
#ifndef CLIENT_SESSION_WORK_H
#define CLIENT_SESSION_WORK_H

#include "base/arena.h"
#include "base/digest.h"
#include "base/limits.h"
#include "base/lock.h"
#include "proto/rpc.h"

struct session_work {
    /* Names this machine and directory, also when the member is started again. */
    uint8_t id[LIMIT_SESSION_BYTES];
    char dir[LIMIT_PATH_BYTES - 256], blobs[LIMIT_PATH_BYTES - 200],
        updates[LIMIT_PATH_BYTES - 200];
    struct lock lock;
};

/* The path of the directory, which is not opened; `dir` as in session_work_open(). */
err session_work_find_dir(char *out, size_t bytes, const char *dir, const struct rpc_peer *self);
/* `dir` NULL: $XDG_STATE_HOME/fedlora/FEDERATION/ID, or the same below ~/.local/state. A lock held
 * by another process is ERR_STATE, and the error names the process. */
err session_work_open(struct session_work *out, const char *dir, const struct rpc_peer *self);
void session_work_close(struct session_work *work);

/* Paths of a blob and of an update; the files need not exist. */
void session_work_blob(char out[LIMIT_PATH_BYTES], const struct session_work *work,
                       const struct digest *digest);
void session_work_update(char out[LIMIT_PATH_BYTES], const struct session_work *work,
                         const char *run, uint32_t round);

/* Path of the factors that this member keeps in the run (engine/member/member_kept.h). The files of
 * engine/member/member_optimizer.h lie beside it. */
void session_work_kept(char out[LIMIT_PATH_BYTES], const struct session_work *work,
                       const char *run);

enum { SESSION_WORK_EPOCH = 32 };
/* The coordinator's epoch, which the member sends with Hello, so that a coordinator on an old copy
 * of its store finds out. Returns its size; 0: none is kept. */
size_t session_work_epoch(uint8_t out[SESSION_WORK_EPOCH], const struct session_work *work);
/* The next answer is believed, whatever epoch it has. */
void session_work_forget_epoch(const struct session_work *work);
err session_work_keep_epoch(const struct session_work *work, const void *epoch, size_t size);

enum { SESSION_WORK_PROMISE = 512 };

/* A finished update without its bytes. It is kept in a file of its own, so that a restarted process
 * can send the update without training again. */
struct session_update {
    struct digest digest; /* of the file */
    struct digest state;  /* the state from which it was trained */
    uint64_t size;        /* bytes */
    uint64_t values;      /* floats in the file */
    uint64_t examples, tokens;
    double train_loss, seconds;
    char promise[SESSION_WORK_PROMISE]; /* privacy settings it was made under; "": none */
};
/* Writes the description; call it when the update itself is complete on disk. */
err session_work_keep(const struct session_work *work, const char *run, uint32_t round,
                      const struct session_update *update);
/* True if a complete update of this round, trained from `state`, is here. The caller must compare
 * its promise with the current one before sending it. */
bool session_work_find(struct session_update *out, const struct session_work *work, const char *run,
                       uint32_t round, const struct digest *state);
/* Deletes the updates of this run from rounds before `round` (UINT32_MAX: all of them). */
void session_work_drop_updates(const struct session_work *work, const char *run, uint32_t round);
/* Deletes all blobs except these. */
void session_work_drop_blobs(const struct session_work *work, const struct digest *keep,
                             size_t count);

/* Remembers that this member takes part in the run, until it has the end of it. A member that was
 * killed meanwhile finds the end of a run that way. */
err session_work_mark(const struct session_work *work, const char *run);
void session_work_unmark(const struct session_work *work, const char *run);
/* The marked runs, sorted by name. */
err session_work_marked(const char ***out, size_t *count, const struct session_work *work,
                        struct arena *arena);

#endif
