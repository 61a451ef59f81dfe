/* A run's privacy as its configuration asks for it (RunConfig.privacy): defaults, the conditions it
 * sets on the rest of the configuration, and the plan that privacy/ledger/plan.h judges.
 *
 * `options` are the method's, parsed from the same configuration (run_config_options). */
#ifndef COORDINATOR_RUN_PRIVACY_H
#define COORDINATOR_RUN_PRIVACY_H

#include "coordinator/work/private.h"

#include "fedlora.pb-c.h"

/* The last part of run_config_complete(). A privacy message with unit none is removed. */
err run_privacy_check(Fedlora__V1__RunConfig *config, const struct method_options *options);
/* For a new run whose configuration is complete: refuses a plan if that can be known without the
 * base. May take seconds if the noise must be found for many steps. */
err run_privacy_judge(const Fedlora__V1__RunConfig *config, const struct method_options *options);
/* Unit client: the coordinator draws cohorts and adds the noise. */
bool run_privacy_central(const Fedlora__V1__RunConfig *config);
/* Unit example: members add the noise while they train. */
bool run_privacy_local(const Fedlora__V1__RunConfig *config);
/* Probability that a member is drawn for this round. 1 unless run_privacy_central(), and in the
 * rounds that find a basis. */
double run_privacy_sampling(const Fedlora__V1__RunConfig *config,
                            const struct method_options *options, uint32_t round);
/* Copies all it needs into the arena; .on is false unless run_privacy_central(). */
err run_privacy_terms(struct private_terms *out, const Fedlora__V1__RunConfig *config,
                      const struct method_options *options, const char *key_path,
                      struct arena *arena);

#endif
