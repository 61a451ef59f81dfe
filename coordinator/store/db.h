/* SQLite with this project's errors: one connection, for one thread. WAL and synchronous=FULL, so
 * what db_commit() has returned for survives a power cut. Errors are ERR_MACHINE (ENOSPC where the
 * disk or the database is full), ERR_LIMIT when another connection holds the lock for too long.
 *
 * Parameters are given by a format of one letter each: i int64_t, d double, t text (NULL is NULL),
 * b blob (const void *, size_t), h const struct digest * (NULL is NULL). */
#ifndef COORDINATOR_DB_H
#define COORDINATOR_DB_H

#include "base/digest.h"
#include "base/err.h"
#include "base/limits.h"

#include <sqlite3.h>

struct db {
    sqlite3 *handle; /* NULL in a zeroed struct */
    char path[LIMIT_PATH_BYTES];
};

err db_open(struct db *out, const char *path);
void db_close(struct db *db);
err db_script(struct db *db, const char *sql); /* several statements, no parameters */
err db_run(struct db *db, const char *sql, const char *format, ...);
err db_begin(struct db *db); /* takes the write lock */
/* Commits when e is no error, else rolls back; returns e, or why it could not commit. */
err db_end(struct db *db, err e);

struct db_query {
    struct db *db;
    sqlite3_stmt *statement;
};
err db_query_open(struct db_query *out, struct db *db, const char *sql, const char *format, ...);
err db_query_next(bool *row, struct db_query *q);
void db_query_close(struct db_query *q);
int64_t db_query_int(const struct db_query *q, int column);
double db_query_num(const struct db_query *q, int column);
const char *db_query_text(const struct db_query *q,
                          int column); /* "" for NULL; until the next row */
bool db_query_digest(struct digest *out, const struct db_query *q, int column); /* false: none */
const void *db_query_blob(size_t *size, const struct db_query *q, int column);
/* The first column of the first row as an integer; *out keeps its value without a row. */
err db_number(int64_t *out, struct db *db, const char *sql, const char *format, ...);

#endif
