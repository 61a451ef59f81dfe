/* `fedlora train --privacy example`: the plan is judged and the ledger opened before anything is
 * trained, and the whole training is charged as one release before the adapter is written. */
#ifndef CLIENT_TRAIN_LEDGER_H
#define CLIENT_TRAIN_LEDGER_H

#include "client/train_private.h"
#include "privacy/ledger_file.h"
#include "privacy/plan.h"

struct train_ledger_options {
    const struct train_options *train;
    double epsilon, delta, noise, clip; /* noise 0: what the budget needs */
    double sampling;                    /* 0: train->batch over the number of records */
    const char *ledger, *key, *job;
};

struct train_ledger {
    struct train_private_options how;
    struct plan plan;
    struct plan_summary summary;
    struct ledger_file file;
    char says[1024]; /* the plan in a few lines */
};

/* ERR_INPUT: refused, with the reason; ERR_LIMIT: the ledger's budget is spent. */
err train_ledger_begin(struct train_ledger *out, const struct train_ledger_options *o,
                       const struct adapter *adapter, const struct dataset *data);
/* Trains and charges. On failure nothing was released. */
err train_ledger_run(struct train_result *out, struct train_ledger *l, struct adapter *adapter,
                     struct engine *e, const struct dataset *data);
void train_ledger_close(struct train_ledger *l);

#endif
