/* A party's own ledger in a file: what its training has released under unit `example`. A release is
 * appended and flushed to disk before what it describes may leave, so a crash between the two
 * counts too much, never too little. A last line that a crash cut off was never acted on, and goes.
 * One owner; one file a training plan.
 *
 *     ledger_file_open(&f, path, key, &terms);   begins it, or goes on with one of the same terms
 *     ledger_file_allows(&total, &f, &event);    before training
 *     ledger_file_charge(&f, &release);          after it, before anything is written or sent */
#ifndef PRIVACY_LEDGER_FILE_H
#define PRIVACY_LEDGER_FILE_H

#include "privacy/ledger.h"
#include "privacy/spend.h"

struct ledger_file {
    char path[LIMIT_PATH_BYTES];
    struct ledger_key key;
    struct ledger_head head;
    struct spend spend;
    bool unsure; /* a write failed: how much of the line is there, opening it again tells */
};

/* ERR_INPUT: a file that is no ledger, another key's, or of other terms. */
err ledger_file_open(struct ledger_file *out, const char *path, const char *key_path,
                     const struct ledger_terms *terms);
/* ERR_LIMIT when the budget does not allow it. */
err ledger_file_allows(struct spend_total *out, const struct ledger_file *f,
                       const struct account_event *event);
/* Fills in the release's epsilon, rdp and order. Durable on success. */
err ledger_file_charge(struct ledger_file *f, struct ledger_release *release);
void ledger_file_close(struct ledger_file *f);

#endif
