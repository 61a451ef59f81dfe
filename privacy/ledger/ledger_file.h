/* A party's own ledger in a file: the privacy that its records have spent under unit `example`,
 * over all runs and all its own trainings. A release is appended and flushed to disk before the
 * trained result may leave, so a crash between the two counts too much, never too little. A last
 * line that a crash cut off is removed, because nothing left after it. One file for one set of
 * records; several processes may use it in turn, because it is locked while it is open.
 *
 *     ledger_file_open(&f, path, key, &terms);   creates it with these terms, or reads and locks it
 *     ledger_file_allows(&total, &f, &event);    before training
 *     ledger_file_plan(&f, &terms);              writes a line if the plan in force is another one
 *     ledger_file_charge(&f, &release);          before the result is written or sent
 *     ledger_file_close(&f);
 *
 * The budget is that of the first line; later plans cannot change it. */
#ifndef PRIVACY_LEDGER_FILE_H
#define PRIVACY_LEDGER_FILE_H

#include "privacy/ledger/ledger.h"
#include "privacy/ledger/spend.h"

enum { LEDGER_FILE_BYTES_MAX = 64 << 20 };

struct ledger_file {
    char path[LIMIT_PATH_BYTES];
    int fd; /* 0: not open */
    struct ledger_key key;
    struct ledger ledger;             /* its content at the time of opening */
    const struct ledger_terms *terms; /* in force */
    struct ledger_head head;
    struct spend spend;
    bool unsure; /* a write failed, so the file may end in a part of a line: open it again */
};

/* ERR_INPUT: the file is no ledger, or has another key or unit. ERR_LIMIT: another process has held
 * the lock for ten seconds. */
err ledger_file_open(struct ledger_file *out, const char *path, const char *key_path,
                     const struct ledger_terms *terms);
/* `terms` must outlive f. */
err ledger_file_plan(struct ledger_file *f, const struct ledger_terms *terms);
/* ERR_LIMIT if the budget does not allow it. */
err ledger_file_allows(struct spend_total *out, const struct ledger_file *f,
                       const struct account_event *event);
/* Fills in the release's epsilon, rdp and order. Durable on success. */
err ledger_file_charge(struct ledger_file *f, struct ledger_release *release);
void ledger_file_close(struct ledger_file *f);

#endif
