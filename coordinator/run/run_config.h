/* An operator's RunConfig: checked whole before a run exists, defaults filled in, and what follows
 * from it for each member: the modules adapted, the rank, the scale. Pure. */
#ifndef COORDINATOR_RUN_CONFIG_H
#define COORDINATOR_RUN_CONFIG_H

#include "agg/round/method_options.h"
#include "base/err.h"

#include "fedlora.pb-c.h"

#define RUN_CONFIG_CARRY_ERROR 1e-4 /* where none is given; design section 2 */
enum { RUN_CONFIG_REPORT_EVERY = 10 };

/* Defaults for what is absent (zero or empty), then every range. ERR_INPUT names the field. */
err run_config_complete(Fedlora__V1__RunConfig *config);

const struct method *run_config_method(const Fedlora__V1__RunConfig *config); /* of a checked one */
/* The method's options, as checked by run_config_complete(). */
void run_config_options(struct method_options *out, const Fedlora__V1__RunConfig *config);

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
/* alpha of what a member (NULL: the state) trains at this rank. Where factors begin afresh it is
 * its own, the run's, or twice the rank; B R A has scale 1; what begins from the state has the
 * state's scale s, so alpha is s r, or s sqrt(r) with rsLoRA (beside frozen factors r is the
 * state's). */
double run_config_alpha(const Fedlora__V1__RunConfig *config, const char *member, uint32_t rank);
bool run_config_rslora(const Fedlora__V1__RunConfig *config, const char *member);
/* Does this member adapt the module, which is one of the run's? */
bool run_config_adapts(const Fedlora__V1__RunConfig *config, const char *member,
                       const char *module);
/* The largest rank the run asks of anyone; at least 1. */
uint32_t run_config_rank_max(const Fedlora__V1__RunConfig *config);

#endif
