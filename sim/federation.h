/* The deployed coordinator in this process, under a virtual clock: the same run, store, admission
 * and combination as in fedlorad, called by functions instead of messages. */
#ifndef SIM_FEDERATION_H
#define SIM_FEDERATION_H

#include "base/lock.h"
#include "client/session/session_privacy.h"
#include "coordinator/run/run.h"
#include "sim/cost_files.h"
#include "sim/fleet.h"
#include "sim/pool.h"

struct federation {
    const struct fleet *fleet;
    struct config config; /* of the coordinator; only what a run reads */
    struct run_shop shop;
    struct lock lock; /* on the store: no other process simulates in it, or serves it */
    struct run *run;
    uint64_t now_ms; /* the virtual time; starts at 1 */
    bool loaded;     /* the run was found in the store */
    bool refused;    /* the last update handed in was refused; `refusal` says why */
    char refusal[ERR_TEXT_BYTES];
    struct training_options training;
    struct arena arena;
    char *const **adapts; /* (members) the modules that each one adapts, names in the arena */
    size_t *adapts_count;
    bool *has_frozen; /* (members) has fetched the frozen factors, which happens once */
    struct cost_files files;
    struct session_privacy *privacy; /* (members) unit example; else NULL */
};

/* A member's task, as the coordinator has handed it out. The files of a task are named by digests,
 * so it stays valid when the coordinator is started again. */
struct federation_task {
    size_t member;
    struct digest state, frozen;
    bool has_frozen;
    struct member_round round; /* without paths */
    uint64_t down_bytes, up_bytes;
};

/* Members keep files of their own between rounds. */
static inline bool federation_keeps(const struct federation *f)
{
    return f->run->method->keeps || f->training.keep_optimizer;
}
/* The states that the coordinator keeps. */
enum { FEDERATION_STATES = 2 };
/* The configuration that the run is created with: a copy on the heap that names the base and all
 * members of the fleet. */
err federation_config(Fedlora__V1__RunConfig **out, const struct fleet *fleet,
                      const Fedlora__V1__RunConfig *config);

/* ERR_INPUT: the coordinator would refuse to create this run. Called before a folder is made, so
 * that a refused simulation leaves nothing. Noise that is larger than the changes is only found
 * later, when the sizes of the factors are known. */
err federation_check(const struct fleet *fleet, const Fedlora__V1__RunConfig *config);

/* Opens the store in the folder `store` of `dir`, which is created, and the run in it: a new one
 * from `config` and the fleet's members, or the one that an earlier simulation left there. */
err federation_open(struct federation *out, const struct fleet *fleet, const char *dir,
                    const Fedlora__V1__RunConfig *config, size_t threads);
/* The members join, at the virtual time at which the newest round was published. */
err federation_start(struct federation *f, const char *dir, uint64_t now_ms);
void federation_close(struct federation *f);
/* As after kill -9: what is not in the store is gone, and the run continues from there. */
err federation_crash(struct federation *f);

/* True, and the task, if the member has a round to train that it was not handed yet. */
err federation_task(bool *has, struct federation_task *out, struct federation *f, size_t member);
/* Sets what a task borrows, when it was read from a file. */
void federation_adopt(struct federation_task *task, const struct federation *f);
/* A round that was interrupted is simulated again as a whole: federation_open() forgets the updates
 * that it had. Otherwise they count. */
bool federation_repeats(const struct federation *f);
/* The task's paths, in the buffers. */
struct federation_paths {
    char state[LIMIT_PATH_BYTES], frozen[LIMIT_PATH_BYTES], kept[LIMIT_PATH_BYTES],
        frozen_text[DIGEST_TEXT_BYTES];
};
void federation_paths(struct federation_paths *paths, struct member_round *round,
                      const struct federation *f, const struct federation_task *task);
/* The round that describes the newest state, for an evaluation. */
void federation_newest(struct federation_paths *paths, struct member_round *round,
                       const struct federation *f);
/* The same of one member, with the factors that it keeps, if the method lets members keep some. */
void federation_model(struct federation_paths *paths, struct member_round *round,
                      const struct federation *f, size_t member);
/* The path of the member's update before it is handed in. */
err federation_upload(char path[LIMIT_PATH_BYTES], const struct federation *f, size_t member,
                      uint32_t round);
/* Would an update that arrives now be accepted? Its digest does not matter for the answer. */
bool federation_accepts(const struct federation *f, size_t member, uint32_t round);
/* Hands in an update. ERR_STATE: it came too late. Sets f->refused if its contents are refused. */
err federation_submit(struct federation *f, const struct federation_task *task,
                      struct pool_task *done, uint64_t seconds);
/* The privacy spent by the published rounds: of the run, or of the member that has spent most. NaN:
 * the run has no privacy. */
err federation_spent(double *epsilon, struct federation *f);
/* The coordinator's figures of the newest round. Both errors are in parts of the norm of the exact
 * change; NaN: the coordinator has no report of the round. */
struct federation_figures {
    double error;     /* of the published change */
    double cut;       /* the part of it that recompression cut off */
    double combine_s; /* real time of combining, without the report */
};
err federation_figures(struct federation_figures *out, const struct federation *f);
/* Time passes until now_ms, with a tick if the run wants one. */
void federation_tick(struct federation *f, uint64_t now_ms);

#endif
