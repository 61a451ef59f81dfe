/* Tells the coordinator how far a round's training is, from a thread of its own every few seconds:
 * the heartbeat goes on while a step is long, and a slow coordinator never slows training. Failures
 * are nothing: the next report comes. */
#ifndef CLIENT_SESSION_REPORT_H
#define CLIENT_SESSION_REPORT_H

#include "fedlora.pb-c.h"
#include "proto/rpc.h"

#include <pthread.h>
#include <stdatomic.h>

struct session_report {
    struct rpc_client *client;
    const char *run;
    uint32_t round;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool running, ending;
    uint32_t step, steps;
    double loss, tokens_per_second;
    atomic_bool abandon; /* the round is over: stop training */
    char reason[256];    /* why; read after session_report_end() */
};

/* run must outlive it. Works without a thread too, should none be had. */
void session_report_begin(struct session_report *report, struct rpc_client *client, const char *run,
                          uint32_t round);
void session_report_step(struct session_report *report, uint32_t step, uint32_t steps, double loss,
                         double tokens_per_second);
void session_report_end(struct session_report *report);

#endif
