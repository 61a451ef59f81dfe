/* Shows how far a round's training is: to the user as a progress line, and to the coordinator by a
 * report every few seconds. The reports have a thread of their own. So they continue during a long
 * step, and a slow coordinator never slows training. A report that fails is ignored, because the
 * next one follows. */
#ifndef CLIENT_SESSION_REPORT_H
#define CLIENT_SESSION_REPORT_H

#include "client/output/progress.h"
#include "engine/member/member_train.h"
#include "proto/rpc.h"

#include <pthread.h>
#include <stdatomic.h>

struct session_report { /* the caller sets the first group, and zero for the rest */
    struct rpc_client *client;
    const char *run;
    uint32_t round;
    bool quiet;           /* no progress line */
    bool loss_is_private; /* the run has differential privacy: do not print or send losses */

    struct progress progress; /* used by the training thread only */
    uint64_t tokens;          /* since the start of the round; training thread only */
    double seconds;           /* time of these tokens */
    pthread_t thread;         /* sends the reports */
    pthread_mutex_t lock;     /* guards the members from `ending` to `notice` */
    pthread_cond_t wake;      /* ends a pause of the reporting thread */
    bool running, ending;     /* running: the thread was created */
    uint32_t step, steps;
    double loss, tokens_per_second;
    char notice[256];    /* the coordinator's newest text for the user; "": none */
    atomic_bool abandon; /* the coordinator has answered that the round is over */
    char reason[256];    /* why; set when abandon is */
    char said[256];      /* the notice that was printed; training thread only */
    bool failed;         /* the training ended because its loss or a gradient is not finite */
};

/* Calls member_train() with these reports; `work` must have no on_step. ERR_STATE when the
 * coordinator answers that the round is over: `reason` has its text, and the update must not be
 * used; or when the training failed on its numbers (`failed`). If no thread can be created,
 * nothing is sent and training continues. */
err session_report_train(struct train_result *out, struct session_report *report, const char *path,
                         const struct member_train *work);

#endif
