/* Transfers of a session, with progress for the user and the service manager, and with the journal
 * of what is sent (session_sent.h). */
#ifndef CLIENT_SESSION_TRANSFER_H
#define CLIENT_SESSION_TRANSFER_H

#include "client/session/session_round.h"

/* Path of a state or of frozen factors, downloaded unless they are there; `what` names them in
 * errors. `size` as the coordinator announced it; 0: not known. ERR_STATE: the blob was replaced by
 * a newer one. ERR_INPUT: its size or its header does not fit this member's base. */
err session_transfer_blob(char path[LIMIT_PATH_BYTES], struct session *s,
                          const struct digest *digest, uint64_t size, const char *what);
/* One attempt to send the update at `path`. */
err session_transfer_update(Fedlora__V1__SubmitReply **reply, struct session *s,
                            const Fedlora__V1__SubmitHeader *header, const char *path);
/* A digest of a task. ERR_INPUT: it has another length. */
err session_transfer_digest(struct digest *out, const ProtobufCBinaryData *from, const char *what);

#endif
