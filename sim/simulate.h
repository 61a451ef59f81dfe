/* A federation in one process and in virtual time: the deployed coordinator and the members' own
 * training, without a network. The results are the bytes that fedlorad and `fedlora join` give with
 * the same configuration, as long as nobody is late, for any number of workers, for any order of
 * arrival and with any number of coordinator crashes.
 *
 * Files in the folder:
 *
 *     store/          the coordinator's data folder, which fedlorad could serve
 *     ledger.key      and ledgers/: with privacy, see sim/federation_privacy.h
 *     rounds.jsonl    one line for each published round
 *     updates.csv     one line for each task that a member was handed
 *     flight          the tasks on their way when the newest round was published (sim/flight.h)
 *     run.ini         the configuration file that repeats it
 *     members.csv     the newest state on the rows that each member has held out, if any
 *     result.json     the end: the newest state, totals, processor and libraries
 *     report.html     all of it as a page, with charts (sim/page.h) */
#ifndef SIM_SIMULATE_H
#define SIM_SIMULATE_H

#include "fedlora.pb-c.h"
#include "sim/attack.h"
#include "sim/early.h"
#include "sim/fleet.h"
#include "sim/pool.h"
#include "sim/spectrum.h"

struct simulate_round { /* one published round */
    uint32_t round, rounds;
    uint64_t virtual_ms;                 /* its end */
    size_t updates, late, lost, dropped; /* see enum results_fate */
    double train_loss;                   /* NaN: not known */
    double loss, accuracy;               /* on the test set; loss NaN: not evaluated; accuracy < 0:
                                            no row has a completion */
    double epsilon;                      /* spent since the start; NaN: no privacy */
    uint64_t bytes_up, bytes_down;       /* since the start */
    double joules;                       /* since the start, of all tasks */
    double seconds;                      /* of real time since the start of this process */
    double combine_s;                    /* of real time for combining this round */
    double error, cut; /* of the published change in parts of the exact one: all of it, and what
                          recompression cut off; NaN: not known */
    struct digest state;
};
struct simulate_options {
    const char *dir;
    const Fedlora__V1__RunConfig *config; /* without base_digest and the fleet's members */
    const char *settings; /* a JSON object that describes the simulation, for the report */
    const char *ini;      /* the configuration file that repeats it; NULL: none */
    struct pool_options pool;
    bool checkpoint;        /* recompute activations */
    int64_t evaluate_every; /* the test set every N-th round and after the last; 0: never */
    int64_t check_rows;     /* of the test set before the last round; 0: all */
    double crash;           /* probability of a coordinator crash after an update */
    uint64_t seed;          /* of the crashes */
    struct attack attack;   /* faulty members */
    struct early early;     /* when it ends before its last round */
    void (*on_start)(void *user, uint64_t virtual_ms, uint32_t published);
    void (*on_update)(void *user, size_t done, size_t tasks, const struct simulate_round *now);
    void (*on_round)(void *user, const struct simulate_round *round);
    void *user;
};
struct simulate_result {
    struct digest state;
    char state_path[LIMIT_PATH_BYTES];
    struct simulate_round last;
    uint64_t crashes;
    struct spectrum spectrum;     /* of the newest state */
    size_t shared;                /* tasks of this call that were trained in passes with others */
    char stopped[ERR_TEXT_BYTES]; /* why the run ended before its last round, or "" */
};

/* ERR_STOPPED: interrupted; the next call goes on. ERR_STATE: a round can never close. */
err simulate_run(struct simulate_result *out, const struct fleet *fleet,
                 const struct simulate_options *o);

#endif
