/* The certificate's files while a membership runs: they are renewed, end, or cannot be read for a
 * moment, and none of that ends the membership. */
#ifndef CLIENT_SESSION_FILES_H
#define CLIENT_SESSION_FILES_H

#include "client/session/session_round.h"

/* Opens s->client. A member that stays (--stay) also waits for the renewal of a certificate that
 * has ended, because it may have been off for that long; other faults are faults of the setup. */
err session_files_open(struct session *s);
/* Between two calls: connections use the new files if they were replaced. Costs one stat(). */
void session_files_refresh(struct session *s);
/* Waits a moment for files that cannot be used (`why`), and says so once an hour. */
err session_files_wait(struct session *s, err why);
/* Whether people should read this fault: another one than the last, or an hour later. */
bool session_files_is_news(struct session *s, err why);
/* True if one side does not accept the other's certificate; false if the coordinator refuses a
 * call. */
bool session_files_refused(const struct session *s, err cause);

#endif
