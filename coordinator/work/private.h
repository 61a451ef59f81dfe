/* A run with client-level privacy, on the worker thread (publish.c): its ledger, its noisy mean,
 * its release. The mean is written as one update that stands in place of the members', so every
 * method that averages what is trained takes it as it is: whatever follows is post-processing.
 *
 *     private_begin(&line, ...)    with the start state: the plan's last check, the ledger's start
 *     private_open(&p, ...)        a round is closed: ledger read back, budget asked
 *     private_noise_ahead(&noise, &p, .) while members train: the round's noise
 *     private_mean(&made, &p, ...) clips, sums, adds the noise; or what a crash left
 *     private_release(&r, &p, ..)  charges it and makes what store_publish() takes
 *     private_close(&p)
 *
 * A noisy mean is a blob and a row before it is charged, and is taken again after a crash: never
 * two draws of one round. */
#ifndef COORDINATOR_PRIVATE_H
#define COORDINATOR_PRIVATE_H

#include "agg/round/method_options.h"
#include "coordinator/store/store.h"
#include "privacy/ledger/plan.h"
#include "privacy/ledger/release.h"
#include "privacy/noise/cohort.h"

enum { PRIVATE_SAYS_BYTES = 1024 };

struct private_terms { /* of a run; all it points to is in the owner's arena */
    bool on;
    struct plan plan;      /* without dim; units = members */
    const char *const *id; /* (units) member of each plan.weight, sorted */
    const char *run;
    uint32_t rounds;      /* of the run, passes for a basis among them */
    const char *key_path; /* of the ledger's signing key */
};

struct private_round {
    const struct private_terms *terms;
    struct store_private was; /* the row of the round */
    struct ledger ledger;
    struct ledger_key key;
    struct spend spend;
    struct central central;
    struct bytes next_line; /* of the ledger: a plan that begins, or the budget's end */
    double next_clip;       /* of the next round; 0: its plan's */
    uint32_t round;
};

struct private_what {
    const struct method *method;
    const struct method_options *options;
};
struct private_dims {
    uint64_t training, basis; /* values of the larger round of training; of a pass, 0: none */
};
/* Of a run whose state this is, the start state or a later one. */
err private_measure(struct private_dims *out, const char *state_path,
                    const struct private_what *what);

/* Checks the plan with the state's coordinates, draws the seed that all cohorts follow from, makes
 * the ledger's first line, and words for the log. */
struct private_start {
    struct bytes line, says;
    struct cohort_seed seed; /* of the last round; the line commits to all of them */
    struct digest head;
};
err private_begin(struct private_start *out, const struct private_terms *terms,
                  const struct private_dims *dims);
void private_start_close(struct private_start *start);

err private_open(struct private_round *out, const struct private_terms *terms, struct store *store,
                 int64_t run, uint32_t round);
struct private_files {
    const char *state;               /* what the updates started from */
    const char *out;                 /* where the noisy mean goes */
    const struct contribution *from; /* (count) the members' updates */
    size_t count;
    struct private_what what;
};
/* The round's noise alone, drawn while members still train, so that the time it takes tells
 * nothing. Owned by the caller: private_noise_ahead_close(). files->from and out are not used. */
err private_noise_ahead(struct central **out, const struct private_round *p,
                        const struct private_files *files);
void private_noise_ahead_close(struct central *noise); /* NULL is taken */
/* *made is false where a crash left one: take was.noisy. `noise` (or NULL) is used up when it is of
 * this very round. */
err private_mean(bool *made, struct private_round *p, const struct private_files *files,
                 struct central *noise);
/* `stop`: "" or why no further round may begin. What follows in the ledger is in p->next_line. */
err private_release(struct release **out, char stop[ERR_TEXT_BYTES], struct private_round *p,
                    const struct private_files *files, const struct digest *state);
void private_close(struct private_round *p);

/* DATA/ledgers/NAME.jsonl: a copy of the ledger for auditors, made again after every round and at
 * every start. */
err private_export(struct store *store, int64_t run, const char *name);

#endif
