/* Shared by training with and without privacy. Used only in train.c and train_private.c. */
#ifndef ENGINE_TRAIN_PARTS_H
#define ENGINE_TRAIN_PARTS_H

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
    float *start, *penalty;                   /* (value_count) each, host; NULL: no penalty */
    float *added;                             /* (value_count) gradient of the penalty, device */
    struct engine_row *row;                   /* (batch * accumulate) */
    uint32_t *order;                          /* (rows) order of the rows in `epoch` */
    uint64_t epoch;                           /* from 1; 0: `order` is not set */
};

err training_check(const struct train_options *o, const struct adapter *ad,
                   const struct dataset *data);
/* The caller sets e, adapter, data and o before, and calls training_close() after a failure too. */
err training_open(struct training *t);
void training_close(struct training *t);
/* One AdamW step with t->gradient plus the penalty's gradient, clipped; then updates the values of
 * the adapter. Reads s->lr and s->step, sets s->penalty and s->grad_norm. */
err training_update(struct training *t, struct train_step *s);

#endif
