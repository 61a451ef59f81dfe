/* The sizes of a run's files before they exist: a member's update, a state, and frozen factors. The
 * virtual time of a simulation and the plan of one (sim/cost.h) both count with them.
 *
 * Sizes are exact, the header included, except for what the values decide: a carry that is
 * recompressed, and ranks that members prune. Those are upper bounds (cost_files.bound). */
#ifndef SIM_COST_FILES_H
#define SIM_COST_FILES_H

#include "agg/round/method_options.h"
#include "engine/member/member_adapter.h"

#include "fedlora.pb-c.h"

struct cost_size {
    uint64_t values, bytes;
};

enum { COST_FILES_KEPT = 16 };
struct cost_files {
    const Fedlora__V1__RunConfig *config; /* complete */
    const struct method *method;
    struct method_options options;
    struct method_module *module; /* (count) of the run, in the arena */
    size_t count;
    uint32_t rank;        /* of the state's own factors */
    uint32_t *given_rank; /* (count) of a given file of frozen factors; NULL: none is given */
    uint64_t given_bytes; /* of that file */
    bool bound;           /* sizes of states are upper bounds, because they hold a carry */
    const char *options_text, *modules_text;
    struct arena arena;
    struct cost_files_kept { /* update sizes that were computed before */
        char *const *adapts;
        uint32_t rank, round_digits;
        unsigned trains;
        size_t member_bytes;
        double alpha;
        bool gradient, rslora;
        struct cost_size size;
    } kept[COST_FILES_KEPT];
    size_t kept_count;
};

/* `modules`: those that the run adapts (run_config_modules()). The configuration must outlive f. */
err cost_files_open(struct cost_files *f, const Fedlora__V1__RunConfig *config,
                    const Fedlora__V1__HelloRequest *modules);
/* The frozen factors are those of this file, whose modules may have smaller ranks than the run. */
err cost_files_give(struct cost_files *f, const char *frozen_path);
void cost_files_close(struct cost_files *f); /* accepts a zeroed struct */

/* An update; of `round` the fields that task and member decide are read. */
err cost_files_update(struct cost_size *out, struct cost_files *f,
                      const struct member_round *round);
/* The state that this round trains from. `carried[i]`: the sum of the ranks that earlier rounds
 * have added to module i (cost_files_carry()). */
err cost_files_state(struct cost_size *out, struct cost_files *f, uint32_t round,
                     const uint64_t *carried);
/* Frozen factors, which a member fetches once, for the first round of training; 0: none. */
err cost_files_frozen(struct cost_size *out, struct cost_files *f);
/* The largest rank by which a round adds to the carry of a module, if members with these ranks in
 * total sent it. */
uint64_t cost_files_carry(const struct cost_files *f, uint64_t ranks, size_t members);

#endif
