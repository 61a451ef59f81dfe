/* Local training with record-level differential privacy (DP-SGD, Abadi et al. 2016). The unit of
 * privacy is one record. Each step, with N records and a Poisson rate q:
 *
 *   S    each record independently with probability q, by secure randomness; S may be empty
 *   g_i  gradient, over all trained tensors, of the mean loss over record i's learned tokens
 *   G    (sum over S of clip(g_i, C) + N(0, (z C)^2 I)) / (q N), then AdamW with G
 *
 * Clipped gradients are rounded to an integer lattice and summed as integers. The noise is a
 * rounded Gaussian on the same lattice and is drawn before the records of the step are read. A step
 * is one Gaussian event with multiplier z at Poisson rate q (privacy/account/account.h).
 * Neighbouring data sets differ in one record; N is public.
 *
 * One record changes the sum by at most C only if the gradients of the other records keep their
 * bits. The backend has to promise that (kernels/backend.h, rows alone). It is checked with a pass
 * of the real shapes before the first record is read, and again after each pass.
 *
 * Only released values may be printed or sent, so steps report no loss and no token counts. A
 * record whose gradient is not finite counts as zero without a message, because an error would
 * reveal it. */
#ifndef ENGINE_TRAIN_PRIVATE_H
#define ENGINE_TRAIN_PRIVATE_H

#include "engine/train/train.h"

struct train_private_options {
    /* epochs count q N records per step; batch is the records of one pass; accumulate, shuffle and
     * clip are not used. */
    const struct train_options *train;
    double sampling; /* q in (0, 1] */
    double noise;    /* z in (0, 65536] */
    double clip;     /* C */
};
/* Number of optimizer steps: train->steps, or train->epochs rounded up. */
uint64_t train_private_steps(const struct train_private_options *o);
/* As train_run(), but sets only steps, values, seconds and tails of `out`. ERR_INPUT: an option out
 * of range, or no trained values. ERR_STATE: the noisy gradient is not finite, or a tensor that
 * does not train has changed; then the adapter must not be used. */
err train_private_run(struct train_result *out, struct adapter *adapter, struct engine *e,
                      const struct dataset *data, const struct train_private_options *o);

/* ERR_INPUT for several devices, and if it is known already that gradients of records would depend
 * on other records; the text names the precision or device to take instead. Products that were not
 * computed yet are not known. */
err train_private_check(const struct engine *e);

/* One release of G over all records (q = 1, o->sampling is not read) without training: one Gaussian
 * event with multiplier z. out (value_count). */
err train_private_gradient(float *out, const struct adapter *adapter, struct engine *e,
                           const struct dataset *data, const struct train_private_options *o);

/* Gradient of the mean loss of each record alone, out (rows, value_count); zero for rows without
 * learned tokens. For tests, which compare it with other ways to compute it. */
err train_private_gradients(float *out, struct engine *e, const struct adapter *adapter,
                            const struct engine_row *row, size_t rows);

#endif
