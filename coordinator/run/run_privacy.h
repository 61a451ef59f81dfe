/* A run's privacy as its configuration asks for it (RunConfig.privacy): defaults, what the rest of
 * the configuration must then be, and the plan that privacy/ledger/plan.h judges. */
#ifndef COORDINATOR_RUN_PRIVACY_H
#define COORDINATOR_RUN_PRIVACY_H

#include "coordinator/work/private.h"

#include "fedlora.pb-c.h"

/* Part of run_config_complete(), after the rest: defaults, and what the rest must be. An empty
 * privacy message, or unit none, is taken out. */
err run_privacy_check(Fedlora__V1__RunConfig *config, const struct method_options *options);
/* Of a new run that is complete: every refusal of its plan that needs no base. Seconds, where noise
 * has to be found for many steps. */
err run_privacy_judge(const Fedlora__V1__RunConfig *config, const struct method_options *options);
/* The coordinator draws cohorts and adds the noise (unit client); members' training does (unit
 * example). */
bool run_privacy_central(const Fedlora__V1__RunConfig *config);
bool run_privacy_local(const Fedlora__V1__RunConfig *config);
/* Of members, for this round: 1 unless run_privacy_central(), and in passes that find a basis. */
double run_privacy_sampling(const Fedlora__V1__RunConfig *config,
                            const struct method_options *options, uint32_t round);
/* Copies all it needs into the arena; .on is false unless run_privacy_central(). */
err run_privacy_terms(struct private_terms *out, const Fedlora__V1__RunConfig *config,
                      const struct method_options *options, const char *key_path,
                      struct arena *arena);

#endif
