/* What training with and without privacy share: inside train.c and train_private.c. */
#ifndef CLIENT_TRAIN_PARTS_H
#define CLIENT_TRAIN_PARTS_H

#include "engine/pass.h"
#include "engine/train/train.h"

struct training {
    struct engine *e;
    struct adapter *adapter;
    const struct dataset *data;
    const struct train_options *o;
    uint64_t steps;
    struct factors *factors;
    float *value, *first, *second, *gradient; /* (value_count) each, device */
    float *start, *penalty;                   /* (value_count) each; NULL: no penalty */
    float *added;                             /* (value_count) the penalty's gradient, device */
    struct engine_row *row;                   /* (batch * accumulate) */
    uint32_t *order;                          /* (rows) of this epoch */
    uint64_t epoch;                           /* that `order` is of, from 1; 0: none */
};

err training_check(const struct train_options *o, const struct adapter *ad,
                   const struct dataset *data);
/* With e, adapter, data and o set. On failure too, training_close(). */
err training_open(struct training *t);
void training_close(struct training *t);
/* AdamW with t->gradient, clipped and with the penalty; the adapter's values follow. Sets
 * s->penalty and s->grad_norm; s->lr and s->step are read. */
err training_update(struct training *t, struct train_step *s);

#endif
