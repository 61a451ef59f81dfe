/* An operator's RunConfig: checked completely before a run exists, with defaults filled in; and the
 * modules, rank and scale that follow from it for each member. Pure. */
#ifndef COORDINATOR_RUN_CONFIG_H
#define COORDINATOR_RUN_CONFIG_H

#include "agg/round/method_options.h"
#include "base/digest.h"
#include "base/err.h"

#include "fedlora.pb-c.h"

/* Defaults of fields that are absent. */
#define RUN_CONFIG_CARRY_ERROR 1e-4 /* relative, over all rounds together */
enum { RUN_CONFIG_REPORT_EVERY = 10 };
/* Updates that are later say nothing about the state of today. */
enum { RUN_CONFIG_LATE_ROUNDS_MAX = 64 };

/* Fills in defaults for absent fields (zero or empty), then checks every range. ERR_INPUT names the
 * field. */
err run_config_complete(Fedlora__V1__RunConfig *config);
/* The same for a run that is being created: an absent alpha becomes the method's default. A stored
 * run keeps the alpha that it was created with. */
err run_config_create(Fedlora__V1__RunConfig *config);

/* The method and its options, of a configuration that run_config_complete() has checked. */
const struct method *run_config_method(const Fedlora__V1__RunConfig *config);
void run_config_options(struct method_options *out, const Fedlora__V1__RunConfig *config);

/* How many rounds late an update may be and still count; 0: late updates are refused. */
uint32_t run_config_late_rounds(const Fedlora__V1__RunConfig *config);
/* Does a target name this module? A target is "q", "q_proj" or a full name; `module` is a full
 * name. Without targets every module is adapted. */
bool run_config_targets(const Fedlora__V1__RunConfig *config, const char *module);
/* The modules of the base that this run adapts, in a new message. ERR_INPUT: a name, a shape or
 * their number is wrong, or a target names no module. */
err run_config_modules(Fedlora__V1__HelloRequest **out, const Fedlora__V1__RunConfig *config,
                       const Fedlora__V1__HelloRequest *hello);
/* ERR_INPUT unless the member's base (`hello`) has all these modules, with the same shapes. The
 * text names the first that differs, in `whose` ("your") base. */
err run_config_same_modules(const Fedlora__V1__HelloRequest *modules,
                            const Fedlora__V1__HelloRequest *hello, const char *whose);
/* Equal for lists of the same names and shapes, in any order. */
err run_config_modules_digest(struct digest *out, const Fedlora__V1__HelloRequest *modules);

/* The rank of a member that offers `offered` (0: it takes any rank). ERR_INPUT: it cannot take
 * part. */
err run_config_rank(uint32_t *out, const Fedlora__V1__RunConfig *config, const char *member,
                    uint32_t offered);
/* alpha of the factors that a member (NULL: the state) trains at this rank:
 *
 *     factors start fresh each round    the member's alpha, else the run's, else 2 rank
 *     B R A                             rank, so that its scale is 1
 *     else, with the state's scale s    s rank, or s sqrt(rank) with rsLoRA; with frozen factors
 *                                       the state's rank takes the place of `rank` */
double run_config_alpha(const Fedlora__V1__RunConfig *config, const char *member, uint32_t rank);
/* The same, for a caller that knows run_config_rank_max(). */
double run_config_alpha_of(const Fedlora__V1__RunConfig *config, const char *member, uint32_t rank,
                           uint32_t rank_max);
bool run_config_rslora(const Fedlora__V1__RunConfig *config, const char *member);
/* Weight of a member's update by the rule of the run, before weight_cap. */
double run_config_weight(const Fedlora__V1__RunConfig *config, const char *member,
                         uint64_t examples);
/* Does this member adapt the module, which must be one of the run's? */
bool run_config_adapts(const Fedlora__V1__RunConfig *config, const char *member,
                       const char *module);
/* Does the configuration name modules for this member alone? */
bool run_config_own_targets(const Fedlora__V1__RunConfig *config, const char *member);
bool run_config_dropped(const Fedlora__V1__RunConfig *config, const char *member);
size_t run_config_left(const Fedlora__V1__RunConfig *config); /* members that are not dropped */
/* ERR_INPUT: a member's target names no module of the run. */
err run_config_own_modules(const Fedlora__V1__RunConfig *config,
                           const Fedlora__V1__HelloRequest *modules);
/* The largest rank that the run gives to a member; at least 1. */
uint32_t run_config_rank_max(const Fedlora__V1__RunConfig *config);

/* ---- for run_config*.c only */
bool run_config_target_is(const char *target, const char *module);

/* The digest of the packed configuration: it names the exact configuration of a round. */
err run_config_digest(struct digest *out, const Fedlora__V1__RunConfig *config);

#endif
