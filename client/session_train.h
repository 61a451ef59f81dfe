/* One round of local work: the state (and frozen factors) as an adapter over the base, and what was
 * trained as an update file. The same inputs give the same bytes. */
#ifndef CLIENT_SESSION_TRAIN_H
#define CLIENT_SESSION_TRAIN_H

#include "agg/adapter_file.h"
#include "client/adapter.h"
#include "client/train.h"
#include "fedlora.pb-c.h"

struct session_round {
    const char *run, *member, *method;
    const char *base; /* digest of our base, 64 hex */
    const char *state_path;
    const char *frozen_path;   /* NULL: none */
    const char *frozen_digest; /* 64 hex, or "" */
    uint32_t round;
    uint32_t rank; /* of this member's factors; 0: as the state's */
    double alpha;
    bool rslora;
    unsigned trains; /* ADAPTER_A | ADAPTER_B | ADAPTER_R */
    uint64_t seed;
};

struct session_adapter {
    struct adapter adapter;
    struct adapter_file state, frozen;
};

/* "A", "B", "R" to bits; ERR_INPUT for any other word or none. */
err session_trains(unsigned *out, char *const *word, size_t count);
/* ERR_INPUT when the state is of another base or run, or does not fit this model. */
err session_adapter_open(struct session_adapter *out, const struct arch *arch,
                         const struct session_round *round);
void session_adapter_close(struct session_adapter *a);
/* Writes the trained tensors, canonical, replacing what is at `path`. */
err session_update_write(const char *path, const struct session_adapter *a,
                         const struct session_round *round);
/* The run's options; zeros and "" where it leaves ours as they are. ERR_INPUT for what cannot be.
 * The order of rows is keyed by the run's seed, run, round and member. */
err session_train_options(struct train_options *out, const Fedlora__V1__Training *training,
                          const struct session_round *round);

#endif
