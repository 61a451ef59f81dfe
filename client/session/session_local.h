/* The base model, the data and the engine of a member. They are opened in the order that finds a
 * mistake soonest. Nothing here calls the coordinator. */
#ifndef CLIENT_SESSION_LOCAL_H
#define CLIENT_SESSION_LOCAL_H

#include "client/session/session.h"
#include "engine/engine.h"
#include "engine/member/member_evaluate.h"
#include "engine/tokens/data.h"

#include "fedlora.pb-c.h"
#include <jansson.h>

/* A zeroed struct is closed. */
struct session_local {
    const struct session_options *options;
    struct model model;
    struct digest base;                /* digest of the base model */
    char base_text[DIGEST_TEXT_BYTES]; /* the same, in hex */
    struct tokenizer *tokenizer;       /* NULL if the base has none */
    struct dataset data, held_out;     /* held_out: count 0 without --eval-data */
    struct engine *engine;             /* NULL until session_local_prepare() */
    struct engine_options made;        /* the options of the engine, */
    struct data_options read;          /* and those of the data, while there is an engine */
};

/* Opens the base, its digest, the tokenizer and the data, but not the engine. */
err session_local_open(struct session_local *out, const struct session_options *options);
/* Reads the data again with the run's options, and opens the engine, unless an earlier run has
 * opened one that serves this run too. With `private_examples` the precision is float32 unless the
 * run or the user names one. */
err session_local_prepare(struct session_local *local, const struct training_options *training,
                          bool private_examples);
void session_local_close(struct session_local *local);
/* The number of rows of training data that this member reports, which is its weight: the rows that
 * teach. With a ledger it is the number of all rows, because every row is a record there, and the
 * number of rows that teach would say more about them. */
uint64_t session_local_examples(const struct session_local *local);
/* The reports about the training data and the held-out rows as the run reads them: on standard
 * error unless the member is quiet, and as an object ("data", "eval_data"). NULL: no memory. */
json_t *session_local_report(const struct session_local *local, const char *run);
/* ERR_INPUT with the file if no row of the training data teaches. `run` NULL: none is known yet. */
err session_local_check(const struct session_local *local, const char *run);

/* Evaluates a state on the held-out rows. */
err session_local_evaluate(struct member_evaluation *out, struct session_local *local,
                           const struct member_round *round);

#endif
