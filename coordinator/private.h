/* A run with client-level privacy, on the worker thread (publish.c): its ledger, its noisy mean,
 * its release. The mean is written as one update that stands in place of the members', so every
 * method that averages what is trained takes it as it is: whatever follows is post-processing.
 *
 *     private_begin(&line, ...)    with the start state: the plan's last check, the ledger's start
 *     private_open(&p, ...)        a round is closed: ledger read back, budget asked
 *     private_ahead(&noise, &p, .) while members train: the round's noise
 *     private_mean(&made, &p, ...) clips, sums, adds the noise; or what a crash left
 *     private_release(&r, &p, ..)  charges it and makes what store_publish() takes
 *     private_close(&p)
 *
 * A noisy mean is a blob and a row before it is charged, and is taken again after a crash: never
 * two draws of one round. */
#ifndef COORDINATOR_PRIVATE_H
#define COORDINATOR_PRIVATE_H

#include "agg/method_options.h"
#include "coordinator/store.h"
#include "privacy/cohort.h"
#include "privacy/plan.h"
#include "privacy/release.h"

struct private_terms { /* of a run; all it points to is in the owner's arena */
    bool on;
    struct plan plan;      /* without dim; units = members */
    const char *const *id; /* (units) member of each plan.weight, sorted */
    const char *run;
    const char *key_path; /* of the ledger's signing key */
};

struct private_round {
    const struct private_terms *terms;
    struct store_private was; /* the row of the round */
    struct ledger ledger;
    struct ledger_key key;
    struct spend spend;
    struct central central;
    struct bytes stop_line; /* of the ledger, where the budget ends with this round */
    uint32_t round;
};

/* The coordinates that this state's round trains; 0 where it trains none, or cannot be read. */
uint64_t private_dim(const char *state_path, const struct method *method,
                     const struct method_options *options, uint32_t round);

/* Checks the plan with the state's coordinates; the ledger's first line, and words for the log. */
err private_begin(struct bytes *line, struct bytes *says, const struct private_terms *terms,
                  uint64_t dim);

err private_open(struct private_round *out, const struct private_terms *terms, struct store *store,
                 int64_t run, uint32_t round);
struct private_files {
    const char *state;               /* what the updates started from */
    const char *out;                 /* where the noisy mean goes */
    const struct contribution *from; /* (count) the members' updates */
    size_t count;
    const struct method *method;
    const struct method_options *options;
};
/* The round's noise alone, drawn while members still train, so that the time it takes tells
 * nothing. Owned by the caller: private_ahead_close(). files->from and out are not used. */
err private_ahead(struct central **out, const struct private_round *p,
                  const struct private_files *files);
void private_ahead_close(struct central *ahead); /* NULL is taken */
/* *made is false where a crash left one: take was.noisy. `ahead` (or NULL) is used up when it is of
 * this very round. */
err private_mean(bool *made, struct private_round *p, const struct private_files *files,
                 struct central *ahead);
/* `stop`: "" or why no further round may begin. */
err private_release(struct release **out, char stop[ERR_TEXT_BYTES], struct private_round *p,
                    const struct digest *state);
void private_close(struct private_round *p);

/* DATA/ledgers/NAME.jsonl: a copy of the ledger for auditors, made again after every round and at
 * every start. */
err private_export(struct store *store, int64_t run, const char *name);

#endif
