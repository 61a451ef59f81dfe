/* A party's own ledger in a file: what its records have released under unit `example`, in every run
 * and every training of its own. A release is appended and flushed to disk before what it describes
 * may leave, so a crash between the two counts too much, never too little. A last line that a crash
 * cut off was never acted on, and goes. One file for one set of records; several processes may use
 * it, each for a moment: it is locked while it is open.
 *
 *     ledger_file_open(&f, path, key, &terms);   begins it with these terms, or reads and locks it
 *     ledger_file_allows(&total, &f, &event);    before training
 *     ledger_file_plan(&f, &terms);              a line, where the plan in force is another one
 *     ledger_file_charge(&f, &release);          before what was trained is written or sent
 *     ledger_file_close(&f);
 *
 * The budget is the first line's, whatever later plans keep to by themselves. */
#ifndef PRIVACY_LEDGER_FILE_H
#define PRIVACY_LEDGER_FILE_H

#include "privacy/ledger/ledger.h"
#include "privacy/ledger/spend.h"

enum { LEDGER_FILE_BYTES_MAX = 64 << 20 };

struct ledger_file {
    char path[LIMIT_PATH_BYTES];
    int fd; /* 0: not open */
    struct ledger_key key;
    struct ledger ledger;             /* as it was when it was opened */
    const struct ledger_terms *terms; /* in force */
    struct ledger_head head;
    struct spend spend;
    bool unsure; /* a write failed: how much of the line is there, opening it again tells */
};

/* ERR_INPUT: a file that is no ledger, another key's, or of another unit; ERR_LIMIT: another
 * process has not let go of it for ten seconds. */
err ledger_file_open(struct ledger_file *out, const char *path, const char *key_path,
                     const struct ledger_terms *terms);
/* `terms` must stay. */
err ledger_file_plan(struct ledger_file *f, const struct ledger_terms *terms);
/* ERR_LIMIT when the budget does not allow it. */
err ledger_file_allows(struct spend_total *out, const struct ledger_file *f,
                       const struct account_event *event);
/* Fills in the release's epsilon, rdp and order. Durable on success. */
err ledger_file_charge(struct ledger_file *f, struct ledger_release *release);
void ledger_file_close(struct ledger_file *f);

#endif
