/* The limits that the administrator of a member sets: the section [policy] of client.ini. They are
 * compared with a run before this member joins it, and with the clock before each round. Pure. */
#ifndef CLIENT_SESSION_POLICY_H
#define CLIENT_SESSION_POLICY_H

#include "base/option.h"
#include "fedlora.pb-c.h"

#include <time.h>

enum session_policy_unit { POLICY_UNIT_ANY, POLICY_UNIT_CLIENT, POLICY_UNIT_EXAMPLE };
enum session_policy_approve { POLICY_APPROVE_AUTO, POLICY_APPROVE_ASK };
enum { SESSION_POLICY_WHY = 320 };

/* Zero and NULL: not limited. Lists are separated by commas. */
struct session_policy {
    const char *methods, *bases, *targets;
    const char *hours;   /* local time, "20:00-06:30"; the end is not included */
    int64_t max_steps;   /* of one round */
    int64_t max_minutes; /* of training, of one local day */
    int unit;            /* enum session_policy_unit */
    double epsilon, delta;
    int approve; /* enum session_policy_approve */
};

/* Only in files, because a policy must not depend on how the member is started. */
#define SESSION_POLICY_ROWS(at_)                                                                   \
    {.key = "policy.methods",                                                                      \
     .kind = OPTION_TEXT,                                                                          \
     .at = (at_) + offsetof(struct session_policy, methods),                                       \
     .value = "NAME,...",                                                                          \
     .help = "methods of runs that this member takes part in; default: all"},                      \
        {.key = "policy.bases",                                                                    \
         .kind = OPTION_TEXT,                                                                      \
         .at = (at_) + offsetof(struct session_policy, bases),                                     \
         .value = "DIGEST,...",                                                                    \
         .help = "digests of base models that may be trained; default: all"},                      \
        {.key = "policy.targets",                                                                  \
         .kind = OPTION_TEXT,                                                                      \
         .at = (at_) + offsetof(struct session_policy, targets),                                   \
         .value = "q,k,v,...",                                                                     \
         .help = "modules that may be adapted; default: all"},                                     \
        {.key = "policy.max_steps",                                                                \
         .kind = OPTION_INT,                                                                       \
         .at = (at_) + offsetof(struct session_policy, max_steps),                                 \
         .fallback = "0",                                                                          \
         .least = 0,                                                                               \
         .most = 0x1p53,                                                                           \
         .help = "largest number of optimizer steps in a round; 0: no limit"},                     \
        {.key = "policy.max_minutes",                                                              \
         .kind = OPTION_INT,                                                                       \
         .at = (at_) + offsetof(struct session_policy, max_minutes),                               \
         .fallback = "0",                                                                          \
         .least = 0,                                                                               \
         .most = 1440,                                                                             \
         .help = "longest time of training in a day, in minutes; 0: no limit"},                    \
        {.key = "policy.hours",                                                                    \
         .kind = OPTION_TEXT,                                                                      \
         .at = (at_) + offsetof(struct session_policy, hours),                                     \
         .value = "HH:MM-HH:MM",                                                                   \
         .help = "hours of the day in which this machine trains, local time; default: all"},       \
        {.key = "policy.privacy",                                                                  \
         .kind = OPTION_CHOICE,                                                                    \
         .at = (at_) + offsetof(struct session_policy, unit),                                      \
         .fallback = "any",                                                                        \
         .choices = session_policy_units,                                                          \
         .help = "unit of differential privacy that a run must have; any: none is required"},      \
        {.key = "policy.epsilon",                                                                  \
         .kind = OPTION_NUM,                                                                       \
         .at = (at_) + offsetof(struct session_policy, epsilon),                                   \
         .fallback = "0",                                                                          \
         .least = 0,                                                                               \
         .most = 1e6,                                                                              \
         .help = "runs must have differential privacy with at most this epsilon; 0: no limit"},    \
        {.key = "policy.delta",                                                                    \
         .kind = OPTION_NUM,                                                                       \
         .at = (at_) + offsetof(struct session_policy, delta),                                     \
         .fallback = "0",                                                                          \
         .least = 0,                                                                               \
         .most = 1,                                                                                \
         .help = "runs must have differential privacy with at most this delta; 0: no limit"},      \
    {                                                                                              \
        .key = "policy.approve", .kind = OPTION_CHOICE,                                            \
        .at = (at_) + offsetof(struct session_policy, approve), .fallback = "auto",                \
        .choices = session_policy_approvals,                                                       \
        .help = "auto: join runs that the policy allows; ask: only after `fedlora approve RUN`"    \
    }
extern const char *const session_policy_units[], *const session_policy_approvals[];

/* ERR_INPUT for a value that can never be met, such as an unknown module. NULL is accepted. */
err session_policy_check(const struct session_policy *p);
/* Something is limited, or the administrator is asked. */
bool session_policy_is_set(const struct session_policy *p);

/* A run as the answer to Hello describes it. */
struct session_policy_run {
    const Fedlora__V1__HelloReply *hello;
    const char *base; /* digest, 64 hexadecimal digits */
    uint64_t rows;    /* that this member trains on */
};
/* False if a rule does not allow the run; `why` names the rule and the run's value. It says nothing
 * about the data, because the operator gets it too. */
bool session_policy_allows(char why[SESSION_POLICY_WHY], const struct session_policy *p,
                           const struct session_policy_run *run);
/* False if no training may begin at this local time, of which `used_ms` are used already. */
bool session_policy_now(char why[SESSION_POLICY_WHY], const struct session_policy *p,
                        const struct tm *now, uint64_t used_ms);

#endif
