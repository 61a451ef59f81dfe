/* SQLite with this project's errors: one connection, for one thread. WAL and, unless it is opened
 * without that care, synchronous=FULL, so a transaction survives a power cut once db_end() has
 * returned without error. Errors are ERR_MACHINE (ENOSPC if the disk or the database is full,
 * EUCLEAN if it is damaged), or ERR_LIMIT if another connection held the lock for too long.
 *
 * Parameters of a statement are given by a format of one letter each:
 *
 *     i    int64_t
 *     d    double
 *     t    const char *, a text; NULL is stored as NULL
 *     b    const void *, size_t: a blob
 *     h    const struct digest *; NULL is stored as NULL */
#ifndef COORDINATOR_DB_H
#define COORDINATOR_DB_H

#include "base/digest.h"
#include "base/err.h"
#include "base/limits.h"

#include <sqlite3.h>

enum { DB_KEPT = 8 };
struct db {
    sqlite3 *handle; /* NULL in a zeroed struct */
    char path[LIMIT_PATH_BYTES];
    /* The statements that db_run() has used last, because parsing one costs more than running it.
     * sqlite3_sql() is their text. */
    sqlite3_stmt *kept[DB_KEPT];
    unsigned next; /* of kept: the place of the next new one */
};

/* A commit without flush survives the end of the process, but not a power cut. */
enum db_care { DB_FLUSHED, DB_UNFLUSHED };
err db_open(struct db *out, const char *path, enum db_care care);
/* A database that nobody writes to, for example in a backup: nothing is created, not even beside
 * it. */
err db_open_still(struct db *out, const char *path);
void db_close(struct db *db);
/* Writes all that is committed now to a new file, flushed, while other connections go on. The file
 * must not exist. */
err db_copy(struct db *db, const char *path);
/* Reads everything and compares each index with its table. *problem is "" or says what is
 * damaged. */
enum { DB_PROBLEM_BYTES = 200 };
err db_check(char problem[DB_PROBLEM_BYTES], struct db *db);
err db_script(struct db *db, const char *sql); /* several statements, without parameters */
err db_run(struct db *db, const char *sql, const char *format, ...);
err db_begin(struct db *db); /* takes the write lock */
/* Commits if e is no error, else rolls back. Returns e, or the reason why the commit failed. */
err db_end(struct db *db, err e);

/* Empties the log of committed pages, which otherwise keeps up to 4 MB, as far as other connections
 * allow it now. */
void db_give_room(struct db *db);

struct db_query {
    struct db *db;
    sqlite3_stmt *statement;
};
err db_query_open(struct db_query *out, struct db *db, const char *sql, const char *format, ...);
err db_query_next(bool *row, struct db_query *q);
void db_query_close(struct db_query *q);
int64_t db_query_int(const struct db_query *q, int column);
double db_query_num(const struct db_query *q, int column);
/* "" for NULL. Valid until the next row. */
const char *db_query_text(const struct db_query *q, int column);
bool db_query_digest(struct digest *out, const struct db_query *q, int column); /* false: none */
const void *db_query_blob(size_t *size, const struct db_query *q, int column);
/* The first column of the first row, as an integer. Without a row *out keeps its value. */
err db_number(int64_t *out, struct db *db, const char *sql, const char *format, ...);

#endif
