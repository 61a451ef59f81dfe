/* What a member works with: base model, data and engine, opened in the order in which a mistake is
 * found soonest, and the work of one task. Knows no coordinator. */
#ifndef CLIENT_SESSION_LOCAL_H
#define CLIENT_SESSION_LOCAL_H

#include "client/session/session.h"
#include "client/session/session_privacy.h"
#include "client/session/session_report.h"
#include "client/session/session_train.h"
#include "engine/engine.h"
#include "engine/tokens/data.h"

struct session_local {
    const struct session_options *options;
    struct model model;
    struct digest base;
    char base_text[DIGEST_TEXT_BYTES];
    struct tokenizer *tokenizer;
    struct dataset data, held_out;         /* held_out: count 0 without --eval-data */
    struct engine *engine;                 /* NULL until session_local_prepare() */
    const struct session_privacy *privacy; /* of the run, where it is on; or NULL */
    bool untold; /* the run has privacy of either unit: losses are nobody's business */
};

/* Base, digest, tokenizer, data. */
err session_local_open(struct session_local *out, const struct session_options *options);
/* What Hello says of us; what it points at lives in `local` and the arena. */
err session_local_describe(Fedlora__V1__HelloRequest *out, struct session_local *local,
                           struct arena *arena);
/* The data again as the run wants it, and the engine. */
err session_local_prepare(struct session_local *local, const Fedlora__V1__Training *training);
void session_local_close(struct session_local *local);

/* Trains one round and writes its update to `path`. ERR_STATE when the coordinator has told
 * `report` that the round is over; ERR_STOPPED when the user interrupts. */
err session_local_train(struct train_result *out, struct session_local *local, const char *path,
                        const struct member_round *round, const Fedlora__V1__Training *training,
                        struct session_report *report);
/* The state on our held-out rows; accuracy is negative where no row has a completion. */
struct session_evaluation {
    uint64_t rows;
    double loss, accuracy;
};
err session_local_evaluate(struct session_evaluation *out, struct session_local *local,
                           const struct member_round *round);

#endif
