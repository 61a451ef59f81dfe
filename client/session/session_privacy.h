/* A member's side of a run with example-level privacy.
 *
 * Before training, the run's settings are compared with the member's own limits (--epsilon,
 * --delta) and checked against its records and its ledger. The plan made then holds for the whole
 * run: later messages of the coordinator cannot change it. Every update is charged in the ledger
 * before it is sent, and the coordinator gets a copy of the ledger before the update. The struct
 * must not move while it is open. */
#ifndef CLIENT_SESSION_PRIVACY_H
#define CLIENT_SESSION_PRIVACY_H

#include "client/session/session.h"
#include "client/session/session_sent.h"
#include "client/session/session_work.h"
#include "engine/train/train_ledger.h"

/* The accepted plan. `on` is false in runs without example-level privacy, and then nothing else is
 * set. */
struct session_privacy {
    bool on;
    struct train_options train; /* training options of one round, as in the plan */
    struct train_ledger ledger; /* the plan; borrows the texts below */
    /* Names in the ledger: FEDERATION/RUN, FEDERATION/MEMBER, and the method. */
    char job[2 * LIMIT_NAME_BYTES], party[2 * LIMIT_NAME_BYTES], method[LIMIT_NAME_BYTES];
};

/* The limits of the member alone, without its ledger and its data; ERR_INPUT as below. */
err session_privacy_accepts(const Fedlora__V1__Privacy *privacy,
                            const struct session_options *options, const char *run);
/* ERR_INPUT: the run allows more than the member's limits, or its plan is not possible with this
 * number of records, or the ledger has no budget left for it. */
err session_privacy_open(struct session_privacy *out, const struct session_options *options,
                         const Fedlora__V1__HelloReply *hello, const struct rpc_peer *self,
                         uint64_t records);
/* The same without a look at the ledger's file. */
err session_privacy_plan(struct session_privacy *out, const struct session_options *options,
                         const Fedlora__V1__HelloReply *hello, const struct rpc_peer *self,
                         uint64_t records);
/* ERR_INPUT if a later answer to Hello has other privacy settings than the first one. */
err session_privacy_same(const Fedlora__V1__HelloReply *was, const Fedlora__V1__HelloReply *is);
/* The privacy settings under which an update of this round is made, as text; "" without privacy. A
 * stored update with another text must not be sent. */
void session_privacy_promise(char out[SESSION_WORK_PROMISE], const struct session_privacy *p,
                             uint32_t round);
/* Charges an update in the ledger; the same update is charged once however often this is called.
 * `given` is the digest of the frozen factors it was trained with, or zero. */
err session_privacy_charge(const struct session_privacy *p, uint32_t round,
                           const struct session_update *update, const struct digest *given);
/* Sends the lines of the ledger that the coordinator does not have yet, and writes that into the
 * journal. */
struct session_privacy_send {
    struct rpc_client *client;
    struct session_sent *sent;
    const char *run;
    uint32_t round;
};
err session_privacy_send_ledger(const struct session_privacy *p,
                                const struct session_privacy_send *to);

#endif
