/* An operator's RunConfig: checked whole before a run exists, defaults filled in, and what follows
 * from it for each member: the modules adapted, the rank, the scale. Pure. */
#ifndef COORDINATOR_RUN_CONFIG_H
#define COORDINATOR_RUN_CONFIG_H

#include "agg/method.h"
#include "base/err.h"

#include "fedlora.pb-c.h"

#define RUN_CONFIG_CARRY_ERROR 1e-4 /* where none is given; design section 2 */

/* Defaults for what is absent (zero or empty), then every range. ERR_INPUT names the field. */
err run_config_complete(Fedlora__V1__RunConfig *config);

/* "q" or "q_proj" or a full name against a module's full name. No targets: every module. */
bool run_config_targets(const Fedlora__V1__RunConfig *config, const char *module);
/* What this run adapts of a base, in a message of its own; ERR_INPUT when a target names nothing.
 */
err run_config_modules(Fedlora__V1__HelloRequest **out, const Fedlora__V1__RunConfig *config,
                       const Fedlora__V1__HelloRequest *hello);
/* ERR_INPUT unless the base said hello with has the same modules, with the same shapes. */
err run_config_same_modules(const Fedlora__V1__HelloRequest *modules,
                            const Fedlora__V1__HelloRequest *hello);

/* The rank of a member that offers `offered` (0: whatever is asked). ERR_INPUT: it cannot take
 * part. */
err run_config_rank(uint32_t *out, const Fedlora__V1__RunConfig *config, const char *member,
                    uint32_t offered);
double run_config_alpha(const Fedlora__V1__RunConfig *config, uint32_t rank);
/* The largest rank the run asks of anyone; at least 1. */
uint32_t run_config_rank_max(const Fedlora__V1__RunConfig *config);

#endif
