/* Local training whose unit of privacy is one record (DP-SGD; Abadi et al. 2016, and specification
 * 1.10, 3.3). Each step, with N records and a Poisson rate q:
 *
 *     S    each record by itself with chance q, from the system's secure randomness; may be empty
 *     g_i  gradient over all trained tensors of the mean of record i's learned tokens
 *     G    (sum over S of clip(g_i, C) + N(0, (z C)^2 I)) / (q N), then AdamW with G
 *
 * Clipped gradients are put on an integer lattice and summed as integers; the noise is a rounded
 * Gaussian on it, drawn before the step's records are read. A step is one Gaussian event of
 * multiplier z at Poisson rate q (privacy/account/account.h); neighbours differ by one record, N is public.
 * What is told of a step is what it released: no loss, no counts of tokens; a record whose gradient
 * is not finite counts as zero, in silence. */
#ifndef CLIENT_TRAIN_PRIVATE_H
#define CLIENT_TRAIN_PRIVATE_H

#include "engine/train/train.h"

struct train_private_options {
    const struct train_options *train; /* steps or epochs (at q N records a step); batch: records of
                                          one pass; accumulate, shuffle and clip are not used */
    double sampling;                   /* q in (0, 1] */
    double noise;                      /* z in (0, 65536] */
    double clip;                       /* C */
};
/* Optimizer steps that steps and epochs come to. */
uint64_t train_private_steps(const struct train_private_options *o);
/* As train_run(). Of `out` only steps, seconds and tails are set. ERR_INPUT: an option out of
 * range, nothing to train; ERR_STATE: the noisy gradient is not finite, or a tensor that does not
 * train has changed: then the adapter must not be used. */
err train_private_run(struct train_result *out, struct adapter *adapter, struct engine *e,
                      const struct dataset *data, const struct train_private_options *o);

/* Nothing trains: G of everyone (q = 1; the options' own rate is not read), one Gaussian event of
 * multiplier z. out (value_count). */
err train_private_gradient(float *out, const struct adapter *adapter, struct engine *e,
                           const struct dataset *data, const struct train_private_options *o);

/* For the same checks elsewhere: per-record gradients of the mean over each row's learned tokens,
 * value_count floats a row, one after the other; zero where nothing is learned. */
err train_private_gradients(float *out, struct engine *e, const struct adapter *adapter,
                            const struct engine_row *row, size_t rows);

#endif
