/* Local training of one adapter: batches, learning rate schedules, AdamW, clipping. Deterministic:
 * the same data, options and seed give the same bytes with any number of threads. */
#ifndef ENGINE_TRAIN_H
#define ENGINE_TRAIN_H

#include "base/training_options.h"
#include "engine/engine.h"

enum train_schedule {
    TRAIN_CONSTANT = TRAINING_CONSTANT,
    TRAIN_LINEAR = TRAINING_LINEAR,
    TRAIN_COSINE = TRAINING_COSINE
};

struct factors;    /* engine/factors.h */
struct train_keep; /* engine/train/train_keep.h */
struct train_step;
/* AdamW's state between two trainings of adapters with the same layout. */
struct train_moments {
    float *first, *second; /* (value_count) decayed means of the gradient and of its square */
    uint64_t steps;        /* number of optimizer steps in them */
};
struct train_options {   /* filled by train_defaults() */
    uint64_t steps;      /* optimizer steps; 0: from epochs */
    double epochs;       /* used when steps is 0 */
    uint32_t batch;      /* rows of one forward pass */
    uint32_t accumulate; /* forward passes of one step */
    double lr, weight_decay, beta1, beta2, eps;
    double clip; /* largest norm of the gradient; 0: off */
    double dropout;
    enum train_schedule schedule;
    uint64_t warmup; /* steps */
    uint64_t seed;   /* of the order of rows and of dropout */
    bool shuffle;    /* a new order for each epoch; else file order, starting over at the end */
    bool checkpoint; /* recompute activations */
    /* Terms added to the loss, and to the gradient before it is clipped; 0: off.
     *   FedProx (Li et al. 2020, eq. 2)     prox / 2 * |theta - theta at the start|^2
     *   HetLoRA (Cho et al. 2024, eq. 2)    prune_lambda * sum over modules |B[:, c:]| |A[c:, :]|
     * over the tensors that train, Frobenius norms, c = train_cut(rank, prune_gamma). */
    double prox;
    double prune_lambda, prune_gamma; /* gamma in (0, 1] */
    /* NULL, or the place that keeps packed factors between trainings over one engine. If the
     * adapter of the next training borrows the same carry, it reuses them and packs only the
     * trained tensors. The owner closes the last ones with factors_close(), before the engine. */
    struct factors **packed;
    /* NULL: the moments start at zero. Else training starts with these, and writes its own there
     * together with the values of the adapter. */
    struct train_moments *moments;
    const struct train_keep *keep; /* snapshots (train_keep.h); NULL: none */
    /* Called after every step. Returning false stops the training with ERR_STOPPED; the adapter
     * keeps the values of that step. */
    bool (*on_step)(void *user, const struct train_step *step);
    void *user;
};
struct train_step {
    uint64_t step, steps; /* step counts from 0 */
    double loss;          /* mean over the learned tokens of the step; 0 if there are none */
    double penalty;       /* added to the loss by prox and prune_lambda */
    double lr;            /* of this step */
    double grad_norm;     /* before clipping */
    uint64_t tokens;      /* in all rows of the step */
    uint64_t learned;
    double seconds; /* of this step */
};
struct train_result {
    uint64_t steps, tokens, learned;
    uint64_t values;                         /* numbers that train */
    double first_loss, last_loss, mean_loss; /* mean: over all learned tokens of all steps */
    double seconds;
    double tail_before, tail_after; /* train_tail() at prune_gamma; 0 if prune_gamma is 0 */
};

/* The defaults of base/training_options.h. */
void train_defaults(struct train_options *o);
/* Copies the options of local training, except those of the data and the engine (seq, eos, bos,
 * boundary, precision). Other members of *o keep their values. */
void train_set(struct train_options *o, const struct training_options *from);
/* Fills in the indices of the rows with a learned token, and returns their number. Only these are
 * trained on: a batch of other rows has no loss. With example-level privacy every row is a record
 * and can be drawn, because the accounting counts all of them; its gradient is then zero. */
size_t train_rows(uint32_t *index /* (data->count) */, const struct dataset *data);
/* Number of optimizer steps: `steps`, or `epochs` over `rows` rows rounded up. */
uint64_t train_steps(const struct train_options *o, size_t rows);
/* Factor of lr at step t (from 0), by the formulas of transformers. */
double train_lr_factor(enum train_schedule s, uint64_t t, uint64_t warmup, uint64_t steps);
/* The rank that self-pruning keeps: floor(gamma * rank), at least 1. */
uint32_t train_cut(uint32_t rank, double gamma);
/* Sum over modules of |B[:, c:]| |A[c:, :]|, c = train_cut(rank, gamma). */
double train_tail(const struct adapter *adapter, double gamma);
/* HetLoRA's self-pruning: train_cut() when training made the tail smaller, else rank. */
uint32_t train_pruned_rank(uint32_t rank, double gamma, const struct train_result *r);
/* Trains adapter->value. ERR_INPUT: the adapter has no trained values, or the data no learned
 * tokens. ERR_STATE: the loss or gradient is not finite. */
err train_run(struct train_result *out, struct adapter *adapter, struct engine *e,
              const struct dataset *data, const struct train_options *o);

/* One of several trainings over one engine. */
struct train_job {
    struct adapter *adapter; /* its own */
    const struct dataset *data;
    const struct train_options *options; /* `packed`, if any, is its own place */
    struct train_result result;          /* out; seconds: its part of the common time */
    err error;                           /* out: what train_run() would return */
    uint64_t shared;                     /* out: steps in a pass with others */
};
/* Makes all trainings step by step together. In each step small ones share a pass, each whole, if
 * train_fills() is true for them. The values and losses have the bits that train_run() gives, and
 * the error of one does not touch the others. */
void train_many(struct train_job *job, size_t count, struct engine *e);
/* The training may share passes: on the CPU, if a step is one pass without dropout, whose masks
 * belong to a pass. In bfloat16 the first call tries on this engine whether a gradient has the same
 * bits alone and in a shared pass. Engines that share weights take the result of their owner, if it
 * has been called with that before they train. */
bool train_fills(struct engine *e, const struct train_options *o);
/* Tokens of one pass, on average. */
size_t train_tokens(const struct dataset *data, const struct train_options *o);

/* The gradient of the mean loss over learned tokens, without an optimizer step. Members send it
 * when a run computes its basis from gradients: first dL/dB at A = Omega^T, B = 0, then dL/dA at B
 * = Q, A = 0. */
struct train_gradient {
    float *value;     /* (value_count), memory of the caller, laid out as adapter->value: out */
    double loss;      /* out: mean over the learned tokens */
    uint64_t learned; /* out */
};
struct train_gradient_options {
    size_t rows;    /* rows to use, at most all; 0: all */
    uint32_t batch; /* rows of one pass */
    uint64_t seed;  /* of the choice of rows */
    bool shuffle;   /* choose the rows at random, else take the first ones */
    bool checkpoint;
};
/* Sums in float64 in the order of batches. Errors as train_run(). */
err train_gradient_run(struct train_gradient *out, const struct adapter *adapter, struct engine *e,
                       const struct dataset *data, const struct train_gradient_options *o);

#endif
