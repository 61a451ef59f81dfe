/* Keeps this member out of runs that its administrator does not want: the policy
 * (session_policy.h) and the answers (session_consent.h), applied to a session. The operator is
 * told each decision, and again every few hours while it lasts. */
#ifndef CLIENT_SESSION_HOLD_H
#define CLIENT_SESSION_HOLD_H

#include "client/session/session_runs.h"

/* Must the run be looked at before this member joins it? */
bool session_hold_looks(const struct session *s);
/* Whether the run of this answer may be joined. If not, it is among the runs that are left, *why is
 * ERR_INPUT with the rule, and s->held is set. */
bool session_hold_judge(struct session *s, const Fedlora__V1__HelloReply *reply, err *why);
/* Lets runs be offered again whose administrator has answered. Before each call for a task. */
void session_hold_answers(struct session *s);
/* Waits for the answer of the administrator without calling the coordinator for a task. */
err session_hold_wait(struct session *s);
bool session_hold_any_waits(const struct session *s);
/* ERR_INPUT: the administrator has declined the current run meanwhile, or the task is outside the
 * policy. Before each task. */
err session_hold_check(struct session *s, const Fedlora__V1__Training *training);
/* True if training may begin now. Else pauses for a moment; the caller asks for its task again. */
bool session_hold_now(struct session *s, err *paused);
/* After training: adds its time to that of the day. */
err session_hold_count(struct session *s, double seconds);
/* The run has this outcome now ("joined", "finished"), for `fedlora runs`. */
err session_hold_note(struct session *s, const char *state);

#endif
