/* A run with client-level privacy, on the worker thread (publish.c): its ledger, its noisy mean,
 * its release. The mean is written as one update that replaces the members' updates, so
 * every method that averages trained factors can use it; everything after it is post-processing.
 *
 *     private_begin()          with the start state: checks the plan, starts the ledger
 *     private_open()           a round is closed: reads the ledger back, checks the budget
 *     private_noise_ahead()    while members train: draws the round's noise
 *     private_mean()           clips, sums and adds the noise; or uses the mean that a crash left
 *     private_release()        charges the release and makes the struct that store_publish() takes
 *     private_close()
 *
 * A noisy mean becomes a blob with a row before it is charged, and after a crash the same one is
 * used, so a round never has two draws of noise. */
#ifndef COORDINATOR_PRIVATE_H
#define COORDINATOR_PRIVATE_H

#include "agg/round/method_options.h"
#include "coordinator/store/store.h"
#include "privacy/ledger/plan.h"
#include "privacy/ledger/release.h"
#include "privacy/noise/cohort.h"

enum { PRIVATE_SAYS_BYTES = 1024 };

struct private_terms { /* of a run; everything it points to is in the owner's arena */
    bool on;
    struct plan plan;      /* without dim; units = members */
    const char *const *id; /* (units) member of each plan.weight, sorted */
    const char *run;
    uint32_t rounds;      /* of the run, including those that find a basis */
    const char *key_path; /* of the ledger's signing key */
};

struct private_round {
    const struct private_terms *terms;
    struct store_private was; /* the row of the round */
    struct ledger ledger;
    struct ledger_key key;
    struct spend spend;
    struct central central;
    struct bytes next_line; /* ledger lines after the release: a new plan, or the budget's end */
    double next_clip;       /* clip norm of the next round; 0: the plan's */
    uint32_t round;
};

struct private_what {
    const struct method *method;
    const struct method_options *options;
};
struct private_dims {
    uint64_t training; /* values trained in a round, the larger kind of round */
    uint64_t basis;    /* values sent in a pass that finds a basis; 0: there is none */
};
/* `state_path`: the start state or a later one. */
err private_measure(struct private_dims *out, const char *state_path,
                    const struct private_what *what);

/* Checks the plan with the state's dimensions, draws the seed from which all cohorts follow, makes
 * the ledger's first line and a description for the log. */
struct private_start {
    struct bytes line, says;
    struct cohort_seed seed; /* of the last round; the line commits to the seeds of all rounds */
    struct digest head;
};
err private_begin(struct private_start *out, const struct private_terms *terms,
                  const struct private_dims *dims);
void private_start_close(struct private_start *start);

err private_open(struct private_round *out, const struct private_terms *terms, struct store *store,
                 int64_t run, uint32_t round);
struct private_files {
    const char *state;               /* the state that the updates started from */
    const char *out;                 /* path of the noisy mean to write */
    const struct contribution *from; /* (count) the members' updates */
    size_t count;
    struct private_what what;
};
/* The round's noise alone, drawn while members still train, so that the time it takes does not
 * depend on the updates. The caller owns it: private_noise_ahead_close(). Does not use files->from
 * and files->out. */
err private_noise_ahead(struct central **out, const struct private_round *p,
                        const struct private_files *files);
void private_noise_ahead_close(struct central *noise); /* NULL is fine */
/* *made is false if a crash left a noisy mean of this round: use was.noisy. `noise` (or NULL) is
 * used up if it was drawn for this round's parameters. */
err private_mean(bool *made, struct private_round *p, const struct private_files *files,
                 struct central *noise);
/* `stop`: "", or why no further round may begin. Lines that follow the release in the ledger are in
 * p->next_line. */
err private_release(struct release **out, char stop[ERR_TEXT_BYTES], struct private_round *p,
                    const struct private_files *files, const struct digest *state);
void private_close(struct private_round *p);

/* Writes DATA/ledgers/NAME.jsonl, a copy of the ledger for auditors. Done after every round and at
 * every start, because a crash may come between the commit and the copy. */
err private_export(struct store *store, int64_t run, const char *name);

#endif
