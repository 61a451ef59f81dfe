/* Joining a run and leaving it: Hello, the checks of this member, and the end of a run. session.c
 * has the loop over tasks. All functions are about the run that is the current one afterwards. */
#ifndef CLIENT_SESSION_JOIN_H
#define CLIENT_SESSION_JOIN_H

#include "client/session/session_runs.h"

/* Says Hello to a run, or with NULL to one that the coordinator chooses. It becomes the current
 * run. One attempt. */
err session_join_once(struct session *s, const char *run);
/* The same until an answer arrives or the retries are used up. */
err session_join_hello(struct session *s, const char *run);
/* Once for each run, after the first answer to Hello: compares its privacy with the limits of this
 * member, and remembers the run until its end. */
err session_join_enter(struct session *s);
void session_join_print(const struct session *s); /* the note about a joined run */
/* The data and the engine for the current run. */
err session_join_prepare(struct session *s);
/* ERR_INPUT if the data has nothing to train from. */
err session_join_check_data(struct session *s);
/* The run has ended: writes the output, and deletes the run's files. */
err session_join_finish(struct session *s, const Fedlora__V1__FinishedTask *task);
/* This member cannot take part in the run. */
void session_join_leave(struct session *s, struct session_run *run, err why);

#endif
