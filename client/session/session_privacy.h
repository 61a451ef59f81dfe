/* A member's part of a run whose unit of privacy is one record: what the run promises is judged
 * against our records, our own bounds and our ledger before anything is trained; every update is
 * charged there before it is sent, and the coordinator gets a copy of the ledger first. Later words
 * of the coordinator change nothing of the plan. The struct must not move once it is open. */
#ifndef CLIENT_SESSION_PRIVACY_H
#define CLIENT_SESSION_PRIVACY_H

#include "client/session/session.h"
#include "client/session/session_work.h"
#include "engine/train/train_ledger.h"

struct session_privacy {
    bool on;
    struct train_options train; /* a round's, as the plan has it */
    struct train_ledger ledger;
    char job[2 * LIMIT_NAME_BYTES], party[2 * LIMIT_NAME_BYTES], method[LIMIT_NAME_BYTES];
};

/* ERR_INPUT: the run promises less than we ask for, or cannot promise it for our records, or our
 * ledger has no room for it. Without privacy, `on` is false. */
err session_privacy_open(struct session_privacy *out, const struct session_options *options,
                         const Fedlora__V1__HelloReply *hello, const struct rpc_peer *self,
                         uint64_t records);
/* What was promised at first holds for the whole run: ERR_INPUT where a later answer to Hello takes
 * any of it back. */
err session_privacy_same(const Fedlora__V1__HelloReply *was, const Fedlora__V1__HelloReply *is);
/* What an update of this round is made under: one that was made under anything else is not sent. */
void session_privacy_promise(char out[SESSION_WORK_PROMISE], const struct session_privacy *p,
                             uint32_t round);
/* Charged once for the same update, however often called. `given`: the frozen factors it was
 * trained beside, or zero. */
err session_privacy_charge(const struct session_privacy *p, uint32_t round,
                           const struct session_update *update, const struct digest *given);
/* Sends the ledger's lines that the coordinator has not. */
err session_privacy_tell(const struct session_privacy *p, struct rpc_client *client,
                         const char *run);

#endif
