/* The service: all runs, the RPC server, the two workers, and the loop that ties them together. One
 * thread calls everything here; serve_step() does whatever has come up and returns. */
#ifndef COORDINATOR_SERVE_H
#define COORDINATOR_SERVE_H

#include "coordinator/run/run.h"
#include "coordinator/serve/rate.h"
#include "proto/rpc.h"
#include "proto/rpc_path.h"

struct serve_poll { /* a call that waits for its run to change */
    struct serve_poll *next, *previous;
    struct rpc_call *call;
    struct run *run;
    size_t member;  /* of a NextTask */
    uint64_t after; /* of a WatchRun: the last event seen */
    uint64_t until_ms;
    /* Answers the call if there is something to answer, or with `must` in any case. True: it is
     * answered. */
    bool (*answer)(const struct serve_poll *poll, bool must);
};

struct serve {
    const struct config *config;
    struct store store;
    struct work *maths, *receipts;
    struct rpc_server *server;
    struct rate rate;
    struct run_shop shop;
    struct run *runs; /* in order of creation */
    size_t run_count;
    struct serve_poll *polls;
    uint64_t polls_at_ms; /* when the first poll ends */
    bool draining;
};

/* The store must be recovered and the data folder locked (main.c). The struct must not move. */
err serve_open(struct serve *out, const struct config *config);
void serve_step(struct serve *s, uint64_t timeout_ms);
/* Finishes what is in flight, lets calls end for at most grace_ms, closes all. Accepts a zeroed
 * one. */
void serve_close(struct serve *s, uint64_t grace_ms);

/* ---- for serve_*.c */
struct serve *serve_of(struct rpc_call *call);
struct run *serve_find_run(const struct serve *s, const char *name); /* or NULL */
/* Says no; what only this machine is to blame for is logged, and the peer is told to come back. */
void serve_refuse(struct rpc_call *call, err cause);
void serve_answer(struct rpc_call *call, const ProtobufCMessage *reply);
/* The peer's place in a run it names ("" : the only open one it belongs to), or why not. */
err serve_member(struct run **run, size_t *member, struct rpc_call *call, const char *name);
err serve_check_admin(struct rpc_call *call);
err serve_digest(struct digest *out, const ProtobufCBinaryData *data);
void serve_wait(struct serve *s, const struct serve_poll *poll);
void serve_poll_over(struct rpc_call *call, bool answered); /* `over` of calls that may wait */

/* The whole RunStatus in the arena. */
err serve_status(Fedlora__V1__RunStatus **out, struct run *run, bool whole, struct arena *arena);

/* serve_methods.c: the handlers of all remote procedures, for rpc_server_open(). */
enum { SERVE_METHODS = RPC_PATHS_FEDERATION + RPC_PATHS_ADMIN };
void serve_methods(struct rpc_method out[SERVE_METHODS]);

/* Each file's own handlers. */
extern const struct rpc_method serve_member_method[], serve_fetch_method[], serve_submit_method[],
    serve_admin_method[], serve_ledger_method[];
extern const size_t serve_member_methods, serve_fetch_methods, serve_submit_methods,
    serve_admin_methods, serve_ledger_methods;

#endif
