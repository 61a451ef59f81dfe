/* The simulated members: one base model, one data set whose rows are dealt to them, their ranks and
 * their machines. */
#ifndef SIM_FLEET_H
#define SIM_FLEET_H

#include "base/digest.h"
#include "base/training_options.h"
#include "engine/model/model.h"
#include "engine/tokens/data.h"
#include "sim/deal.h"
#include "sim/device.h"

struct fleet_options {
    const char *base;
    /* JSON Lines. A folder has one file for each member, whose name is the member's, as in a
     * deployed federation; the rows of one file are dealt by `split`. */
    const char *train;
    const char *test;     /* held-out rows; NULL: none */
    const char *frozen;   /* frozen factors that are given to the run; NULL: none */
    const char *by;       /* the field with the label of a row; NULL: no labels */
    const char *template; /* chat template: a built-in name or a file; NULL: the base's own */
    struct deal_options split;
    const uint32_t *rank; /* (ranks) offered by the members in turn; 0: the rank of the run */
    size_t ranks;
    struct devices devices;
    uint32_t seq;
    bool eos, bos;
    bool split_rows; /* tokenise prompt and completion each on its own */
    /* Only to plan: the base may be a config.json alone (model_open_shapes()), and without `train`
     * the members have no rows. */
    bool shapes;
    /* An open fleet of the same base, rows and options of reading them, whose model and rows are
     * borrowed; it must stay open. NULL: they are read. */
    const struct fleet *from;
    double held_out; /* part of each member's rows that it does not train on; 0: none */
};

struct fleet_member {
    char id[LIMIT_NAME_BYTES];
    uint32_t rank;
    uint32_t device;         /* its class */
    struct dataset data;     /* its rows; it owns only the array `row` */
    struct dataset held_out; /* its other rows, at random; count 0: none */
};
struct fleet {
    bool borrows; /* model, tokenizer, test and file belong to another fleet */
    struct model model;
    struct digest base;
    char base_text[DIGEST_TEXT_BYTES];
    struct tokenizer *tokenizer; /* NULL if the base has none */
    struct dataset test;         /* count 0: none */
    struct dataset *file;        /* (files) the rows of all members */
    size_t files;
    size_t members;
    struct fleet_member *member; /* in ascending order of their ids */
    struct devices devices;
    const char *frozen; /* as in the options, which it borrows */
    struct arena arena;
    const char *histogram; /* of the split: text to print; "" without labels */
    err untrainable;       /* with `shapes`: why the base cannot be trained, or no error */
};

/* Tokens that one round of training reads from rows of this data. The rows are drawn evenly, so
 * their mean length counts. With `sampling` above 0 a step reads that part of them on average. */
uint64_t fleet_task_tokens(const struct training_options *t, double sampling, uint64_t rows,
                           uint64_t tokens);

err fleet_open(struct fleet *out, const struct fleet_options *o);
void fleet_close(struct fleet *f); /* accepts a zeroed struct */
/* Writes DIR/ID.jsonl for each member: the lines of the data file that it got. */
err fleet_write(const struct fleet *f, const struct fleet_options *o, const char *dir);

#endif
