/* Privacy of a simulated run: the ledgers, which lie in the simulation's folder and say that they
 * are simulated, and the key that signs them. No other ledger or key is ever opened. For
 * sim/federation.c, except federation_privacy_examples().
 *
 *     FOLDER/ledger.key, ledger.pub   made here; signs all ledgers of the simulation
 *     FOLDER/store/ledgers/RUN.jsonl  of the coordinator, unit client
 *     FOLDER/ledgers/MEMBER.jsonl     of a member, unit example */
#ifndef SIM_FEDERATION_PRIVACY_H
#define SIM_FEDERATION_PRIVACY_H

#include "sim/federation.h"

/* ERR_INPUT: the plan of a complete configuration is refused whatever its noise is. */
err federation_privacy_check(const Fedlora__V1__RunConfig *config);
/* Before the store is opened. Makes the key if the configuration asks for privacy and there is
 * none. ERR_INPUT: the simulation is new, but there is a key, which is not a simulation's. */
err federation_privacy_key(struct federation *f, const Fedlora__V1__RunConfig *config,
                           const char *folder, bool new);
/* When all members have joined: unit example, the plan of each of them, as `fedlora join` makes it.
 * ERR_INPUT: the plan of a member is not possible, or its ledger has no budget left. */
err federation_privacy_join(struct federation *f, const char *folder);
/* Before an update is handed in: charges it in the member's ledger, of which the coordinator then
 * gets a copy. After a crash in between, the update that was charged before replaces the new one.
 * Nothing to do for other units. */
err federation_privacy_charge(struct federation *f, const struct federation_task *task,
                              struct pool_task *done);
/* The coordinator has the update, or will never take it. */
void federation_privacy_sent(const struct federation *f, const struct federation_task *task);
/* The number of examples that a member reports, as a deployed one does: its records where they are
 * protected, else its rows that teach. */
uint64_t federation_privacy_examples(const struct federation *f, size_t member);

#endif
