/* Shared by training with and without privacy. Used only in engine/train. */
#ifndef ENGINE_TRAIN_PARTS_H
#define ENGINE_TRAIN_PARTS_H

#include "engine/pass.h"
#include "engine/train/train.h"

/* A further device in training. It has the same values as the first one, and computes the gradient
 * of its own share of the rows. */
struct training_peer {
    struct engine *e;
    struct factors *factors;
    float *value, *gradient; /* (value_count) each, on this device */
    uint64_t blocks_held;    /* bytes of both; 0 on the CPU */
    struct backend_record *record;
};

struct training {
    struct engine *e;
    struct adapter *adapter;
    const struct dataset *data;
    const struct train_options *o;
    uint64_t steps;
    struct factors *factors;
    float *value, *first, *second, *gradient; /* (value_count) each, device */
    float *start;                             /* (value_count) device; NULL without prox */
    float *penalty;                           /* (value_count) host; NULL without pruning */
    struct training_peer *peer;               /* (e->peers) */
    struct batch *batch;                      /* (accumulate, devices) passes of one step */
    struct engine_row *row;                   /* (batch * accumulate) */
    uint32_t *teach;                          /* (rows) indices of the rows that are trained on */
    size_t rows;                              /* their number: those with a learned token */
    uint32_t *order;                          /* (rows) order of `teach` in `epoch` */
    uint64_t epoch;                           /* from 1; 0: `order` is not set */
    bool each_row;                            /* the caller keeps a gradient for each row */
    struct backend_record *record;            /* of the passes */
    uint64_t blocks_held; /* bytes of the device in value .. start; 0 on the CPU */
};

err training_check(const struct train_options *o, const struct adapter *ad,
                   const struct dataset *data);
/* The caller sets e, adapter, data and o before, and calls training_close() after a failure too.
 * `steps` is set before the first row is asked for. */
err training_open(struct training *t);
void training_close(struct training *t);
/* Row number `number` of the training, counted over all epochs. */
const struct data_row *training_row(struct training *t, uint64_t number);
/* Working memory for the largest pass of each device. */
err training_reserve_all(struct training *t);
/* Working memory for passes of this size, so that no step has to take memory. */
err training_reserve(struct training *t, const struct pass_size *s);
/* The same for a pass of `s` on one device. `blocks_held`: bytes of the blocks of values. */
err training_reserve_on(struct training *t, struct engine *e, const struct factors *f,
                        uint64_t blocks_held, const struct pass_size *s);
/* Sets t->penalty to the gradient of the penalty at the values of the adapter, and s->penalty. */
void training_penalty(struct training *t, struct train_step *s);
/* Queues one AdamW step with t->gradient, clipped, and waits for it and for all passes before it.
 * Reads s->lr and s->step, sets s->grad_norm and adds to s->penalty. */
err training_update(struct training *t, struct train_step *s);
/* ERR_STATE if the loss or the norm of the gradient is not finite: AdamW would turn every value
 * into NaN with the next step. */
err training_finite(const struct train_step *s);
/* ---- train_peers.c: several devices. Row i of a pass is on device i mod N, and device 0 is t->e.
 * All functions do nothing without peers. */

static inline size_t training_devices(const struct training *t)
{
    return 1 + t->e->peers;
}
/* Number of rows of a pass on a device. */
static inline size_t training_share(const struct training *t, size_t device)
{
    size_t n = training_devices(t);
    return (t->o->batch + n - 1 - device) / n;
}
err training_peers_open(struct training *t);
void training_peers_close(struct training *t);
/* Puts the rows of a pass (batch) in the order of their devices. */
void training_deal(const struct training *t, struct engine_row *row);
void training_peers_zero(struct training *t);   /* their gradients */
void training_peers_add(struct training *t);    /* their gradients to t->gradient, in order */
void training_peers_follow(struct training *t); /* they take the values of the first device */
/* Waits for all devices, the first one too. The first failure by number of the device. */
err training_check_all(struct training *t);

/* After the last of `steps` steps copies the values to the adapter and the moments to the caller,
 * unless *er says that a step failed. A failure becomes *er. */
void training_fetch_after(err *er, const struct training *t, uint64_t steps);

#endif
