/* A look at SQLite's write-ahead log before the database is opened. SQLite takes the first frame
 * with a wrong checksum for the end of the log, as after a crash, so one flipped bit would silently
 * undo every commit from there on, receipts and published rounds included. A crash can leave such a
 * frame only in the last commit; if whole commits follow, the file was damaged. Pure but for the
 * file. */
#ifndef COORDINATOR_WAL_H
#define COORDINATOR_WAL_H

#include "base/err.h"

/* DATA/fedlora.db-wal. ERR_INPUT: it is damaged, or its database is not there. An absent or empty
 * file is good. Before the first connection to the database. */
err wal_check(const char *data_dir);

#endif
