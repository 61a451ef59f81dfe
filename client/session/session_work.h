/* The folder a member keeps between runs of `fedlora join`: a lock, downloaded blobs, and finished
 * updates until the round that used them is published. Everything in it can be deleted while no
 * join runs; what is lost is downloaded or trained again.
 *
 *   lock   blobs/DIGEST.safetensors   updates/RUN.ROUND.safetensors  updates/RUN.ROUND.json */
#ifndef CLIENT_SESSION_WORK_H
#define CLIENT_SESSION_WORK_H

#include "base/digest.h"
#include "base/limits.h"
#include "proto/rpc.h"

struct session_work {
    char dir[LIMIT_PATH_BYTES - 256], blobs[LIMIT_PATH_BYTES - 200],
        updates[LIMIT_PATH_BYTES - 200];
    int lock; /* fd, 0: none */
};

/* `dir` NULL: $XDG_STATE_HOME/fedlora/FEDERATION/ID, or below ~/.local/state. A lock held by
 * another process is ERR_STATE and names it. */
err session_work_open(struct session_work *out, const char *dir, const struct rpc_peer *self);
void session_work_close(struct session_work *work);

void session_work_blob(char out[LIMIT_PATH_BYTES], const struct session_work *work,
                       const struct digest *digest);
void session_work_update(char out[LIMIT_PATH_BYTES], const struct session_work *work,
                         const char *run, uint32_t round);

enum { SESSION_WORK_PROMISE = 512 };

/* What is known of a finished update besides its bytes. */
struct session_update {
    struct digest digest, state; /* of the file; of the state it was trained from */
    uint64_t size, examples, tokens;
    uint64_t values; /* floats in it */
    double train_loss, seconds;
    char promise[SESSION_WORK_PROMISE]; /* how private it was made; "": not at all */
};
err session_work_keep(const struct session_work *work, const char *run, uint32_t round,
                      const struct session_update *update);
/* True when the update of this round, trained from `state`, is here and whole. Whoever asks
 * compares its promise. */
bool session_work_find(struct session_update *out, const struct session_work *work, const char *run,
                       uint32_t round, const struct digest *state);
/* Deletes the run's updates of rounds before `round` (all with UINT32_MAX). */
void session_work_drop_updates(const struct session_work *work, const char *run, uint32_t round);
/* Deletes blobs other than these two (frozen may be NULL). */
void session_work_drop_blobs(const struct session_work *work, const struct digest *state,
                             const struct digest *frozen);

#endif
