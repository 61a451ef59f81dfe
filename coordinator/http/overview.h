/* The page for browsers, and the same data as JSON: the coordinator, open runs, members, the newest
 * events and finished runs. The page needs no script and stays under OVERVIEW_BYTES_MAX with any
 * number of runs and members, because each list ends with the number of rows left out.
 *
 * Everybody who reaches the port can read it. So it has no figure of a single member but bytes and
 * times, no loss of a private run, and nothing that shows who was drawn by a secret draw. */
#ifndef COORDINATOR_OVERVIEW_H
#define COORDINATOR_OVERVIEW_H

#include "coordinator/http/facts.h"
#include "coordinator/store/store_recent.h"

enum {
    OVERVIEW_BYTES_MAX = 50000,
    OVERVIEW_RUNS = 40, /* open, with their history */
    OVERVIEW_OVER = 30, /* finished or stopped */
    OVERVIEW_MEMBERS = 1000,
    OVERVIEW_MEMBERS_PAGE = 80, /* of the page for browsers, which has no room for more */
    OVERVIEW_EVENTS = 50,
    OVERVIEW_ROUNDS = 40, /* of a run's history */
};

/* Gathered on the loop thread; texts live in the arena or in the runs. */
struct overview_run {
    const struct run *run;
    const char *waits; /* for what, as a sentence */
    struct store_recent_round round[OVERVIEW_ROUNDS];
    size_t rounds;
    bool hides_losses;
    double epsilon, budget; /* budget 0: no privacy */
};
struct overview_member {
    const char *id;
    const struct tally_member *bytes; /* NULL: none since the start */
    bool connected;
    uint64_t seen_ms;  /* wall clock; 0: never. In minutes if a draw is secret */
    int64_t ends_s;    /* of its certificate, since 1970; 0: not known */
    const char *doing; /* "training, step 3 of 40", or "" */
    const char *run;   /* in which it does that */
};
struct overview {
    const struct facts *facts;
    struct overview_run *open; /* (opens) in order of creation */
    size_t opens, opens_all;
    const struct run **over; /* (overs) the newest first */
    size_t overs, overs_all;
    struct overview_member *member; /* (members) those that are not connected first */
    size_t members, members_all;
    struct store_recent_event *event; /* (events) the newest first */
    size_t events;
    char **trouble; /* (troubles) of the coordinator and of all runs */
    size_t troubles;
};
err overview_gather(struct overview *out, const struct facts *facts, size_t members_max,
                    struct arena *arena);

err overview_json(struct bytes *out, const struct facts *facts);
err overview_html(struct bytes *out, const struct facts *facts);
/* The Content-Security-Policy of the page: its own style by its digest, nothing else. Any
 * thread. */
void overview_policy(char *out, size_t bytes);

#endif
