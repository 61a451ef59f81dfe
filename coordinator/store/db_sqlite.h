/* For code that needs SQLite itself: online backups, vacuum. */
#ifndef COORDINATOR_DB_SQLITE_H
#define COORDINATOR_DB_SQLITE_H

#include "coordinator/store/db.h"

#include <sqlite3.h>

sqlite3 *db_sqlite_handle(const struct db *db); /* NULL: the database is no SQLite file */

#endif
