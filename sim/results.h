/* The files with the results of a simulation: see sim/simulate.h. */
#ifndef SIM_RESULTS_H
#define SIM_RESULTS_H

#include "base/arena.h"
#include "sim/simulate.h"

#include <stdio.h>

/* The fate of a task. */
enum results_fate {
    RESULTS_COUNTED, /* its update counts in its round */
    RESULTS_LATE,    /* its update counts in a later round */
    RESULTS_REFUSED, /* the coordinator refused its contents */
    RESULTS_LOST,    /* it ended after its round had closed */
    RESULTS_DROPPED, /* it never ended */
    RESULTS_FATES,
};
extern const char *const results_fates[RESULTS_FATES];

struct results {
    FILE *rounds, *updates;
    char dir[LIMIT_PATH_BYTES];
    /* Set by the caller: whether the coordinator has an update of this member for the round after
     * `published`. */
    bool (*holds)(void *context, const char *member);
    void *context;
    uint32_t published;
    struct simulate_round kept; /* counts of those updates */
};

/* Opens the files for appending, after cutting off what is about rounds that are not published,
 * because an interrupted round is simulated again, but for updates that the coordinator holds.
 * *last: the last line of rounds.jsonl, or unchanged. */
err results_open(struct results *r, const char *dir, uint32_t published,
                 struct simulate_round *last);
void results_close(struct results *r); /* accepts a zeroed struct */
err results_round(struct results *r, const struct simulate_round *round);

struct results_update {
    const char *member;
    uint32_t round, rank;
    size_t examples;
    uint64_t from_ms, at_ms;
    enum results_fate fate;
    double loss; /* NaN: not trained */
    uint64_t bytes;
    double joules;
    const char *attack; /* of this member, or "" */
};
err results_update(struct results *r, const struct results_update *u);
/* The rounds of a folder, from rounds.jsonl, in the arena. ERR_INPUT: it is no such folder. */
err results_read(struct simulate_round **out, size_t *count, const char *dir, struct arena *arena);
/* Writes result.json. */
err results_end(struct results *r, const struct simulate_result *result,
                const Fedlora__V1__RunConfig *config);

#endif
