/* One round of client-level privacy at the coordinator (DP-FedAvg with a fixed denominator;
 * specification 1.2, 1.7, 3.3). Released is
 *
 *     (sum over members of w_k clip(D_k) + N(0, (z C)^2 I)) / denominator
 *
 * in whole lattice steps until the division: changes are clipped again here whatever the members
 * did, summed as integers, and get rounded Gaussian noise that was drawn before the first one came.
 * One member more or less moves the sum by C at most (weights are public, in (0, 1]). No member at
 * all is a release like any other: noise. In this order, from one thread:
 *
 *     central_begin(&c, &spec);               when the round opens: draws the noise
 *     central_add(&c, tensor, tensors, w);    each member; any order gives the same sum
 *     central_finish(mean, &c);               once
 *     release_noisy(&release, &c, ...);       release.h: charged and signed, before it leaves
 *     central_close(&c);
 *
 * After a crash the noisy mean that was made durable is taken again, never drawn anew:
 * central_restore() stands in for the first three. */
#ifndef PRIVACY_CENTRAL_H
#define PRIVACY_CENTRAL_H

#include "privacy/noise/adaptive.h"
#include "privacy/noise/clip.h"
#include "privacy/noise/noise.h"

struct central_spec {
    size_t dim;         /* coordinates of all trained tensors together */
    double noise;       /* z: the multiplier the whole round costs */
    double clip;        /* C of this round */
    double denominator; /* cohort_denominator(): q times the sum of all public weights */
    double expected;    /* m = q times the number of members: adaptive clipping's denominator */
    struct adaptive adaptive;
};

struct central {
    struct central_spec spec;
    struct clip_bound bound;
    uint64_t sigma, sigma_bits; /* lattice steps; sigma_bits 0: clipping is not adaptive */
    double noise;               /* the multiplier as drawn, at least spec.noise */
    double next_clip;           /* after central_finish() */
    uint32_t members;
    bool finished;
    struct noise drawn;   /* (dim) */
    struct noise counted; /* (1), for the count of unclipped members */
    int64_t *sum;         /* (dim) */
    int32_t *one;         /* (dim): a member's */
    int64_t bits;
};

/* ERR_INPUT names what is out of range. */
err central_begin(struct central *out, const struct central_spec *spec);
/* The tensors' counts add up to dim; a module that was not sent is a tensor of zeros' change. */
err central_add(struct central *c, const struct clip_tensor *tensor, size_t tensors, double weight);
void central_finish(double *mean /* (dim) */, struct central *c);
/* A finished round of this spec, whose mean the caller has. */
err central_restore(struct central *out, const struct central_spec *spec, double next_clip);
void central_close(struct central *c); /* wipes sums and noise */

#endif
