/* The runs that a machine knows, and its administrator's answers to them, as files in the work
 * directory:
 *
 *   runs/RUN.json      written by `fedlora join`: the run, and how it stands with this member
 *   runs/RUN.answer    written by `fedlora approve` and `fedlora decline`, also while join runs
 *
 * Each file has one writer, and both are replaced as a whole. An approval belongs to the terms it
 * was given for: a run that is created anew under the same name with other terms, or with more
 * rounds, needs a new one. */
#ifndef CLIENT_SESSION_CONSENT_H
#define CLIENT_SESSION_CONSENT_H

#include "base/arena.h"
#include "base/digest.h"
#include "base/limits.h"
#include "client/session/session_policy.h"

struct session_consent_run {
    char run[LIMIT_NAME_BYTES], method[LIMIT_NAME_BYTES];
    char privacy[96]; /* "unit client, epsilon 8, delta 1e-05"; "none" */
    char state[32];   /* waits, approved, declined, outside (the policy), joined, or the outcome */
    char why[SESSION_POLICY_WHY];
    uint32_t rounds;
    uint64_t since_ms;   /* wall clock, since 1970: when the state began */
    struct digest terms; /* what an approval is given for */
};
/* The run as an answer to Hello describes it; without state and time. */
err session_consent_of(struct session_consent_run *out, const Fedlora__V1__HelloReply *hello,
                       const char *base);
/* Writes the file of the run if it says something else than before. The time is that of the first
 * call with this state. `work` is the work directory. */
err session_consent_note(const char *work, const struct session_consent_run *run);
/* Deletes the files of runs that have ended or were left out more than `age_ms` ago. */
void session_consent_forget(const char *work, uint64_t age_ms);
/* All known runs, sorted by name, in the arena. A file that cannot be read is left out. */
err session_consent_list(struct session_consent_run **out, size_t *count, const char *work,
                         struct arena *arena);

enum session_consent_answer { CONSENT_NONE, CONSENT_APPROVED, CONSENT_DECLINED };
/* The answer of the administrator to this run. An approval of other terms is none. */
enum session_consent_answer session_consent_answer(const char *work,
                                                   const struct session_consent_run *run);
/* Answers a known run. ERR_INPUT: this machine does not know it. */
err session_consent_give(const char *work, const char *run, bool approve);

#endif
