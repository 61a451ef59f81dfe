/* One round of client-level privacy at the coordinator: DP-FedAvg with a fixed denominator (McMahan
 * et al. 2018, arXiv 1710.06963; docs/privacy.md). The release is
 *
 *     (sum over members of w_k clip(D_k) + N(0, (z C)^2 I)) / denominator
 *
 * in whole lattice steps until the division. Changes are clipped here even if the members have
 * clipped them, and summed as integers. The noise is rounded Gaussian and is drawn before the first
 * change arrives. One member more or less moves the sum by at most C, because weights are public
 * and in (0, 1]. A round without members is released too, as noise alone. Call from one thread, in
 * order:
 *
 *     central_begin(&c, &spec);               when the round opens: draws the noise
 *     central_add(&c, tensor, tensors, w);    for each member; any order gives the same sum
 *     central_finish(mean, &c);               once
 *     release_noisy(&release, &c, ...);       release.h: charged and signed before it leaves
 *     central_close(&c);
 *
 * After a crash the noisy mean that was made durable is used, and noise is never drawn again,
 * because two draws would cost two releases. central_restore() then replaces the first three
 * calls. */
#ifndef PRIVACY_CENTRAL_H
#define PRIVACY_CENTRAL_H

#include "privacy/noise/adaptive.h"
#include "privacy/noise/clip.h"
#include "privacy/noise/noise.h"

struct central_spec {
    size_t dim;         /* coordinates of all trained tensors together */
    double noise;       /* z: the multiplier charged for the whole round */
    double clip;        /* C of this round */
    double denominator; /* cohort_denominator(): q times the sum of all public weights */
    double expected;    /* m = q times the number of members: adaptive clipping's denominator */
    struct adaptive adaptive;
};

struct central {
    struct central_spec spec;
    struct clip_bound bound;
    uint64_t sigma, sigma_bits; /* lattice steps; sigma_bits 0: clipping is not adaptive */
    double noise;               /* the multiplier used, at least spec.noise */
    double next_clip;           /* after central_finish() */
    uint32_t members;
    bool finished;
    struct noise drawn;   /* (dim) */
    struct noise counted; /* (1), for the count of unclipped members */
    int64_t *sum;         /* (dim) */
    int32_t *one;         /* (dim): one member's clipped change */
    int64_t bits;         /* members that were not clipped, each counted as +-2^30 */
};

/* ERR_INPUT names the value that is out of range. */
err central_begin(struct central *out, const struct central_spec *spec);
/* The tensors' counts add up to dim. A module that was not sent is passed with a change of zero. */
err central_add(struct central *c, const struct clip_tensor *tensor, size_t tensors, double weight);
void central_finish(double *mean /* (dim) */, struct central *c);
/* Restores a finished round of this spec, whose mean the caller has. */
err central_restore(struct central *out, const struct central_spec *spec, double next_clip);
void central_close(struct central *c); /* wipes sums and noise */

#endif
