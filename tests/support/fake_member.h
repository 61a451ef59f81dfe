/* A member without a model, and the calls of an operator. The member says hello, fetches states
 * and submits random updates of the right shapes over the real protocol. The bytes depend on
 * run, round and member only. */
#ifndef TESTS_SUPPORT_FAKE_MEMBER_H
#define TESTS_SUPPORT_FAKE_MEMBER_H

#include "agg/round/method.h"
#include "base/digest.h"
#include "proto/message.h"
#include "proto/rpc.h"
#include "proto/rpc_path.h"

#include "fedlora.pb-c.h"

#include <pthread.h>
#include <stdatomic.h>

struct fake_base { /* the description of a base model that does not exist */
    struct digest digest;
    const struct method_module *module;
    size_t modules;
};

struct fake_options {
    const char *server, *certs, *id; /* the folder has ca.pem, ID.pem, ID.key */
    const char *run;
    const struct fake_base *base;
    uint32_t rank; /* offered */
    uint64_t examples, eval_rows;
    uint64_t give_up_ms;    /* fake_join(): longest time without success */
    const char *session;    /* 16 bytes; NULL: none */
    char *without;          /* a run that is not served; NULL: none */
    bool stay, look;        /* of NextTask, and of Hello */
    size_t part_bytes;      /* of an upload; 0: as many as a chunk may have */
    unsigned part_us;       /* pause before each of them */
    uint32_t wait_ms;       /* of NextTask; 0: 2 s */
    atomic_size_t *greeted; /* counts members whose first Hello was answered; NULL: not counted */
};

struct fake_member {
    struct fake_options options;
    struct rpc_client *client;
    char method[LIMIT_NAME_BYTES]; /* of the run, set by fake_hello(), like: */
    char run[LIMIT_NAME_BYTES];
    char origin[LIMIT_NAME_BYTES]; /* that run's name in its files; empty: the same */
    uint64_t bytes_up, bytes_down;
    /* From the newest answer to Hello, sent with the next one, also after fake_join() has connected
     * again. */
    uint8_t epoch[32];
    size_t epoch_size;
};

err fake_open(struct fake_member *out, const struct fake_options *options);
void fake_close(struct fake_member *m);

/* Replies are freed with message_free(). */
err fake_hello(Fedlora__V1__HelloReply **reply, struct fake_member *m);
err fake_next_task(Fedlora__V1__Task **task, struct fake_member *m, uint32_t wait_ms);
/* With `out` NULL the bytes are only counted, so memory does not grow with the file. */
err fake_fetch(struct bytes *out, struct fake_member *m, const ProtobufCBinaryData *digest,
               uint64_t offset);
err fake_update(struct bytes *out, struct fake_member *m, const Fedlora__V1__TrainTask *task);
err fake_offset(Fedlora__V1__SubmitReply **reply, struct fake_member *m,
                const Fedlora__V1__SubmitHeader *header);
/* Sends the header, then the update from header->offset on, at most `most` bytes (0: all). */
err fake_submit(Fedlora__V1__SubmitReply **reply, struct fake_member *m,
                const Fedlora__V1__SubmitHeader *header, const struct bytes *update, size_t most);
err fake_report(struct fake_member *m, const Fedlora__V1__ReportRequest *report);
/* The header of this update. */
void fake_header(Fedlora__V1__SubmitHeader *header, const struct fake_member *m, uint32_t round,
                 const struct bytes *update, struct digest *digest);
/* A member's whole work until the run has finished; it survives restarts of the coordinator. */
err fake_join(struct digest *last_state, struct fake_member *m);

/* The same in a thread for each member "m0", "m1", ... */
struct fake_joining {
    pthread_t thread;
    char id[16];
    struct fake_options options;
    struct fake_member member; /* bytes_up and bytes_down are final when it has ended */
    struct digest last;
    err result;
};
/* The options' id is not read. */
void fake_join_begin(struct fake_joining *j, int number, const struct fake_options *options);
err fake_join_end(struct fake_joining *j);

/* ---- the operator: a member whose id has an admin certificate */
err fake_create(struct fake_member *admin, const Fedlora__V1__RunConfig *config);
/* With the members "m0", "m1", ..., one step of training a round, and the admin's base; the rest is
 * in `config`. */
err fake_create_run(struct fake_member *admin, const Fedlora__V1__RunConfig *config,
                    size_t members);
err fake_status(Fedlora__V1__RunStatus **status, struct fake_member *admin, const char *run);
/* One page of the list of runs. */
err fake_list(Fedlora__V1__ListRunsReply **page, struct fake_member *admin, uint32_t after,
              uint32_t limit);
/* Waits until the last round of a finished run has its report: how many rounds have one, and how
 * many were skipped. */
err fake_reports(size_t *made, size_t *skipped, struct fake_member *admin, const char *run);
err fake_command(struct fake_member *admin, const char *path, const char *run);
/* Any call that is answered with a run's status. */
err fake_call(struct fake_member *admin, const char *path, const ProtobufCMessage *request);

#endif
