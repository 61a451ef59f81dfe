/* The cost of a run before it is trained: values, bytes, tokens, virtual time, disk, memory and
 * epsilon. Nothing is trained and no weights are read, so the base may be a config.json alone
 * (fleet_options.shapes).
 *
 * All rules are those of the coordinator and of the simulation: sizes are those of cost_files.h,
 * times those of device.h, and the noise is what the coordinator would choose. Bytes and times of a
 * run equal those that a simulation of it reports, except that
 *
 *     - a carry is at most as large as stated, because recompression depends on its values;
 *     - members drawn by chance are secret, so figures of such runs are mean values;
 *     - runs of very many rounds are computed in part and continued in proportion. */
#ifndef SIM_COST_H
#define SIM_COST_H

#include "sim/attack.h"
#include "sim/cost_files.h"
#include "sim/fleet.h"

struct cost_options {
    const struct fleet *fleet;
    const Fedlora__V1__RunConfig *config; /* as in simulate_options */
    const char *method;                   /* takes the place of the configuration's */
    enum dtype precision;                 /* as in engine_options */
    bool checkpoint;
    const struct attack *attack; /* as in simulate_options; NULL: none. Clients that vanish count,
                                    and the contents of updates do not */
};
struct cost_range {
    uint64_t least, most; /* over the clients */
};
struct cost {
    const char *method;
    struct cost_range trained; /* values that a client trains in the round that trains most */
    struct cost_range up;      /* bytes of its update in that round */
    uint64_t sent;             /* values that all clients together send in that round */
    struct cost_size first;    /* the state of the first round, */
    struct cost_size last;     /* of the last round, */
    struct cost_size result;   /* and after it */
    struct cost_size frozen;   /* fetched once; 0: none */
    bool bound;                /* states are at most so large */

    uint32_t rounds;   /* at most those of the configuration: a budget may end a run earlier */
    double clients;    /* in a round, on average */
    uint64_t up_total; /* bytes, all clients and rounds */
    uint64_t down_total;
    uint64_t tokens;         /* that count in a round */
    uint64_t lost;           /* tasks whose result counts nowhere */
    uint64_t p50_ms, p95_ms; /* of a task, over clients and rounds */
    uint64_t virtual_ms;     /* end of the last round; 0: a round can never close */

    uint64_t spool_bytes;                 /* updates of a round */
    uint64_t store_bytes;                 /* states that are kept, and frozen factors */
    uint64_t weights_bytes, memory_bytes; /* packed weights; most that a client takes */
    struct cost_class {
        size_t members, over; /* clients; those that need more memory than they have */
        uint64_t need;        /* most bytes that one of them takes */
    } class[DEVICE_CLASSES];  /* as fleet->devices */

    bool private_client, private_example;
    double epsilon, delta, budget;
    struct cost_noise {
        double least, most; /* multipliers; differ between members with unit example */
    } noise;
    double ratio; /* of the noise in the mean to the clip norm; unit client */
};
/* ERR_INPUT: the coordinator would refuse the run, with its reason. ERR_LIMIT: larger than can be
 * counted. */
err cost_make(struct cost *out, const struct cost_options *o);

#endif
