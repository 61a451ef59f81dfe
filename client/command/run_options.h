/* The options that describe a run, of `fedlora run create` and `fedlora simulate`, and the
 * RunConfig message that follows from them. The coordinator checks the values and fills in
 * defaults. */
#ifndef CLIENT_RUN_OPTIONS_H
#define CLIENT_RUN_OPTIONS_H

#include "client/command/command.h"
#include "fedlora.pb-c.h"

/* The first member of a command's options struct, so that one table serves all commands. */
struct run_options {
    struct command_common common;
    const char *method, *members, *base, *base_digest, *targets, *frozen;
    struct option_list method_options;
    int64_t rounds, rank, cohort, over_select, quorum, late_rounds, evaluate_every, report_every;
    double alpha, carry_error, weight_cap, norm_bound;
    struct training_options training;
    uint64_t deadline_ms, grace_ms;
    int late, absent, weights;
    bool rslora;
    int privacy;
    double epsilon, delta, noise, clip_norm, sampling, basis_clip, basis_noise;
    bool adaptive_clip, force_noise;
};
enum { RUN_PRIVACY_EXAMPLE = 2 }; /* the value of `privacy` for --privacy example */
extern const struct option_row run_options_rows[];
extern const size_t run_options_count;
/* Sections that describe a run for one command and not for the other, so that one file serves
 * both. */
extern const char *const run_options_simulated[]; /* skipped by `fedlora run create` */
extern const char *const run_options_deployed[];  /* skipped by `fedlora simulate` */

/* Sets the members of *out except name, base_digest and frozen_digest, in the arena. Members are
 * set if --members was given. */
err run_options_config(Fedlora__V1__RunConfig *out, const struct run_options *o,
                       struct arena *arena);

#endif
